"""SIGKILL in the middle of mining: of the driver, of the actor, of vLLM. Nothing is lost or doubled; the payer counts each request once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mine_user_interests
import pytest
from fastapi import Response
from intently.core.config import Config, Resources
from intently.core.schema import CHUNK, ITEM, Table
from intently.core.workspace import Artifact, Stage, Workspace, open_stage
from intently.data.counts import total_counts
from intently.interests.usage import usage_metrics
from intently.interests.workers import UserMiner
from intently.llm.engines.build import engine_environment
from intently.llm.request_cache import BEGIN, FOLDER, STOP, TRY, UNTRY
from intently.runtime.mapping import map_parts

from tests.chat_server import COMPLETION_TOKENS, PROMPT_TOKENS, chat_server, completion
from tests.jobs.dying import MinerDiesOnce
from tests.jobs.killing import doomed

pytestmark = pytest.mark.usefixtures("ray_session")

START = datetime(2024, 5, 1, tzinfo=UTC)
PARTS = [f"bucket-{number:05d}" for number in range(4)]
CHUNKS = 2
USERS_A_PART = 3
ALL = len(PARTS) * USERS_A_PART * CHUNKS
GOOD = json.dumps({"interests": [{"interest": "mountain hiking", "stage": "active", "reason": "often looked at"}]})


class Payer:
    """Counts every answer that it gives for a prompt; once told to, it holds whatever comes after `free` answers."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.free: int | None = None
        self.holding = threading.Event()
        self._never = asyncio.Event()

    async def respond(self, body: dict[str, Any]) -> Response:
        if self.free is not None and self.answered.total() >= self.free:
            self.holding.set()
            await self._never.wait()
        self.answered[json.dumps(body["messages"])] += 1
        return completion("no JSON" if "user-7 walks" in body["messages"][1]["content"] else GOOD)


@pytest.fixture
def payer() -> Iterator[tuple[Payer, str]]:
    behaviour = Payer()
    with chat_server(behaviour.respond) as base_url:
        yield behaviour, base_url


@pytest.fixture
def inputs(workspace: Workspace) -> Workspace:
    """Four buckets of three users, each with two chunks."""
    write_inputs(workspace)
    return workspace


def write_inputs(workspace: Workspace) -> None:
    item = {"item_id": "poles", "title": "Trekking poles", "category": "Hiking", "brand": None, "categories": [], "attributes": []}
    write(workspace, "item", ITEM, {"part-00000": [item]})
    users = {part: range(3 * n, 3 * n + USERS_A_PART) for n, part in enumerate(PARTS)}
    write(workspace, "chunk", CHUNK, {p: [chunk(f"user-{u}", n) for u in us for n in range(CHUNKS)] for p, us in users.items()})


def write(workspace: Workspace, name: str, table: Table, parts: dict[str, list[dict]]) -> None:
    stage = open_stage(workspace, name, table, {}, Config())
    for part, rows in parts.items():
        stage.write(part, table.from_rows(rows))
    stage.finish()


def chunk(user: str, number: int) -> dict:
    start = START + timedelta(days=number)
    identity = {"user_id": user, "bucket": 0, "chunk": number, "start": start, "end": start + timedelta(hours=2)}
    return identity | {"event_ids": ["1"], "item_ids": ["poles"], "text": f"{user} walks, day {number}", "num_tokens": 2}


def settings(base_url: str) -> dict[str, Any]:
    return {"engine": {"kind": "endpoint", "base_url": base_url, "model": "m", "concurrency": 1, "max_retries": 0}}


def paid(artifact: Artifact) -> dict[str, float]:
    return {name: value for name, value in artifact.manifest.metrics.items() if name != "seconds"}


def undisturbed(base_url: str, folder: Path) -> Artifact:
    workspace = Workspace.open(folder)
    write_inputs(workspace)
    stage, arguments = worker_of(workspace, settings(base_url))
    miner = UserMiner(**arguments)
    for part in PARTS:
        miner(part)
    return stage.finish(usage_metrics(total_counts(stage, PARTS)))


