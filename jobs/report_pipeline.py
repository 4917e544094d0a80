"""Writes what a finished line did as one HTML page with plots: stages, rankings, fusion, people with their items and reasons.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/report_pipeline.py \\
    --config jobs/configs/report_pipeline/demo.yaml --workspace /shared/workspace

Reads every artifact of the line; writes report: index.html, the plots as PNG files, and summary.txt, which it also prints.
"""

from __future__ import annotations

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from pydantic import Field
from report.contents import gather
from report.page import draw, headline, render, summarise


class ReportConfig(Config):
    """What the report tells."""

    k: int = Field(10, ge=1, description="cut-off of rankings, and how many items a person is shown")
    user_ids: tuple[str, ...] = Field((), description="persons told in full; none named is those whose interests moved most")
    num_people: int = Field(3, ge=0, description="how many persons are chosen when none is named")
    num_reach_users: int = Field(2000, ge=1, description="users whose recommendations are counted for coverage, at most")


def run(config: ReportConfig, workspace: Workspace) -> Artifact:
    """Gather, draw, write."""
    stage = JOB.stage(workspace, "report", config)
    if stage.finished:
        return stage.reuse()
    contents = gather(workspace, JOB.reads, config.k, config.user_ids, config.num_people, config.num_reach_users)
    plots = draw(contents)
    for name, png in plots.items():
        stage.put(name, png)
    stage.put("index.html", render(contents, plots).encode())
    summary = summarise(contents)
    stage.put("summary.txt", summary.encode())
    print(summary, flush=True)
    return stage.finish(headline(contents))


JOB = Job(
    name="report_pipeline",
    config=ReportConfig,
    reads=(
        "history",
        "item",
        "user",
        "true_interest",
        "history_train",
        "history_validation",
        "history_test",
        "chunk",
        "user_interest",
        "tag",
        "item_embedding",
        "tag_embedding",
        "towers",
        "user_vector",
        "item_vector",
        "tag_vector",
        "tower_metric",
        "fusion",
        "index",
        "explanation",
    ),
    writes={"report": None},
    run=run,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
