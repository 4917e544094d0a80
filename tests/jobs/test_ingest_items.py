"""New items behind the standing catalogue."""

from __future__ import annotations

import ingest_items
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
