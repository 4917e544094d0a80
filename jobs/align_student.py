"""Writes the examples that the student learns from, out of simulated worlds whose truth is known. Reads nothing; writes chat_example.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/align_student.py \\
    --config jobs/configs/align_student/default.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.alignment.teacher import TeacherConfig
from intently.alignment.workers import WorldWriter, world_parts
from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import CHAT_EXAMPLE
from intently.core.workspace import Artifact, Workspace
from intently.runtime.mapping import map_parts
from pydantic import Field


class AlignStudentConfig(Config):
    """What the teacher writes."""

    teacher: TeacherConfig = Field(TeacherConfig(), description="worlds, chunks, examples a world")
    resources: Resources = operational(Resources(), description="what one teacher needs, and how many write side by side")


def run(config: AlignStudentConfig, workspace: Workspace) -> Artifact:
    """Write the examples of the worlds that are not written yet."""
    stage = JOB.stage(workspace, "chat_example", config)
    if stage.finished:
        return stage.reuse()
    pending = stage.pending(world_parts(config.teacher))
    map_parts(WorldWriter, {"stage": stage, "config": config.teacher}, pending, config.resources, JOB.name)
    return stage.finish()


JOB = Job(name="align_student", config=AlignStudentConfig, reads=(), writes={"chat_example": CHAT_EXAMPLE}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
