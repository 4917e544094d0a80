"""The teacher in an actor: one part a world, and one a real catalogue."""

from __future__ import annotations

from intently.alignment.catalogue_teacher import write_catalogue_examples
from intently.alignment.teacher import TeacherConfig, write_examples
from intently.core.workspace import Stage


def world_parts(config: TeacherConfig) -> list[str]:
    """Names of the parts, one a world and one a catalogue."""
    return [f"world-{world:05d}" for world in range(config.num_worlds)] + [f"catalogue-{one.name}" for one in config.catalogues]


class WorldWriter:
    """Writes the examples of one world or one catalogue a call.

    Args:
        stage: the artifact in the making.
        config: the teacher's settings.
    """

    def __init__(self, stage: Stage, config: TeacherConfig) -> None:
        self._stage = stage
        self._config = config

    def __call__(self, part: str) -> dict[str, int | float]:
        """Write the examples of a part; returns how many."""
        kind, _, name = part.partition("-")
        if kind == "world":
            examples = write_examples(self._config, int(name))
        else:
            examples = write_catalogue_examples(next(one for one in self._config.catalogues if one.name == name), self._config.seed)
        self._stage.write(part, examples)
        return {"examples": examples.num_rows}
