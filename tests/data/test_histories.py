from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from intently.core.errors import SourceError, WorkspaceError
from intently.core.schema import HISTORY, USER
from intently.core.workspace import Stage, Workspace, open_stage
from intently.data.buckets import buckets_of
from intently.data.counts import total_counts
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, build_histories, spill_source
from intently.data.raw import RAW, Source

CONFIG = HistoryConfig(num_buckets=3)


def as_raw(events: pa.Table) -> pa.Table:
    nothing = pa.nulls(events.num_rows, pa.string())
    columns = {"place": events["event_id"], "refused": nothing, "original": nothing}
    return pa.table({**columns, **{name: events[name] for name in events.column_names}}, schema=RAW)


def test_history_is_in_time_order_and_ties_go_by_position(make_events: Callable[..., pa.Table]) -> None:
    events = make_events(
        [
            ("b", "2024-05-02 cart i1"),
            ("a", "2024-05-03 cart i1"),
            ("a", "2024-05-01 cart i2"),
            ("a", "2024-05-01 cart i3"),
            ("a", "2024-05-02 cart i4"),
            ("b", "2024-05-02 purchase i1"),
        ]
    )
    built = build_histories(events, 7)
    assert built.history["user_id"].to_pylist() == ["a", "b"]
    assert built.history["bucket"].to_pylist() == [7, 7]
    assert built.history["item_ids"].to_pylist() == [["i2", "i3", "i4", "i1"], ["i1", "i1"]]
    assert built.history["behaviours"].to_pylist()[1] == ["cart", "purchase"]
    assert (built.num_late, built.rejects.num_rows) == (3, 0)


def test_history_refuses_a_second_event_of_the_same_id_and_keeps_the_earliest(make_events: Callable[..., pa.Table]) -> None:
    events = make_events(
        [("a", "2024-05-02 cart i1"), ("a", "2024-05-01 cart i2"), ("b", "2024-05-03 cart i3"), ("a", "2024-05-09 cart i4")],
        ids=["same", "same", "same", "other"],
    )
    built = build_histories(events, 0)
    assert built.history["item_ids"].to_pylist() == [["i2", "i4"], ["i3"]], "another user may use the same id"
    (reject,) = built.rejects.to_pylist()
    assert (reject["row"], reject["reason"]) == ("same", "duplicate event_id")
    assert "item_id=i1" in reject["detail"]


def test_history_of_nothing_is_empty(make_events: Callable[..., pa.Table]) -> None:
    assert build_histories(make_events([]), 0).history.num_rows == 0


@pytest.fixture
def stages(workspace: Workspace) -> tuple[Stage, Stage]:
    return open_stage(workspace, "history", HISTORY, {}, CONFIG), open_stage(workspace, "user", USER, {}, CONFIG)


@pytest.fixture
def source(make_events: Callable[..., pa.Table], make_items: Callable[..., pa.Table]) -> Source:
    """Ten users who act in both of two blocks, and a third block; one event names an unknown item, one is there twice."""
    blocks = [
        make_events([(f"u{user}", f"2024-05-0{day} cart i{user % 3}") for user in range(10)], [f"u{user}-{day}" for user in range(10)])
        for day in (2, 1)
    ]
    last = [("u1", "2024-05-03 cart i9"), ("u2", "2024-05-09 cart i1"), ("u3", "2024-05-04 cart i1")]
    blocks.append(make_events(last, ["x", "u2-1", "u3-4"]))
    users = USER.from_rows([{"user_id": "u1", "attributes": ["town: Oslo"]}, {"user_id": "silent", "attributes": []}])
    return Source(make_items(i0="a", i1="b", i2="c"), users, lambda: iter([as_raw(block) for block in blocks]))


def test_spilled_and_built_buckets_hold_every_event_once(source: Source, stages: tuple[Stage, Stage]) -> None:
    history, user = stages
    spill = Spill.of(history, CONFIG.num_buckets)
    spill_source(source, spill, CONFIG)
    builder = HistoryBuilder(history, user, spill)
    for part in CONFIG.parts:
        builder(part)
    counts = total_counts(history, CONFIG.parts)
    assert counts == {"users": 11, "events": 21, "late_events": 10, "refused": 2}
    spill.remove()
    written, people = history.finish(counts), user.finish()
    assert written.manifest.reject_reasons == {"unknown item": 1, "duplicate event_id": 1}
    for number, (_, rows) in enumerate(written.iter_parts()):
        assert set(rows["bucket"].to_pylist()) <= {number}
        assert (buckets_of(rows["user_id"], CONFIG.num_buckets) == number).all()
    rows = {row["user_id"]: row["event_ids"] for row in written.read().to_pylist()}
    assert rows["u3"] == ["u3-1", "u3-2", "u3-4"]
    assert sorted(rows) == [f"u{user}" for user in range(10)]
    attributes = {row["user_id"]: row["attributes"] for row in people.read().to_pylist()}
    assert attributes == {"silent": [], **{f"u{user}": [] for user in range(10)}, "u1": ["town: Oslo"]}
    assert not Path(spill.folder).exists()


def test_spill_that_was_cut_off_is_not_finished_and_is_done_again(source: Source, stages: tuple[Stage, Stage]) -> None:
    history, user = stages
    spill = Spill.of(history, CONFIG.num_buckets)

    def cut_off() -> Iterator[pa.Table]:
        yield from list(source.events()) * 2
        raise SourceError("the disk with the log is gone")

    with pytest.raises(SourceError, match="is gone"):
        spill_source(Source(source.items, source.users, cut_off), spill, CONFIG)
    assert not spill.finished
    spill_source(source, spill, CONFIG)
    assert spill.finished
    builder = HistoryBuilder(history, user, spill)
    assert sum(builder(part)["events"] for part in CONFIG.parts) == 21, "blocks of the run that was cut off are not read"


def test_spill_file_that_is_damaged_is_named(source: Source, stages: tuple[Stage, Stage]) -> None:
    history, user = stages
    spill = Spill.of(history, CONFIG.num_buckets)
    spill_source(source, spill, CONFIG)
    (Path(spill.folder) / "events" / "000001.arrow").write_bytes(b"nonsense")
    with pytest.raises(WorkspaceError, match=r"000001\.arrow: cannot be read"):
        HistoryBuilder(history, user, spill)("bucket-00000")
