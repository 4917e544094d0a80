"""The endpoint engine against a real HTTP server, well-behaved and not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from intently.core.errors import ConfigError
from intently.llm import contract
from intently.llm.contract import Message, Sampling
from intently.llm.engines.endpoint import EndpointConfig, EndpointEngine

SCHEMA = '{"type": "object"}'


class Server:
    """Does what the model's name says, and keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.attempts: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.ending = asyncio.Event()
        self.waiting: asyncio.Event | None = None
        self.base_url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        self.attempts[body["model"]] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.behave(body)
        finally:
            self.in_flight -= 1

    async def behave(self, body: dict[str, Any]) -> Response:
        match body["model"]:
            case "busy" if self.attempts["busy"] < 3:
                return Response(status_code=429, headers={"retry-after-ms": "10"})
            case "broken":
                return Response(status_code=500, headers={"retry-after-ms": "10"})
            case "forbidding":
                return JSONResponse({"error": {"message": "no such key: s3cret", "code": "invalid_api_key"}}, status_code=401)
            case "page":
                return Response("<html>welcome</html>", media_type="text/html")
            case "half":
                return Response('{"choices": [{"message": {"cont', media_type="application/json")
            case "empty":
                return JSONResponse({"choices": []})
            case "hanging":
                await self.ending.wait()
            case "pair":
                # Answers only once two requests are in flight, so that the test proves they are asked side by side.
                self.waiting = self.waiting or asyncio.Event()
                if self.in_flight == 2:
                    self.waiting.set()
                await self.waiting.wait()
        return JSONResponse(completion(body))


def completion(body: dict[str, Any]) -> dict[str, Any]:
    num_choices = 1 if body["model"] == "single" else body.get("n", 1)
    texts = [f"{body['messages'][-1]['content']}/{body.get('seed', 0) + i}" for i in range(num_choices)]
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    return {"object": "chat.completion", "choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 2 * num_choices}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    behaviour = Server()
    listening = socket.create_server(("127.0.0.1", 0))
    runner = uvicorn.Server(uvicorn.Config(behaviour.app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
    thread.start()
    behaviour.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    yield behaviour
    runner.should_exit = True
    runner.force_exit = True
    thread.join()
    listening.close()


def ask(server: Server, model: str, requests: list[contract.Request], **settings: Any) -> list[contract.Reply]:
    config = EndpointConfig(base_url=server.base_url, model=model, **{"max_retries": 0, "timeout_s": 20.0, **settings})
    engine = EndpointEngine(config)
    try:
        return engine.generate(requests)
    finally:
        engine.close()


def request(text: str, schema: str | None = None, **sampling: Any) -> contract.Request:
    messages = (Message(role="system", content="Be short."), Message(role="user", content=text))
    return contract.Request(text, messages, Sampling(**sampling), schema)


def test_endpoint_replies_come_in_order_with_tokens(server: Server) -> None:
    replies = ask(server, "good", [request(f"q{i}", seed=5) for i in range(9)])
    assert [(reply.request_id, reply.texts, reply.error) for reply in replies] == [(f"q{i}", (f"q{i}/5",), None) for i in range(9)]
    assert {(reply.prompt_tokens, reply.completion_tokens) for reply in replies} == {(7, 2)}


def test_endpoint_request_carries_sampling_schema_key_and_extras(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTENTLY_TEST_KEY", "s3cret")
    extras = {"api_key_env": "INTENTLY_TEST_KEY", "extra_body": {"reasoning_effort": "low"}, "max_tokens_field": "max_completion_tokens"}
    ask(server, "keyed", [request("q", SCHEMA, temperature=0.5, max_tokens=33, seed=2)], **extras)
    assert server.bodies[-1] == {
        "model": "keyed",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "q"}],
        "temperature": 0.5,
        "max_completion_tokens": 33,
        "seed": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "reasoning_effort": "low",
    }
    assert "Bearer s3cret" in server.keys


@pytest.mark.parametrize(("mode", "response_format"), [("json_object", {"type": "json_object"}), ("prompt", None)])
def test_endpoint_without_schema_support_is_told_in_words(server: Server, mode: str, response_format: Any) -> None:
    ask(server, "worded", [request("q", SCHEMA)], schema_mode=mode)
    body = server.bodies[-1]
    assert body["messages"][0]["content"] == f"Be short.\nJSON Schema of the answer: {SCHEMA}"
    assert body.get("response_format") == response_format


def test_endpoint_samples_come_in_one_request_where_the_server_can(server: Server) -> None:
    (reply,) = ask(server, "several", [request("q", num_samples=3, seed=1)])
    assert (reply.texts, reply.prompt_tokens, reply.completion_tokens) == (("q/1", "q/2", "q/3"), 7, 6)
    assert server.attempts["several"] == 1


def test_endpoint_samples_are_asked_one_by_one_where_the_server_cannot(server: Server) -> None:
    (reply,) = ask(server, "single", [request("q", num_samples=3, seed=1)])
    assert (reply.texts, reply.prompt_tokens, reply.completion_tokens) == (("q/1", "q/2", "q/3"), 21, 6)
    assert server.attempts["single"] == 3


def test_endpoint_requests_are_in_flight_together_up_to_concurrency(server: Server) -> None:
    replies = ask(server, "pair", [request(f"q{i}") for i in range(2)])
    assert [reply.error for reply in replies] == [None, None]
    server.most_in_flight = 0
    ask(server, "good", [request(f"q{i}") for i in range(20)], concurrency=1)
    assert server.most_in_flight == 1


def test_endpoint_rate_limited_request_is_asked_again(server: Server) -> None:
    (reply,) = ask(server, "busy", [request("q")], max_retries=2)
    assert (reply.texts, reply.error) == (("q/0",), None)
    assert server.attempts["busy"] == 3


def test_endpoint_failing_server_is_given_up_after_the_retries(server: Server) -> None:
    (reply,) = ask(server, "broken", [request("q")], max_retries=1)
    assert (reply.texts, reply.error) == ((), "the endpoint answered 500")
    assert server.attempts["broken"] == 2


def test_endpoint_refusal_is_not_asked_again(server: Server) -> None:
    (reply,) = ask(server, "forbidding", [request("q")], max_retries=3)
    assert reply.error == "the endpoint answered 401, invalid_api_key"
    assert server.attempts["forbidding"] == 1


@pytest.mark.parametrize("model", ["page", "half"])
def test_endpoint_garbage_is_an_error_reply(server: Server, model: str) -> None:
    (reply,) = ask(server, model, [request("q")])
    assert (reply.texts, reply.error) == ((), "the endpoint's answer is no chat completion")


def test_endpoint_no_choice_is_an_error_reply(server: Server) -> None:
    (reply,) = ask(server, "empty", [request("q")])
    assert (reply.texts, reply.error) == ((), "the endpoint's answer holds no choice")


def test_endpoint_hanging_server_times_out(server: Server) -> None:
    (reply,) = ask(server, "hanging", [request("q")], timeout_s=0.2)
    assert (reply.texts, reply.error) == ((), "the endpoint did not answer within 0.2 s")


def test_endpoint_unreachable_server_is_an_error_reply() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    engine = EndpointEngine(EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1", model="m", max_retries=0))
    (reply,) = engine.generate([request("q")])
    engine.close()
    assert reply.error is not None
    assert reply.error.startswith("the endpoint cannot be reached")


def test_endpoint_missing_key_is_refused_by_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTENTLY_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="INTENTLY_TEST_KEY"):
        EndpointEngine(EndpointConfig(base_url="http://localhost/v1", model="m", api_key_env="INTENTLY_TEST_KEY"))
