"""Newer tables are used without a restart; sets that do not belong together, and broken ones, are not."""

from __future__ import annotations

import asyncio
import shutil
import weakref
from pathlib import Path

import pytest
from intently.core.config import Config
from intently.core.schema import ITEM, METRIC, TAG
from intently.core.workspace import Workspace, open_stage

from benchmarks.serving_world import write_explanations
from serve.reload import disagreements, name_of, newest_versions, versions_to_start_with
from serve.service import Service
from serve.settings import ServeConfig
from serve.state import State
from tests.serve.calling import calling, config
from tests.serve.conftest import rows_of_items, rows_of_tags

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
