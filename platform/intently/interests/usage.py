"""What questions to a language model cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


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
        cost: what the tokens cost, by the engine's prices.
        reused: requests that were answered from the request cache and paid for elsewhere.
    """

    questions: int = 0
    valid: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    reused: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Usage)))


def usage_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """Counts summed over parts → figures for the manifest: the counts themselves and the share of valid answers."""
    return {**counts, "valid_share": counts["valid"] / counts["questions"] if counts["questions"] else 0.0}
