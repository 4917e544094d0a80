from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from intently.core.errors import SchemaError
from intently.core.schema import HISTORY, Behaviour
from intently.data.extraction import ReliablePolicy, extract_reliable
from intently.data.flat import flatten, refold

LOG = [
    "2024-05-01 impression i1",
    "2024-05-01 click i1",
    "2024-05-01 detail_view i1 4.9",
    "2024-05-01 detail_view i1 5.0",
    "2024-05-01 detail_view i1",
    "2024-05-02 review_read i1",
    "2024-05-02 search - warm boots",
    "2024-05-02 favourite i2",
    "2024-05-03 cart i2",
    "2024-05-03 purchase i2",
    "2024-05-04 rating i2 2",
]


def test_extraction_with_the_default_policy_keeps_what_recgpt_keeps_and_counts_the_rest(make_history: Callable[..., pa.Table]) -> None:
    extracted = extract_reliable(make_history(u=LOG, nobody=[]), ReliablePolicy())
    assert extracted.history["event_ids"].to_pylist() == [[f"e{number}" for number in range(3, 11)], []]
    assert extracted.dropped == {
        "behaviour does not count: click": 1,
        "behaviour does not count: impression": 1,
        "detailed view too short": 1,
    }


def test_extraction_with_another_policy_follows_it(make_history: Callable[..., pa.Table]) -> None:
    policy = ReliablePolicy(behaviours=(Behaviour.CLICK, Behaviour.RATING), min_rating=3)
    extracted = extract_reliable(make_history(u=LOG), policy)
    assert extracted.history["behaviours"].to_pylist() == [["click"]]
    assert extracted.dropped["rating too low"] == 1
    assert sum(extracted.dropped.values()) == len(LOG) - 1


def test_extraction_drops_a_search_that_says_nothing(make_history: Callable[..., pa.Table]) -> None:
    extracted = extract_reliable(make_history(u=["2024-05-02 search -", "2024-05-02 search i1"]), ReliablePolicy())
    assert extracted.dropped == {"search without query or item": 1}
    assert extracted.history["item_ids"].to_pylist() == [["i1"]]


def test_history_flattened_and_folded_is_the_same(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(a=LOG, b=[], c=LOG[:2])
    assert refold(history, flatten(history)).equals(history)
    assert flatten(history.slice(1, 2))["event_id"].to_list() == ["e0", "e1"]
    assert refold(HISTORY.empty(), flatten(HISTORY.empty())).equals(HISTORY.empty())


def test_history_with_lists_of_different_length_is_refused(make_history: Callable[..., pa.Table]) -> None:
    history = make_history(a=LOG)
    broken = history.set_column(history.schema.get_field_index("queries"), "queries", pa.array([["one"]]))
    with pytest.raises(SchemaError, match="column queries"):
        flatten(broken)
