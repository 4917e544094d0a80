from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.core.schema import HISTORY, Behaviour
from intently.data.compression import CompressionConfig, compress
from intently.data.decompression import Behaved, decompress

NAMES = pl.DataFrame({"item_id": ["i1", "i2", "i3"], "name": ["red boots", "blue tent", "Tins, Tiny (1988)"]})
ITEMS, ITEM_SETS = CompressionConfig(aggregation="items"), CompressionConfig(aggregation="item_sets")


def test_compress_by_items_writes_each_item_once(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(
        u=[
            "2022-03-04 detail_view i1",
            "2024-04-01 detail_view i1",
            "2024-04-01 detail_view i2",
            "2024-04-20 cart i2",
            "2024-04-20 cart i1",
            "2024-05-02 purchase i1",
            "2024-05-02 purchase i2",
            "2024-05-02 favourite i2",
        ]
    )
    text = compress(history, NAMES, ITEMS)[0].as_py()
    assert text.split("\n") == [
        "2022 (detail_view), 2024-04 (detail_view), 2024-04-20 (cart), 2024-05-02 (purchase) | red boots",
        "2024-04 (detail_view), 2024-04-20 (cart), 2024-05-02 (purchase, favourite) | blue tent",
    ]


def test_compress_by_item_sets_puts_equal_sets_on_one_line(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(
        u=[
            "2024-04-20 detail_view i1",
            "2024-04-20 detail_view i2",
            "2024-04-20 cart i2",
            "2024-04-20 cart i1",
            "2024-05-02 purchase i2",
            "2024-05-02 favourite i1",
            "2024-05-02 favourite i2",
        ]
    )
    text = compress(history, NAMES, ITEM_SETS)[0].as_py()
    assert text.split("\n") == [
        "2024-04-20 (detail_view, cart), 2024-05-02 (favourite) | red boots, blue tent",
        "2024-05-02 (purchase) | blue tent",
    ]


@pytest.mark.parametrize(
    ("day", "period"),
    [
        ("2024-05-31", "2024-05-31"),
        ("2024-05-01", "2024-05-01"),
        ("2024-04-30", "2024-04"),
        ("2023-06-01", "2023-06"),
        ("2023-05-31", "2023"),
    ],
)
def test_compress_dates_by_day_month_and_year_relative_to_the_last_event(
    make_history: Callable[..., pa.Table], day: str, period: str
) -> None:
    history = make_history(u=[f"{day} cart i1", "2024-05-31 cart i2"])
    assert Behaved("red boots", period, "cart") in decompress(compress(history, NAMES, ITEMS)[0].as_py())


def test_compress_writes_queries_stars_and_separators_so_that_they_come_back(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(
        u=[
            '2024-05-01 search - boots, (red) | "new" \\ old',
            "2024-05-01 search i3 tins",
            "2024-05-01 rating i3 4.5",
            "2024-05-01 rating i1 3",
        ]
    )
    text = compress(history, NAMES, ITEMS)[0].as_py()
    assert text.split("\n") == [
        '2024-05-01 (search "boots, (red) | \\"new\\" \\\\ old")',
        '2024-05-01 (search "tins", rating 4.5) | Tins\\, Tiny (1988)',
        "2024-05-01 (rating 3) | red boots",
    ]
    assert decompress(text) == [
        Behaved(None, "2024-05-01", 'search "boots, (red) | "new" \\ old"'),
        Behaved("Tins, Tiny (1988)", "2024-05-01", 'search "tins"'),
        Behaved("Tins, Tiny (1988)", "2024-05-01", "rating 4.5"),
        Behaved("red boots", "2024-05-01", "rating 3"),
    ]


def test_compress_keeps_texts_apart_and_empty_histories_empty(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(a=["2024-05-01 cart i1"], nobody=[], b=["2020-05-01 cart i1"])
    assert compress(history, NAMES, ITEMS).to_pylist() == ["2024-05-01 (cart) | red boots", "", "2020-05-01 (cart) | red boots"]
    assert compress(HISTORY.empty(), NAMES, ITEMS).to_pylist() == []
    assert decompress("") == []


def test_compress_an_item_without_a_name_goes_by_its_identifier(make_history: Callable[..., pa.Table]) -> None:
    assert compress(make_history(a=["2024-05-01 cart i9"]), NAMES, ITEMS).to_pylist() == ["2024-05-01 (cart) | i9"]


@pytest.mark.parametrize("line", ["red boots", "2024-05-01 (cart) red boots", "2024-05-01 (cart), | red boots", "May (cart) | red boots"])
def test_decompress_a_line_that_was_never_compressed_is_refused_by_name(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of compressed behaviours"):
        decompress(line)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tricky = st.sampled_from([", ", ",", " | ", "\\", "\\, ", "\n", '"', "(", ")", " (cart) | x", "é, 日本語", "a,, b", "", " ", "2024 (cart)"])
titles = st.one_of(any_text, tricky, st.tuples(tricky, any_text, tricky).map("".join))
start = datetime(2020, 1, 1, tzinfo=UTC)
event = st.tuples(
    st.integers(0, 5),
    st.sampled_from(list(Behaviour)),
    st.integers(0, 900),
    st.one_of(st.none(), titles),
    st.one_of(st.none(), st.integers(0, 10)),
)


def period_of(time: datetime, last: datetime) -> str:
    age = (last.date() - time.date()).days
    return time.strftime("%Y-%m-%d" if age <= 30 else "%Y-%m" if age <= 365 else "%Y")


def label_of(behaviour: str, value: float | None, query: str | None) -> str:
    if behaviour == Behaviour.RATING and value is not None:
        return f"rating {value:g}"
    return f'search "{query}"' if behaviour == Behaviour.SEARCH and query is not None else behaviour


@settings(max_examples=150, deadline=None)
@given(users=st.lists(st.lists(event, max_size=25), max_size=4), names=st.lists(titles, min_size=5, max_size=5), by_items=st.booleans())
def test_decompress_gives_back_the_set_that_was_compressed_in_order_and_nothing_else(
    users: list[list[tuple[int, Behaviour, int, str | None, int | None]]], names: list[str], by_items: bool
) -> None:
    rows, wanted = [], []
    for number, events in enumerate(users):
        events = sorted(events, key=lambda event: event[2])
        times = [start + timedelta(days=day) for _, _, day, _, _ in events]
        items = [None if behaviour == Behaviour.SEARCH and item == 5 else item % 5 for item, behaviour, *_ in events]
        stars = [None if halves is None else halves / 2 for *_, halves in events]
        rows.append(
            {
                "user_id": f"u{number}",
                "bucket": 0,
                "event_ids": [str(place) for place in range(len(events))],
                "item_ids": [None if item is None else f"i{item}" for item in items],
                "behaviours": [str(behaviour) for _, behaviour, *_ in events],
                "timestamps": times,
                "values": stars,
                "queries": [query for _, _, _, query, _ in events],
                "dwell_s": [None] * len(events),
            }
        )
        wanted.append(
            [
                Behaved(None if item is None else names[item], period_of(time, times[-1]), label_of(behaviour, value, query))
                for item, (_, behaviour, _, query, _), time, value in zip(items, events, times, stars, strict=True)
            ]
        )
    named = pl.DataFrame({"item_id": [f"i{item}" for item in range(5)], "name": names})
    texts = compress(HISTORY.from_rows(rows), named, ITEMS if by_items else ITEM_SETS).to_pylist()
    for text, behaved in zip(texts, wanted, strict=True):
        given_back = decompress(text)
        assert set(given_back) == set(behaved)
        assert len(given_back) == len(set(given_back))
        firsts = [line[0] for line in map(decompress, text.split("\n")) if line]
        assert [behaved.index(first) for first in firsts] == sorted(behaved.index(first) for first in firsts)


@pytest.mark.parametrize("config", [ITEMS, ITEM_SETS])
def test_one_user_with_a_hundred_thousand_events_comes_back_as_the_same_set(config: CompressionConfig) -> None:
    number = 100_000
    behaviours = ["detail_view", "cart", "purchase"]
    columns = {
        "event_ids": [str(place) for place in range(number)],
        "item_ids": [f"i{place * place % 4001}" for place in range(number)],
        "behaviours": [behaviours[place % 7 % 3] for place in range(number)],
        "timestamps": [start + timedelta(minutes=40 * place) for place in range(number)],
    }
    nothing = {name: [None] * number for name in ("values", "queries", "dwell_s")}
    history = HISTORY.from_rows([{"user_id": "u", "bucket": 0, **columns, **nothing}])
    last = columns["timestamps"][-1]
    wanted = {
        Behaved(item, period_of(time, last), behaviour)
        for item, time, behaviour in zip(columns["item_ids"], columns["timestamps"], columns["behaviours"], strict=True)
    }
    given_back = decompress(compress(history, NAMES.filter(pl.col("item_id") == ""), config)[0].as_py())
    assert len(given_back) == len(wanted)
    assert set(given_back) == wanted
