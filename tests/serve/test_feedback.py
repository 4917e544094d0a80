"""What a session's feedback does to the next answer."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from intently.core.workspace import Workspace

from serve.service import Service
from tests.serve.calling import calling, config

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests' coroutines."""
    return "asyncio"


async def scores(client: httpx.AsyncClient, **query: object) -> dict[str, float]:
    answer = (await client.get("/v1/users/ada/recommendations", params={"k": 100} | query)).raise_for_status().json()
    return {one["item"]["item_id"]: one["score"] for one in answer["items"]}


async def rate(client: httpx.AsyncClient, item_id: str, stars: float) -> None:
    event = {"event_id": f"{item_id}-{stars}", "user_id": "ada", "item_id": item_id, "behaviour": "rating", "value": stars}
    (await client.post("/v1/events", json=event)).raise_for_status()


async def test_feedback_a_bad_rating_takes_the_item_away_and_moves_nothing_else(served: Workspace, tmp_path: Path) -> None:
    async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
        before = await scores(client)
        await rate(client, "i03", 1)
        assert await scores(client) == {item: score for item, score in before.items() if item != "i03"}
        assert "i03" not in await scores(client, filter_seen=False), "what is not wanted does not come back with what was seen"


async def test_feedback_a_good_rating_changes_what_the_person_is_like(served: Workspace, tmp_path: Path) -> None:
    async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
        before = await scores(client, beta=1)
        await rate(client, "i03", 5)
        after = await scores(client, beta=1)
        assert "i03" not in after
        assert any(abs(after[item] - before[item]) > 1e-6 for item in after)
