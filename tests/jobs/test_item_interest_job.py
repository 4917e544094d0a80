"""The item job with several models: real local servers, one of them seeing pictures, others failing in every way that servers fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import mine_item_interests
import pytest
from fastapi import Response
from intently.core.config import Config
from intently.core.schema import ITEM
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.data.counts import total_counts
from intently.interests.items import ItemMiner

from tests.chat_server import COMPLETION_TOKENS, PROMPT_TOKENS, chat_server, completion

pytestmark = pytest.mark.usefixtures("ray_session")

PNG = b"\x89PNG\r\n\x1a\n"
LOOK = {"style": "slim folding sections", "aesthetics": "matt grey", "lifestyle": "days on ridges"}


def answer(*interests: tuple[str, float]) -> str:
    drafts = [{"interest": phrase, "confidence": confidence} for phrase, confidence in interests]
    return json.dumps({"attributes": ["folding"], "motivation": "go far with little weight", "interests": drafts})


class Models:
    """Four models behind one server; the model's name says how it behaves."""

    def __init__(self) -> None:
        self.prompts: dict[str, list[Any]] = {}
        self.attempts: Counter[str] = Counter()
        self._never = asyncio.Event()

    async def respond(self, body: dict[str, Any]) -> Response:
        model, said = body["model"], body["messages"][-1]["content"]
        self.prompts.setdefault(model, []).append(said)
        place = next((name for name in ("tent", "poles", "mug", "lamp", "map", "rope") if name in str(said)), "")
        self.attempts[f"{model}/{place}"] += 1
        if model == "failing":
            return await self.fail(place)
        if model == "seeing":
            return completion(json.dumps(LOOK))
        if model == "first":
            return completion(answer(("Mountain hiking", 0.9), ("Brenna camps", 0.9), ("quiet evenings", 0.8)))
        return completion(answer(("hiking in the mountains", 0.7), ("city nightlife", 0.6)))

    async def fail(self, place: str) -> Response:
        match place:
            case "tent":
                return Response(status_code=429, headers={"retry-after-ms": "5"})
            case "poles":
                return Response(status_code=500, headers={"retry-after-ms": "5"})
            case "mug":
                return Response("<html>", media_type="text/html")
            case "lamp":
                return Response('{"choices": [{"message": {"con', media_type="application/json")
            case "map":
                await self._never.wait()
        return completion(answer(("mountain hiking", 0.9)))


@pytest.fixture
def models() -> Iterator[tuple[Models, str]]:
    behaviour = Models()
    with chat_server(behaviour.respond) as base_url:
        yield behaviour, base_url


def catalogue(workspace: Workspace, *names: str) -> None:
    stage = open_stage(workspace, "item", ITEM, {}, Config())
    others = {"category": "Hiking", "categories": [], "brand": "Brenna", "attributes": []}
    rows = [{"item_id": name, "title": f"Light {name}", **others, "image": PNG if name == "poles" else None} for name in names]
    stage.write("part-00000", ITEM.from_rows(rows))
    stage.finish()


def endpoint(base_url: str, model: str, **others: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": base_url, "model": model, "max_retries": 1, "max_backoff_s": 0.01, "timeout_s": 10.0, **others}


def mine_here(workspace: Workspace, engine: dict[str, Any]) -> Artifact:
    """The job's worker in this process, on the one part that there is."""
    config = mine_item_interests.MineItemInterestsConfig.parse({"engines": [engine]})
    stage, readings = (mine_item_interests.JOB.stage(workspace, name, config) for name in ("item_interest", "item_reading"))
    items = workspace.artifact("item")
    miner = ItemMiner(stage, readings, items, config.mining, config.items_per_part, config.engines, config.vision, config.encoder)
    miner("part-00000")
    return stage.finish(total_counts(stage, ["part-00000"]))


def test_item_interests_of_two_models_and_one_that_sees_agree_on_what_both_found(models: tuple[Models, str], workspace: Workspace) -> None:
    behaviour, url = models
    catalogue(workspace, "poles", "tent")
    config = mine_item_interests.MineItemInterestsConfig.parse(
        {
            "engines": [endpoint(url, "first", prompt_price=1e6), endpoint(url, "second")],
            "vision": endpoint(url, "seeing"),
            "items_per_part": 1,
            "mining": {"ensemble": {"same_similarity": 0.75}},
        }
    )
    mined = mine_item_interests.run(config, workspace)
    assert mined.parts() == ["part-00000", "part-00001"]
    first, second = mined.read().to_pylist()
    assert (first["item_id"], first["interest"], first["support"]) == ("poles", "mountain hiking", 2)
    assert first["confidence"] == pytest.approx(0.8)
    assert (second["item_id"], second["sources"]) == ("tent", ["endpoint:first", "endpoint:second"])
    said = workspace.artifact("item_reading").read()
    assert sorted(set(said["interest"].to_pylist())) == ["city nightlife", "hiking in the mountains", "mountain hiking", "quiet evenings"]
    assert mined.manifest.reject_reasons == {"names a brand": 2, "found by fewer than 2 models": 4}

    (seen,) = behaviour.prompts["seeing"]
    assert seen[1]["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    with_picture = [prompt for prompt in behaviour.prompts["first"] if "Its picture: slim folding sections; matt grey" in prompt]
    assert len(with_picture) == 1 and "poles" in with_picture[0]

    metrics = mined.manifest.metrics
    assert metrics["questions"] == 5
    assert metrics["endpoint:first/prompt_tokens"] == 2 * PROMPT_TOKENS
    assert metrics["endpoint:first/cost"] == metrics["cost"] == 2 * PROMPT_TOKENS
    assert metrics["endpoint:seeing/completion_tokens"] == COMPLETION_TOKENS
    before = behaviour.attempts.total()
    assert mine_item_interests.run(config, workspace) == mined
    larger = config.model_copy(update={"items_per_part": 2})
    again = mine_item_interests.run(larger, workspace)
    assert behaviour.attempts.total() == before, "the request cache knows all of it"
    assert (again.manifest.metrics["prompt_tokens"], again.manifest.metrics["reused"]) == (0, 5)


def test_item_interests_server_that_fails_in_every_way_ends_with_the_rest_done(models: tuple[Models, str], workspace: Workspace) -> None:
    _, url = models
    catalogue(workspace, "tent", "poles", "mug", "lamp", "map", "rope")
    mined = mine_here(workspace, endpoint(url, "failing", timeout_s=0.3))
    assert mined.read()["item_id"].to_pylist() == ["rope"]
    assert mined.manifest.reject_reasons == {
        "the endpoint answered 429": 1,
        "the endpoint answered 500": 1,
        "the endpoint's answer is no chat completion": 2,
        "the endpoint did not answer within 0.3 s": 1,
    }


def test_item_interests_spent_budget_stops_the_worker_and_a_new_one_goes_on(models: tuple[Models, str], workspace: Workspace) -> None:
    behaviour, url = models
    catalogue(workspace, "tent", "poles", "mug")
    # An answer may have 400 tokens and has 2: after the first, 2 are spent, and 400 more would be one too many.
    stingy = endpoint(url, "first", concurrency=1, completion_price=1e6, max_cost=401)
    with pytest.raises(RuntimeError, match="the budget is spent"):
        mine_here(workspace, stingy)
    assert behaviour.attempts.total() == 1
    mined = mine_here(workspace, stingy | {"max_cost": None})
    assert behaviour.attempts.total() == 3
    assert mined.manifest.metrics["prompt_tokens"] == 3 * PROMPT_TOKENS
