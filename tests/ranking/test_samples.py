"""Which events become rows, what each may see, and how they are split."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from intently.core.errors import SchemaError
from intently.core.schema import CHUNK, HISTORY, ITEM
from intently.core.workspace import Workspace
from intently.ranking.samples import SampleConfig, find_moments, label_events, split_samples

from benchmarks.ctr_world import World, shuffle_within_days
from benchmarks.made import put
from tests.ranking.worlds import chunks, history, items, lives

LIFE = [("i0", 5.0), ("i1", 3.0), ("i2", 4.0), ("i3", None), ("i4", 1.0), ("i5", 5.0), (None, 5.0), ("i7", 2.0), ("i8", 4.5), ("i9", 3.5)]
CONFIG = SampleConfig(min_events=1)
START = datetime(2025, 1, 1, tzinfo=UTC)


def test_label_events_by_hand() -> None:
    told = history({"ann": LIFE})
    found = label_events(told, chunks(told), CONFIG)
    rows = found.samples.to_pylist()
    # Chunks end with events 3 and 7. Event 6 has no item; nobody may be asked before the first chunk has ended.
    assert [row["event_id"] for row in rows] == ["ann-4", "ann-5", "ann-7", "ann-8", "ann-9"]
    assert [row["label"] for row in rows] == [0, 1, 0, 1, 1]
    assert [row["history_length"] for row in rows] == [4, 5, 7, 8, 9]
    assert [row["chunk"] for row in rows] == [1, 1, 1, 2, 2]


def test_label_events_stars_amazon_and_users_with_few_events() -> None:
    told = history({"ann": LIFE, "bob": LIFE[:4]})
    strict = SampleConfig(positive_above=4, min_events=5, min_chunks=0)
    found = label_events(told, chunks(told), strict)
    assert set(found.samples["user_id"].to_pylist()) == {"ann"}
    assert found.samples["label"].to_pylist() == [1, 0, 0, 0, 1, 0, 1, 0]
    assert found.rejects.to_pylist() == [{"stage": "ctr_train", "row": "ann-3", "reason": "rating without stars", "detail": ""}]


def test_label_events_without_stars_goes_by_behaviour() -> None:
    told = history({"ann": [(item, None) for item, _ in LIFE]}, behaviour="purchase")
    config = SampleConfig.parse({"sampled": ["purchase"], "positive": ["purchase"], "min_events": 1, "min_chunks": 0})
    assert label_events(told, chunks(told), config).samples["label"].to_pylist() == [1] * 9


def test_rows_see_interests_of_chunks_that_ended_before_them_and_no_others() -> None:
    """The leakage rule: no event at or after a row is in a chunk that the row may see."""
    told = history(lives(5, 23) | {"brief": LIFE[:6]})
    cut = chunks(told)
    # Chunks that lost an event, as a token budget does it, and one that is not there at all.
    spoiled = cut.to_pylist()
    spoiled[1]["event_ids"], spoiled[1]["item_ids"] = spoiled[1]["event_ids"][:-1], spoiled[1]["item_ids"][:-1]
    spoiled.pop(7)
    cut = pa.Table.from_pylist(spoiled, schema=cut.schema)
    place = {event: n for row in told.to_pylist() for n, event in enumerate(row["event_ids"])}
    ends = {(row["user_id"], row["chunk"]): max(place[event] for event in row["event_ids"]) for row in cut.to_pylist()}
    found = label_events(told, cut, CONFIG).samples.to_pylist()
    assert len(found) > 80
    for row in found:
        seen = {chunk: end for (user, chunk), end in ends.items() if user == row["user_id"] and chunk < row["chunk"]}
        hidden = {chunk: end for (user, chunk), end in ends.items() if user == row["user_id"] and chunk >= row["chunk"]}
        assert seen
        assert all(end < row["history_length"] for end in seen.values())
        assert all(end >= row["history_length"] for end in hidden.values())


def test_rows_of_the_day_order_see_only_chunks_that_had_truly_ended(tmp_path: Path) -> None:
    told = history(lives(5, 80))
    # Eight events a day, so that a day's order matters.
    times = [[START + timedelta(days=n // 8, hours=n % 8) for n in range(80)] for _ in range(told.num_rows)]
    told = HISTORY.from_rows([row | {"timestamps": own} for row, own in zip(told.to_pylist(), times, strict=True)])
    workspace = Workspace.open(tmp_path)
    for name, table, rows in (("history", HISTORY, told), ("chunk", CHUNK, cut := chunks(told)), ("item", ITEM, items())):
        put(workspace, name, table, rows)
    world = World(workspace, {}, workspace, CONFIG, by_day=True)
    shuffled = [event for row in world.history.to_pylist() for event in row["event_ids"]]
    exact = {event: n for row in told.to_pylist() for n, event in enumerate(row["event_ids"])}
    ends = {(row["user_id"], row["chunk"]): max(exact[event] for event in row["event_ids"]) for row in cut.to_pylist()}
    moved = 0
    for rows in world.bare.rows.values():
        for user, place, bound in zip(rows.users.tolist(), rows.places.tolist(), rows.bounds.tolist(), strict=True):
            name, event = world.bare.log.user_ids[user].as_py(), shuffled[place]
            moved += place % 80 != exact[event]
            assert all((end < exact[event]) == (chunk < bound) for (owner, chunk), end in ends.items() if owner == name)
    assert moved > 50


def test_label_events_chunk_of_an_unknown_event_refused() -> None:
    told = history({"ann": LIFE})
    with pytest.raises(SchemaError, match="'ann-9' is in no history"):
        label_events(history({"ann": LIFE[:9]}), chunks(told), CONFIG)


def test_per_user_split_takes_the_last_tenth_of_each_life() -> None:
    told = history(lives(3, 50) | {"long": lives(1, 75, seed=3)["u0"]})
    parts = split_samples(label_events(told, chunks(told), CONFIG), CONFIG)
    assert [parts[name].num_rows for name in ("train", "validation", "test")] == [3 * 36 + 56, 3 * 5 + 7, 3 * 5 + 8]
    for user, length in (("u0", 50), ("long", 75)):
        seen = [[row["history_length"] for row in part.to_pylist() if row["user_id"] == user] for part in parts.values()]
        assert [*seen[0], *seen[1], *seen[2]] == list(range(4, length))


def test_global_time_split_puts_everything_later_into_test() -> None:
    told = history(lives(4, 40))
    config = SampleConfig(min_events=1, split="global_time", validation_share=0.2, test_share=0.1)
    events = label_events(told, chunks(told), config)
    moments = find_moments(events.times, config)
    parts = split_samples(events, config, moments)
    days = {name: np.array(part["history_length"].to_pylist()) for name, part in parts.items()}  # an event a day, all from one day on
    assert days["train"].max() < days["validation"].min() <= days["validation"].max() < days["test"].min()
    assert len(days["test"]) == pytest.approx(0.1 * events.samples.num_rows, abs=4)
    with pytest.raises(SchemaError, match="too many fall on one moment"):
        find_moments(np.zeros(10, np.int64), config)


def test_shuffle_within_days_moves_events_within_their_day_and_user_alone() -> None:
    told = history(lives(2, 30))
    rows = told.to_pylist()
    for row in rows:  # three days of ten events
        row["timestamps"] = [row["timestamps"][0] + timedelta(days=n // 10, hours=n % 10) for n in range(30)]
    shuffled = shuffle_within_days(pa.Table.from_pylist(rows, schema=told.schema)).to_pylist()
    for before, after in zip(rows, shuffled, strict=True):
        assert after["event_ids"] != before["event_ids"]
        for day in range(3):
            assert sorted(after["event_ids"][day * 10 : day * 10 + 10]) == sorted(before["event_ids"][day * 10 : day * 10 + 10])
        item_of = dict(zip(before["event_ids"], before["item_ids"], strict=True))
        assert after["item_ids"] == [item_of[event] for event in after["event_ids"]]
        assert {time.hour for time in after["timestamps"]} == {0}
