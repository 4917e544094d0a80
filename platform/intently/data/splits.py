"""Train, validation and test: what a model may see of each user, and which event it is then asked for.

A *target* is an event whose behaviour counts as positive, whose item the user had no positive event with before, and which has
an item. Two splits:

- `leave_last_out`: a user's last target is the test event, the one before it the validation event; train is everything before the
  validation event. Across users this leaks in time (what others did later is in train), which is why there is the other one.
- `global_time`: two moments for everybody. Train is everything before the first; a user's validation event is the first target
  between the two, the test event the first target after the second. Either may be missing.

What a user did on a target's item before (the impression, the click, the search that led to it) is left out of train when
`drop_lead_in` is set, so that the answer is in no history and no prompt. Users with too little to learn from stay in train
and are asked for nothing: with all their events, or with those before the cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.schema import HISTORY, Behaviour
from intently.core.workspace import Stage
from intently.data.counts import save_counts
from intently.data.days import Histories
from intently.data.flat import flatten, refold


class SplitConfig(Config):
    """How histories are split."""

    kind: Literal["leave_last_out", "global_time"] = Field("leave_last_out", description="see the module")
    positive: tuple[Behaviour, ...] = Field(
        (Behaviour.FAVOURITE, Behaviour.CART, Behaviour.PURCHASE, Behaviour.RATING),
        min_length=1,
        description="behaviours that make an event a target",
    )
    min_rating: float = Field(0.0, ge=0, description="a rating with fewer stars is no target; 0 takes them all")
    drop_lead_in: bool = Field(True, description="leave earlier events on a target's item out of train")
    min_train_events: int = Field(3, ge=1, description="a user whose train would be shorter is asked for nothing")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="global_time without dates: share of targets between the two moments")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="global_time without dates: share of targets after the second moment")
    validation_from: date | None = Field(None, description="global_time: first day of validation")
    test_from: date | None = Field(None, description="global_time: first day of test")

    @model_validator(mode="after")
    def _both_dates_in_order(self) -> SplitConfig:
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("give both validation_from and test_from, or neither")
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError("validation_from must lie before test_from")
        return self


@dataclass(frozen=True)
class Cut:
    """The two moments of a global-time split."""

    validation: datetime
    test: datetime


@dataclass(frozen=True)
class Split:
    """One bucket, split. All are HISTORY; validation and test have lists of length 1 and only users with such a target.

    Attributes:
        num_targets: events that could be targets.
        num_lead_in: events left out of train because they led to a target.
        num_after: events that come after train ends and are no chosen target: nobody sees them.
    """

    train: pa.Table
    validation: pa.Table
    test: pa.Table
    num_targets: int
    num_lead_in: int
    num_after: int


def split_histories(history: pa.Table, config: SplitConfig, cut: Cut | None = None) -> Split:
    """HISTORY rows of one bucket → their split.

    Args:
        history: HISTORY rows.
        config: how.
        cut: the moments; needed for `global_time` alone.
    """
    assert (cut is not None) == (config.kind == "global_time")
    events = flatten(history).with_columns(place=pl.int_range(pl.len()).over("row"), target=_is_target(config))
    marked = events.with_columns(**(_last_two() if cut is None else _first_after(cut)))
    marked = marked.with_columns(chosen=pl.col("is_validation") | pl.col("is_test"), before=_is_before(cut))
    lead_in = _lead_in() if config.drop_lead_in else pl.lit(False)
    marked = marked.with_columns(lead_in=pl.col("before") & lead_in)
    num_left = (pl.col("before") & ~pl.col("lead_in")).sum().over("row")
    marked = marked.with_columns(asked=pl.col("chosen").any().over("row") & (num_left >= config.min_train_events))
    asked = pl.col("asked")
    # Whoever is asked for nothing loses nothing, but at a global cut nobody's later events may be learnt from.
    in_train = (pl.col("before") & ~(asked & pl.col("lead_in"))) | (~asked & pl.lit(cut is None))
    return Split(
        train=refold(history, marked.filter(in_train)),
        validation=_only(history, marked.filter(asked & pl.col("is_validation"))),
        test=_only(history, marked.filter(asked & pl.col("is_test"))),
        num_targets=int(marked["target"].sum()),
        num_lead_in=int(marked.filter(asked & pl.col("lead_in")).height),
        num_after=int(marked.filter(~in_train & ~pl.col("before") & ~(asked & pl.col("chosen"))).height),
    )


def count_target_days(history: pa.Table, config: SplitConfig) -> pl.DataFrame:
    """Days and how many targets fall on each: what `find_cut` needs of a bucket, small whatever the bucket's size."""
    targets = flatten(history).filter(_is_target(config))
    return targets.group_by(day=pl.col("timestamp").dt.date()).agg(pl.len().cast(pl.Int64).alias("num_targets"))


