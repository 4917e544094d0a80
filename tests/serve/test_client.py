"""The client against real servers: one that sheds, one that hangs up, and the service with keys."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from intently.core.workspace import Workspace

from serve.app import create_app
from serve.auth import make_key
from serve.client import Client, ServiceError
from serve.events import read_events
from serve.service import Service
from tests.serve.calling import config, listening


class Busy:
    """Answers 503 to the first requests, then says what it was sent."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.bodies = refusals, list[Any]()
        self.app = FastAPI()
        self.app.post("/v1/events")(self.events)

    async def events(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        if len(self.bodies) <= self.refusals:
            return JSONResponse({"detail": "busy"}, 503, {"Retry-After": "0"}, "application/problem+json")
        return JSONResponse({"written": len(self.bodies[-1])})


def test_client_sends_the_same_events_again_when_the_service_is_busy() -> None:
    server = Busy(refusals=2)
    with listening(server.app) as address, Client(address) as client:
        assert client.send([{"user_id": "u", "item_id": "i", "behaviour": "cart"}, {"event_id": "mine", "user_id": "u"}])["written"] == 2
    first, second, third = server.bodies
    assert first == second == third and len(first[0]["event_id"]) == 32 and first[1]["event_id"] == "mine"


def test_client_gives_up_after_its_retries_with_what_the_service_said() -> None:
    server = Busy(refusals=9)
    with listening(server.app) as address, Client(address, retries=1) as client, pytest.raises(ServiceError, match="503: busy"):
        client.send([{"user_id": "u"}])
    assert len(server.bodies) == 2


def test_client_events_that_are_sent_again_after_an_error_have_the_same_ids() -> None:
    server, events = Busy(refusals=1), [{"user_id": "u", "item_id": "i", "behaviour": "cart"}]
    with listening(server.app) as address, Client(address, retries=0) as client:
        with pytest.raises(ServiceError):
            client.send(events)
        client.send(events)
    assert server.bodies[0] == server.bodies[1] and server.bodies[0][0]["event_id"]


def test_client_connection_that_cannot_be_made_is_tried_again_and_then_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=1) as client, pytest.raises(httpx.ConnectError):
        client.recommend("u")


def test_client_with_a_key_is_let_in_and_without_one_told_why(served: Workspace, tmp_path: Path) -> None:
    key, entry = make_key("shop", ("read", "events"), 1000.0, 1000)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [json.loads(entry.model_dump_json())]}))
    settings = config(served, tmp_path / "log", access={"keys_file": str(tmp_path / "keys.json")})
    with listening(create_app(Service.open(settings, "r"))) as address:
        with Client(address, key) as client:
            assert len(client.recommend("ada", k=3, beta=0.5)["items"]) == 3
            assert len(client.recommend_for([{"item_id": "i00", "behaviour": "purchase"}], k=2)["items"]) == 2
            assert client.interests("bob")["periods"][0]["interests"][0]["interest"] == "watching birds"
            assert len(client.explanations("ada", k=2)["explanations"]) == 2
            assert client.send([{"user_id": "guest", "item_id": "i03", "behaviour": "cart"}])["written"] == 1
            with pytest.raises(ServiceError, match=r"404.*'nobody'"):
                client.recommend("nobody")
        with Client(address) as stranger, pytest.raises(ServiceError, match="401: no API key"):
            stranger.recommend("ada")
    assert [event["item_id"] for event in read_events(tmp_path / "log")] == ["i03"]
