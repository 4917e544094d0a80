"""Questions to an engine, counted, and what becomes of answers that are refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from intently.interests.usage import Usage
from intently.llm.answer import Follow, Outcome, Question, answer
from intently.llm.contract import Engine, Reply, Request, Sampling
from intently.llm.tasks import Choice, Task

DETAIL_LENGTH = 300
"""Characters of a refused answer that are kept."""


def ask(engine: Engine, questions: Sequence[Question], task: Task, follow: Follow | None = None) -> tuple[list[Outcome], Usage]:
    """`llm.answer.answer`, and what it cost. Raises EngineError when the engine has died."""
    start = time.monotonic()
    outcomes = answer(engine, questions, task, follow)
    usage = Usage(
        questions=len(outcomes),
        valid=sum(outcome.answer is not None for outcome in outcomes),
        repairs=sum(outcome.repaired for outcome in outcomes),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in outcomes),
        completion_tokens=sum(outcome.completion_tokens for outcome in outcomes),
        seconds=time.monotonic() - start,
        cost=sum(outcome.cost for outcome in outcomes),
        reused=sum(outcome.reused for outcome in outcomes),
    )
    return outcomes, usage


def refuse(stage: str, row: str, reason: str, detail: str) -> dict[str, str]:
    """A REJECT row."""
    return {"stage": stage, "row": row, "reason": reason, "detail": detail[:DETAIL_LENGTH]}


def refusal(stage: str, row: str, outcome: Outcome) -> dict[str, str]:
    """The REJECT row of a question that got no valid answer."""
    assert outcome.error is not None, "an outcome without an answer has an error"
    return refuse(stage, row, outcome.error, outcome.raw)


def choose(engine: Engine, questions: Mapping[str, Mapping[str, Any]], choice: Choice) -> tuple[dict[str, Reply], Usage]:
    """Questions (id → fields) that are answered with one of a few words → the replies by id, with a probability for each word; the cost.

    Raises:
        EngineError: the engine has died.
    """
    start = time.monotonic()
    one_token = Sampling(max_tokens=1)
    requests = [Request(name, choice.render(**fields), one_token, choices=choice.choices) for name, fields in questions.items()]
    replies = engine.generate(requests) if requests else []
    usage = Usage(
        questions=len(replies),
        valid=sum(reply.error is None for reply in replies),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        seconds=time.monotonic() - start,
        cost=sum(reply.cost for reply in replies),
        reused=sum(reply.reused for reply in replies),
    )
    return {reply.request_id: reply for reply in replies}, usage