def find_cut(days: Iterable[pl.DataFrame], config: SplitConfig) -> Cut:
    """The moments of a global-time split: the configured dates, else the days at which the configured shares of targets begin.

    Args:
        days: `count_target_days` of every bucket; not read when dates are configured.
        config: how.
    Raises:
        ConfigError: the targets do not spread over enough days to cut there.
    """
    if config.validation_from is not None and config.test_from is not None:
        return Cut(_midnight(config.validation_from), _midnight(config.test_from))
    counted = pl.concat([pl.DataFrame(schema={"day": pl.Date, "num_targets": pl.Int64}), *days])
    counted = counted.group_by("day").agg(pl.col("num_targets").sum()).sort("day")
    before = counted.with_columns(share=(pl.col("num_targets").cum_sum() - pl.col("num_targets")) / pl.col("num_targets").sum())
    validation = before.filter(pl.col("share") >= 1 - config.test_share - config.validation_share)["day"].min()
    test = before.filter(pl.col("share") >= 1 - config.test_share)["day"].min()
    if not isinstance(validation, date) or not isinstance(test, date) or test <= validation:
        spread = f"targets fall on {counted.height} day(s), too few to cut there"
        raise ConfigError("validation_share, test_share", (config.validation_share, config.test_share), spread)
    return Cut(_midnight(validation), _midnight(test))


class Splitter:
    """Splits one bucket a call: reads `history`, writes the three parts.

    Args:
        history: what is split.
        train, validation, test: the stages.
        config: how.
        cut: the moments of a global-time split.
    """

    def __init__(self, history: Histories, train: Stage, validation: Stage, test: Stage, config: SplitConfig, cut: Cut | None) -> None:
        self._history, self._config, self._cut = history, config, cut
        self._train, self._validation, self._test = train, validation, test

    def __call__(self, part: str) -> dict[str, int | float]:
        """Split a bucket; figures about it."""
        merged = self._history.merge(part)
        split = split_histories(merged.history, self._config, self._cut)
        counts: dict[str, int | float] = {
            "users": split.train.num_rows,
            "validation_users": split.validation.num_rows,
            "test_users": split.test.num_rows,
            "targets": split.num_targets,
            "lead_in_events": split.num_lead_in,
            "unused_events": split.num_after,
            **merged.counts,
        }
        # The train part goes last: where it stands, the rest stands too.
        self._test.write(part, split.test)
        self._validation.write(part, split.validation)
        save_counts(self._train, part, counts)
        self._train.write(part, split.train)
        return counts


def _is_target(config: SplitConfig) -> pl.Expr:
    positive = (
        pl.col("item_id").is_not_null()
        & pl.col("behaviour").is_in([str(behaviour) for behaviour in config.positive])
        & ((pl.col("behaviour") != Behaviour.RATING) | (pl.col("value") >= config.min_rating))
    )
    return positive & (positive.cast(pl.Int32).cum_sum().over("row", "item_id") == 1)


def _last_two() -> dict[str, pl.Expr]:
    """Marks of leave-last-out; a user with fewer than two targets has none."""
    target = pl.col("target")
    from_last = target.cast(pl.Int32).cum_sum(reverse=True).over("row")
    enough = target.sum().over("row") >= 2
    return {"is_test": target & enough & (from_last == 1), "is_validation": target & enough & (from_last == 2)}


def _first_after(cut: Cut) -> dict[str, pl.Expr]:
    """Marks of global time: the first target in each window."""
    time = pl.col("timestamp")
    windows = {"is_validation": (time >= cut.validation) & (time < cut.test), "is_test": time >= cut.test}
    return {
        name: pl.col("target") & window & ((pl.col("target") & window).cast(pl.Int32).cum_sum().over("row") == 1)
        for name, window in windows.items()
    }


def _is_before(cut: Cut | None) -> pl.Expr:
    """Whether an event is so early that train may have it."""
    if cut is not None:
        return pl.col("timestamp") < cut.validation
    return pl.col("place") < pl.when(pl.col("is_validation")).then(pl.col("place")).max().over("row").fill_null(2**62)


def _lead_in() -> pl.Expr:
    """Events on an item that is a chosen target of the same user."""
    return pl.col("item_id").is_not_null() & pl.col("chosen").any().over("row", "item_id") & ~pl.col("chosen")


def _only(history: pa.Table, events: pl.DataFrame) -> pa.Table:
    """HISTORY rows of those users that have an event in `events`."""
    refolded = refold(history, events)
    return HISTORY.check(refolded.take(pa.array(events["row"].unique().sort().to_numpy()))) if events.height else HISTORY.empty()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
