"""Days appended to histories: merged where they are read, the old parts untouched."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.core.schema import EVENT, HISTORY
from intently.core.workspace import Workspace, open_stage
from intently.data.days import list_days, merge_days, open_histories
from intently.data.histories import HistoryConfig, build_histories

CONFIG = HistoryConfig(num_buckets=1)


def events_of(rows: list[tuple[int, int]], first: int) -> pa.Table:
    """(user, minute) pairs as EVENT rows; ids and positions are the order of arrival."""
    made = [
        {
            "event_id": f"e{first + place}",
            "user_id": f"u{user}",
            "item_id": "i1",
            "behaviour": "cart",
            "timestamp": 1_700_000_000_000_000 + minute * 60_000_000,
            "position": first + place,
            "value": None,
            "query": None,
            "dwell_s": None,
        }
        for place, (user, minute) in enumerate(rows)
    ]
    return EVENT.from_rows(made)


log = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(base=log, days=st.lists(log, max_size=3))
def test_days_merged_give_the_history_that_one_ingest_of_everything_gives(
    base: list[tuple[int, int]], days: list[list[tuple[int, int]]]
) -> None:
    logs, first = [], 0
    for rows in (base, *days):
        logs.append(events_of(rows, first))
        first += len(rows)
    parts = [build_histories(events, 0).history for events in logs]
    merged = merge_days(parts[0], parts[1:])
    assert merged.history.equals(build_histories(pa.concat_tables(logs), 0).history)
    if days:
        assert merged.counts["events_of_days"] == sum(map(len, days))
        assert merged.counts["duplicates_of_days"] == 0


def test_days_with_an_event_that_stands_already_keep_what_arrived_first_and_count_what_is_late(
    make_history: Callable[..., pa.Table],
) -> None:
    base = make_history(a=["2024-05-01 cart i1", "2024-05-03 cart i2"], b=["2024-05-01 cart i1"])
    day = make_history(a=["2024-04-01 purchase i9", "2024-05-09 cart i2", "2024-05-02 cart i3"], c=["2024-05-04 cart i1"])
    merged = merge_days(base, [day])
    rows = {row["user_id"]: row["item_ids"] for row in merged.history.to_pylist()}
    # e0 and e1 of the day have ids that a's events have already; e2 is new, and older than e1 of the base.
    assert rows == {"a": ["i1", "i3", "i2"], "b": ["i1"], "c": ["i1"]}
    assert merged.counts == {"events_of_days": 2, "late_events_of_days": 1, "duplicates_of_days": 2}


def test_days_of_another_history_are_not_read(workspace: Workspace, make_history: Callable[..., pa.Table]) -> None:
    def ingest(name: str, config: HistoryConfig, rows: pa.Table) -> None:
        stage = open_stage(workspace, name, HISTORY, {}, config)
        stage.write("bucket-00000", rows)
        if name == "history_day":
            list_days(stage, open_histories(workspace))
        stage.finish()

    ingest("history", CONFIG, make_history(a=["2024-05-01 cart i1"]))
    assert open_histories(workspace).days == ()
    ingest("history_day", CONFIG, make_history(b=["2024-05-02 cart i1"]))
    ingest("history_day", HistoryConfig(num_buckets=2), make_history(c=["2024-05-03 cart i1"]))
    assert open_histories(workspace).read("bucket-00000")["user_id"].to_pylist() == ["a", "b", "c"]
    ingest("history", HistoryConfig(num_buckets=3), make_history(z=["2024-05-01 cart i1"]))
    assert open_histories(workspace).read("bucket-00000")["user_id"].to_pylist() == ["z"]
