"""Ask a task's question of an engine and get a checked answer: render, generate, parse, one repair, else an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
class Sample:
    """One of the answers that were drawn to a question.

    Attributes:
        text: as the model wrote it.
        answer: what it says; None if it does not parse.
        error: why it does not, the same words for the same cause; None if it does.
    """

    text: str
    answer: Answer | None
    error: str | None


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
        samples: every answer that was drawn, in the order of drawing; those of the repair where there was one, none if the engine failed.
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
    samples: tuple[Sample, ...] = ()


Follow = Callable[[Outcome], Sequence[Question]]
"""Which questions follow from an outcome; their ids are new."""


def answer(engine: Engine, questions: Sequence[Question], task: Task, follow: Follow | None = None) -> list[Outcome]:
    """Questions → outcomes in the same order, then those of what `follow` added, as it was added.

    An answer that does not parse is sent back once with what was wrong. An engine's own error (a prompt that is too long, an
    endpoint that failed after its retries) is not asked again. Repairs and what follows join the running batch.

    Raises:
        TypeError: a question's fields are not the task's.
        EngineError: the engine died.
    """
    exchange = _Exchange(task, follow)
    requests = exchange.ask(questions)
    if requests:
        engine.generate(requests, exchange.told)
    return exchange.outcomes()


class _Exchange:
    """Questions on their way: what was sent for each, and what has become of it."""

    def __init__(self, task: Task, follow: Follow | None) -> None:
        self._task, self._follow = task, follow
        self._sent: dict[str, Request] = {}
        self._first: dict[str, Outcome] = {}  # question → the refused answer that is being repaired
        self._outcomes: dict[str, Outcome | None] = {}

    def ask(self, questions: Sequence[Question]) -> list[Request]:
        requests = []
        for question in questions:
            messages = self._task.render(**question.fields)
            request = Request(question.question_id, messages, question.sampling, self._task.json_schema, question.images)
            self._sent[question.question_id] = request
            self._outcomes[question.question_id] = None
            requests.append(request)
        return requests

    def told(self, reply: Reply) -> list[Request]:
        name = reply.request_id
        outcome, refusal = _judge(reply, self._task)
        if name in self._first:
            outcome = _merge(self._first.pop(name), outcome)
        elif refusal:
            self._first[name] = outcome
            return [_repair(self._sent[name], outcome.raw, refusal)]
        self._outcomes[name] = outcome
        return self.ask(self._follow(outcome)) if self._follow else []

    def outcomes(self) -> list[Outcome]:
        found = list(self._outcomes.values())
        assert all(found), "an engine that has not died tells of every request"
        return [outcome for outcome in found if outcome]


def _judge(reply: Reply, task: Task) -> tuple[Outcome, AnswerError | None]:
    """The outcome of a reply, and why the last of its samples was refused if all were."""
    outcome = Outcome(reply.request_id, None, reply.error, "", reply.prompt_tokens, reply.completion_tokens)
    outcome = replace(outcome, cost=reply.cost, reused=int(reply.reused))
    refusal, samples = None, []
    for text in reply.texts:
        try:
            samples.append(Sample(text, task.parse(text), None))
        except AnswerError as error:
            refusal = error
            samples.append(Sample(text, None, error.reason))
    valid = next((sample for sample in samples if sample.answer), None)
    told = valid or (samples[-1] if samples else None)
    if told:
        outcome = replace(outcome, answer=told.answer, error=told.error, raw=told.text, samples=tuple(samples))
    return outcome, None if valid else refusal


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
