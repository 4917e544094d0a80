"""Which bucket a user belongs to, for ever: a hash of the identifier's bytes that does not change with libraries or machines."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.data.flat import whole

PRIME = 0x100000001B3


def part_name(bucket: int) -> str:
    """Bucket 3 → 'bucket-00003', the name of its part in every per-user artifact."""
    return f"bucket-{bucket:05d}"


def bucket_of(part: str) -> int:
    """The inverse of `part_name`."""
    return int(part.removeprefix("bucket-"))


def buckets_of(user_ids: pa.Array | pa.ChunkedArray, num_buckets: int) -> np.ndarray:
    """[N] user ids → [N] int32 buckets. Each distinct identifier is hashed once."""
    coded = whole(user_ids).cast(pa.string()).dictionary_encode()
    buckets = (_hash(coded.dictionary) % np.uint64(num_buckets)).astype(np.int32)
    return buckets[coded.indices.to_numpy()]


def _hash(texts: pa.Array) -> np.ndarray:
    """[N] strings → [N] uint64: Σ byte·PRIME^place modulo 2^64, then mixed so that the low bits are usable."""
    lengths = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    if lengths.size == 0:
        return np.zeros(0, np.uint64)
    _, _, data = texts.buffers()
    begin = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset]
    byte = np.frombuffer(data, np.uint8)[begin : begin + lengths.sum()] if data is not None else np.zeros(0, np.uint8)
    powers = np.full(int(lengths.max()) + 1, PRIME, np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers, dtype=np.uint64)
    first = np.cumsum(lengths) - lengths
    place = np.arange(len(byte)) - np.repeat(first, lengths)
    sums = np.concatenate([[np.uint64(0)], np.cumsum((byte.astype(np.uint64) + np.uint64(1)) * powers[place], dtype=np.uint64)])
    mixed = (sums[first + lengths] - sums[first]) ^ lengths.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