def worker_of(workspace: Workspace, values: dict[str, Any]) -> tuple[Stage, dict[str, Any]]:
    """The job's stage, and the arguments of its worker."""
    config = mine_user_interests.MineUserInterestsConfig.parse(values)
    stage = mine_user_interests.JOB.stage(workspace, "user_interest", config)
    arguments = {
        "stage": stage,
        "chunks": workspace.artifact("chunk"),
        "items": workspace.artifact("item"),
        "config": config.mining,
        "last_place": None,
        "engine": config.engine,
        "encoder": config.encoder,
    }
    return stage, arguments


def test_mining_driver_killed_in_the_middle_of_a_part_pays_for_nothing_twice(
    inputs: Workspace, payer: tuple[Payer, str], tmp_path: Path
) -> None:
    server, base_url = payer
    server.free = 9  # in the middle of the second part
    with doomed("mine_user_interests", settings(base_url), inputs):
        # One request is in flight at a time: when the next one is here, the answers before it are in the cache.
        assert server.holding.wait(120)
    assert server.answered.total() == 9
    server.free = None
    resumed = mine_user_interests.run(mine_user_interests.MineUserInterestsConfig.parse(settings(base_url)), inputs)
    repairs = CHUNKS  # user-7's answers, which stay bad
    assert (server.answered.total(), max(server.answered.values())) == (ALL + repairs, 1)
    metrics = resumed.manifest.metrics
    assert metrics["prompt_tokens"] == PROMPT_TOKENS * server.answered.total()
    assert metrics["completion_tokens"] == COMPLETION_TOKENS * server.answered.total()
    assert (metrics["reused"], metrics["questions"]) == (0, ALL)
    whole = undisturbed(base_url, tmp_path / "whole")
    assert resumed.read().equals(whole.read())
    assert paid(resumed) == paid(whole) | {"users": 12, "users_read": 12}
    assert resumed.manifest.reject_reasons == {"answer is not JSON": CHUNKS}


def test_mining_vllm_killed_while_answering_is_replaced_and_pays_for_nothing_twice(inputs: Workspace, tmp_path: Path) -> None:
    mined = mine_with_a_death(
        inputs, {"engine": {"kind": "vllm"}, "mining": {"sampling": {"max_tokens": 96}}}, tmp_path / "killed", after=8
    )
    lines = [line for path in Path(inputs.path(FOLDER)).rglob("*.jsonl") for line in path.read_text().splitlines()]
    kept = [line.split("\t", 2) for line in lines]
    keys, payers, answers = zip(*(words for words in kept if words[0] not in (BEGIN, STOP, TRY, UNTRY)), strict=True)
    assert len(set(keys)) == len(keys) >= ALL
    assert {payer.rpartition("/")[2] for payer in payers} == set(PARTS)
    metrics = mined.manifest.metrics
    assert metrics["questions"] == ALL
    for name in ("prompt_tokens", "completion_tokens"):
        assert metrics[name] == sum(json.loads(answer)[name] for answer in answers)
    rows, refused = mined.read(), mined.rejects()
    answered = {*zip(rows["user_id"].to_pylist(), map(str, rows["chunk"].to_pylist()), strict=True)}
    assert len(answered | {tuple(row.split("/")[:2]) for row in refused["row"].to_pylist()}) == ALL


def mine_with_a_death(workspace: Workspace, values: dict[str, Any], marker: Path, after: int) -> Artifact:
    stage, arguments = worker_of(workspace, values)
    deadly = arguments | {"marker": str(marker), "after": after}
    map_parts(MinerDiesOnce, deadly, PARTS, Resources(), "mine", engine_environment(arguments["engine"]))
    assert marker.exists(), "a worker was killed"
    return stage.finish(usage_metrics(total_counts(stage, PARTS)))
