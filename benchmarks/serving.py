"""Recommendations over HTTP under load: the service on Ray Serve beside a bare uvicorn app that does the same FAISS search in one process.

    PYTHONPATH=platform:. RAY_AUTH_MODE=token python benchmarks/serving.py [--quick] [--json FILE] [--items 100000] [--world FOLDER]

Every stack gets the same requests from wrk: k = 20 for random users of a simulated catalogue, seen items left out. The bare app answers
item ids and scores; the service also looks up cards, interests and reasons, checks its input and measures itself. `create_app` is the
service's own application without Ray, so that the cost of the answer and the cost of Ray can be told apart.

Each stack is loaded twice: as fast as it answers (32 connections), and at half of that rate with requests that come at random moments,
as from many independent callers. Throughput per core is requests over the CPU seconds that all processes of the stack took, Ray's own
and HAProxy included: on a small machine wrk and several replicas share the cores, and requests a second alone would measure that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI
from intently.core.workspace import Workspace
from intently.retrieval.retriever import TowerRetriever

from benchmarks.serving_world import free_port, write_world
from serve import haproxy
from serve.app import create_app
from serve.service import Service
from serve.settings import EventConfig, ServeConfig

ROOT = Path(__file__).resolve().parents[1]
K = 20
CONNECTIONS = 32
PACED_CONNECTIONS = 64
BATCH = 16
RAY = haproxy.environment() | {
    "RAY_AUTH_MODE": "token",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
    # Nobody is left to drain when a measurement ends.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
PROCESSES = {"replica": "ServeReplica", "haproxy": "haproxy"}

LUA = """
math.randomseed(7)
function request()
  return wrk.format("GET", paths[math.random(#paths)])
end
if pause_ms > 0 then
  function delay() return math.floor(0.5 - pause_ms * math.log(1 - math.random())) end
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"requests": %d, "seconds": %f, "errors": %d, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Row:
    """One stack under one load.

    Attributes:
        stack: which.
        load: full or half.
        requests_per_s: answered.
        p50_ms, p95_ms, p99_ms: latency as the caller sees it.
        cpu_us: CPU of all processes of the stack for one request.
        cpu_by_process: the same by process.
        errors: anything but an answer of status 2xx or 3xx.
    """

    stack: str
    load: str
    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us: float
    cpu_by_process: dict[str, float]
    errors: int


# --- the stacks ----------------------------------------------------------------------------------------------------------------------


def run_bare(root: str, port: int) -> None:
    """The other side: the same search, filter and all, answered with ids and scores."""
    retriever = TowerRetriever.load(Workspace.open(root))
    app = FastAPI()

    @app.get("/v1/users/{user_id}/recommendations")
    async def search(user_id: str, k: int) -> dict:
        found = retriever.retrieve([user_id], k)
        return {"items": found["item_id"].to_pylist(), "scores": found["score"].to_pylist()}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def run_app(root: str, port: int) -> None:
    """The service's own application in the same bare server."""
    service = Service.open(ServeConfig(workspace=root, events=EventConfig(folder=f"{root}/event_log")), "bare")
    uvicorn.run(create_app(service), port=port, log_level="warning", access_log=False)


@contextmanager
def in_process(run: Callable[[str, int], None], root: str, port: int) -> Iterator[psutil.Process]:
    """One of the two functions above in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(root, port))
    # As on Ray: one thread a process, so that CPU and throughput can be compared.
    os.environ["OMP_NUM_THREADS"] = RAY["OMP_NUM_THREADS"]
    process.start()
    try:
        wait_until_ready(port, process.is_alive)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


@contextmanager
def on_ray(root: str, port: int, replicas: int, settings: Sequence[str] = (), flags: Sequence[str] = ()) -> Iterator[psutil.Process]:
    """The service as it is started by hand, on Ray's fast path."""
    command = [sys.executable, "-m", "serve.local", "--workspace", root, "--event-log", f"{root}/event_log", "--port", str(port)]
    command += ["--replicas", str(replicas), *(part for setting in settings for part in ("--set", setting)), *flags]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory() as folder:
        environment = os.environ | RAY | haproxy_of_its_own(folder)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            wait_until_ready(port, lambda: process.poll() is None)
            yield psutil.Process(process.pid)
        except TimeoutError as error:
            output.seek(0)
            raise TimeoutError(f"{error}; it said: {output.read()[-2000:]}") from error
        finally:
            process.terminate()
            process.wait(120)


def haproxy_of_its_own(folder: str) -> dict[str, str]:
    """Environment of an HAProxy that shares no file and no port with another one on this machine."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    places = {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in files.items()}
    names = {"HAPROXY_METRICS": 19_000, "HAPROXY_STATS": 20_000, "FALLBACK_PROXY_HTTP": 22_000, "FALLBACK_PROXY_GRPC": 23_000}
    ports = {f"RAY_SERVE_{name}_PORT": str(free_port(first)) for name, first in names.items()}
    return places | ports | {"RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder}


def wait_until_ready(port: int, is_alive: Callable[[], bool], timeout_s: float = 300) -> None:
    """Return when something answers. Raises TimeoutError."""
    start = time.monotonic()
    while time.monotonic() - start < timeout_s and is_alive():
        try:
            if httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=10).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    outcome = "took too long to start" if is_alive() else "died"
    raise TimeoutError(f"nothing answers on port {port}: the stack {outcome} after {time.monotonic() - start:.0f} s")


# --- the load ------------------------------------------------------------------------------------------------------------------------


def load_fully(stack: str, process: psutil.Process, port: int, paths: Sequence[str], seconds: float) -> Row:
    """Load a stack as fast as it answers."""
    return _measure(stack, "full", process, lambda: wrk(port, paths, CONNECTIONS, seconds, 0.0))


def load_half(full: Row, process: psutil.Process, port: int, paths: Sequence[str], seconds: float) -> Row:
    """Load a stack with half the rate of `full`, requests at random moments."""
    pause_ms = 1e3 * PACED_CONNECTIONS / (full.requests_per_s / 2) - full.p50_ms / CONNECTIONS
    return _measure(full.stack, "half", process, lambda: wrk(port, paths, PACED_CONNECTIONS, seconds, pause_ms))


def _measure(stack: str, load: str, process: psutil.Process, run: Callable[[], dict[str, float]]) -> Row:
    before = _cpu_seconds(process)
    result = run()
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in _cpu_seconds(process).items()}
    each = {name: 1e6 * seconds / max(1, result["requests"]) for name, seconds in spent.items()}
    row = Row(
        stack=stack,
        load=load,
        requests_per_s=result["requests"] / result["seconds"],
        p50_ms=result["p50_ms"],
        p95_ms=result["p95_ms"],
        p99_ms=result["p99_ms"],
        cpu_us=sum(each.values()),
        cpu_by_process=each,
        errors=int(result["errors"]),
    )
    print(f"{stack}, {load} load: {row.requests_per_s:.0f} requests/s, p99 {row.p99_ms:.1f} ms, {row.errors} errors", flush=True)
    return row


def _cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """CPU seconds so far by kind of process; HAProxy's workers count also where they left the family."""
    family = {member.pid: member for member in (process, *process.children(recursive=True))}
    spent: dict[str, float] = {}
    for member in family.values():
        try:
            command, times = " ".join(member.cmdline()), member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        kind = next((name for name, word in PROCESSES.items() if word in command), "other")
        spent[kind] = spent.get(kind, 0.0) + times.user + times.system
    return spent


def wrk(port: int, paths: Sequence[str], connections: int, seconds: float, pause_ms: float) -> dict[str, float]:
    """One run of wrk: requests, seconds, errors, p50_ms, p95_ms, p99_ms."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"pause_ms = {pause_ms}\npaths = {{" + ",".join(f'"{path}"' for path in paths) + "}\n" + LUA)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name, f"http://127.0.0.1:{port}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


# --- where the time goes -------------------------------------------------------------------------------------------------------------


def stages_us(port: int) -> dict[str, float]:
    """Microseconds of one request by stage, as the replica that answers counted them since it started."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    sums, counts = (_series(text, f"intently_stage_seconds_{kind}", "stage") for kind in ("sum", "count"))
    found = {f"{stage}": 1e6 * sums[stage] / counts[stage] for stage in sums if counts[stage]}
    route = _series(text, "intently_request_seconds_sum", "route"), _series(text, "intently_request_seconds_count", "route")
    path = "/v1/users/{user_id}/recommendations"
    return found | {"whole request in the application": 1e6 * route[0][path] / route[1][path]}


def _series(text: str, name: str, label: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        key = re.search(rf'\b{label}="((?:[^"\\]|\\.)*)"', labels)
        if key:
            found[key[1]] = found.get(key[1], 0.0) + float(value)
    return found


def batching_us(root: str, users: Sequence[str], seconds: float) -> tuple[str, dict[int, float]]:
    """(kind of index, users in one search → microseconds a user), in this process."""
    retriever = TowerRetriever.load(Workspace.open(root))
    rng = np.random.default_rng(7)
    spent: dict[int, float] = {}
    for size in (1, BATCH):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            retriever.retrieve([users[place] for place in rng.integers(0, len(users), size)], K)
            done += size
        spent[size] = 1e6 * (time.perf_counter() - start) / done
    return retriever.index.kind, spent


# --- the report ----------------------------------------------------------------------------------------------------------------------


def figures_of(rows: Sequence[Row], replicas: Sequence[int]) -> dict[str, float]:
    """What a reader wants first."""
    by = {(row.stack, row.load): row for row in rows}
    bare, app = by["bare", "full"], by["create_app, bare", "full"]
    one = by["1 replica", "full"]
    figures = {
        "p99_ms_half_load": max(by[f"{number} replica{'s' * (number > 1)}", "half"].p99_ms for number in replicas),
        "throughput_vs_bare_ratio": bare.cpu_us / one.cpu_us,
        "requests_per_s_vs_bare_ratio": one.requests_per_s / bare.requests_per_s,
        "app_without_ray_vs_bare_ratio": bare.cpu_us / app.cpu_us,
        "bare_requests_per_s": bare.requests_per_s,
        "errors": float(sum(row.errors for row in rows)),
    }
    for number in replicas:
        for load in ("full", "half"):
            row = by[f"{number} replica{'s' * (number > 1)}", load]
            figures |= {f"requests_per_s_{number}_{load}": row.requests_per_s, f"p99_ms_{number}_{load}": row.p99_ms}
    return figures


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""
    print(f"{'stack':20}{'load':>6}{'req/s':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'CPU us/req':>12}{'errors':>8}  CPU by process")
    for row in rows:
        parts = ", ".join(f"{name} {value:.0f}" for name, value in sorted(row.cpu_by_process.items()))
        print(
            f"{row.stack:20}{row.load:>6}{row.requests_per_s:8.0f}{row.p50_ms:9.2f}{row.p95_ms:9.2f}{row.p99_ms:9.2f}"
            f"{row.cpu_us:12.0f}{row.errors:8}  {parts}"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller catalogue, shorter load, one replica; within a minute")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--items", type=int, help="catalogue size (default 100000; quick 2000)")
    parser.add_argument("--world", metavar="FOLDER", help="keep the made-up tables there, and use them if they stand")
    options = parser.parse_args()
    num_items = options.items or (2_000 if options.quick else 100_000)
    seconds, replicas = (2.0, (1,)) if options.quick else (12.0, (1, 2))
    rows: list[Row] = []
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = options.world or folder
        workspace = Workspace.open(root)
        if workspace.latest_version("index") is None:
            write_world(workspace, num_items, 200 if options.quick else 2_000)
        users = workspace.artifact("user").read()["user_id"].to_pylist()
        paths = [f"/v1/users/{user}/recommendations?k={K}" for user in users[:500]]
        stacks: dict[str, Callable[[int], AbstractContextManager[psutil.Process]]] = {
            "bare": lambda port: in_process(run_bare, root, port),
            "create_app, bare": lambda port: in_process(run_app, root, port),
        }
        for number in replicas:
            stacks[f"{number} replica{'s' * (number > 1)}"] = lambda port, number=number: on_ray(root, port, number)
        for stack, started in stacks.items():
            port = free_port()
            with started(port) as process:
                wrk(port, paths, CONNECTIONS, min(3.0, seconds), 0.0)
                full = load_fully(stack, process, port, paths, seconds)
                rows += [full, load_half(full, process, port, paths, seconds)]
                if stack == "create_app, bare":
                    stages = stages_us(port)
        kind, batching = batching_us(root, users, 1.0 if options.quick else 3.0)
    print(f"\n{num_items} items ({kind} index), {len(users)} users, k = {K}, {CONNECTIONS} connections, {os.cpu_count()} cores")
    print_rows(rows)
    print("create_app, microseconds of a request by stage: " + ", ".join(f"{name} {spent:.0f}" for name, spent in stages.items()))
    print(f"one search for {BATCH} users: {batching[BATCH]:.0f} us a user; one user alone: {batching[1]:.0f} us")
    figures = figures_of(rows, replicas) | {"batch_search_ratio": batching[1] / batching[BATCH]}
    print(f"p99 at half load {figures['p99_ms_half_load']:.1f} ms; per core {figures['throughput_vs_bare_ratio']:.2f} x the bare app")
    if options.json:
        shown = [asdict(row) for row in rows] + [{"stages_us": stages}]
        Path(options.json).write_text(
            json.dumps({"benchmark": "serving", "quick": options.quick, "figures": figures, "rows": shown}, indent=2)
        )


if __name__ == "__main__":
    main()
