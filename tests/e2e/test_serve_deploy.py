"""`serve run` and `serve deploy` of the shipped configs on a real head behind HAProxy.

By hand on the loopback interface until Ctrl-C; then as in production on every interface, refused without keys, running with them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from intently.core.workspace import Workspace
from intently.retrieval.towers import TowerConfig
from intently.retrieval.training import TrainingConfig

from benchmarks.serving import RAY, haproxy_of_its_own
from benchmarks.serving_world import free_port, write_untrained_towers
from serve.auth import make_key
from tests.serve.conftest import write_tables

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Head:
    """A running head that Serve can be deployed to."""

    def __init__(self, session: Path) -> None:
        gcs, dashboard, *agents = _free_ports(5)
        self.address, self._gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        self.session = session
        token = secrets.token_hex(32)
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | RAY | haproxy_of_its_own(str(session)) | {"RAY_AUTH_TOKEN": token, "PATH": path}
        self._environment.pop("RAY_ADDRESS", None)
        self.http = httpx.Client(timeout=30, headers={"Authorization": f"Bearer {token}"})
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4", "--node-ip-address=127.0.0.1",
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={agents[0]}",
            f"--dashboard-agent-listen-port={agents[1]}", f"--metrics-export-port={agents[2]}",
            "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={session}",
        ]  # fmt: skip
        with (session / "start.log").open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Return when it listens."""
        for _ in range(600):
            assert self.process.poll() is None
            with suppress(httpx.TransportError):
                if self.http.get(f"{self.address}/api/serve/applications/").is_success:
                    return
            time.sleep(0.2)
        pytest.fail("the head does not answer")

    @contextmanager
    def run(self, config: dict[str, Any], file: Path) -> Iterator[None]:
        """`serve run` while the block runs, then Ctrl-C."""
        file.write_text(yaml.safe_dump(config))
        environment = self._environment | {"RAY_ADDRESS": self._gcs}
        log = file.with_suffix(".log")
        with log.open("w") as said:
            process = subprocess.Popen([str(BIN / "serve"), "run", str(file)], cwd=ROOT, env=environment, stdout=said, stderr=said)
        try:
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0, log.read_text()[-4000:]
        finally:
            process.kill()

    def deploy(self, config: dict[str, Any], file: Path) -> None:
        """`serve deploy`."""
        file.write_text(yaml.safe_dump(config))
        command = [str(BIN / "serve"), "deploy", "-a", self.address, str(file)]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def applications(self) -> dict[str, Any]:
        """What Serve runs."""
        return self.http.get(f"{self.address}/api/serve/applications/").raise_for_status().json()["applications"]

    def status(self) -> dict[str, Any]:
        """What Serve says of the application, once it is neither deploying nor waiting."""
        for _ in range(600):
            found = self.applications().get("intently")
            if found and found["status"] not in ("NOT_STARTED", "DEPLOYING"):
                return found
            time.sleep(0.2)
        pytest.fail(f"still deploying: {found}")

    def stop(self) -> None:
        """End it and all of its children; in order it takes half a minute, and nobody waits for an answer here."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)
        self.http.close()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets of the session lie below this folder, and their paths may not exceed 107 characters.
    with tempfile.TemporaryDirectory(prefix="intently-", dir="/tmp", ignore_cleanup_errors=True) as session:
        running = Head(Path(session))
        try:
            running.wait()
            yield running
        finally:
            running.stop()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.open(tmp_path_factory.mktemp("deployed"))
    write_tables(workspace)
    write_untrained_towers(workspace, TrainingConfig(towers=TowerConfig(dim=8, hidden=16)), beta=0.5)
    return workspace


def replica_ports(head: Head) -> list[int]:
    """Where HAProxy reaches the application's replicas; until it is told of any, it asks Serve's own proxy."""
    for _ in range(300):
        (config,) = head.session.glob("*/haproxy.cfg")
        ports = re.findall(r"server SERVE_REPLICA\S+ 127\.0\.0\.1:(\d+) check", config.read_text())
        if ports:
            return [int(port) for port in ports]
        time.sleep(0.1)
    pytest.fail(f"HAProxy knows no replica:\n{config.read_text()}")


def test_run_of_the_local_config_serves_until_ctrl_c(head: Head, workspace: Workspace, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "serve" / "local.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    config["applications"][0]["args"] = {"workspace": workspace.root, "events": {"folder": str(tmp_path / "log")}}
    with head.run(config, tmp_path / "local.yaml"):
        running = head.status()
        assert running["status"] == "RUNNING", running["message"]
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/users/ada/recommendations", timeout=60)
        assert answer.status_code == 200 and answer.json()["items"]
    assert head.applications() == {}


def test_deploy_of_the_production_config_needs_keys_and_then_serves(head: Head, workspace: Workspace, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    assert config["http_options"]["host"] == "0.0.0.0"
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["autoscaling_config"]["min_replicas"] = 1
    application["args"] = {"workspace": workspace.root, "events": {"folder": str(tmp_path / "log")}}
    head.deploy(config, tmp_path / "open.yaml")
    refused = head.status()
    assert refused["status"] == "DEPLOY_FAILED" and "without API keys" in refused["message"]
    key, entry = make_key("shop", ("read",), 100.0, 100)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [json.loads(entry.model_dump_json())]}))
    application["args"]["access"] = {"keys_file": str(tmp_path / "keys.json")}
    head.deploy(config, tmp_path / "keyed.yaml")
    running = head.status()
    assert running["status"] == "RUNNING", running["message"]
    path = f"http://127.0.0.1:{port}/v1/users/ada/recommendations"
    assert httpx.get(path, timeout=60).status_code == 401
    answer = httpx.get(path, timeout=60, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200 and answer.json()["items"]

    # What leaves the replica in one write is seen in one piece: a kill cannot part head and body.
    (replica,) = replica_ports(head)
    with socket.create_connection(("127.0.0.1", replica), timeout=60) as client:
        client.sendall(f"GET /v1/users/ada/recommendations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        said = client.recv(2**20)
    assert json.loads(said.partition(b"\r\n\r\n")[2])["items"]
