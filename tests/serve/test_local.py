"""`python -m serve.local`, as `make demo` starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace

from benchmarks.serving_world import free_port
from serve.local import application, deploy

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serve.local", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "platform", "RAY_AUTH_MODE": "token"}


def test_local_service_runs_until_ctrl_c_and_leaves_nothing_behind(served: Workspace, tmp_path: Path) -> None:
    port = free_port()
    arguments = command("--workspace", served.root, "--event-log", str(tmp_path / "log"), "--port", str(port))
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    with process, process.stdout:
        lines = iter(process.stdout.readline, "")
        assert next(line for line in lines if line.startswith("page:")) == f"page: http://127.0.0.1:{port}/\n"
        assert httpx.get(f"http://127.0.0.1:{port}/v1/users/ada/recommendations", timeout=120).status_code == 200
        assert "intently" in httpx.get(f"http://127.0.0.1:{port}/", timeout=120).text
        family = psutil.Process(process.pid).children(recursive=True)
        # A terminal sends Ctrl-C to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_local_service_without_tables_names_the_missing_one(tmp_path: Path) -> None:
    done = subprocess.run(command("--workspace", str(tmp_path)), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "MissingArtifactError" in done.stderr and "'history'" in done.stderr


def test_local_service_on_a_taken_port_names_it(served: Workspace, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port}: cannot listen there"):
            deploy(application(served.root, str(tmp_path)), port)
