"""Requests that share a search get what they would have got alone."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.retrieval.retriever import TowerRetriever, UnknownUserError

from serve.batching import Batcher


@pytest.fixture(scope="module")
def retriever(served: Workspace) -> TowerRetriever:
    return TowerRetriever.load(served)


@pytest.mark.parametrize("max_batch", [2, 16])
def test_searches_together_answer_each_as_alone(retriever: TowerRetriever, max_batch: int) -> None:
    wishes = [
        (user, k, beta, seen) for user in ("ada", "bob", "ada", "cyd") for k in (3, 12) for beta in (None, 0.9) for seen in (True, False)
    ]

    async def run() -> list[pa.Table]:
        batcher = Batcher(retriever, max_batch)
        return await asyncio.gather(*(batcher.retrieve(*wish) for wish in wishes))

    for (user, k, beta, seen), found in zip(wishes, asyncio.run(run()), strict=True):
        alone = retriever.retrieve([user], k, beta=beta, filter_seen=seen)
        assert found["item_id"].to_pylist() == alone["item_id"].to_pylist()
        assert found["score"].to_pylist() == pytest.approx(alone["score"].to_pylist())
        assert set(found["user_id"].to_pylist()) == {user}


def test_search_that_fails_fails_those_who_share_it_only(retriever: TowerRetriever) -> None:
    async def run() -> list[pa.Table | BaseException]:
        batcher = Batcher(retriever, 16)
        wishes = [batcher.retrieve("ada", 3, None, True), batcher.retrieve("nobody", 4, None, True), batcher.retrieve("ada", 3, 2.0, True)]
        return await asyncio.gather(*wishes, return_exceptions=True)

    found, unknown, wrong = asyncio.run(run())
    assert isinstance(found, pa.Table) and found.num_rows == 3
    assert isinstance(unknown, UnknownUserError) and isinstance(wrong, ConfigError)


def test_search_of_a_caller_who_hung_up_does_not_disturb_the_others(retriever: TowerRetriever) -> None:
    async def run() -> pa.Table:
        batcher = Batcher(retriever, 16)
        gone, stays = (asyncio.ensure_future(batcher.retrieve(user, 3, None, True)) for user in ("bob", "ada"))
        await asyncio.sleep(0)  # both wait for the search now
        gone.cancel()
        return await stays

    assert asyncio.run(run())["user_id"].to_pylist() == ["ada"] * 3
