"""The teacher in an actor: one part a world."""

from __future__ import annotations

from intently.alignment.teacher import TeacherConfig, write_examples
from intently.core.workspace import Stage


def world_parts(config: TeacherConfig) -> list[str]:
    """Names of the parts, one a world."""
    return [f"world-{world:05d}" for world in range(config.num_worlds)]


class WorldWriter:
    """Writes the examples of one world a call.

    Args:
        stage: the artifact in the making.
        config: the teacher's settings.
    """

    def __init__(self, stage: Stage, config: TeacherConfig) -> None:
        self._stage = stage
        self._config = config

    def __call__(self, part: str) -> dict[str, int | float]:
        """Write the examples of a part; returns how many."""
        examples = write_examples(self._config, int(part.removeprefix("world-")))
        self._stage.write(part, examples)
        return {"examples": examples.num_rows}
