from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import HISTORY
from intently.data.chunking import OVER_BUDGET, TOO_OLD, UNFINISHED, ChunkConfig, Chunker, build_chunks
from intently.data.decompression import decompress
from intently.data.tokens import TokenCounter
from tokenizers import Tokenizer, models, pre_tokenizers

DAYS = [f"2024-05-{day:02d}" for day in range(1, 31)]


@pytest.fixture
def items(make_items: Callable[..., pa.Table]) -> pa.Table:
    return make_items(**{f"i{number}": f"thing number {number}" for number in range(40)})


def chunk_ids(chunks: pa.Table) -> list[tuple[str, int, list[str]]]:
    return [(row["user_id"], row["chunk"], row["event_ids"]) for row in chunks.select(["user_id", "chunk", "event_ids"]).to_pylist()]


def test_chunks_by_count_hold_reliable_events_in_order_and_no_user_shares_one(
    make_history: Callable[..., pa.Table], items: pa.Table
) -> None:
    history = make_history(
        a=["2024-05-01 cart i1", "2024-05-01 click i2", "2024-05-02 cart i3", "2024-05-03 search - tent", "2024-05-09 cart i1"],
        nobody=["2024-05-01 click i1"],
        b=["2024-05-01 rating i1 5"],
    )
    chunks = build_chunks(history, items, ChunkConfig(num_events=2))
    assert chunk_ids(chunks) == [("a", 0, ["e0", "e2"]), ("a", 1, ["e3", "e4"]), ("b", 0, ["e0"])]
    first, second, _ = chunks.to_pylist()
    assert first["text"] == "2024-05-01 (cart) | thing number 1\n2024-05-02 (cart) | thing number 3"
    assert (second["start"], second["end"]) == (datetime(2024, 5, 3, tzinfo=UTC), datetime(2024, 5, 9, tzinfo=UTC))
    assert second["item_ids"] == [None, "i1"]
    # 2024 - 05 - 03 ( search " tent " ): 11 signs and words; 2024 - 05 - 09 ( cart ) | thing number 1: 12.
    assert second["num_tokens"] == 23


def test_chunks_of_a_history_that_grows_stay_as_they_were(make_history: Callable[..., pa.Table], items: pa.Table) -> None:
    log = [f"{day} cart i{number}" for number, day in enumerate(DAYS)]
    short = build_chunks(make_history(u=log[:25]), items, ChunkConfig(num_events=10))
    long = build_chunks(make_history(u=[*log, "2027-01-01 cart i1"]), items, ChunkConfig(num_events=10))
    assert short.slice(0, 2).equals(long.slice(0, 2))


def test_chunks_by_month_end_with_the_month_and_after_the_count(make_history: Callable[..., pa.Table], items: pa.Table) -> None:
    history = make_history(u=["2024-04-29 cart i1", "2024-05-01 cart i2", "2024-05-02 cart i3", "2024-05-31 cart i4", "2025-05-31 cart i5"])
    chunks = build_chunks(history, items, ChunkConfig(by="month", num_events=2))
    assert [ids for _, _, ids in chunk_ids(chunks)] == [["e0"], ["e1", "e2"], ["e3"], ["e4"]]


def test_chunks_by_tokens_keep_every_event_within_the_budget(make_history: Callable[..., pa.Table], items: pa.Table) -> None:
    log = [f"{day} cart i{number}" for number, day in enumerate(DAYS)]
    chunked = Chunker(items, ChunkConfig(by="tokens", max_tokens=60)).chunk(make_history(u=log, v=log[:3]))
    assert chunked.dropped == {}
    assert max(chunked.chunks["num_tokens"].to_pylist()) <= 60
    kept = [event for user, _, ids in chunk_ids(chunked.chunks) for event in ids if user == "u"]
    assert kept == [f"e{number}" for number in range(30)]
    assert 8 <= chunked.chunks.num_rows <= 11


def test_chunk_over_its_budget_keeps_strong_and_recent_behaviours_and_is_reported(
    make_history: Callable[..., pa.Table], items: pa.Table
) -> None:
    log = [f"{day} {'purchase' if number == 3 else 'detail_view'} i{number}" for number, day in enumerate(DAYS)]
    chunked = Chunker(items, ChunkConfig(max_tokens=100)).chunk(make_history(u=log, v=log[:2]))
    kept = chunked.chunks["event_ids"][0].as_py()
    assert chunked.chunks["num_tokens"][0].as_py() <= 100
    assert kept[0] == "e3", "the purchase is old but strong"
    assert kept[1:] == [f"e{number}" for number in range(31 - len(kept), 30)], "of the others the newest stay"
    assert chunked.dropped == {OVER_BUDGET: 30 - len(kept)}
    assert chunked.trimmed_users == ["u"]
    assert {behaved.item for behaved in decompress(chunked.chunks["text"][0].as_py())} == {f"thing number {event[1:]}" for event in kept}


