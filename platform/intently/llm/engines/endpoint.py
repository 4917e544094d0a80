"""Any OpenAI-compatible endpoint: requests in flight, paced, retried with exponential backoff, within a budget; failures are replies."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import httpx
from pydantic import BaseModel, Field, ValidationError

from intently.core.config import Config, operational
from intently.core.errors import ConfigError
from intently.llm.contract import Message, OnReply, Reply, Request, choice_reply
from intently.llm.engines.pace import Budget, BudgetSpentError, Pace

if TYPE_CHECKING:
    import openai

NO_KEY = "none"
"""What servers without keys are sent; the client refuses to start with nothing."""
SPENT = "the budget is spent"
FIRST_BACKOFF_S = 0.5
CHARACTERS_A_TOKEN = 3
"""Fewer than tokenizers need of English text, so that a budget is rather kept than overdrawn."""
TOKENS_A_PICTURE = 1500
TOP_LOGPROBS = 20
"""Alternatives that are asked for where choices count: the most that OpenAI and vLLM give."""
TOO_MANY_REQUESTS = 429
RETRIED = frozenset({408, 409, TOO_MANY_REQUESTS})


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
    concurrency: int = operational(32, description="requests in flight of one worker", ge=1)
    timeout_s: float = operational(120.0, description="seconds that one attempt may take, to its last byte", gt=0)
    max_retries: int = operational(5, description="further attempts after 408, 409, 429, 5xx, no connection, a timeout or garbage", ge=0)
    max_backoff_s: float = operational(30.0, description="longest wait before a further attempt that the server did not ask for", gt=0)
    give_up_after: int = operational(50, description="failed requests in a row after which the rest of a call fails at once", ge=1)
    requests_per_minute: float | None = operational(None, description="limit of a job; None is none", gt=0)
    tokens_per_minute: float | None = operational(None, description="limit of a job, read and written together; None is none", gt=0)
    prompt_price: float = operational(0.0, description="price of a million tokens read", ge=0)
    completion_price: float = operational(0.0, description="price of a million tokens written", ge=0)
    max_total_tokens: int | None = operational(None, description="tokens that a job may spend in a run; None is no limit", ge=1)
    max_cost: float | None = operational(None, description="cost, by the prices above, that a job may run up; None is no limit", gt=0)
    when_spent: Literal["stop", "reject"] = operational(
        "stop", description="stop ends the job, which goes on with a new budget when it is run again; reject refuses the rest"
    )

    def share(self, num_workers: int) -> EndpointConfig:
        """What one of several workers may do, so that all together keep the limits of the job; the token budget is rounded down.

        Raises:
            ConfigError: fewer tokens than workers.
        """
        if self.max_total_tokens is not None and self.max_total_tokens < num_workers:
            raise ConfigError("max_total_tokens", self.max_total_tokens, f"nothing is left for each of {num_workers} workers")
        parts = {
            name: limit / num_workers
            for name in ("requests_per_minute", "tokens_per_minute", "max_cost")
            if (limit := getattr(self, name)) is not None
        }
        tokens = None if self.max_total_tokens is None else self.max_total_tokens // num_workers
        return self.model_copy(update=parts | {"max_total_tokens": tokens})


class _Message(BaseModel):
    content: str | None = None


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Place(BaseModel):
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """What is read of a server's answer; everything else is ignored, because servers differ."""

    choices: list[_Choice]
    usage: _Usage | None = None


