"""Turns a log into histories: judged, bucketed by user, sorted. Reads its source; writes history, item, user, true_interest.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/ingest_events.py \\
    --config jobs/configs/ingest_events/demo.yaml --workspace /shared/workspace

A killed run starts again with the buckets that are not written; the log is read again only where that had not been finished.
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import HISTORY, ITEM, TRUE_INTEREST, USER
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, spill_source
from intently.data.raw import Source
from intently.data.sources import SimulatorSource, SourceConfig, fingerprint, open_source
from intently.runtime.mapping import map_parts
from pydantic import Field


class IngestEventsConfig(Config):
    """Which log, and how it becomes histories."""

    source: SourceConfig = Field(SimulatorSource(), description="where the log comes from")
    histories: HistoryConfig = Field(HistoryConfig(), description="buckets, and which times are believed")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many put buckets together")


def run(config: IngestEventsConfig, workspace: Workspace) -> Artifact:
    """Read the source, write the buckets that are not written yet."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    history, user = stages["history"], stages["user"]
    source = open_source(config.source)
    _write_catalogue(source, stages)
    parts = config.histories.parts
    pending = history.pending(parts)
    spill = Spill.of(history, config.histories.num_buckets)
    if pending and not spill.finished:
        spill_source(source, spill, config.histories)
    map_parts(HistoryBuilder, {"history": history, "user": user, "spill": spill}, pending, config.resources, JOB.name)
    spill.remove()
    user.finish()
    return history.finish(total_counts(history, parts), source.notes)


def _write_catalogue(source: Source, stages: dict) -> None:
    """The tables that do not go by user."""
    for name, rows, rejects in (("item", source.items, source.rejects), ("true_interest", source.true_interests, None)):
        stage = stages[name]
        if not stage.finished:
            stage.write("part-00000", rows, rejects)
            stage.finish(notes=source.notes)


JOB = Job(
    name="ingest_events",
    config=IngestEventsConfig,
    reads=(),
    writes={"history": HISTORY, "item": ITEM, "user": USER, "true_interest": TRUE_INTEREST},
    run=run,
    fingerprint=lambda config: fingerprint(config.source),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
