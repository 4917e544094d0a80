"""Says what mining did, what it cost and what it is worth, as one HTML page. Reads item and whatever was mined; writes mining_report.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/report_mining.py \\
    --config jobs/configs/report_mining/demo.yaml --workspace /shared/workspace

Rows, rejects by reason, tokens and cost of every stage and model; interest quality and hits of tags where history_train and history_test
stand; the interests of one person over time; examples. Writes index.html, its plots as PNG, and summary.txt, which it also prints.
"""

from __future__ import annotations

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.llm.encoder import EncoderConfig
from pydantic import Field
from report.mining import STAGES, draw, gather, page, summarise


class ReportMiningConfig(Config):
    """What is measured, and with what."""

    k: int = Field(30, ge=1, description="tags of a user that count")
    encoder: EncoderConfig = Field(EncoderConfig(), description="compares interests with later items")


def run(config: ReportMiningConfig, workspace: Workspace) -> Artifact:
    """Gather, measure, draw, write."""
    stage = JOB.stage(workspace, "mining_report", config)
    if stage.finished:
        return stage.reuse()
    facts = gather(workspace, config.encoder, config.k)
    plots = draw(facts)
    for name, png in plots.items():
        stage.put(name, png)
    summary = summarise(facts)
    stage.put("index.html", page(facts, plots).encode())
    stage.put("summary.txt", summary.encode())
    print(summary, flush=True)
    return stage.finish(facts.figures())


JOB = Job(
    name="report_mining",
    config=ReportMiningConfig,
    reads=("item",),
    writes={"mining_report": None},
    run=run,
    optional=(*STAGES, "item_reading", "chunk", "history_train", "history_test"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
