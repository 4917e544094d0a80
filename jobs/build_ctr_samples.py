"""Labels events and splits them for ranking. Reads history (and history_day), chunk; writes ctr_train, ctr_validation, ctr_test.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_ctr_samples.py \\
    --config jobs/configs/build_ctr_samples/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow.compute as pc
from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.core.job import Job, launch
from intently.core.schema import CTR_SAMPLE, REJECT
from intently.core.workspace import Artifact, Workspace
from intently.data.days import Histories, open_histories
from intently.ranking.samples import SPLITS, LabelledEvents, SampleConfig, find_moments, label_events, split_samples
from pydantic import Field


class BuildCtrSamplesConfig(Config):
    """Settings of the job."""

    samples: SampleConfig = Field(SampleConfig(), description="which events become rows, and how they are split")


def run(config: BuildCtrSamplesConfig, workspace: Workspace) -> Artifact:
    """Label and split every bucket; returns ctr_train."""
    stages = {name: JOB.stage(workspace, f"ctr_{name}", config) for name in SPLITS}
    history, chunks = open_histories(workspace), workspace.artifact("chunk")
    moments = None
    if config.samples.split == "global_time":
        moments = find_moments(np.concatenate([_label(history, part, chunks, config).times for part in history.parts()]), config.samples)
    counts: Counter[str] = Counter()
    for part in history.parts():
        events = _label(history, part, chunks, config)
        for name, rows in split_samples(events, config.samples, moments).items():
            stages[name].write(part, rows, events.rejects if name == "train" else REJECT.empty())
            counts[f"rows_{name}"] += rows.num_rows
            counts[f"positive_{name}"] += int(pc.sum(rows["label"]).as_py() or 0)
    if not counts["rows_train"] or not counts["rows_test"]:
        raise SchemaError(f"table ctr_sample: {dict(counts)}; nobody has {config.samples.min_events} events and a finished chunk (samples)")
    for name in ("validation", "test"):
        stages[name].finish()
    return stages["train"].finish(metrics=dict(counts), notes={"split": config.samples.split, **history.notes})


def _label(history: Histories, part: str, chunks: Artifact, config: BuildCtrSamplesConfig) -> LabelledEvents:
    return label_events(history.read(part), chunks.read(part, columns=["user_id", "chunk", "event_ids"]), config.samples)


JOB = Job(
    name="build_ctr_samples",
    config=BuildCtrSamplesConfig,
    reads=("history", "chunk"),
    writes={"ctr_train": CTR_SAMPLE, "ctr_validation": CTR_SAMPLE, "ctr_test": CTR_SAMPLE},
    run=run,
    optional=("history_day",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
