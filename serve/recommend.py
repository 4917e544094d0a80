"""From a user or a history to recommended items with their reasons. The hot path: one search, then lookups in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from serve.batching import Batcher
from serve.models import Reason, Recommendation, Strategy
from serve.problems import refuse
from serve.session import SessionEvent
from serve.state import State
from serve.telemetry import Telemetry

LONGEST_HISTORY = 200


@dataclass(frozen=True)
class Asked:
    """What a request wants.

    Attributes:
        k: most items.
        beta: weight of the user vector, 0 to 1; None for the one that the sweep chose.
        filter_seen: leave out what the user has taken, and what they touched since the towers' training.
        strategy: who finds the items.
    """

    k: int
    beta: float | None
    filter_seen: bool
    strategy: Strategy = Strategy.TOWERS


class Recommender:
    """Answers from one state; several requests share it."""

    def __init__(self, state: State, telemetry: Telemetry, max_batch: int = 1) -> None:
        self.state, self._telemetry = state, telemetry
        self._batcher = Batcher(state.retriever, max_batch) if max_batch > 1 else None

    def beta(self, asked: Asked) -> float:
        """The weight that a request gets."""
        return self.state.retriever.beta if asked.beta is None else asked.beta

    async def for_user(self, user_id: str, asked: Asked, session: Sequence[SessionEvent] = ()) -> list[Recommendation]:
        """Items for a user, the events of the session taken into account.

        A user whom the towers know is searched for with the vector that stands, or with a new one after what came since the towers'
        training; anybody else is answered by history and session alone.
        """
        state = self.state
        acts, disliked = state.session_acts(user_id, session)
        known = state.retriever.knows(user_id)
        with self._telemetry.stage("retrieve"):
            if asked.strategy is Strategy.GENERATIVE:
                candidates = await self._generated(*state.all_acts(user_id, session), asked)
            elif known and not acts:
                candidates = await self._stored(user_id, asked, disliked)
            elif known:
                candidates = state.retriever.retrieve_history(
                    *zip(*acts, strict=True),
                    asked.k,
                    beta=asked.beta,
                    tags=(),
                    filter_seen=asked.filter_seen,
                    exclude=disliked,
                    user_id=user_id,
                )
            else:
                whole, unwanted = state.all_acts(user_id, session, LONGEST_HISTORY)
                candidates = state.retriever.retrieve_history(
                    [item for item, _ in whole],
                    [behaviour for _, behaviour in whole],
                    asked.k,
                    beta=asked.beta,
                    tags=state.tags.column(user_id, "tag"),
                    filter_seen=asked.filter_seen,
                    exclude=unwanted,
                )
        with self._telemetry.stage("explain"):
            about = state.about(user_id)
            interests = about.interests_after([item for item, _ in acts], state.catalogue) if acts else about.interests
            source = "generative" if asked.strategy is Strategy.GENERATIVE else "towers" if known else "history"
            return self._explained(candidates, source, interests, about.by_category)

    async def for_history(
        self, item_ids: Sequence[str], behaviours: Sequence[str], tags: Sequence[str], asked: Asked
    ) -> list[Recommendation]:
        """Items for someone unknown, by what they did.

        Raises:
            ProblemError: 422, the catalogue has none of the items.
        """
        known = [(item, behaviour) for item, behaviour in zip(item_ids, behaviours, strict=True) if item in self.state.catalogue]
        if not known:
            raise refuse(422, "no-known-item", "history", ", ".join(item_ids), "the catalogue has none of these items")
        with self._telemetry.stage("retrieve"):
            if asked.strategy is Strategy.GENERATIVE:
                candidates = await self._generated(known, (), asked)
            else:
                items, acts = zip(*known, strict=True)
                candidates = self.state.retriever.retrieve_history(
                    items, acts, asked.k, beta=asked.beta, tags=tags, filter_seen=asked.filter_seen
                )
        with self._telemetry.stage("explain"):
            return self._explained(candidates, "generative" if asked.strategy is Strategy.GENERATIVE else "history", (), {})

    async def _generated(self, acts: Sequence[tuple[str, str]], disliked: Sequence[str], asked: Asked) -> pa.Table:
        """What the generator writes after a history; the event loop goes on meanwhile."""
        items, kinds = [item for item, _ in acts], [behaviour for _, behaviour in acts]
        return await asyncio.to_thread(self.state.generated, items, kinds, asked.k, asked.filter_seen, disliked)

    async def _stored(self, user_id: str, asked: Asked, disliked: Sequence[str]) -> pa.Table:
        if self._batcher is not None and not disliked:
            return await self._batcher.retrieve(user_id, asked.k, asked.beta, asked.filter_seen)
        return self.state.retriever.retrieve([user_id], asked.k, beta=asked.beta, filter_seen=asked.filter_seen, exclude=disliked)

    def _explained(
        self, candidates: pa.Table, source: str, interests: Sequence[str], by_category: Mapping[str, str]
    ) -> list[Recommendation]:
        recommended: list[Recommendation] = []
        kinds: Counter[str] = Counter()
        item_ids, scores = candidates["item_id"].to_pylist(), candidates["score"].to_pylist()
        found = self.state.reasons.find_all(item_ids, interests)
        self._telemetry.count_lookups(found.hits, found.misses, found.failed)
        for item_id, score, reason in zip(item_ids, scores, found.reasons, strict=True):
            card = self.state.catalogue.card(item_id)
            if card is None:
                continue
            kinds[_kind(reason)] += 1
            interest = reason.interest if reason is not None and reason.interest else by_category.get(card.category)
            recommended.append(Recommendation(rank=len(recommended), score=score, item=card, interest=interest, reason=reason))
        self._telemetry.count_answer(source, kinds, len(scores) - len(recommended))
        return recommended


def _kind(reason: Reason | None) -> str:
    if reason is None:
        return "none"
    return "fallback" if reason.fallback else "interest"
