"""Reliable extraction: which behaviours say something about a person, as a declared policy with counts of what it drops.

RecGPT §2.1.1: favourites, purchases, add-to-cart, detailed views, review reading and searches stay; plain clicks and
impressions go. Ratings, which RecGPT's platform does not log, stay as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import Behaviour
from intently.data.flat import flatten, refold


class ReliablePolicy(Config):
    """Which events count as reliable."""

    behaviours: tuple[Behaviour, ...] = Field(
        (
            Behaviour.DETAIL_VIEW,
            Behaviour.REVIEW_READ,
            Behaviour.SEARCH,
            Behaviour.FAVOURITE,
            Behaviour.CART,
            Behaviour.RATING,
            Behaviour.PURCHASE,
        ),
        min_length=1,
        description="behaviours that count, from the weakest to the strongest; trimming keeps the strong ones longest",
    )
    min_dwell_s: float = Field(5.0, ge=0, description="a detailed view shorter than this is a plain click; an unknown dwell time counts")
    min_rating: float = Field(0.0, ge=0, description="a rating with fewer stars does not count; 0 keeps them all")

    def dropped_because(self) -> pl.Expr:
        """Why an event of `flatten` is dropped, null where it is kept: the first reason that holds."""
        behaviour = pl.col("behaviour")
        return (
            pl.when(~behaviour.is_in(list(self.behaviours)))
            .then(pl.concat_str(pl.lit("behaviour does not count: "), behaviour))
            .when((behaviour == Behaviour.DETAIL_VIEW) & (pl.col("dwell_s") < self.min_dwell_s))
            .then(pl.lit("detailed view too short"))
            .when((behaviour == Behaviour.RATING) & (pl.col("value") < self.min_rating))
            .then(pl.lit("rating too low"))
            .when((behaviour == Behaviour.SEARCH) & pl.col("query").is_null() & pl.col("item_id").is_null())
            .then(pl.lit("search without query or item"))
        )

    def strength(self) -> pl.Expr:
        """How strong an event's behaviour is, 0 (weakest that counts) to 1 (strongest)."""
        steps = max(len(self.behaviours) - 1, 1)
        ranks = {str(behaviour): rank / steps for rank, behaviour in enumerate(self.behaviours)}
        return pl.col("behaviour").replace_strict(ranks, default=0.0, return_dtype=pl.Float64)


@dataclass(frozen=True)
class Extracted:
    """What is left of histories, and why the rest is not.

    Attributes:
        history: HISTORY, the same users in the same order, reliable events only; a user without any has empty lists.
        dropped: reason → number of events.
    """

    history: pa.Table
    dropped: dict[str, int]


def extract_reliable(history: pa.Table, policy: ReliablePolicy) -> Extracted:
    """Keep the events that count.

    Args:
        history: HISTORY rows.
        policy: what counts.
    """
    kept, dropped = keep_reliable(flatten(history), policy)
    return Extracted(refold(history, kept), dropped)


def keep_reliable(events: pl.DataFrame, policy: ReliablePolicy) -> tuple[pl.DataFrame, dict[str, int]]:
    """`extract_reliable` on flat events: those that count, and reason → number of the others."""
    judged = events.with_columns(policy.dropped_because().alias("reason"))
    counts = judged.filter(pl.col("reason").is_not_null()).group_by("reason").len().sort("reason")
    return judged.filter(pl.col("reason").is_null()).drop("reason"), dict(counts.iter_rows())
