"""Any OpenAI-compatible endpoint: many requests in flight, retries with exponential backoff, timeouts, failures as replies."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal

import httpx
import openai
from pydantic import BaseModel, Field, ValidationError

from intently.core.config import Config, operational
from intently.core.errors import ConfigError
from intently.llm.contract import Message, Reply, Request

NO_KEY = "none"
"""What servers without keys are sent; the client refuses to start with nothing."""


class EndpointConfig(Config):
    """Settings of an OpenAI-compatible endpoint. The key is never here: `api_key_env` names where it is."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str = Field(description="URL up to and with /v1", pattern=r"^https?://")
    model: str = Field(min_length=1, description="model name as the server knows it")
    schema_mode: Literal["json_schema", "json_object", "prompt"] = Field(
        "json_schema", description="how the answer's JSON Schema is passed on; the latter two put it into the system message"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field("max_tokens", description="what the server calls that limit")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="further fields of every request, as the server knows them")
    api_key_env: str | None = operational(None, description="environment variable that holds the key; None for servers without keys")
    concurrency: int = operational(32, description="requests in flight", ge=1)
    timeout_s: float = operational(120.0, description="seconds that one attempt may take", gt=0)
    max_retries: int = operational(5, description="further attempts after 408, 409, 429, 5xx, a lost connection or a timeout", ge=0)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    """What is read of a server's answer; everything else is ignored, because servers differ."""

    choices: list[_Choice]
    usage: _Usage | None = None


class EndpointEngine:
    """Asks an endpoint; keeps one event loop and one connection pool for its life, so that it may be called from anywhere.

    Raises:
        ConfigError: the environment does not hold the key.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=_key(config), timeout=config.timeout_s, max_retries=config.max_retries
        )
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """'endpoint:' and the model."""
        return f"endpoint:{self._config.model}"

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Requests → replies in the same order, at most `concurrency` in flight; a request that fails carries its error."""
        return asyncio.run_coroutine_threadsafe(self._generate(requests), self._loop).result()

    def close(self) -> None:
        """Close the connections and end the loop."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _generate(self, requests: Sequence[Request]) -> list[Reply]:
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: Request) -> Reply:
        wanted = request.sampling.num_samples
        first = await self._ask(request, wanted)
        if first.error or len(first.texts) == wanted:
            return first
        # Servers that do not know `n` send one choice: ask for the others one by one, with seeds of their own.
        others = [self._ask(request, 1, offset) for offset in range(len(first.texts), wanted)]
        return _join(request, [first, *await asyncio.gather(*others)])

    async def _ask(self, request: Request, num_samples: int, seed_offset: int = 0) -> Reply:
        body = _body(request, num_samples, seed_offset, self._config)
        try:
            async with self._slots:
                response = await self._client.post("/chat/completions", cast_to=httpx.Response, body=body)
        except openai.APIStatusError as error:
            return _failed(request, _refusal(error))
        except openai.APITimeoutError:
            return _failed(request, f"the endpoint did not answer within {self._config.timeout_s:g} s")
        except openai.APIConnectionError as error:
            return _failed(request, f"the endpoint cannot be reached: {error.__cause__ or error}")
        return _read(request, response.text, num_samples)


def _key(config: EndpointConfig) -> str:
    if config.api_key_env is None:
        return NO_KEY
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError("api_key_env", config.api_key_env, "the environment holds no such variable, or it is empty")
    return key


def _body(request: Request, num_samples: int, seed_offset: int, config: EndpointConfig) -> dict[str, Any]:
    sampling = request.sampling
    messages = list(request.messages)
    body: dict[str, Any] = {
        "model": config.model,
        "messages": messages,
        "temperature": sampling.temperature,
        config.max_tokens_field: sampling.max_tokens,
    }
    if num_samples > 1:
        body["n"] = num_samples
    if sampling.seed is not None:
        body["seed"] = sampling.seed + seed_offset
    if request.json_schema is not None:
        schema = json.loads(request.json_schema)
        match config.schema_mode:
            case "json_schema":
                body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            case "json_object":
                body["messages"] = _with_schema(messages, request.json_schema)
                body["response_format"] = {"type": "json_object"}
            case "prompt":
                body["messages"] = _with_schema(messages, request.json_schema)
    return body | config.extra_body


def _with_schema(messages: list[Message], json_schema: str) -> list[Message]:
    first, *others = messages
    return [{"role": first["role"], "content": f"{first['content']}\nJSON Schema of the answer: {json_schema}"}, *others]


def _refusal(error: openai.APIStatusError) -> str:
    # The server's code, not its message: messages hold figures and may echo the key, so they can be neither counted nor stored.
    code = error.body.get("code") if isinstance(error.body, dict) else None
    return f"the endpoint answered {error.status_code}" + (f", {code}" if code else "")


def _read(request: Request, response: str, num_samples: int) -> Reply:
    try:
        completion = _Completion.model_validate_json(response)
    except ValidationError:
        return _failed(request, "the endpoint's answer is no chat completion")
    texts = tuple(choice.message.content or "" for choice in completion.choices[:num_samples])
    if not texts:
        return _failed(request, "the endpoint's answer holds no choice")
    usage = completion.usage or _Usage()
    return Reply(request.request_id, texts, None, usage.prompt_tokens, usage.completion_tokens)


def _join(request: Request, replies: list[Reply]) -> Reply:
    failed = next((reply for reply in replies if reply.error), None)
    return Reply(
        request.request_id,
        () if failed else tuple(text for reply in replies for text in reply.texts),
        failed.error if failed else None,
        sum(reply.prompt_tokens for reply in replies),
        sum(reply.completion_tokens for reply in replies),
    )


def _failed(request: Request, error: str) -> Reply:
    return Reply(request.request_id, (), error, 0, 0)
