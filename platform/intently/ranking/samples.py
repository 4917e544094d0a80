"""Labelled impressions out of histories: which events are asked for, what each may see, and which part it belongs to (HiT-LBM §4.1).

A row stands at an event of its user. It may see the events before it (`history_length`) and the interests of the chunks that ended
before it (`chunk`): a row in chunk b sees interests of chunks < b. Rows without a finished chunk are left out.

Splits:

- `per_user`: the last events of each user are test, those before them validation, in the exact order of the log. Across users it
  leaks in time (what others said later is in train).
- `global_time`: two moments for everybody; people who come later have no rows in train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.core.schema import CTR_SAMPLE, REJECT, Behaviour
from intently.data.flat import flat_columns, whole

STAGE = "ctr_train"
SPLITS = ("train", "validation", "test")


class SampleConfig(Config):
    """Which events become rows, and how they are split."""

    sampled: tuple[Behaviour, ...] = Field((Behaviour.RATING,), min_length=1, description="behaviours that become rows")
    positive: tuple[Behaviour, ...] = Field((Behaviour.RATING,), min_length=1, description="behaviours that are positive")
    positive_above: float = Field(3.0, description="a rating is positive above so many stars; 3 for MovieLens, 4 for Amazon")
    min_events: int = Field(50, ge=1, description="users with fewer events give no rows")
    min_chunks: int = Field(1, ge=0, description="chunks that must have ended before a row")
    split: Literal["per_user", "global_time"] = Field("per_user", description="see the module")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="share of a user's events, or of all rows in time, before the test")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="share of a user's events, or of all rows in time, at the end")


@dataclass(frozen=True)
class LabelledEvents:
    """R rows of a bucket, before they are split.

    Attributes:
        samples: CTR_SAMPLE rows.
        times: [R] microseconds.
        places: [R] where the event stands in its user's history, 0 for the first.
        lengths: [R] how many events that history has.
        rejects: REJECT rows.
    """

    samples: pa.Table
    times: np.ndarray
    places: np.ndarray
    lengths: np.ndarray
    rejects: pa.Table


def label_events(history: pa.Table, chunks: pa.Table, config: SampleConfig) -> LabelledEvents:
    """The rows of one bucket.

    Args:
        history: HISTORY rows, whole lives.
        chunks: CHUNK rows of the same users; their events may be some of the history's.
        config: which events count.
    Raises:
        SchemaError: a chunk holds an event that is in no history.
    """
    row, columns = flat_columns(history, ("event_ids", "item_ids", "behaviours", "timestamps", "values"))
    lengths = np.bincount(row, minlength=history.num_rows)
    places = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    bounds = _chunk_bounds(row, columns["event_id"], chunks)
    behaviours = columns["behaviour"].to_numpy(zero_copy_only=False).astype(str)
    values = columns["value"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    rating = behaviours == Behaviour.RATING
    asked = np.isin(behaviours, [str(each) for each in config.sampled]) & columns["item_id"].is_valid().to_numpy(zero_copy_only=False)
    asked &= (lengths >= config.min_events)[row] & (bounds >= config.min_chunks)
    starless = asked & rating & np.isnan(values)
    asked &= ~starless
    positive = np.isin(behaviours, [str(each) for each in config.positive]) & (~rating | (values > config.positive_above))
    chosen = np.flatnonzero(asked)
    samples = pa.table(
        {
            "event_id": columns["event_id"].take(pa.array(chosen)),
            "user_id": whole(history["user_id"]).take(pa.array(row[chosen])),
            "item_id": columns["item_id"].take(pa.array(chosen)),
            "label": positive[chosen].astype(np.int8),
            "history_length": places[chosen].astype(np.int32),
            "chunk": bounds[chosen].astype(np.int32),
        }
    )
    rejects = [
        {"stage": STAGE, "row": event, "reason": "rating without stars", "detail": ""}
        for event in columns["event_id"].take(pa.array(np.flatnonzero(starless))).to_pylist()
    ]
    times = columns["timestamp"].cast(pa.int64()).to_numpy()[chosen]
    return LabelledEvents(CTR_SAMPLE.check(samples), times, places[chosen], lengths[row[chosen]], REJECT.from_rows(rejects))


def _chunk_bounds(row: np.ndarray, event_ids: pa.Array, chunks: pa.Table) -> np.ndarray:
    """[E] one more than the last chunk that ended before each event; 0 where none did."""
    named = whole(pc.list_flatten(chunks["event_ids"]))
    found = pc.index_in(named, value_set=event_ids)
    if found.null_count:
        raise SchemaError(f"table chunk: event {named[pc.index(found.is_null(), True).as_py()].as_py()!r} is in no history")
    owner = np.repeat(np.arange(chunks.num_rows), pc.list_value_length(chunks["event_ids"]).to_numpy(zero_copy_only=False))
    ends = np.full(chunks.num_rows, -1, np.int64)
    np.maximum.at(ends, owner, found.to_numpy(zero_copy_only=False).astype(np.int64))
    numbers = chunks["chunk"].to_numpy().astype(np.int64) + 1
    closed = np.zeros(len(row), np.int64)
    np.maximum.at(closed, ends[ends >= 0], numbers[ends >= 0])
    # A running maximum within each user, as one over all: users lie apart by more than any chunk number.
    apart = row.astype(np.int64) * (numbers.max(initial=0) + 1)
    running = np.maximum.accumulate(closed + apart) - apart
    before = np.concatenate([[0], running[:-1]])
    first = np.concatenate([[True], row[1:] != row[:-1]])
    return np.where(first, 0, before)


def find_moments(times: np.ndarray, config: SampleConfig) -> tuple[int, int]:
    """The moments, in microseconds, at which validation and test begin under `global_time`.

    Args:
        times: [R] of all rows of all buckets.
        config: shares.
    Raises:
        SchemaError: there are no rows, or all fall on too few moments to be split.
    """
    if not len(times):
        raise SchemaError(f"table ctr_sample: nobody has {config.min_events} events and {config.min_chunks} finished chunks (samples)")
    shares = (1 - config.test_share - config.validation_share, 1 - config.test_share)
    validation, test = (int(np.quantile(times, share, method="higher")) for share in shares)
    if not times.min() < validation < test:
        raise SchemaError(f"table history: {len(times)} rows cannot be split in time at {shares}, too many fall on one moment")
    return validation, test


def split_samples(events: LabelledEvents, config: SampleConfig, moments: tuple[int, int] | None = None) -> dict[str, pa.Table]:
    """train, validation and test → CTR_SAMPLE rows, oldest first within a user.

    Args:
        events: rows of a bucket.
        config: which split.
        moments: of `find_moments`; needed for `global_time` alone.
    """
    if config.split == "per_user":
        # Counted from the end, so that the last place of a user is always test.
        from_end = events.lengths - events.places
        part = (from_end <= np.ceil(events.lengths * config.test_share)).astype(np.int64)
        part += from_end <= np.ceil(events.lengths * (config.test_share + config.validation_share))
    else:
        assert moments is not None, "global_time needs its moments"
        part = np.searchsorted(np.array(moments), events.times, side="right")
    return {name: events.samples.filter(pa.array(part == number)) for number, name in enumerate(SPLITS)}
