"""What goes into an engine and what comes out, whichever engine it is."""

from __future__ import annotations

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
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    json_schema: str | None = None
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What an engine answered.

    Attributes:
        request_id: Request.request_id.
        texts: `sampling.num_samples` answers; empty when `error` is set.
        error: why there is no answer; None when there is one.
        prompt_tokens: tokens read, a shared prefix counted once.
        completion_tokens: tokens written, over all samples.
        cached_tokens: those of prompt_tokens that were not computed anew, because another request had the same prefix.
        cost: what the tokens cost, in the currency of the engine's prices; 0 where there are none.
        reused: whether the answer was taken from the request cache and paid for elsewhere; its tokens and cost are 0 here then.
    """

    request_id: str
    texts: tuple[str, ...]
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cost: float = 0.0
    reused: bool = False


OnReply = Callable[[Reply], Sequence[Request] | None]
"""Called with every reply as soon as it is there, in the order of completion, from whichever thread.

What it returns follows from the reply and joins the running batch, so that chains of questions leave no engine idle between their links.
"""


class Engine(Protocol):
    """Answers requests. A failing request yields a Reply with `error`; only a dead engine raises EngineError."""

    @property
    def name(self) -> str:
        """Engine kind and model, for the `model` columns of tables, as 'vllm:student'."""

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order, worked on side by side; then those to what `on_reply` added, as it was added."""

    def close(self) -> None:
        """Free what the engine holds."""
