"""Ask a task's question of an engine and get a checked answer: render, generate, parse, one repair, else an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from intently.llm.contract import Engine, Message, Reply, Request, Sampling
from intently.llm.tasks import Answer, AnswerError, Task, repair_message

LONGEST_QUOTE = 2000
"""Characters of a refused answer that the repair request shows again: an answer that ran wild must not crowd out the question."""


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        question_id: unique within a call; the outcome carries it.
        fields: what the task's template needs, by `Task.fields`.
        sampling: how to draw the answer. Of several samples the first that parses is the answer.
        images: pictures that the question is about, PNG or JPEG bytes.
    """

    question_id: str
    fields: dict[str, Any]
    sampling: Sampling
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a question: an answer or an error, never both.

    Attributes:
        question_id: Question.question_id.
        answer: the parsed answer.
        error: why there is none, the same words for the same cause (fit for Reject.reason).
        raw: the last text that the model wrote; empty if the engine failed (fit for Reject.detail).
        prompt_tokens: tokens read, a repair included; those of a reused reply were counted where they were paid for.
        completion_tokens: tokens written, a repair included; as above.
        repaired: whether the answer, or the error, is that of the repair request.
        cost: what the tokens cost.
        reused: requests that the request cache answered and somebody else had paid for.
    """

    question_id: str
    answer: Answer | None
    error: str | None
    raw: str
    prompt_tokens: int
    completion_tokens: int
    repaired: bool = False
    cost: float = 0.0
    reused: int = 0


def answer(engine: Engine, questions: Sequence[Question], task: Task) -> list[Outcome]:
    """Questions → outcomes in the same order.

    An answer that does not parse is sent back once with what was wrong. An engine's own error (a prompt that is too long, an
    endpoint that failed after its retries) is not asked again.

    Raises:
        TypeError: a question's fields are not the task's.
        EngineError: the engine died.
    """
    requests = [
        Request(question.question_id, task.render(**question.fields), question.sampling, task.json_schema, question.images)
        for question in questions
    ]
    judged = [_judge(reply, task) for reply in engine.generate(requests)] if requests else []
    outcomes = [outcome for outcome, _ in judged]
    broken = [(i, refusal) for i, (_, refusal) in enumerate(judged) if refusal]
    if broken:
        repairs = [_repair(requests[i], outcomes[i].raw, refusal) for i, refusal in broken]
        for (i, _), reply in zip(broken, engine.generate(repairs), strict=True):
            outcomes[i] = _merge(outcomes[i], _judge(reply, task)[0])
    return outcomes


def _judge(reply: Reply, task: Task) -> tuple[Outcome, AnswerError | None]:
    """The outcome of a reply, and why the last of its samples was refused if all were."""
    outcome = Outcome(reply.request_id, None, reply.error, "", reply.prompt_tokens, reply.completion_tokens)
    outcome = replace(outcome, cost=reply.cost, reused=int(reply.reused))
    refusal = None
    for text in reply.texts:
        try:
            return replace(outcome, answer=task.parse(text), error=None, raw=text), None
        except AnswerError as error:
            refusal = error
            outcome = replace(outcome, error=error.reason, raw=text)
    return outcome, refusal


def _repair(request: Request, raw: str, refusal: AnswerError) -> Request:
    chat = (*request.messages, Message(role="assistant", content=raw[:LONGEST_QUOTE]), repair_message(str(refusal)))
    return replace(request, messages=chat, sampling=request.sampling.model_copy(update={"num_samples": 1}))


def _merge(first: Outcome, second: Outcome) -> Outcome:
    # An engine error on the repair (the chat grew too long) leaves the first answer's fault as the reason.
    told = second if second.answer or second.raw else first
    return replace(
        told,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        repaired=True,
        cost=first.cost + second.cost,
        reused=first.reused + second.reused,
    )
