"""New items behind the standing catalogue."""

from __future__ import annotations

from pathlib import Path

import ingest_items
import pytest
from intently.core.schema import ITEM
from intently.core.workspace import Workspace
from intently.data.simulator import simulate
from intently.data.sources import SimulatorSource

from tests.retrieval.world import put

SOURCE = SimulatorSource(num_users=5, num_items=60, pictures=False)


def test_ingest_items_appends_new_ones_and_keeps_the_rest_as_it_was(workspace: Workspace) -> None:
    world = simulate(SOURCE).items
    # What stands says something else of the first item than the source does now.
    old = [{**row, "title": "as it was"} if place == 0 else row for place, row in enumerate(world.slice(0, 40).to_pylist())]
    put(workspace, "item", ITEM, ITEM.from_rows(old))
    config = ingest_items.IngestItemsConfig(source=SOURCE)
    before = workspace.artifact("item")
    grown = ingest_items.JOB.execute(config, workspace)
    assert grown.read().slice(0, 40).equals(before.read())
    assert sorted(grown.read()["item_id"].to_pylist()[40:]) == sorted(world["item_id"].to_pylist()[40:])
    assert grown.manifest.metrics == {"new_items": 20, "items_that_stood": 40}
    assert workspace.artifact("item").version == grown.version
    again = ingest_items.JOB.execute(config, workspace)
    assert again.version == grown.version


def files_config(folder: Path) -> ingest_items.IngestItemsConfig:
    """Items in a file; a log and users that are not there."""
    source = {"kind": "files", "events": str(folder / "day.csv"), "users": str(folder / "users.csv"), "items": str(folder / "items.csv")}
    return ingest_items.IngestItemsConfig.parse({"source": source})


def test_ingest_items_of_files_looks_at_the_items_alone(workspace: Workspace, tmp_path: Path) -> None:
    put(workspace, "item", ITEM, simulate(SOURCE).items)
    (tmp_path / "items.csv").write_text("item_id,title,category\nnew,Tent,Camping\n,Lamp,Home\n")
    config = files_config(tmp_path)
    before = ingest_items.JOB.stage(workspace, "item", config).version
    (tmp_path / "day.csv").write_text("not,a,log\n")
    assert ingest_items.JOB.stage(workspace, "item", config).version == before
    grown = ingest_items.JOB.execute(config, workspace)
    assert (grown.version, grown.manifest.rows) == (before, 61)
    assert grown.manifest.reject_reasons == {"missing item_id": 1}


def test_ingest_items_without_a_new_one_writes_nothing_and_tells_what_it_refused(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = simulate(SOURCE).items
    put(workspace, "item", ITEM, items)
    known = items["item_id"][0].as_py()
    (tmp_path / "items.csv").write_text(f"item_id,title,category\n{known},Tent,Camping\n,Lamp,Home\n{known},Again,Camping\n")
    standing = workspace.artifact("item")
    assert ingest_items.JOB.execute(files_config(tmp_path), workspace).version == standing.version
    told = capsys.readouterr().out
    assert "0 of 1 items are new, 2 rows refused" in told
    assert "refused: items.csv:1: missing item_id: Lamp" in told
    assert f"refused: items.csv:2: duplicate item_id: {known} Again" in told
