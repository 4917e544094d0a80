"""What goes into an engine and what comes out, whichever engine it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from pydantic import Field

from intently.core.config import Config


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


class Sampling(Config):
    """How an engine draws tokens."""

    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")
    max_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    num_samples: int = Field(1, ge=1, description="answers drawn for one request, sharing its prefix")
    seed: int | None = Field(None, description="seed of the draw; None leaves it to the engine")


@dataclass(frozen=True)
class Request:
    """One question to a language model.

    Attributes:
        request_id: unique within a call; the reply carries it.
        messages: the chat so far.
        sampling: how to draw the answer.
        json_schema: JSON Schema that the answer must follow, as a JSON string; None for free text.
        images: pictures, PNG or JPEG bytes, that belong to the last message.
        choices: words of which one is the answer; the reply says how probable each is, whatever `sampling` says. Empty for all else.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    json_schema: str | None = None
    images: tuple[bytes, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What an engine answered.

    Attributes:
        request_id: Request.request_id.
        texts: `sampling.num_samples` answers, or the likeliest of `choices`; empty when `error` is set.
        error: why there is no answer; None when there is one.
        prompt_tokens: tokens read, a shared prefix counted once.
        completion_tokens: tokens written, over all samples.
        cached_tokens: those of prompt_tokens that were not computed anew, because another request had the same prefix.
        cost: what the tokens cost, in the currency of the engine's prices; 0 where there are none.
        reused: whether the answer was taken from the request cache and paid for elsewhere; its tokens and cost are 0 here then.
        probabilities: of each of `choices`, by the first token of each, from log-probabilities; they sum to 1.
    """

    request_id: str
    texts: tuple[str, ...]
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cost: float = 0.0
    reused: bool = False
    probabilities: tuple[float, ...] = ()


OnReply = Callable[[Reply], Sequence[Request] | None]
"""Called with every reply as soon as it is there, in the order of completion, from whichever thread.

What it returns follows from the reply and joins the running batch, so that chains of questions leave no engine idle between their links.
"""


def choice_reply(request: Request, logprobs: Sequence[float], prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Reply:
    """The reply to a request with choices.

    Args:
        request: what was asked.
        logprobs: of the first token of each choice, -inf for one that the engine did not see.
        prompt_tokens: as in Reply.
        completion_tokens: as in Reply.
        cached_tokens: as in Reply.
    """
    highest = max(logprobs)
    if highest == -math.inf:
        error = f"the answer begins like none of {', '.join(request.choices)}"
        return Reply(request.request_id, (), error, prompt_tokens, completion_tokens, cached_tokens)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    probabilities = tuple(weight / sum(weights) for weight in weights)
    likeliest = request.choices[probabilities.index(max(probabilities))]
    return Reply(request.request_id, (likeliest,), None, prompt_tokens, completion_tokens, cached_tokens, probabilities=probabilities)


class Engine(Protocol):
    """Answers requests. A failing request yields a Reply with `error`; only a dead engine raises EngineError."""

    @property
    def name(self) -> str:
        """Engine kind and model, for the `model` columns of tables, as 'vllm:student'."""

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order, worked on side by side; then those to what `on_reply` added, as it was added."""

    def close(self) -> None:
        """Free what the engine holds."""
