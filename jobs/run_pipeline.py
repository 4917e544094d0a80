"""Runs the whole line, from raw events to index, explanations and report; skips what stands, resumes what was cut off.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/run_pipeline.py \\
    --config jobs/configs/run_pipeline/demo.yaml --workspace /shared/workspace

The config names a YAML for every stage; settings beside it override: --set stages.ingest_events.source.num_users=50
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import build_explanations
import build_index
import build_splits
import compress_histories
import embed_texts
import ingest_events
import mine_user_interests
import predict_tags
import report_pipeline
import sweep_fusion
import train_towers
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, Planned, launch
from intently.core.workspace import Artifact, Workspace
from intently.runtime.session import ray_session
from pydantic import Field

CONFIGS = Path(__file__).parent / "configs"
JOBS: tuple[Job, ...] = (
    ingest_events.JOB,
    build_splits.JOB,
    compress_histories.JOB,
    mine_user_interests.JOB,
    predict_tags.JOB,
    embed_texts.JOB,
    train_towers.JOB,
    sweep_fusion.JOB,
    build_index.JOB,
    build_explanations.JOB,
    report_pipeline.JOB,
)


class PipelineConfig(Config):
    """Which settings each stage runs with."""

    stages: dict[str, dict[str, object]] = Field(
        default_factory=dict,
        description="stage → {config: YAML in jobs/configs/<stage>/, and settings that override it}; no entry means defaults",
    )


def run(config: PipelineConfig, workspace: Workspace) -> Artifact:
    """Run every stage in order; the last one's artifact, the report."""
    settings = resolve(config)
    stands = all(planned.stands for _, plan in plans(config, workspace) for planned in plan)
    start = time.monotonic()
    with nullcontext() if stands else ray_session():
        for number, job in enumerate(JOBS, 1):
            print(f"[{number}/{len(JOBS)}] {job.name}", flush=True)
            began = time.monotonic()
            artifact = job.execute(settings[job.name], workspace)
            manifest = artifact.manifest
            print(f"    {artifact}: {manifest.rows} rows, {manifest.rejects} rejects, {time.monotonic() - began:.1f} s", flush=True)
    print(f"pipeline: {time.monotonic() - start:.1f} s; report: {artifact.fetch('index.html')}", flush=True)
    return artifact


def resolve(config: PipelineConfig) -> dict[str, Config]:
    """Stage → its own resolved config. Raises ConfigError for an unknown stage or a bad setting."""
    unknown = sorted(set(config.stages) - {job.name for job in JOBS})
    if unknown:
        raise ConfigError("stages", unknown, f"unknown stage; there are {[job.name for job in JOBS]}")
    resolved = {}
    for job in JOBS:
        settings = dict(config.stages.get(job.name, {}))
        path = settings.pop("config", None)
        resolved[job.name] = job.config.load(CONFIGS / job.name / str(path) if path else None, values=settings)
    return resolved


def plans(config: PipelineConfig, workspace: Workspace) -> list[tuple[Job, list[Planned]]]:
    """What every stage would write, in order, without running anything."""
    versions: dict[str, str] = {}
    planned = []
    for job, settings in zip(JOBS, resolve(config).values(), strict=True):
        plan = job.plan(workspace, settings, versions)
        versions |= {artifact.name: artifact.version for artifact in plan}
        planned.append((job, plan))
    return planned


def describe_plan(job: Job, config: PipelineConfig, workspace: Workspace) -> str:
    """Each stage: what it reads, what it writes, what stands already."""
    lines = []
    for number, (stage, plan) in enumerate(plans(config, workspace), 1):
        lines += [f"[{number}/{len(JOBS)}] {stage.name}", f"    reads:  {', '.join(stage.reads) or 'its source'}"]
        lines += [f"    writes: {p.name}@{p.version} ({'stands' if p.stands else 'to be written'})" for p in plan]
    return "\n".join(lines)


JOB = Job(name="run_pipeline", config=PipelineConfig, reads=(), writes={}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__, describe=describe_plan)
