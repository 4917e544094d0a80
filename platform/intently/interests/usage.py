"""What the questions to a language model cost, kept beside each part so that a resumed run still knows all of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from intently.core.workspace import Stage


@dataclass(frozen=True)
class Usage:
    """Counts over questions.

    Attributes:
        questions: asked.
        valid: answered in the task's form, repaired or not.
        repairs: asked a second time because the first answer was not valid.
        prompt_tokens: read.
        completion_tokens: written.
        seconds: spent in the engine.
    """

    questions: int = 0
    valid: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Usage)))


def save_counts(stage: Stage, part: str, usage: Usage, others: Mapping[str, float]) -> None:
    """Put a part's usage and other counts into the stage; call it before `Stage.write`, so that a part that stands has them."""
    stage.put(_filename(part), json.dumps({**asdict(usage), **others}).encode())


def total_metrics(stage: Stage, parts: Iterable[str]) -> dict[str, float]:
    """Figures for the manifest, over all parts, whichever run made them: the sums, and the share of valid answers.

    Raises:
        WorkspaceError: a part's counts cannot be read.
    """
    total: Counter[str] = Counter(asdict(Usage()))
    for part in parts:
        path = stage.workspace.path(stage.name, stage.version, _filename(part))
        total.update(json.loads(stage.workspace.read_bytes(path)))
    return {**total, "valid_share": total["valid"] / total["questions"] if total["questions"] else 0.0}


def _filename(part: str) -> str:
    return f"{part}.usage.json"
