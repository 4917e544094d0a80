"""Answers in one write: over a real uvicorn, alive and killed between head and body."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from threading import Thread

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve.one_write import OneWriteProtocol

DIES = """
import os, sys, uvicorn
from serve.one_write import OneWriteProtocol

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    os._exit(1)

protocol = {"one write": OneWriteProtocol, "uvicorn's own": "auto"}[sys.argv[1]]
uvicorn.run(app, fd=int(sys.argv[2]), lifespan="off", http=protocol, log_level="error")
"""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers /empty with 204, /stream in three chunks, and anything else with what was sent."""
    assert scope["type"] == "http"
    match scope["path"]:
        case "/empty":
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})
        case "/stream":
            await send({"type": "http.response.start", "status": 200})
            for part in (b"one ", b"HTTP/1.1 two\r\n\r\n", b" three"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})
        case _:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            body = body or b"nothing"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", http=OneWriteProtocol, log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def test_answers_of_every_kind_come_whole_over_one_connection(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert ask("GET", "/") == (200, b"nothing")
    assert ask("HEAD", "/") == (200, b"")
    assert ask("GET", "/empty") == (204, b"")
    assert ask("GET", "/stream") == (200, b"one HTTP/1.1 two\r\n\r\n three")
    assert ask("POST", "/", b"much " * 100_000) == (200, b"much " * 100_000)
    connection.close()


def test_answer_to_a_request_that_waits_to_be_let_on_is_not_kept_back(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        assert client.recv(65536).endswith(b"\r\n\r\nbody"), "head and body in one write"


def test_request_that_is_none_is_refused_at_once(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("protocol", "left"), [("one write", b""), ("uvicorn's own", b"HTTP/1.1 200 OK")])
def test_server_that_dies_between_head_and_body_has_sent_nothing(protocol: str, left: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", DIES, protocol, str(listening.fileno())]
        with (
            subprocess.Popen(command, pass_fds=[listening.fileno()]) as server,
            socket.create_connection(listening.getsockname(), timeout=60) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b"".join(iter(lambda: client.recv(65536), b""))
            assert received[:15] == left
        assert server.returncode == 1
