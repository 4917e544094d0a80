"""Appends new items to the standing catalogue. Reads its source's items, item; writes item: the rows that stand, and the new ones behind.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/ingest_items.py \\
    --config jobs/configs/ingest_items/demo.yaml

Items that stand are not rewritten, whatever the source says of them now; how many the source holds is noted. What is refused goes to Reject
beside the new rows. Where nothing is new no table is written, since a new version of item would have all that is made of it made again:
then what was refused is printed with its place and reason. Events on the new items can come in with jobs/ingest_day.py from then on, and
jobs/update_vectors.py makes them findable.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.schema import ITEM
from intently.core.workspace import Artifact, Workspace
from intently.data.files import FilesConfig
from intently.data.sources import SourceConfig, items_fingerprint, open_items
from pydantic import Field


class IngestItemsConfig(Config):
    """Which new items."""

    source: SourceConfig = Field(
        FilesConfig(events="day.csv", items="items.csv"),
        description="where the items are; of files the log and the users need not be there",
    )


def run(config: IngestItemsConfig, workspace: Workspace) -> Artifact:
    """Append the items that are new; the standing table where none is."""
    standing = workspace.artifact("item")
    source = open_items(config.source)
    known = standing.read(columns=["item_id"])["item_id"].combine_chunks()
    new = source.items.filter(pc.invert(pc.is_in(source.items["item_id"], value_set=known)))
    print(f"{new.num_rows} of {source.items.num_rows} items are new, {source.rejects.num_rows} rows refused", flush=True)
    if not new.num_rows:
        for row in source.rejects.to_pylist():
            print(f"refused: {row['row']}: {row['reason']}: {row['detail']}", flush=True)
        return standing
    stage = JOB.stage(workspace, "item", config)
    parts = standing.parts()
    for part in parts:
        stage.put(f"{part}.parquet", standing.fetch(f"{part}.parquet"))
    order = pa.array(np.argsort(new["item_id"].to_numpy(zero_copy_only=False), kind="stable"))
    stage.write(f"part-{len(parts):05d}", new.take(order), source.rejects)
    metrics = {"new_items": new.num_rows, "items_that_stood": source.items.num_rows - new.num_rows}
    return stage.finish(metrics=metrics, notes={"grew_from": str(standing), **source.notes})


JOB = Job(
    name="ingest_items",
    config=IngestItemsConfig,
    reads=("item",),
    writes={"item": ITEM},
    run=run,
    fingerprint=lambda config: items_fingerprint(config.source),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
