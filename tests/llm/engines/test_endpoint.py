"""The endpoint engine against a real HTTP server, well-behaved and not."""

from __future__ import annotations

import asyncio
import base64
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from intently.core.errors import ConfigError, EngineError
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
        self.times: list[float] = []
        self.ending = asyncio.Event()
        self.waiting: asyncio.Event | None = None
        self.base_url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.complete)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.times.append(time.monotonic())
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
            case "dripping":
                return StreamingResponse(self.drip(), media_type="application/json")
            case "silent":
                return JSONResponse({name: value for name, value in completion(body).items() if name != "usage"})
            case "garbled" if self.attempts["garbled"] < 3:
                return Response('{"choices": [{"mess', media_type="application/json")
            case "pair":
                # Answers only once two requests are in flight, so that the test proves they are asked side by side.
                self.waiting = self.waiting or asyncio.Event()
                if self.in_flight == 2:
                    self.waiting.set()
                await self.waiting.wait()
        return JSONResponse(completion(body))

    async def drip(self) -> AsyncIterator[bytes]:
        """A byte now and then, without an end."""
        while not self.ending.is_set():
            yield b" "
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), 0.02)


def completion(body: dict[str, Any]) -> dict[str, Any]:
    num_choices = 1 if body["model"] == "single" else body.get("n", 1)
    content = body["messages"][-1]["content"]
    texts = [f"{content if isinstance(content, str) else content[0]['text']}/{body.get('seed', 0) + i}" for i in range(num_choices)]
    choices: list[dict[str, Any]] = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    if "top_logprobs" in body and body["model"] != "mute":
        listed = [(" Yes", -1.0), ("Y", -4.0), ("No", -2.0), ("", -0.5), ("Maybe", -0.1)] if body["model"] == "sure" else [("Maybe", -0.1)]
        choices[0]["logprobs"] = {"content": [{"top_logprobs": [{"token": token, "logprob": logprob} for token, logprob in listed]}]}
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


def test_endpoint_choices_are_read_off_the_first_tokens_log_probabilities(server: Server) -> None:
    request = contract.Request("a", (Message(role="user", content="Tea?"),), Sampling(max_tokens=9), choices=("Yes", "No"))
    (reply,) = ask(server, "sure", [request])
    body = server.bodies[-1]
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0, True, 20)
    assert (reply.texts, reply.error) == (("Yes",), None)
    assert reply.probabilities == pytest.approx(
        (math.exp(-1) / (math.exp(-1) + math.exp(-2)), math.exp(-2) / (math.exp(-1) + math.exp(-2)))
    )
    (lost,) = ask(server, "unsure", [request])
    assert (lost.texts, lost.probabilities, lost.error) == ((), (), "the answer begins like none of Yes, No")
    (mute,) = ask(server, "mute", [request])
    assert mute.error == "the endpoint gives no log-probabilities"


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


def test_endpoint_garbage_is_asked_again_before_it_is_given_up(server: Server) -> None:
    (reply,) = ask(server, "garbled", [request("q")], max_retries=2, max_backoff_s=0.01)
    assert (reply.texts, reply.error) == (("q/0",), None)
    assert server.attempts["garbled"] == 3


def test_endpoint_server_that_drips_bytes_times_out(server: Server) -> None:
    (reply,) = ask(server, "dripping", [request("q")], timeout_s=0.3)
    assert reply.error == "the endpoint did not answer within 0.3 s"


def test_endpoint_dead_server_is_given_up_for_the_rest_of_the_call(server: Server) -> None:
    requests = [request(f"q{i}") for i in range(12)]
    before = server.attempts["broken"]
    replies = ask(server, "broken", requests, give_up_after=3, concurrency=1)
    assert Counter(reply.error for reply in replies) == {
        "the endpoint answered 500": 3,
        "the endpoint was given up after 3 failures in a row": 9,
    }
    assert server.attempts["broken"] - before == 3


