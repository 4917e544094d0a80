"""`serve deploy` of serve/config.yaml on a real head: HAProxy on every interface, refused without keys, running with them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
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
        self.address = f"http://127.0.0.1:{dashboard}"
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

    def deploy(self, config: dict[str, Any], file: Path) -> None:
        """Hand a config over, once the head listens."""
        file.write_text(yaml.safe_dump(config))
        for _ in range(20):
            assert self.process.poll() is None
            command = [str(BIN / "serve"), "deploy", "-a", self.address, str(file)]
            done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                return
        pytest.fail(done.stdout + done.stderr)

    def status(self) -> dict[str, Any]:
        """What Serve says of the application, once it is neither deploying nor waiting."""
        for _ in range(600):
            found = self.http.get(f"{self.address}/api/serve/applications/").raise_for_status().json()["applications"].get("intently")
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


@pytest.fixture
def head() -> Iterator[Head]:
    # Sockets of the session lie below this folder, and their paths may not exceed 107 characters.
    with tempfile.TemporaryDirectory(prefix="intently-", dir="/tmp", ignore_cleanup_errors=True) as session:
        running = Head(Path(session))
        yield running
        running.stop()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def test_deploy_of_the_production_config_needs_keys_and_then_serves(head: Head, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    write_tables(workspace)
    write_untrained_towers(workspace, TrainingConfig(towers=TowerConfig(dim=8, hidden=16)), beta=0.5)
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
