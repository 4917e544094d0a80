from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.data.buckets import bucket_of, buckets_of, part_name

MASK = 2**64 - 1


def reference(text: str, num_buckets: int) -> int:
    """The same hash, byte by byte."""
    data = text.encode()
    mixed = sum((byte + 1) * pow(0x100000001B3, place, 2**64) for place, byte in enumerate(data)) & MASK
    mixed ^= len(data)
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
    return (mixed ^ (mixed >> 31)) % num_buckets


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=20), st.integers(1, 99))
def test_buckets_are_those_of_the_byte_by_byte_reference(user_ids: list[str], num_buckets: int) -> None:
    expected = [reference(user_id, num_buckets) for user_id in user_ids]
    assert buckets_of(pa.array(user_ids, pa.string()), num_buckets).tolist() == expected
    sliced = pa.chunked_array([pa.array(["before", *user_ids], pa.string()).slice(1), pa.array(["after"])])
    assert buckets_of(sliced, num_buckets).tolist() == [*expected, reference("after", num_buckets)]


def test_buckets_never_change_since_tables_on_disk_rest_on_them() -> None:
    assert buckets_of(pa.array(["u00000", "u00001", "42", ""]), 1000).tolist() == [802, 783, 297, 0]


def test_buckets_of_counted_identifiers_are_even() -> None:
    counts = np.bincount(buckets_of(pa.array([f"u{number:05d}" for number in range(20_000)]), 16), minlength=16)
    assert counts.min() > 1250 * 0.88
    assert counts.max() < 1250 * 1.12


def test_part_names_sort_by_bucket_and_are_read_back() -> None:
    assert part_name(3) == "bucket-00003"
    assert [bucket_of(part_name(bucket)) for bucket in (0, 12, 99_999)] == [0, 12, 99_999]
