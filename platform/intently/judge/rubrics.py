"""What results are judged by: for each kind of result its criteria, all binary; a result passes only if every one passes (RecGPT §2.5)."""

from __future__ import annotations

from dataclasses import dataclass

from intently.llm.tasks import TASKS, Task

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Rubric:
    """How one kind of result is judged.

    Attributes:
        name: Verdict.task.
        question: the task of llm.tasks that asks; its answer has a field a criterion.
    """

    name: str
    question: Task

    @property
    def criteria(self) -> tuple[str, ...]:
        """Their names, in the order in which they are asked."""
        return tuple(self.question.answer.model_fields)


EXPLANATIONS = Rubric("explanations", TASKS["explanation_verdict"])
INTERESTS = Rubric("interests", TASKS["interest_verdict"])
TAGS = Rubric("tags", TASKS["tag_verdict"])
