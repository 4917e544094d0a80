"""Writes ahead of time why an item suits an interest, and checks it by rules and, if one is configured, by a judge.

Reads user_interest, tag, item; writes explanation, explanation_verdict and explanation_store, the file that serving looks reasons up in.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_explanations.py \\
    --config jobs/configs/build_explanations/demo.yaml --workspace /shared/workspace

A killed run starts again at the first part that is not written; the manifest counts the questions and tokens of all parts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import EXPLANATION, VERDICT
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.explanations import ExplanationConfig
from intently.interests.reason_rules import REVISION
from intently.interests.reason_store import FILENAME, write_reasons
from intently.interests.usage import usage_metrics
from intently.interests.workers import Explainer
from intently.judge.explanations import ExplanationJudge
from intently.judge.judging import JudgeConfig
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class BuildExplanationsConfig(Config):
    """Which reasons are written, and by which models."""

    explanations: ExplanationConfig = Field(ExplanationConfig(), description="which reasons are written, and how they are checked")
    num_parts: int = Field(8, ge=1, description="parts that the pairs are spread over; a killed run loses one at most")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that explains")
    encoder: EncoderConfig = Field(EncoderConfig(), description="finds the items closest to an interest")
    judge: JudgeConfig | None = Field(None, description="the language model that judges what passed the rules; off without one")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: BuildExplanationsConfig, workspace: Workspace) -> Artifact:
    """Write the parts that are not written yet, and then the store."""
    explanations = _explain(config, workspace)
    store = JOB.stage(workspace, "explanation_store", config)
    if store.finished:
        store.reuse()
        return explanations
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILENAME
        items = write_reasons(explanations.read(), path)
        store.put(FILENAME, path)
    store.finish({"items": items})
    return explanations


def _explain(config: BuildExplanationsConfig, workspace: Workspace) -> Artifact:
    stage, verdicts = (JOB.stage(workspace, name, config) for name in ("explanation", "explanation_verdict"))
    if stage.finished and verdicts.finished:
        verdicts.reuse()
        return stage.reuse()
    parts = [f"part-{number:05d}" for number in range(config.num_parts)]
    arguments = {
        "stage": stage,
        "interests": workspace.artifact("user_interest"),
        "tags": workspace.artifact("tag"),
        "items": workspace.artifact("item"),
        "config": config.explanations,
        "parts": parts,
        "engine": share_of(config.engine, config.resources.num_workers),
        "encoder": config.encoder,
        "verdicts": verdicts,
        "judge": ExplanationJudge(config.judge.share(config.resources.num_workers), verdicts) if config.judge else None,
    }
    environment = engine_environment(config.engine) | (engine_environment(config.judge.engine) if config.judge else {})
    map_parts(Explainer, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    verdicts.finish(notes={"judge": "asked" if config.judge else "none is configured"})
    return stage.finish(usage_metrics(total_counts(stage, parts)))


JOB = Job(
    name="build_explanations",
    config=BuildExplanationsConfig,
    reads=("user_interest", "item", "tag"),
    writes={"explanation": EXPLANATION, "explanation_verdict": VERDICT, "explanation_store": None},
    run=run,
    fingerprint=lambda config: "-".join([TASKS["explanation"].fingerprint, str(REVISION), TASKS["explanation_verdict"].fingerprint]),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