class _AttemptError(Exception):
    """One attempt failed.

    Attributes:
        reason: in countable words.
        again: whether a further attempt may help.
        wait_s: how long the server asked to be left alone; None if it did not say.
        everybody: whether it asked that of all requests.
        billed: whether the server has worked on it, so that it may cost as much as an answer.
    """

    def __init__(self, reason: str, again: bool, wait_s: float | None = None, everybody: bool = False, billed: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s, self.everybody, self.billed = reason, again, wait_s, everybody, billed


class EndpointEngine:
    """Asks an endpoint; keeps one event loop and one connection pool for its life, so that it may be called from anywhere.

    Raises:
        ConfigError: the environment does not hold the key.
    """

    def __init__(self, config: EndpointConfig) -> None:
        import openai  # a second that a process without an endpoint need not wait

        self._config = config
        self._client = openai.AsyncOpenAI(base_url=config.base_url, api_key=_key(config), timeout=config.timeout_s, max_retries=0)
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._budget = Budget(config.max_total_tokens, config.max_cost)
        self._failed_in_a_row = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """'endpoint:' and the model."""
        return f"endpoint:{self._config.model}"

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order, at most `concurrency` in flight; a request that fails carries its error.

        Raises:
            BudgetSpentError: the budget is spent and the settings say to stop; what was answered has gone to `on_reply`.
        """
        replies = asyncio.run_coroutine_threadsafe(self._generate(requests, on_reply), self._loop).result()
        unpaid = sum(reply.error == SPENT for reply in replies)
        if unpaid and self._config.when_spent == "stop":
            limits = f"max_total_tokens {self._config.max_total_tokens}, max_cost {self._config.max_cost}"
            spent = f"{self._budget.tokens} tokens, cost {self._budget.cost:.4g}"
            raise BudgetSpentError(f"{self.name}: {SPENT} ({limits}; so far {spent}), {unpaid} requests were not asked")
        return replies

    def close(self) -> None:
        """Close the connections and end the loop."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _generate(self, requests: Sequence[Request], on_reply: OnReply | None) -> list[Reply]:
        self._failed_in_a_row = 0
        tasks: list[asyncio.Task[Reply]] = []

        async def told(request: Request) -> Reply:
            reply = await self._answer(request)
            start((on_reply(reply) or ()) if on_reply else ())
            return reply

        def start(more: Sequence[Request]) -> None:
            tasks.extend(asyncio.create_task(told(request)) for request in more)

        start(requests)
        try:
            return [await task for task in tasks]  # which grows while it is walked
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, request: Request) -> Reply:
        wanted = request.sampling.num_samples
        if request.choices:
            return await self._ask(request, 1)
        first = await self._ask(request, wanted)
        if first.error or len(first.texts) == wanted:
            return first
        # Servers that do not know `n` send one choice: ask for the others one by one, with seeds of their own.
        others = [self._ask(request, 1, offset) for offset in range(len(first.texts), wanted)]
        return _join(request, [first, *await asyncio.gather(*others)])

    async def _ask(self, request: Request, num_samples: int, seed_offset: int = 0) -> Reply:
        config = self._config
        body = _body(request, num_samples, seed_offset, config)
        async with self._slots:
            if self._failed_in_a_row >= config.give_up_after:
                return _failed(request, f"the endpoint was given up after {config.give_up_after} failures in a row")
            return await self._attempts(request, body, num_samples)

    async def _attempts(self, request: Request, body: Mapping[str, Any], num_samples: int) -> Reply:
        most = _most_tokens(request, num_samples)
        tokens, cost = sum(most), self._cost(*most)
        for attempt in range(self._config.max_retries + 1):
            if not self._budget.reserve(tokens, cost):
                return _failed(request, SPENT)
            await self._pace.turn(tokens)
            try:
                reply = await self._attempt(request, body, num_samples)
            except _AttemptError as error:
                if not error.billed:
                    self._budget.settle(-tokens, -cost)
                if not error.again or attempt == self._config.max_retries:
                    self._failed_in_a_row += error.again
                    return _failed(request, error.reason)
                backoff = min(FIRST_BACKOFF_S * 2**attempt, self._config.max_backoff_s) * random.uniform(0.75, 1.0)
                wait_s = backoff if error.wait_s is None else error.wait_s
                if error.everybody:
                    self._pace.pause(wait_s)
                await asyncio.sleep(wait_s)
            else:
                self._failed_in_a_row = 0
                reply = replace(reply, cost=self._cost(reply.prompt_tokens, reply.completion_tokens))
                unused = tokens - reply.prompt_tokens - reply.completion_tokens
                self._budget.settle(-unused, reply.cost - cost)
                if not reply.error:
                    self._pace.correct(-unused)
                return reply
        raise AssertionError("the last attempt returns")

    async def _attempt(self, request: Request, body: Mapping[str, Any], num_samples: int) -> Reply:
        import openai  # the client has brought it

        try:
            # The client's own timeout is between bytes: a server that drips would hold the slot for ever.
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._client.post("/chat/completions", cast_to=httpx.Response, body=body)
        except openai.APIStatusError as error:
            status = error.status_code
            wait_s = _wait_of(error.response.headers)
            raise _AttemptError(_refusal(error), status in RETRIED or status >= 500, wait_s, status == TOO_MANY_REQUESTS) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            raise _AttemptError(f"the endpoint did not answer within {self._config.timeout_s:g} s", True, billed=True) from error
        except openai.APIConnectionError as error:
            raise _AttemptError(f"the endpoint cannot be reached: {error.__cause__ or error}", True) from error
        return _read(request, response.text, num_samples)

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self._config.prompt_price + completion_tokens * self._config.completion_price) / 1e6


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
        "temperature": sampling.temperature,
        config.max_tokens_field: sampling.max_tokens,
    }
    if request.choices:
        body |= {"temperature": 0, config.max_tokens_field: 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
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
                messages = _with_schema(messages, request.json_schema)
                body["response_format"] = {"type": "json_object"}
            case "prompt":
                messages = _with_schema(messages, request.json_schema)
    body["messages"] = _with_pictures(messages, request.images)
    return body | config.extra_body


def _with_schema(messages: list[Message], json_schema: str) -> list[Message]:
    first, *others = messages
    return [{"role": first["role"], "content": f"{first['content']}\nJSON Schema of the answer: {json_schema}"}, *others]


def _with_pictures(messages: list[Message], images: Sequence[bytes]) -> list[Any]:
    """The messages as the server takes them: pictures are data URLs beside the text of the last one."""
    if not images:
        return list(messages)
    *earlier, last = messages
    parts: list[dict[str, Any]] = [{"type": "text", "text": last["content"]}]
    for image in images:
        kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [*earlier, {"role": last["role"], "content": parts}]


def _most_tokens(request: Request, num_samples: int) -> tuple[int, int]:
    """(read, written): a careful guess of the most that a request takes."""
    characters = sum(len(message["content"]) for message in request.messages) + len(request.json_schema or "")
    read = characters // CHARACTERS_A_TOKEN + TOKENS_A_PICTURE * len(request.images)
    return read, request.sampling.max_tokens * num_samples


def _wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asked for; a date instead of a number is passed over."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


def _refusal(error: openai.APIStatusError) -> str:
    # The server's code, not its message: messages hold figures and may echo the key, so they can be neither counted nor stored.
    code = error.body.get("code") if isinstance(error.body, dict) else None
    return f"the endpoint answered {error.status_code}" + (f", {code}" if code else "")


def _read(request: Request, response: str, num_samples: int) -> Reply:
    try:
        completion = _Completion.model_validate_json(response)
    except ValidationError as error:
        raise _AttemptError("the endpoint's answer is no chat completion", True, billed=True) from error
    texts = tuple(choice.message.content or "" for choice in completion.choices[:num_samples])
    if not texts:
        raise _AttemptError("the endpoint's answer holds no choice", True, billed=True)
    read, written = _used(completion.usage or _Usage(), request, num_samples)
    if request.choices:
        logprobs = completion.choices[0].logprobs
        if logprobs is None or not logprobs.content:
            raise _AttemptError("the endpoint gives no log-probabilities", False, billed=True)
        return choice_reply(request, _by_choice(request, logprobs.content[0]), read, written)
    return Reply(request.request_id, texts, None, read, written)


def _used(usage: _Usage, request: Request, num_samples: int) -> tuple[int, int]:
    """(read, written): what the server counted; the most that it can be where it does not say."""
    read, written = _most_tokens(request, num_samples)
    return (
        read if usage.prompt_tokens is None else usage.prompt_tokens,
        written if usage.completion_tokens is None else usage.completion_tokens,
    )


def _by_choice(request: Request, place: _Place) -> list[float]:
    """Of each choice the log-probability of the likeliest token that only it begins with; -inf where the server listed none."""
    found = dict.fromkeys(request.choices, -math.inf)
    for each in place.top_logprobs:
        begun = [choice for choice in request.choices if (token := each.token.strip()) and choice.startswith(token)]
        if len(begun) == 1:
            found[begun[0]] = max(found[begun[0]], each.logprob)
    return list(found.values())


def _join(request: Request, replies: list[Reply]) -> Reply:
    failed = next((reply for reply in replies if reply.error), None)
    return Reply(
        request.request_id,
        () if failed else tuple(text for reply in replies for text in reply.texts),
        failed.error if failed else None,
        sum(reply.prompt_tokens for reply in replies),
        sum(reply.completion_tokens for reply in replies),
        cost=sum(reply.cost for reply in replies),
    )


def _failed(request: Request, error: str) -> Reply:
    return Reply(request.request_id, (), error, 0, 0)
