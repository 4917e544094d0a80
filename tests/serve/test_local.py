"""`python -m serve.local` where it cannot start; tests/e2e/test_pipeline.py runs it until Ctrl-C."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace

from serve.local import application, deploy

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serve.local", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": "platform", "RAY_AUTH_MODE": "token"}


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
