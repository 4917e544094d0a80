"""Trains the student from nothing and writes a model folder that vLLM loads. Reads chat_example; writes student.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_student.py \\
    --config jobs/configs/train_student/default.yaml --workspace /shared/workspace

One process; on a shared machine start it with OMP_WAIT_POLICY=PASSIVE, or threads that wait for a core burn one. A killed run goes
on from its checkpoint, which lies beside the artifact on a local workspace and in the temporary folder otherwise.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from intently.alignment.training import TrainingConfig, train
from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Stage, Workspace
from pyarrow.fs import LocalFileSystem
from pydantic import Field


class TrainStudentConfig(Config):
    """Size and recipe of the student."""

    training: TrainingConfig = Field(TrainingConfig(), description="size and recipe")


def run(config: TrainStudentConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, and put the model's files into the artifact."""
    stage = JOB.stage(workspace, "student", config)
    if stage.finished:
        return stage.reuse()
    work = _work_folder(workspace, stage)
    losses = train(workspace.artifact("chat_example").read(), config.training, work)
    for path in sorted((work / "model").iterdir()):
        stage.put(path.name, path)
    artifact = stage.finish(metrics={"loss": float(np.mean(losses[-50:]))} if losses else {})
    shutil.rmtree(work)
    return artifact


def _work_folder(workspace: Workspace, stage: Stage) -> Path:
    if isinstance(workspace.filesystem, LocalFileSystem):
        return Path(workspace.path("student", stage.version, "training"))
    return Path(tempfile.gettempdir()) / "intently" / "student" / stage.version


JOB = Job(name="train_student", config=TrainStudentConfig, reads=("chat_example",), writes={"student": None}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
