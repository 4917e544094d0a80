"""Asks language models why people want each item, and keeps what they agree on. Reads item; writes item_interest and item_reading.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/mine_item_interests.py \\
    --config jobs/configs/mine_item_interests/demo.yaml --workspace /shared/workspace

item_reading holds all that any model said, item_interest what the ensemble keeps. A killed run starts again at the first part that is
not written, and pays for no request of it twice. The manifest counts tokens and cost of every model.
"""

from __future__ import annotations

from functools import reduce

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import ITEM_INTEREST
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.items import ItemMiner, ItemMiningConfig
from intently.interests.usage import usage_metrics
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class MineItemInterestsConfig(Config):
    """How items are read, and by which models."""

    mining: ItemMiningConfig = Field(ItemMiningConfig(), description="how items are read, and when models agree")
    items_per_part: int = Field(500, ge=1, description="items in a part")
    engines: tuple[EngineConfig, ...] = Field((VLLMConfig(),), min_length=1, description="the language models, asked side by side")
    vision: EngineConfig | None = Field(None, description="the model that says what pictures show; None passes pictures over")
    encoder: EncoderConfig = Field(EncoderConfig(), description="says which phrases mean the same")
    resources: Resources = operational(Resources(), description="what one worker with all the engines needs, and how many run")


def run(config: MineItemInterestsConfig, workspace: Workspace) -> Artifact:
    """Mine the parts that are not written yet."""
    stage, readings = (JOB.stage(workspace, name, config) for name in ("item_interest", "item_reading"))
    if stage.finished and readings.finished:
        readings.reuse()
        return stage.reuse()
    items = workspace.artifact("item")
    num_items = min(items.manifest.rows, config.mining.max_items or items.manifest.rows)
    parts = [f"part-{number:05d}" for number in range(max(1, -(-num_items // config.items_per_part)))]
    arguments = {
        "interests": stage,
        "readings": readings,
        "items": items,
        "config": config.mining,
        "items_per_part": config.items_per_part,
        "engines": tuple(share_of(engine, config.resources.num_workers) for engine in config.engines),
        "vision": share_of(config.vision, config.resources.num_workers) if config.vision else None,
        "encoder": config.encoder,
    }
    engines = [*config.engines, *([config.vision] if config.vision else [])]
    environment = reduce(lambda known, engine: known | engine_environment(engine), engines, dict[str, str]())
    map_parts(ItemMiner, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    readings.finish()
    return stage.finish(usage_metrics(total_counts(stage, parts)), {"items": f"{num_items} of {items.manifest.rows} items were read"})


JOB = Job(
    name="mine_item_interests",
    config=MineItemInterestsConfig,
    reads=("item",),
    writes={"item_interest": ITEM_INTEREST, "item_reading": ITEM_INTEREST},
    run=run,
    fingerprint=lambda config: "-".join(TASKS[name].fingerprint for name in ("item_interests", "item_picture")),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
