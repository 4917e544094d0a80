"""Says how much of people's lives fits a model's context, before and after compression. Reads history, item; writes behaviour_report.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/report_behaviours.py \\
    --config jobs/configs/report_behaviours/demo.yaml --workspace /shared/workspace

Days appended to the history and names by a language model (item_name) are read where they stand. Writes index.html, plots as PNG,
summary.txt, which it also prints, and one file a bucket with the tokens of every user.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.data.coverage import CoverageConfig, CoverageWorker
from intently.data.days import open_histories
from intently.runtime.mapping import map_parts
from pydantic import Field
from report.behaviours import draw, figures_of, page, summarise


class ReportBehavioursConfig(Config):
    """What is measured, and with what."""

    coverage: CoverageConfig = Field(CoverageConfig(), description="which events count, how they are written and counted")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many measure buckets")


def run(config: ReportBehavioursConfig, workspace: Workspace) -> Artifact:
    """Measure the buckets that are not measured yet; draw and write."""
    stage = JOB.stage(workspace, "behaviour_report", config)
    if stage.finished:
        return stage.reuse()
    history = open_histories(workspace)
    arguments = {
        "stage": stage,
        "history": history,
        "items": workspace.artifact("item"),
        "config": config.coverage,
        "item_names": workspace.artifact("item_name") if workspace.latest_version("item_name") else None,
    }
    parts = history.parts()
    map_parts(CoverageWorker, arguments, stage.pending(parts), config.resources, JOB.name)
    paths = [workspace.path(stage.name, stage.version, f"{part}.parquet") for part in parts]
    measured = pa.concat_tables([pq.read_table(path, filesystem=workspace.filesystem) for path in paths])
    figures = figures_of(measured)
    summary = summarise(figures, config.coverage.tokenizer or "words and signs")
    plots = draw(measured)
    for name, png in plots.items():
        stage.put(name, png)
    stage.put("index.html", page(summary, plots).encode())
    stage.put("summary.txt", summary.encode())
    print(summary, flush=True)
    return stage.finish(figures)


JOB = Job(
    name="report_behaviours",
    config=ReportBehavioursConfig,
    reads=("history", "item"),
    writes={"behaviour_report": None},
    run=run,
    optional=("history_day", "item_name"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
