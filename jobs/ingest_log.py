"""Turns the service's event log into Event rows, and appends them to histories. Reads its source, history, item, and the event and
history_day before; writes event, history_day.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/ingest_log.py \\
    --config jobs/configs/ingest_log/demo.yaml --workspace /shared/workspace

Event holds every event that the service acknowledged, once: a run copies what stands, and adds what its log has beyond that. Lines of
its log that cannot be read, and repeats in it, are in its Reject rows. The same events go to histories by the rules of ingest_day, which
refuse what names an item that the catalogue does not have. Run it again at any time: what was appended before is not appended twice.
With `source.first` and `source.last` a daily run reads only the days that are new; of a Redis stream `source.keep_days` lets the job drop
what came in longer ago, once it stands in the tables.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
from ingest_day import append_day
from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import EVENT, HISTORY
from intently.core.workspace import Artifact, Stage, Workspace
from intently.data.event_log import EventLogConfig, EventStreamConfig, trim_event_stream
from intently.data.histories import HistoryConfig, refuse_repeated
from intently.data.raw import Source, validate
from intently.data.sources import fingerprint, open_source
from pydantic import Field


class IngestLogConfig(Config):
    """Which log."""

    source: EventLogConfig | EventStreamConfig = Field(
        EventLogConfig(folder="workspace/event_log"), discriminator="kind", description="where the service keeps events"
    )
    resources: Resources = operational(Resources(), description="what one worker needs, and how many put buckets together")


def run(config: IngestLogConfig, workspace: Workspace) -> Artifact:
    """Write the events, then the day."""
    began = datetime.now(UTC)
    rules = HistoryConfig.parse(workspace.artifact("history").manifest.config["histories"])
    events = _write_events(JOB.stage(workspace, "event", config), open_source(config.source), rules)
    append_day(JOB.stage(workspace, "history_day", config), lambda: open_source(config.source), config.resources, JOB.name)
    if isinstance(config.source, EventStreamConfig) and (dropped := trim_event_stream(config.source, began)):
        print(f"{JOB.name}: {dropped} older entries dropped from {config.source.stream}", flush=True)
    return events


def _write_events(stage: Stage, source: Source, rules: HistoryConfig) -> Artifact:
    """What stands, and the log's events that do not; a log that was read before leaves it as it is."""
    if stage.finished:
        return stage.reuse()
    grown_from = stage.inputs.get("event")
    standing = stage.workspace.artifact("event", grown_from) if grown_from else None
    if standing and stage.repeats(standing):
        return standing
    stage.clear()  # of other blocks, where rows_per_block was another
    parts = (f"part-{number:05d}" for number in count())
    for _, rows in standing.iter_parts() if standing else ():
        if rows.num_rows:
            stage.write(next(parts), rows)
    known = (standing.read(columns=["event_id"]) if standing else EVENT.empty())["event_id"]
    seen = pa.array([], pa.string())
    for raw in source.events():
        # As it was logged: whether the catalogue has the item is for histories to judge.
        events, refused = validate(raw, pc.unique(raw["item_id"]), rules.earliest, rules.latest)
        fresh, repeated = refuse_repeated(events, seen)
        seen = pa.concat_arrays([seen, fresh["event_id"].combine_chunks()])
        rejects = pa.concat_tables([refused, repeated])
        rejects = rejects.set_column(0, "stage", pa.repeat(pa.scalar(stage.name), rejects.num_rows))
        new = fresh.filter(pc.invert(pc.is_in(fresh["event_id"], value_set=known)))
        if new.num_rows or rejects.num_rows:
            stage.write(next(parts), new, rejects)
    return stage.finish({"events_that_stood": len(known), "events_read": len(seen)})


JOB = Job(
    name="ingest_log",
    config=IngestLogConfig,
    reads=("history", "item"),
    writes={"event": EVENT, "history_day": HISTORY},
    run=run,
    fingerprint=lambda config: fingerprint(config.source),
    optional=("event", "history_day"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
