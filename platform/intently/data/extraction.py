"""Reliable extraction: which behaviours say something about a person, as a declared policy with counts of what it drops.

RecGPT §2.1.1: favourites, purchases, add-to-cart, detailed views, review reading and searches stay; plain clicks and
impressions go. Ratings, which RecGPT's platform does not log, stay as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import HISTORY, Behaviour
from intently.data.coding import FlatEvents
from intently.data.flat import EVENT_COLUMNS, flat_columns, fold


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

    def strength(self) -> dict[str, float]:
        """How strong each behaviour is, 0 (weakest that counts) to 1 (strongest)."""
        steps = max(len(self.behaviours) - 1, 1)
        return {str(behaviour): rank / steps for rank, behaviour in enumerate(self.behaviours)}


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
    events = FlatEvents.of(history)
    kept, dropped = reliable(events, policy)
    _, columns = flat_columns(history, tuple(EVENT_COLUMNS))
    chosen = pa.array(np.flatnonzero(kept))
    lists = {name: columns[column].take(chosen) for name, column in EVENT_COLUMNS.items()}
    folded = fold(events.row[kept], history.num_rows, lists)
    return Extracted(HISTORY.check(pa.table({"user_id": history["user_id"], "bucket": history["bucket"], **folded})), dropped)


def reliable(events: FlatEvents, policy: ReliablePolicy) -> tuple[np.ndarray, dict[str, int]]:
    """Which events count.

    Args:
        events: E events.
        policy: what counts.
    Returns:
        [E] bool, and reason → number of the others; of several reasons the first counts.
    """
    counts = np.array([behaviour in policy.behaviours for behaviour in events.behaviours] or [False])
    number = np.bincount(events.behaviour, minlength=len(counts))
    dropped = {
        f"behaviour does not count: {behaviour}": int(count)
        for behaviour, count, counted in zip(events.behaviours, number, counts, strict=False)
        if count and not counted
    }
    kept = counts[events.behaviour]
    no_query = events.columns["query"].is_null().to_numpy(zero_copy_only=False)
    no_item = events.columns["item_id"].is_null().to_numpy(zero_copy_only=False)
    reasons = {
        "detailed view too short": events.is_behaviour(Behaviour.DETAIL_VIEW) & (events.number("dwell_s") < policy.min_dwell_s),
        "rating too low": events.is_behaviour(Behaviour.RATING) & (events.number("value") < policy.min_rating),
        "search without query or item": events.is_behaviour(Behaviour.SEARCH) & no_query & no_item,
    }
    for reason, holds in reasons.items():
        if refused := int((kept & holds).sum()):
            dropped[reason] = refused
            kept &= ~holds
    return kept, dict(sorted(dropped.items()))
