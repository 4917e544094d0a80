"""Windows out of the flat log, and what else a row looks up, against an obvious reference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from intently.core.errors import SchemaError
from intently.core.schema import CTR_SAMPLE
from intently.ranking.features import NUM_SIGNALS, last_events, read_catalogue, read_log, read_rows, similar_events
from intently.ranking.knowledge import Selection, chunk_vectors, histogram_vectors
from intently.ranking.samples import SampleConfig, label_events

from tests.ranking.worlds import chunks, history, items, lives, log_of, rows_of


def test_last_events_equal_a_window_cut_in_python() -> None:
    rng = np.random.default_rng(2)
    lengths = [0, 1, 3, 17, 6]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    log = log_of(starts.tolist(), rng.integers(1, 30, starts[-1]).tolist())
    users = [user for user, length in enumerate(lengths) for _ in range(length + 1)]
    places = [int(starts[user]) + n for user, length in enumerate(lengths) for n in range(length + 1)]
    for size in (1, 5, 20):
        found = last_events(log, torch.tensor(users), torch.tensor(places), size)
        for row, (user, place) in enumerate(zip(users, places, strict=True)):
            expected = log.items[max(starts[user], place - size) : place].tolist()
            assert found.items[row].tolist() == expected + [0] * (size - len(expected))
            assert found.valid[row].tolist() == [True] * len(expected) + [False] * (size - len(expected))
            assert found.signals[row, : len(expected)].tolist() == [place % 3 + 1 for place in range(place - len(expected), place)]


def test_read_log_numbers_items_from_one_and_knows_stars_from_behaviours() -> None:
    catalogue = read_catalogue(items())
    assert catalogue.categories.tolist() == [0, 1, 2, 1, 2, 1, 2, 1, 2]
    log = read_log(history({"ann": [("i0", 5.0), ("i7", 1.0), ("gone", 3.0), (None, None)]}), catalogue)
    assert log.items.tolist() == [1, 8, 0, 0]
    assert log.signals.tolist()[:3] == [5, 1, 3]
    assert 5 < log.signals[3] < NUM_SIGNALS


def test_read_rows_unknown_item_and_too_long_a_history_refused() -> None:
    catalogue = read_catalogue(items())
    log = read_log(history({"ann": [("i0", 5.0)] * 3}), catalogue)
    row = {"event_id": "e", "user_id": "ann", "item_id": "i0", "label": 1, "history_length": 2, "chunk": 0}
    assert read_rows(CTR_SAMPLE.from_rows([row]), log, catalogue).places.tolist() == [2]
    with pytest.raises(SchemaError, match="'gone' is unknown"):
        read_rows(CTR_SAMPLE.from_rows([row | {"item_id": "gone"}]), log, catalogue)
    with pytest.raises(SchemaError, match="history_length"):
        read_rows(CTR_SAMPLE.from_rows([row | {"history_length": 4}]), log, catalogue)


def test_similar_events_are_the_nearest_of_all_earlier_ones_in_order_of_time() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 1, 2]]  # items 1 and 2 alike apart from item 0, which is none
    vectors[1], vectors[2], vectors[3], vectors[4] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.8, 0.6, 0, 0]), vectors[2], vectors[4]
    log = log_of([0, 6, 8], [1, 2, 3, 1, 4, 1, 2, 3])
    rows = rows_of([0, 0, 0, 1], [5, 1, 0, 7], [1, 3, 1, 4], [0, 0, 0, 0])
    found = similar_events(log, rows, vectors, 3)
    assert found[0].tolist() == [0, 1, 3]
    assert found[1].tolist() == [0, 1, 1]  # one earlier event; the rest is the row's own place, which counts as padding
    assert found[2].tolist() == [0, 0, 0]
    assert found[3].tolist() == [6, 7, 7]


def test_visible_chunks_by_hand() -> None:
    log = log_of([0, 1, 2, 3], [1, 1, 1])
    users, numbers = pa.array(["u0", "u0", "u0", "u2", "nobody"]), np.array([2, 0, 1, 1, 0])
    table = chunk_vectors(log, users, numbers, np.arange(10, dtype=np.float32).reshape(5, 2), np.array([0.5, 1, 1, 0.25, 1], np.float32))
    assert table.starts.tolist() == [0, 3, 3, 5]
    assert table.vectors[:3, 0].tolist() == [2, 4, 0]
    assert table.known.tolist() == [True, True, True, False, True]
    assert table.scores.tolist() == [1, 1, 0.5, 1, 0.25]
    rows = rows_of([0, 0, 0, 1, 2], [0] * 5, [1] * 5, [0, 1, 9, 5, 2])
    seen = table.visible(rows, Selection.ALL, 2)
    assert [chunks[valid].tolist() for chunks, valid in zip(*seen, strict=True)] == [[], [0], [1, 2], [], [4]]
    assert table.visible(rows, Selection.LAST, 2).chunks.tolist() == [[0], [0], [2], [0], [4]]
    first = table.visible(rows, Selection.FIRST, 2)
    assert first.valid.tolist() == [[False], [True], [True], [False], [False]]  # u2's first chunk is not known


def test_histograms_hold_shares_and_liking_of_each_trait() -> None:
    told, films = history({"ann": [("i0", 5.0), ("i1", 1.0), ("i0", 4.0), ("i2", 3.0)]}), items()
    log = read_log(told, read_catalogue(films))
    table, of_items = histogram_vectors(log, films, told, chunks(told))
    # columns: 1950s, 1990s, Comedy, War; shares, then mean liking
    assert table.vectors[0].tolist() == pytest.approx([0.75, 0.25, 0.25, 0.75, 0.75, -0.5, -0.5, 0.75])
    assert of_items[1].tolist() == [1, 0, 0, 1] * 2
    assert of_items[0].tolist() == [0] * 8


def test_histograms_a_row_may_see_do_not_change_with_what_happens_later() -> None:
    before = lives(3, 20)
    after = {user: [*events[:12], *[("i3", 2.0)] * 8] for user, events in before.items()}
    films, catalogue, seen = items(), read_catalogue(items()), []
    for told in (history(before), history(after)):
        log = read_log(told, catalogue)
        table, _ = histogram_vectors(log, films, told, chunks(told))
        samples = label_events(told, chunks(told), SampleConfig(min_events=1)).samples
        early = samples.filter(pa.array(np.array(samples["history_length"]) <= 12))
        visible = table.visible(read_rows(early, log, catalogue), Selection.ALL, 4)
        seen.append(table.vectors[visible.chunks] * visible.valid[..., None])
    assert torch.equal(*seen)
    assert seen[0].any()
