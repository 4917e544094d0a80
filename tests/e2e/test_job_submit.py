"""Every job goes through `ray job submit` on a local head with token authentication, as it would on a cluster.

The jobs of the line run in its order on a few simulated people, each reading what the ones before it wrote; the jobs beside it run two at
a time, in an order in which each finds what it reads.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Event

import psutil
import pytest
import run_pipeline
from intently.core.workspace import Workspace

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
LINE = [job.name for job in run_pipeline.JOBS]
JOBS = {path.stem: import_module(path.stem).JOB for path in sorted((ROOT / "jobs").glob("*.py"))}
TINY: dict[str, list[str]] = {
    "ingest_events": ["source.num_users=24", "source.num_items=70", "source.events_per_user=100", "histories.num_buckets=2"],
    "compress_histories": ["chunks.num_events=6"],
    "mine_user_interests": ["mining.max_chunks=1"],
    "predict_tags": ["tags.num_tags=6", "tags.min_tags=1"],
    "train_towers": ["training.learning.num_epochs=1"],
    "sweep_fusion": ["fusion.betas=[0.0, 0.5, 1.0]"],
    "build_explanations": ["explanations.items_per_interest=1", "explanations.max_interests=5", "num_parts=1"],
    "align_student": ["teacher.num_worlds=1", "teacher.users_per_world=4", "teacher.items_per_world=70"],
    "train_student": ["training.num_steps=2", "training.copy_steps=1", "training.easy_steps=1", "training.decay_steps=1"],
    "mine_item_interests": ["mining.max_items=4"],
    "build_semantic_ids": ["quantiser.num_codes=8"],
    "train_generator": ["generator.sft.num_epochs=1", "max_users=8", "beam.width=10", "harness.launcher=local"],
    "train_policy": ["policy.grpo.num_rounds=1", "policy.grpo.rollouts_per_round=1", "policy.grpo.prompts=4"],
    "mine_interest_tree": ["tree.mining.sampling.num_samples=2"],
    "label_interest_ratings": ["labels.share=1"],
}
"""Settings that make a job small; they do not change what it does."""
# These train by the jobs of the line, which have gone through Ray Train by then.
HERE = ["stages.train_towers.harness.launcher=local", "stages.train_towers.training.learning.num_epochs=1"]
TINY["train_policy"] += ["policy.validation.max_users=8", "harness.launcher=local"]
HERE += ["stages.sweep_fusion.fusion.betas=[0.5]"]
TINY |= {"retrain_towers": ["force=true", *HERE], "sweep_losses": ["alphas=[0.5]", *HERE]}


NAMED = {"embed_interests": {"interest_node"}, "train_policy": {"generator"}}
"""Artifacts that a job reads because a setting names their version."""


EVERYTHING = {artifact for job in JOBS.values() for artifact in (*job.reads, *job.writes)}


def touched(name: str) -> tuple[set[str], set[str]]:
    """What a job reads and what it writes; one that runs other jobs may do either to anything."""
    job = JOBS[name]
    if not job.reads and not job.writes:
        return EVERYTHING, EVERYTHING
    return {*job.reads, *job.optional, *NAMED.get(name, set())}, set(job.writes)


def clash(one: str, other: str) -> bool:
    """Whether one of two jobs writes what the other touches."""
    (reads, writes), (others_reads, others_writes) = touched(one), touched(other)
    return bool(writes & (others_reads | others_writes) or others_writes & reads)


def beside() -> list[str]:
    """All the other jobs, in an order in which each finds what it reads."""
    standing = {artifact for name in LINE for artifact in JOBS[name].writes}
    waiting = {name: job for name, job in JOBS.items() if name not in {*LINE, run_pipeline.JOB.name}}
    order: list[str] = []
    while waiting:
        ready = [name for name, job in waiting.items() if standing.issuperset({*job.reads, *NAMED.get(name, set())})]
        assert ready, f"no job writes what these read: {sorted(waiting)}"
        standing |= {artifact for name in ready for artifact in waiting.pop(name).writes}
        order += ready
    return order


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        environment: in which a client reaches it.
        workspace: that its jobs write to.
        process: `ray start --block`.
        log: what it printed.
    """

    environment: dict[str, str]
    workspace: Workspace
    process: subprocess.Popen[bytes]
    log: Path

    def submit(self, *entrypoint: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Submit from the repository root, wait, and return what the client and the job printed."""
        assert self.process.poll() is None, f"the head has ended:\n{self.log.read_text()[-4000:]}"
        command = [str(RAY), "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--", *entrypoint]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s)

    def run(self, name: str, settings: list[str]) -> str:
        """Run one job with its demo config on this workspace; its output."""
        overrides = [part for setting in settings for part in ("--set", setting)]
        config = f"jobs/configs/{name}/demo.yaml"
        done = self.submit("python", f"jobs/{name}.py", "--config", config, "--workspace", self.workspace.root, *overrides)
        assert done.returncode == 0, f"{name} failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
        assert "succeeded" in done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, dashboard, *agents = _free_ports(5)
    # Sockets of the session lie below this folder, and their paths may not exceed 107 characters.
    session = Path(tempfile.mkdtemp(prefix="intently-", dir="/tmp"))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)  # the runtime environment has to bring it
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(RAY), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={agents[0]}",
        f"--dashboard-agent-listen-port={agents[1]}", f"--metrics-export-port={agents[2]}",
        "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={session}",
    ]  # fmt: skip
    log = session / "start.log"
    with log.open("w") as stream:
        started = subprocess.Popen(command, cwd=session, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _await_jobs_api(environment, started, log)
        yield Head(environment, Workspace.open(tmp_path_factory.mktemp("submitted") / "workspace"), started, log)
    finally:
        # Stopping in peace takes Ray half a minute; nothing of this head is wanted any more.
        for process in [*psutil.Process(started.pid).children(recursive=True), started]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        started.wait(timeout=60)
        shutil.rmtree(session, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _await_jobs_api(environment: dict[str, str], started: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until the Jobs API answers; a client call takes seconds itself, so that nothing has to be waited for in between."""
    for _ in range(40):
        assert started.poll() is None, log.read_text()
        if subprocess.run([str(RAY), "job", "list"], env=environment, capture_output=True, timeout=60).returncode == 0:
            return
    pytest.fail(f"the head does not answer:\n{log.read_text()}")


def inputs(name: str, workspace: Workspace, folder: Path, redis_url: str) -> list[str]:
    """Settings that say where a job finds what does not come from the workspace; files are written into the folder."""
    user, item = (workspace.artifact(kind).read(columns=[f"{kind}_id"])[0][0].as_py() for kind in ("user", "item"))
    match name:
        case "ingest_day" | "ingest_items":
            (folder / "day.csv").write_text(f"event_id,user_id,item_id,behaviour,timestamp\nnew-1,{user},{item},purchase,1767225600\n")
            (folder / "items.csv").write_text(f"item_id,title,category\n{item},Known already,unknown\n")
            return [f"source.events={folder / 'day.csv'}", f"source.items={folder / 'items.csv'}"]
        case "ingest_log":
            event = {"event_id": "served-1", "user_id": user, "item_id": item, "behaviour": "cart", "timestamp": "2026-01-01T00:00:00Z"}
            (folder / "events-2026-01-01.jsonl").write_text(json.dumps(event) + "\n")
            return [f"source.folder={folder}"]
        case "train_policy":
            return [f"start={workspace.artifact('generator').version}"]
        case "publish_explanations":
            return [f"redis_url={redis_url}"]
        case _:
            return []


def test_submit_without_the_token_is_refused(head: Head) -> None:
    stranger = replace(head, environment=head.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    done = stranger.submit("python", "-c", "print('in')")
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


def test_submit_takes_the_code_along_and_leaves_caches_and_tools_at_home(head: Head) -> None:
    done = head.submit("find", ".", "-type", "f", "-printf", "travelled %s %p\\n")
    assert done.returncode == 0, done.stdout + done.stderr
    files = {}
    for line in done.stdout.splitlines():
        if line.startswith("travelled "):
            _, size, path = line.split(" ", 2)
            files[path] = int(size)
    assert {"./jobs/run_pipeline.py", "./platform/intently/core/schema.py", "./jobs/configs/run_pipeline/demo.yaml"} <= set(files)
    folders = {part for path in files for part in Path(path).parts[:-1]}
    at_home = {".venv", ".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "workspace", "tests"}
    assert not folders & at_home
    assert sum(files.values()) < 40 * 2**20


@pytest.mark.parametrize("name", LINE)
def test_job_of_the_line_submitted_writes_its_artifacts(head: Head, name: str) -> None:
    head.run(name, TINY.get(name, []))
    for artifact in JOBS[name].writes:
        assert head.workspace.artifact(artifact).manifest.name == artifact


def test_run_pipeline_submitted_after_its_stages_reuses_them_all(head: Head) -> None:
    names = [artifact for job in run_pipeline.JOBS for artifact in job.writes]
    before = {name: head.workspace.artifact(name).manifest for name in names}
    overrides = [f"stages.{name}.{setting}" for name, settings in TINY.items() if name in LINE for setting in settings]
    head.run(run_pipeline.JOB.name, overrides)
    assert {name: head.workspace.artifact(name).manifest for name in names} == before


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """Jobs beside the line, on their way: a submission waits more than it works, so two go at once where neither disturbs the other."""
    ended = {name: Event() for name in beside()}
    server = RedisServer(tmp_path_factory.mktemp("redis"), free_port())

    def run(name: str) -> str:
        earlier = list(ended)[: list(ended).index(name)]
        try:
            for other in earlier:
                if clash(name, other):
                    ended[other].wait()
            folder = tmp_path_factory.mktemp(name)
            return head.run(name, [*TINY.get(name, []), *inputs(name, head.workspace, folder, server.url)])
        finally:
            ended[name].set()

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name) for name in ended}
    server.stop()


@pytest.mark.parametrize("name", beside())
def test_job_beside_the_line_submitted_writes_its_artifacts(head: Head, submitted: dict[str, Future[str]], name: str) -> None:
    submitted[name].result()
    for artifact in JOBS[name].writes:
        assert head.workspace.artifact(artifact).manifest.name == artifact


def test_job_submitted_with_an_unknown_setting_fails_with_its_error(head: Head) -> None:
    done = head.submit("python", "jobs/build_splits.py", "--workspace", head.workspace.root, "--set", "no_such_setting=1")
    assert done.returncode != 0
    assert "build_splits: ConfigError: no_such_setting = 1: unknown key" in done.stdout
