"""One search of the index for all requests that wait: whatever came in while the last search ran goes into the next one.

Nobody waits for a batch to fill. Searches run in the event loop's own thread: on the one core that a replica has, a second thread would
only take turns with it.
"""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa
from intently.core.errors import IntentlyError
from intently.retrieval.retriever import TowerRetriever


class _Wish(NamedTuple):
    terms: tuple[int, float | None, bool]
    user_id: str
    answer: asyncio.Future[pa.Table]


class Batcher:
    """Collects searches for known users. For one event loop."""

    def __init__(self, retriever: TowerRetriever, max_batch: int) -> None:
        self._retriever, self._max_batch = retriever, max_batch
        self._waiting: list[_Wish] = []

    async def retrieve(self, user_id: str, k: int, beta: float | None, filter_seen: bool) -> pa.Table:
        """As `TowerRetriever.retrieve` for one user."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._search)
        wish = _Wish((k, beta, filter_seen), user_id, loop.create_future())
        self._waiting.append(wish)
        return await wish.answer

    def _search(self) -> None:
        waiting, self._waiting = self._waiting, []
        # Only requests with the same k, beta and filter can share a search; almost all have the default.
        for (k, beta, filter_seen), same in groupby(sorted(waiting, key=lambda wish: repr(wish.terms)), key=lambda wish: wish.terms):
            # Whoever hung up meanwhile has cancelled the answer.
            wishes = [wish for wish in same if not wish.answer.done()]
            for start in range(0, len(wishes), self._max_batch):
                together = wishes[start : start + self._max_batch]
                user_ids = [wish.user_id for wish in together]
                try:
                    found = self._retriever.retrieve(user_ids, k, beta=beta, filter_seen=filter_seen)
                except IntentlyError as error:
                    for wish in together:
                        wish.answer.set_exception(error)
                    continue
                for wish, part in zip(together, _parts(found, user_ids), strict=True):
                    wish.answer.set_result(part)


def _parts(candidates: pa.Table, user_ids: list[str]) -> list[pa.Table]:
    """Candidates of several users, one after the other → one table each; a user asked for twice stands there twice."""
    ranks = candidates["rank"].to_numpy()
    starts = [place for place, rank in enumerate(ranks.tolist()) if rank == 0]
    owners = candidates["user_id"].take(pa.array(starts, pa.int64())).to_pylist()
    stops = [*starts[1:], len(ranks)]
    parts, place = [], 0
    for user_id in user_ids:
        if place < len(owners) and owners[place] == user_id:
            parts.append(candidates.slice(starts[place], stops[place] - starts[place]))
            place += 1
        else:
            parts.append(candidates.slice(0, 0))
    return parts