def test_chunk_that_cannot_fit_at_all_is_left_out_and_the_others_keep_their_order(
    make_history: Callable[..., pa.Table], items: pa.Table
) -> None:
    history = make_history(u=["2024-05-01 search - " + "very " * 40, "2024-05-02 cart i1", "2024-05-03 cart i2"])
    chunked = Chunker(items, ChunkConfig(num_events=1, max_tokens=30)).chunk(history)
    assert chunk_ids(chunked.chunks) == [("u", 0, ["e1"]), ("u", 1, ["e2"])]
    assert chunked.dropped == {OVER_BUDGET: 1}


def test_only_the_newest_chunks_are_kept_when_so_configured(make_history: Callable[..., pa.Table], items: pa.Table) -> None:
    log = [f"{day} cart i{number}" for number, day in enumerate(DAYS)]
    chunked = Chunker(items, ChunkConfig(num_events=4, max_chunks=2)).chunk(make_history(u=log, v=log[:4]))
    assert chunk_ids(chunked.chunks) == [
        ("u", 0, ["e24", "e25", "e26", "e27"]),
        ("u", 1, ["e28", "e29"]),
        ("v", 0, ["e0", "e1", "e2", "e3"]),
    ]
    assert (chunked.dropped, chunked.trimmed_users) == ({TOO_OLD: 24}, ["u"])


def test_last_chunk_waits_until_it_is_full_when_so_configured(make_history: Callable[..., pa.Table], items: pa.Table) -> None:
    log = [f"{day} cart i{number}" for number, day in enumerate(DAYS[:5])]
    chunked = Chunker(items, ChunkConfig(num_events=2, min_events=2)).chunk(make_history(u=log, v=log[:1], w=log[:4]))
    assert chunk_ids(chunked.chunks) == [("u", 0, ["e0", "e1"]), ("u", 1, ["e2", "e3"]), ("w", 0, ["e0", "e1"]), ("w", 1, ["e2", "e3"])]
    assert chunked.dropped == {UNFINISHED: 2} and chunked.trimmed_users == []


def test_chunks_of_nothing_are_none(items: pa.Table, make_history: Callable[..., pa.Table]) -> None:
    for by in ("count", "month", "tokens"):
        config = ChunkConfig(by=by, max_tokens=100)
        assert build_chunks(HISTORY.empty(), items, config).num_rows == 0
        assert build_chunks(make_history(u=[]), items, config).num_rows == 0


def test_one_user_with_a_hundred_thousand_events_is_chunked_without_loss(items: pa.Table) -> None:
    number = 100_000
    columns = {
        "event_ids": [f"e{place}" for place in range(number)],
        "item_ids": [f"i{place % 40}" for place in range(number)],
        "behaviours": ["cart", "purchase"] * (number // 2),
        "timestamps": [datetime.fromtimestamp(10**9 + 600 * place, UTC) for place in range(number)],
    }
    nothing = {name: [None] * number for name in ("values", "queries", "dwell_s")}
    history = HISTORY.from_rows([{"user_id": "u", "bucket": 0, **columns, **nothing}])
    chunks = build_chunks(history, items, ChunkConfig())
    assert chunks.num_rows == 2000
    assert chunks["event_ids"].combine_chunks().flatten().to_pylist() == columns["event_ids"]
    assert all(before <= after for before, after in pairwise(chunks["start"].to_pylist()))


def test_token_counter_counts_with_the_tokenizer_it_is_given(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"red": 0, "boots": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    texts = ["red boots, red!", "", "ein Wort"]
    assert TokenCounter(str(path)).count(texts).tolist() == [3, 0, 2]
    assert TokenCounter(None).count(texts).tolist() == [5, 0, 2]


def test_token_counter_without_its_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer = .*nowhere\.json"):
        TokenCounter(str(tmp_path / "nowhere.json"))


def test_chunking_by_tokens_without_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs max_tokens"):
        ChunkConfig.load(None, ["by=tokens"])
