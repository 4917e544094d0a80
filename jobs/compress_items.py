"""Asks a language model for a short name of every item, once an item. Reads item; writes item_name.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/compress_items.py \\
    --config jobs/configs/compress_items/demo.yaml --workspace /shared/workspace

Names that the same model gave under the same settings before are taken over from the item_name that stands: a new catalogue costs what is
new in it. compress_histories uses the names where they stand; a killed run starts again at the first part that is not written.
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import ITEM_NAME
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.item_names import ItemNameConfig, ItemNamer
from intently.interests.usage import usage_metrics
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.runtime.mapping import map_parts
from pydantic import Field


class CompressItemsConfig(Config):
    """How items are named, and by which model."""

    names: ItemNameConfig = Field(ItemNameConfig(), description="how items are named, and what is refused")
    items_per_part: int = Field(2000, ge=1, description="items in a part; a killed run loses one part at most")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that shortens")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: CompressItemsConfig, workspace: Workspace) -> Artifact:
    """Name the items of the parts that are not written yet."""
    stage = JOB.stage(workspace, "item_name", config)
    if stage.finished:
        return stage.reuse()
    items = workspace.artifact("item")
    previous = workspace.artifact("item_name") if workspace.latest_version("item_name") else None
    if previous and previous.manifest.config != stage.config:
        previous = None
    parts = [f"part-{number:05d}" for number in range(max(1, -(-items.manifest.rows // config.items_per_part)))]
    arguments = {
        "stage": stage,
        "items": items,
        "previous": previous,
        "config": config.names,
        "items_per_part": config.items_per_part,
        "engine": share_of(config.engine, config.resources.num_workers),
    }
    map_parts(ItemNamer, arguments, stage.pending(parts), config.resources, JOB.name, engine_environment(config.engine))
    return stage.finish(usage_metrics(total_counts(stage, parts)))


JOB = Job(
    name="compress_items",
    config=CompressItemsConfig,
    reads=("item",),
    writes={"item_name": ITEM_NAME},
    run=run,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
