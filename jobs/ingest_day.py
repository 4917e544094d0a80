"""Appends new events to standing histories without touching them. Reads its source, history, item, and the
history_day before; writes history_day.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/ingest_day.py \\
    --config jobs/configs/ingest_day/demo.yaml --workspace /shared/workspace

The new events lie beside the old buckets; build_splits merges them when it reads (see data/days.py for the rules). A killed run starts
again with the buckets that are not written. A day that is in the list already is not appended twice, and no later one leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import HISTORY
from intently.core.workspace import Artifact, Stage, Workspace
from intently.data.counts import total_counts
from intently.data.days import list_days, open_histories
from intently.data.files import FilesConfig
from intently.data.histories import DayBuilder, HistoryConfig, Spill, spill_source
from intently.data.raw import Source
from intently.data.sources import SourceConfig, fingerprint, open_source
from intently.runtime.mapping import map_parts
from pydantic import Field


class IngestDayConfig(Config):
    """Which new events; buckets and believed times are those of the standing history."""

    source: SourceConfig = Field(FilesConfig(events="day.csv", items="items.csv"), description="where the new events come from")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many put buckets together")


def run(config: IngestDayConfig, workspace: Workspace) -> Artifact:
    """Judge and bucket the new events, write the buckets that are not written yet."""
    stage = JOB.stage(workspace, "history_day", config)
    return append_day(stage, lambda: open_source(config.source), config.resources, JOB.name)


def append_day(stage: Stage, open_events: Callable[[], Source], resources: Resources, name: str) -> Artifact:
    """Write a day that follows the standing history and its days; the standing day where the same events are among them already.

    Args:
        stage: of `history_day`; the day before is one of its inputs, so that LATEST only moves on to longer lists.
        open_events: opens the new events; their items are those of the standing catalogue.
        resources: what one worker needs.
        name: of the job, for progress.
    """
    if stage.finished:
        return stage.reuse()
    workspace = stage.workspace
    before = open_histories(workspace, stage.inputs)
    listed = next((day for day in reversed(before.days) if stage.repeats(day)), None)
    if listed:
        return listed
    rules = HistoryConfig.parse(before.base.manifest.config["histories"])
    source = open_events()
    known = workspace.artifact("item").read(columns=["item_id"])
    pending = stage.pending(rules.parts)
    spill = Spill.of(stage, rules.num_buckets)
    if pending and not spill.finished:
        spill_source(replace(source, items=known), spill, rules)
    map_parts(DayBuilder, {"day": stage, "spill": spill}, pending, resources, name)
    spill.remove()
    list_days(stage, before)
    return stage.finish(total_counts(stage, rules.parts), source.notes)


JOB = Job(
    name="ingest_day",
    config=IngestDayConfig,
    reads=("history", "item"),
    writes={"history_day": HISTORY},
    run=run,
    fingerprint=lambda config: fingerprint(config.source),
    optional=("history_day",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
