"""A deterministic engine that looks its answers up: for tests of plumbing only, never for results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from intently.core.config import Config
from intently.llm.contract import OnReply, Reply, Request, choice_reply

Script = str | tuple[str, ...]
"""A text, the same for every sample; or one a sample; or, where choices count, how probable each is."""


class ScriptedConfig(Config):
    """Settings of the scripted engine (tests only)."""

    kind: Literal["scripted"] = "scripted"
    replies: dict[str, Script] = Field(
        default_factory=dict, description="part of the user's message → answer; the first that is found in it counts"
    )
    default: str = Field("", description="answer where no part is found")


class ScriptedEngine:
    """Answers by a function of the request; tests only. An answer of None makes the request fail."""

    def __init__(self, respond: Callable[[Request], Script | None], name: str = "scripted:function") -> None:
        self._respond = respond
        self._name = name

    @classmethod
    def from_config(cls, config: ScriptedConfig) -> ScriptedEngine:
        """The engine that looks the user's message up in `config.replies`."""

        def respond(request: Request) -> Script:
            asked = next(message["content"] for message in request.messages if message["role"] == "user")
            return next((answer for part, answer in config.replies.items() if part in asked), config.default)

        return cls(respond, "scripted:replies")

    @property
    def name(self) -> str:
        """Goes into the `model` columns, so that a scripted table can never pass for a real one."""
        return self._name

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order; a word counts as a token."""
        replies: list[Reply] = []
        waiting = list(requests)
        for request in waiting:  # which grows while it is walked
            replies.append(self._reply(request))
            waiting += (on_reply(replies[-1]) or ()) if on_reply else ()
        return replies

    def close(self) -> None:
        """Nothing is held."""

    def _reply(self, request: Request) -> Reply:
        prompt_tokens = sum(len(message["content"].split()) for message in request.messages)
        text = self._respond(request)
        if text is None:
            return Reply(request.request_id, (), "the script fails here", prompt_tokens, 0)
        if request.choices:
            wanted = [float(one) for one in text]
            return choice_reply(request, [math.log(one) if one else -math.inf for one in wanted], prompt_tokens, 1)
        num_samples = request.sampling.num_samples
        texts = text if isinstance(text, tuple) else (text,) * num_samples
        return Reply(request.request_id, texts, None, prompt_tokens, sum(len(each.split()) for each in texts))
