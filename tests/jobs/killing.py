"""A job's own command line on the tests' Ray, killed in the middle; whoever looks afterwards finds none of its workers writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from intently.core.workspace import Workspace

ROOT = Path(__file__).parents[2]


# What Ray Data and Ray Tune call a process that works for one driver; actors for the whole cluster outlive it.
AT_WORK = ("ray::MapWorker", "ray::ImplicitFunc")


def _workers() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith(AT_WORK):
                found.add(process)
    return found


@contextmanager
def doomed(job: str, settings: Mapping[str, Any], workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """The running job; at the end of the block it gets SIGKILL, and its workers have ended.

    Ray ends a dead driver's workers a moment later: until then they finish the part that they are at.
    """
    config = Path(workspace.root).with_suffix(".yaml")
    config.write_text(yaml.safe_dump(dict(settings)))
    command = [sys.executable, f"jobs/{job}.py", "--config", str(config), "--workspace", workspace.root]
    environment = os.environ | {"PYTHONPATH": "platform", "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    others = _workers()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        try:
            yield driver
            workers = _workers() - others
        finally:
            driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL, "the job ended before it was killed"
    assert workers, "the job was at work"
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "its workers end with it"


def run_until(said: str, job: str, settings: Mapping[str, Any], workspace: Workspace) -> None:
    """Run the job and kill it as soon as it prints a line that begins so."""
    with doomed(job, settings, workspace) as driver:
        assert driver.stdout is not None
        assert any(line.startswith(said) for line in driver.stdout), "the job ended before it said so"