def test_endpoint_pace_spaces_requests(server: Server) -> None:
    server.times.clear()
    ask(server, "good", [request(f"q{i}") for i in range(5)], requests_per_minute=60 / 0.05)
    assert server.times[-1] - server.times[0] >= 4 * 0.05 - 0.02


def test_endpoint_tokens_per_minute_hold_back_what_would_exceed_them(server: Server) -> None:
    server.times.clear()
    # 4 tokens are read and 20 may be written: 24 tokens every 0.05 s, however short the answer turns out to be for the one in flight.
    ask(server, "good", [request("q", max_tokens=20) for _ in range(4)], tokens_per_minute=24 * 60 / 0.05)
    assert server.times[-1] - server.times[0] >= 2 * 0.05


def test_endpoint_budget_is_never_overdrawn_and_the_rest_is_refused(server: Server) -> None:
    requests = [request(f"q{i}", max_tokens=100) for i in range(6)]
    # A request may take 4 + 100 tokens and takes 9. At 120 tokens two are answered: 18 are spent, and 104 more would be too many.
    replies = ask(server, "good", requests, max_total_tokens=120, concurrency=1, when_spent="reject")
    assert [reply.error for reply in replies] == [None, None] + ["the budget is spent"] * 4
    priced = ask(server, "good", requests, prompt_price=1e6, completion_price=10e6, max_cost=1031.0, concurrency=1, when_spent="reject")
    assert [(reply.error, reply.cost) for reply in priced[:2]] == [(None, 27.0), (None, 27.0)]
    assert {reply.error for reply in priced[2:]} == {"the budget is spent"}


def test_endpoint_answer_without_usage_counts_as_the_most_that_it_can_be(server: Server) -> None:
    requests = [request(f"q{i}", max_tokens=100) for i in range(6)]
    limits = {"max_total_tokens": 250, "prompt_price": 1e6, "completion_price": 10e6, "concurrency": 1, "when_spent": "reject"}
    replies = ask(server, "silent", requests, **limits)
    assert [(reply.prompt_tokens, reply.completion_tokens, reply.cost) for reply in replies[:2]] == [(3, 100, 1003.0)] * 2
    assert [reply.error for reply in replies] == [None, None] + ["the budget is spent"] * 4


@pytest.mark.parametrize(("model", "attempts"), [("hanging", 2), ("page", 2), ("empty", 2), ("broken", 4)])
def test_endpoint_attempts_that_the_server_worked_on_stay_in_the_budget(server: Server, model: str, attempts: int) -> None:
    before = server.attempts[model]
    # 103 tokens at most: 250 are enough for two attempts that may be billed, and for any number that are not.
    limits = {"max_total_tokens": 250, "max_retries": 3, "timeout_s": 0.2, "max_backoff_s": 0.01, "when_spent": "reject"}
    (reply,) = ask(server, model, [request("q", max_tokens=100)], **limits)
    assert server.attempts[model] - before == attempts
    assert (reply.error == "the budget is spent") == (attempts == 2)


def test_endpoint_spent_budget_stops_with_what_was_answered_told(server: Server) -> None:
    config = EndpointConfig(base_url=server.base_url, model="good", max_total_tokens=120, concurrency=1, max_retries=0)
    engine, told = EndpointEngine(config), list[contract.Reply]()
    with pytest.raises(EngineError, match=r"endpoint:good: the budget is spent .max_total_tokens 120.* 18 tokens.* 4 requests"):
        engine.generate([request(f"q{i}", max_tokens=100) for i in range(6)], told.append)
    engine.close()
    assert [reply.request_id for reply in told if not reply.error] == ["q0", "q1"]


def test_endpoint_picture_goes_as_a_data_url_beside_the_text(server: Server) -> None:
    png = b"\x89PNG\r\n\x1a\n"
    asked = replace(request("q"), images=(png, b"jpg"))
    (reply,) = ask(server, "seeing", [asked])
    assert reply.texts == ("q/0",)
    text, first, second = server.bodies[-1]["messages"][1]["content"]
    assert text == {"type": "text", "text": "q"}
    assert first == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}
    assert second["image_url"]["url"].startswith("data:image/jpeg;base64,")
