"""From a user or a history to recommended items with their reasons. The hot path: one search, then lookups in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serve.models import Reason, Recommendation
from serve.problems import refuse
from serve.state import State
from serve.telemetry import Telemetry

LONGEST_HISTORY = 200


@dataclass(frozen=True)
class Asked:
    """What a request wants.

    Attributes:
        k: most items.
        beta: weight of the user vector, 0 to 1; None for the one that the sweep chose.
        filter_seen: leave out what the user touched before.
    """

    k: int
    beta: float | None
    filter_seen: bool


class Recommender:
    """Answers from one state; several requests share it."""

    def __init__(self, state: State, telemetry: Telemetry) -> None:
        self.state, self._telemetry = state, telemetry

    def beta(self, asked: Asked) -> float:
        """The weight that a request gets."""
        return self.state.retriever.beta if asked.beta is None else asked.beta

    def for_user(self, user_id: str, asked: Asked) -> list[Recommendation]:
        """Items for a user of the histories; one whom the towers do not know is answered by history alone."""
        state = self.state
        known = state.retriever.knows(user_id)
        with self._telemetry.stage("retrieve"):
            if known:
                candidates = state.retriever.retrieve([user_id], asked.k, beta=asked.beta, filter_seen=asked.filter_seen)
            else:
                item_ids, behaviours = state.histories.items(user_id, LONGEST_HISTORY)
                candidates = state.retriever.retrieve_history(
                    item_ids, behaviours, asked.k, beta=asked.beta, tags=state.tags.column(user_id, "tag"), filter_seen=asked.filter_seen
                )
        with self._telemetry.stage("explain"):
            source = "towers" if known else "history"
            return self._explained(candidates, source, state.current_interests(user_id), state.interest_of_category(user_id))

    def for_history(self, item_ids: Sequence[str], behaviours: Sequence[str], tags: Sequence[str], asked: Asked) -> list[Recommendation]:
        """Items for someone unknown, by what they did.

        Raises:
            ProblemError: 422, the catalogue has none of the items.
        """
        known = [(item, behaviour) for item, behaviour in zip(item_ids, behaviours, strict=True) if item in self.state.catalogue]
        if not known:
            raise refuse(422, "no-known-item", "history", ", ".join(item_ids), "the catalogue has none of these items")
        with self._telemetry.stage("retrieve"):
            items, acts = zip(*known, strict=True)
            candidates = self.state.retriever.retrieve_history(
                items, acts, asked.k, beta=asked.beta, tags=tags, filter_seen=asked.filter_seen
            )
        with self._telemetry.stage("explain"):
            return self._explained(candidates, "history", (), {})

    def _explained(
        self, candidates: pa.Table, source: str, interests: Sequence[str], by_category: Mapping[str, str]
    ) -> list[Recommendation]:
        recommended: list[Recommendation] = []
        kinds: Counter[str] = Counter()
        scores = candidates["score"].to_pylist()
        for item_id, score in zip(candidates["item_id"].to_pylist(), scores, strict=True):
            card = self.state.catalogue.card(item_id)
            if card is None:
                continue
            reason = self.state.reasons.find(item_id, interests)
            kinds[_kind(reason)] += 1
            interest = reason.interest if reason is not None and reason.interest else by_category.get(card.category)
            recommended.append(Recommendation(rank=len(recommended), score=score, item=card, interest=interest, reason=reason))
        self._telemetry.count_answer(source, kinds, len(scores) - len(recommended))
        return recommended


def _kind(reason: Reason | None) -> str:
    if reason is None:
        return "none"
    return "fallback" if reason.fallback else "interest"
