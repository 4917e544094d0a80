"""Newer tables are used without a restart; sets that do not belong together, and broken ones, are not."""

from __future__ import annotations

import asyncio
import json
import shutil
import weakref
from pathlib import Path

import httpx
import pytest
from intently.core.config import Config
from intently.core.schema import HISTORY, ITEM, METRIC, TAG
from intently.core.workspace import Workspace, open_stage
from intently.data.days import list_days, open_histories
from intently.retrieval.towers import TowerConfig
from intently.retrieval.training import TrainingConfig

from benchmarks.serving_world import write_explanations, write_untrained_towers
from serve.logs import LogConfig
from serve.reload import Reloader, disagreements, name_of, newest_versions, versions_to_start_with
from serve.service import Service
from serve.settings import ServeConfig
from serve.state import State
from tests.serve.calling import calling, config
from tests.serve.conftest import history, rows_of_items, rows_of_tags

PATH = "/v1/users/ada/recommendations"


class Sweep(Config):
    """What a fusion artifact was made with."""

    beta: float


@pytest.fixture
def moving(served: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the hand-made tables, which a test may add to."""
    shutil.copytree(served.root, tmp_path / "moving")
    return Workspace.open(tmp_path / "moving")


def write_fusion(workspace: Workspace, beta: float, **inputs: str) -> str:
    stage = open_stage(workspace, "fusion", METRIC, inputs, Sweep(beta=beta))
    stage.write("part-00000", METRIC.empty())
    return stage.finish(metrics={"beta": beta}, notes={"pooling": "mean"}).version


def append_day(workspace: Workspace, edition: int, rows: list[dict]) -> str:
    """As ingest does; HISTORY rows of what came in."""
    stage = open_stage(workspace, "history_day", HISTORY, {"history": workspace.artifact("history").version}, Sweep(beta=edition))
    stage.write("part-00000", HISTORY.from_rows(rows))
    list_days(stage, open_histories(workspace))
    return stage.finish().version


async def listed(client: httpx.AsyncClient, user_id: str = "ada", **query: object) -> list[str]:
    answer = await client.get(f"/v1/users/{user_id}/recommendations", params={"k": 100} | query)
    return [one["item"]["item_id"] for one in answer.raise_for_status().json()["items"]]


def settings(workspace: Workspace, tmp_path: Path, **more: object) -> ServeConfig:
    return config(workspace, tmp_path / "log", **more)


def test_reload_uses_a_new_sweep_without_a_restart(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(settings(moving, tmp_path), "r")
        old = weakref.ref(service.state)
        async with calling(service) as client:
            before = await client.get(PATH)
            assert (await client.post("/v1/admin/reload")).json()["outcome"] == "current"
            version = write_fusion(moving, 0.9)
            assert (await client.get(PATH)).json()["beta"] == before.json()["beta"] == 0.5
            told = (await client.post("/v1/admin/reload")).json()
            assert (told["outcome"], told["versions"]["fusion"]) == ("loaded", version)
            after = await client.get(PATH)
            assert old() is None, "the old tables are still in memory"
            assert after.json()["beta"] == 0.9
            assert after.headers["x-tables"] == name_of(newest_versions(moving)) != before.headers["x-tables"]
            assert after.json()["items"] == (await client.get(PATH, params={"beta": 0.9})).json()["items"]
            ready = (await client.get("/readyz")).json()
            assert (ready["versions"]["fusion"], ready["reload"]["outcome"]) == (version, "loaded")
            metrics = (await client.get("/metrics")).text
        assert f'artifact="fusion",replica="r",version="{version}"' in metrics and metrics.count('artifact="fusion"') == 1
        assert 'intently_reloads_total{outcome="loaded",replica="r"} 1.0' in metrics

    asyncio.run(run())


def test_reload_by_itself_while_requests_run_drops_none_and_mixes_none(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(settings(moving, tmp_path, watch_s=0.02), "r")
        async with calling(service) as client:
            first = await client.get(PATH)
            seen: dict[str, set[float]] = {first.headers["x-tables"]: {first.json()["beta"]}}
            for beta in (0.9, 0.1):
                write_fusion(moving, beta)
                wanted = name_of(newest_versions(moving))
                while wanted not in seen:
                    await asyncio.sleep(0)  # the watcher's turn
                    for answer in await asyncio.gather(*(client.get(PATH) for _ in range(8))):
                        assert answer.status_code == 200
                        seen.setdefault(answer.headers["x-tables"], set()).add(answer.json()["beta"])
        assert list(seen.values()) == [{0.5}, {0.9}, {0.1}]

    asyncio.run(run())


def test_reload_waits_for_tables_that_were_made_from_each_other(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(settings(moving, tmp_path), "r")
        old = dict(service.state.versions)
        async with calling(service) as client:
            # A sweep over towers that are not there yet: the pipeline that writes them has not come to its end.
            write_fusion(moving, 0.9, towers="of-another-run")
            told = (await client.post("/v1/admin/reload")).json()
            assert told["outcome"] == "waiting" and "fusion@" in told["detail"] and "towers@of-another-run" in told["detail"]
            assert (await client.get("/readyz")).json()["reload"]["outcome"] == "waiting"
            assert 'intently_tables_behind{replica="r"} 1.0' in (await client.get("/metrics")).text
            assert (await client.get(PATH)).json()["beta"] == 0.5 and service.state.versions == old
            write_fusion(moving, 0.7, towers=moving.artifact("towers").version)
            assert (await client.post("/v1/admin/reload")).json()["outcome"] == "loaded"
            assert (await client.get(PATH)).json()["beta"] == 0.7

    asyncio.run(run())


def test_reload_of_a_broken_table_keeps_the_old_one_and_says_so(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(settings(moving, tmp_path), "r")
        async with calling(service) as client:
            before = (await client.get(PATH)).json()["items"]
            stage = open_stage(moving, "item", ITEM, {}, Sweep(beta=1))
            stage.write("part-00000", ITEM.from_rows(rows_of_items()))
            broken = stage.finish()
            path = Path(moving.root) / "item" / broken.version / "part-00000.parquet"
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            told = (await client.post("/v1/admin/reload")).json()
            assert told["outcome"] == "failed" and "part-00000.parquet" in told["detail"]
            assert (await client.get("/readyz")).json()["reload"]["outcome"] == "failed"
            assert 'intently_tables_behind{replica="r"} 1.0' in (await client.get("/metrics")).text
            assert (await client.get(PATH)).json()["items"] == before
            # It is not tried again by itself, but it is when asked.
            path.write_bytes(whole)
            assert (await service.reloader.check()).outcome == "failed"
            assert (await client.post("/v1/admin/reload")).json()["outcome"] == "loaded"

    asyncio.run(run())


def test_start_in_the_middle_of_a_pipeline_takes_the_set_that_was_in_use(moving: Workspace, tmp_path: Path) -> None:
    used = newest_versions(moving)

    async def load_once() -> None:
        service = Service.open(settings(moving, tmp_path), "r")
        write_fusion(moving, 0.7)
        await service.reloader.check()

    asyncio.run(load_once())
    used = newest_versions(moving)
    assert used == State.load(moving).versions
    write_fusion(moving, 0.9, towers="of-another-run")
    assert versions_to_start_with(moving) == used != newest_versions(moving)
    assert Service.open(settings(moving, tmp_path), "s").state.retriever.beta == 0.7


def test_disagreements_name_both_sides_and_let_the_catalogue_grow(moving: Workspace) -> None:
    versions = newest_versions(moving)
    assert disagreements(moving, versions) == []
    stage = open_stage(moving, "tag", TAG, {"user_interest": "older", "item": "older"}, Sweep(beta=1))
    stage.write("part-00000", TAG.from_rows(rows_of_tags()))
    stage.finish()
    newest = newest_versions(moving)
    found = disagreements(moving, newest)
    assert any(f"tag@{newest['tag']} was made from user_interest@older" in one for one in found)
    # New tags get vectors from the towers that stand.
    assert not any(one.startswith("towers@") for one in found)
    assert not any("item@" in one for one in found)


def test_reload_swaps_reasons_with_the_tables(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(settings(moving, tmp_path), "r")
        async with calling(service) as client:
            rows = [{"item_id": f"i{place:02d}", "interest": "", "text": f"New words on {place}.", "model": "hand"} for place in range(12)]
            write_explanations(moving, rows, edition=1)
            assert (await client.post("/v1/admin/reload")).json()["outcome"] == "loaded"
            items = (await client.get(PATH)).json()["items"]
            assert {one["reason"]["text"] for one in items} <= {row["text"] for row in rows}

    asyncio.run(run())


BOUGHT = [
    {"event_id": "s1", "user_id": "ada", "item_id": "i03", "behaviour": "purchase"},
    {"event_id": "s2", "user_id": "ada", "item_id": "i06", "behaviour": "rating", "value": 1},
]


def day_of(user_id: str) -> list[dict]:
    """BOUGHT as a day holds it."""
    return [history(user_id, [(400, "i03", "purchase"), (401, "i06", "rating")]) | {"event_ids": ["s1", "s2"], "values": [None, 1.0]}]


def test_day_that_is_appended_changes_no_answer_for_its_events(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(settings(moving, tmp_path), "r")) as client:
            before = await listed(client)
            await client.post("/v1/events", json=BOUGHT)
            in_session = (await client.get(PATH)).json()["items"]
            assert set(before) - set(await listed(client)) == {"i03", "i06"}
            append_day(moving, 1, day_of("ada"))
            assert (await client.post("/v1/admin/reload")).json()["outcome"] == "loaded"
            assert not any(event["session"] for event in (await client.get("/v1/users/ada/history")).json()["events"])
            assert (await client.get(PATH)).json()["items"] == in_session
            await client.post("/v1/events", json={"event_id": "s3", "user_id": "ada", "item_id": "i10", "behaviour": "cart"})
            assert set(before) - set(await listed(client)) == {"i03", "i06", "i10"}
            assert "i06" not in await listed(client, filter_seen=False)

    asyncio.run(run())


def test_day_that_the_towers_were_split_from_is_no_later_one(moving: Workspace) -> None:
    first = append_day(moving, 1, day_of("ada"))
    made_from = {"history": moving.artifact("history").version, "history_day": first}
    train = open_stage(moving, "history_train", HISTORY, made_from, Sweep(beta=1))
    train.write("part-00000", moving.artifact("history_train").read())
    train.finish()
    assert State.load(moving).session_acts("ada", ()) == ([], [])
    append_day(moving, 2, [history("ada", [(500, "i10", "cart")]) | {"event_ids": ["s3"]}])
    assert State.load(moving).session_acts("ada", ()) == ([("i10", "cart")], [])


def test_somebody_new_whose_dislike_is_in_the_tables_is_not_shown_it(moving: Workspace) -> None:
    append_day(moving, 1, day_of("zoe"))
    state = State.load(moving)
    assert state.all_acts("zoe", ()) == ([("i03", "purchase")], ["i06"])


def test_reload_of_weights_that_are_cut_short_is_logged_once_and_the_next_set_is_used(moving: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "lines.jsonl"

    async def run() -> None:
        service = Service.open(settings(moving, tmp_path).model_copy(update={"log": LogConfig(file=str(log))}), "r")
        async with calling(service):
            write_untrained_towers(moving, TrainingConfig(towers=TowerConfig(dim=8, hidden=16, dropout=0.2)), beta=0.7)
            weights = moving.artifact("towers").fetch("weights.safetensors")
            whole = weights.read_bytes()
            weights.write_bytes(whole[:100])
            told = [await service.reloader.check(again=True) for _ in range(3)]
            assert {one.outcome for one in told} == {"failed"} and "weights.safetensors cannot be read" in told[0].detail
            weights.write_bytes(whole)
            write_fusion(moving, 0.9, towers="of-another-run")
            assert [(await service.reloader.check()).outcome for _ in range(3)] == ["waiting"] * 3
            write_fusion(moving, 0.8)
            assert (await service.reloader.check()).outcome == "loaded"

    asyncio.run(run())
    messages = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert [message.split(": ")[1] for message in messages] == ["failed", "waiting"]


def test_watch_goes_on_after_an_error_that_nobody_foresaw(moving: Workspace) -> None:
    class UnforeseenError(Exception):
        """Of some library."""

    async def run() -> None:
        state, tries = State.load(moving), list[object]()

        def load(versions: object) -> State:
            tries.append(versions)
            if len(tries) == 1:
                raise UnforeseenError("of a library")
            return State.load(moving)

        reloader = Reloader(moving, load, state, lambda _: None, watch_s=0.01)
        write_fusion(moving, 0.9)
        watching = asyncio.create_task(reloader.watch())
        while reloader.last.outcome != "failed" and not watching.done():
            await asyncio.sleep(0)
        assert reloader.last.detail == "UnforeseenError: of a library"
        write_fusion(moving, 0.8)
        while reloader.last.outcome != "loaded" and not watching.done():
            await asyncio.sleep(0)
        assert not watching.done()
        watching.cancel()
        reloader.close()

    asyncio.run(run())


def test_look_after_a_workspace_that_was_away_for_a_moment_tries_what_was_refused_again(moving: Workspace) -> None:
    async def run() -> None:
        reloader = Reloader(moving, lambda _: State.load(moving), State.load(moving), lambda _: None, watch_s=60)
        write_fusion(moving, 0.9, towers="of-another-run")
        assert (await reloader.check()).outcome == "waiting"
        moved = Path(moving.root) / "tag"
        moved.rename(moved.with_name("away"))
        assert "'tag'" in (await reloader.check()).detail
        moved.with_name("away").rename(moved)
        assert (await reloader.check()).outcome == "waiting"
        reloader.close()

    asyncio.run(run())
