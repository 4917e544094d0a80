"""Recommendations over HTTP under load: the service on Ray Serve beside a bare uvicorn app that does the same FAISS search in one process.

    PYTHONPATH=platform:. RAY_AUTH_MODE=token python benchmarks/serving.py [--quick] [--json FILE] [--items 100000]

Every stack gets the same requests: k = 20 for random users of a simulated catalogue, filter-seen on. The bare app answers item ids and
scores; the service also looks up cards, interests and reasons, checks its input and measures itself. `create_app` is the service's own
application without Ray, so that the cost of the answer and the cost of Ray can be told apart. Vectors are random: speed does not depend on
what they mean. CPU is that of the stack's processes, and steadier than the rest on a machine that does other things as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from intently.core.config import Config
from intently.core.schema import CHUNK, EMBEDDING, EXPLANATION, HISTORY, ITEM, METRIC, TAG, USER, USER_INTEREST, Table
from intently.core.workspace import Workspace, open_stage
from intently.data.simulator import SimulatorConfig, simulate
from intently.data.world import THEMES
from intently.interests.reason_store import FILENAME, write_reasons
from intently.retrieval.index import IndexConfig
from intently.retrieval.index_files import build_here
from intently.retrieval.retriever import TowerRetriever
from intently.retrieval.trained import embedding_table, load_towers, put_towers
from intently.retrieval.training import TrainingConfig, build_towers, read_tower_data

from serve.app import create_app
from serve.service import Service
from serve.settings import EventConfig, ServeConfig

ROOT = Path(__file__).resolve().parents[1]
K = 20
EVENTS_PER_USER = 60
INTERESTS_PER_USER = 8
RAY = {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
FAST_RAY = RAY | {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Nobody is left to drain when a measurement ends.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}

LUA = """
math.randomseed(7)
function request()
  return wrk.format("GET", string.format("%s", paths[math.random(#paths)]))
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
    """One stack at one concurrency."""

    stack: str
    connections: int
    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us_per_request: float
    errors: int


class Made(Config):
    """Settings of stages that are made up for a measurement: there are none."""


def write_table(workspace: Workspace, name: str, table: Table, rows: list[dict] | pa.Table) -> None:
    """Write an artifact of one part."""
    stage = open_stage(workspace, name, table, {}, Made())
    stage.write("part-00000", rows if isinstance(rows, pa.Table) else table.from_rows(rows))
    stage.finish()


def write_explanations(workspace: Workspace, rows: list[dict]) -> None:
    """Write the table of reasons and the file that serving looks them up in."""
    write_table(workspace, "explanation", EXPLANATION, rows)
    stage = open_stage(workspace, "explanation_store", None, {"explanation": workspace.artifact("explanation").version}, Made())
    with tempfile.TemporaryDirectory() as folder:
        write_reasons(workspace.artifact("explanation").read(), Path(folder) / FILENAME)
        stage.put(FILENAME, Path(folder) / FILENAME)
    stage.finish()


def write_untrained_towers(workspace: Workspace, config: TrainingConfig, beta: float) -> None:
    """Everything that retrieval reads, with towers as they are before training; needs item, history_train and tag."""
    for name in ("item_embedding", "tag_embedding"):
        write_table(workspace, name, EMBEDDING, [])
    read = {name: workspace.artifact(name).version for name in ("item", "history_train", "tag", "item_embedding", "tag_embedding")}
    data = read_tower_data(workspace, read, config)
    towers = build_towers(data, config).eval()
    stage = open_stage(workspace, "towers", None, read, config)
    put_towers(stage, towers, config, data)
    trained = load_towers(stage.finish())
    items = towers.item_vectors()[1].numpy()
    vectors = {
        "user": (data.past.user_ids, trained.user_vectors(data.past)),
        "item": (data.catalogue.item_ids, items),
        "tag": (data.tags.names, trained.tag_vectors(data.tags.names)),
    }
    for kind, (ids, found) in vectors.items():
        write_table(workspace, f"{kind}_vector", EMBEDDING, embedding_table(kind, ids, found, "untrained"))
    fusion = open_stage(workspace, "fusion", METRIC, {}, Made())
    fusion.write("part-00000", METRIC.empty())
    fusion.finish(metrics={"beta": beta})
    stage = open_stage(workspace, "index", None, {}, Made())
    build_here(stage, items, data.catalogue.item_ids, IndexConfig())
    stage.finish()


def write_world(workspace: Workspace, num_items: int, num_users: int) -> list[str]:
    """A simulated catalogue with random histories, interests, tags and reasons, written as artifacts; returns the user ids."""
    rng = np.random.default_rng(7)
    world = simulate(SimulatorConfig(num_items=num_items, num_users=num_users, pictures=False))
    item_ids = world.items["item_id"].to_numpy(zero_copy_only=False)
    user_ids = world.users["user_id"].to_pylist()
    taken = item_ids[rng.integers(0, num_items, (num_users, EVENTS_PER_USER))]
    wanted = [rng.choice(len(THEMES), INTERESTS_PER_USER, replace=False) for _ in user_ids]
    history = HISTORY.from_rows([_history(user, items.tolist()) for user, items in zip(user_ids, taken, strict=True)])
    for name in ("history", "history_train"):
        write_table(workspace, name, HISTORY, history)
    write_table(workspace, "item", ITEM, world.items)
    write_table(workspace, "user", USER, world.users)
    write_table(workspace, "chunk", CHUNK, [])
    mined = [(user, rank, THEMES[theme]) for user, themes in zip(user_ids, wanted, strict=True) for rank, theme in enumerate(themes)]
    interest = {"bucket": 0, "chunk": 0, "stage": "active", "reason": "made up", "shift": "new", "evidence": [], "model": "made up"}
    write_table(
        workspace, "user_interest", USER_INTEREST, [interest | {"user_id": u, "rank": r, "interest": t.phrase} for u, r, t in mined]
    )
    tag = {"bucket": 0, "reason": "made up", "model": "made up"}
    rows = [
        tag | {"user_id": user, "rank": rank, "tag": f"sturdy {theme.nouns[0]}", "interest": theme.phrase, "category": theme.categories[-1]}
        for user, rank, theme in mined
    ]
    write_table(workspace, "tag", TAG, rows)
    phrases = ["", *(theme.phrase for theme in THEMES)]
    reasons = [
        {"item_id": item, "interest": phrases[interest], "text": "A reason of a usual length, which says why this suits you.", "model": "-"}
        for item, theme in zip(item_ids.tolist(), world.item_themes.tolist(), strict=True)
        for interest in (0, theme + 1)
    ]
    write_explanations(workspace, reasons)
    write_untrained_towers(workspace, TrainingConfig(), beta=0.6)
    return user_ids


def _history(user_id: str, items: list[str]) -> dict:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    size = len(items)
    return {
        "user_id": user_id, "bucket": 0, "event_ids": [f"{user_id}-{place}" for place in range(size)], "item_ids": items,
        "behaviours": ["purchase"] * size, "timestamps": [start + timedelta(days=place) for place in range(size)],
        "values": [None] * size, "queries": [None] * size, "dwell_s": [None] * size,
    }  # fmt: skip


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
    process.start()
    try:
        _wait_until_ready(port, process.is_alive)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


@contextmanager
def on_ray(environment: dict[str, str], root: str, port: int) -> Iterator[psutil.Process]:
    """The service as it is started by hand, one replica."""
    command = [sys.executable, "-m", "serve.local", "--workspace", root, "--event-log", f"{root}/event_log", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(port, lambda: process.poll() is None)
            yield psutil.Process(process.pid)
        except TimeoutError as error:
            output.seek(0)
            raise TimeoutError(f"{error}; it said: {output.read()[-2000:]}") from error
        finally:
            process.terminate()
            process.wait(120)


def _wait_until_ready(port: int, is_alive: Callable[[], bool], timeout_s: float = 300) -> None:
    start = time.monotonic()
    while time.monotonic() - start < timeout_s and is_alive():
        try:
            if httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=10).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    outcome = "took too long to start" if is_alive() else "died"
    raise TimeoutError(f"nothing answers on port {port}: the stack {outcome} after {time.monotonic() - start:.0f} s")


def free_port() -> int:
    """A port that nobody listens on, away from the usual ones."""
    for port in range(18000, 19000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 18000 and 19000")


# --- the load ------------------------------------------------------------------------------------------------------------------------


def measure(stack: str, process: psutil.Process, port: int, paths: Sequence[str], connections: int, seconds: float) -> Row:
    """Load one stack after a short warm-up."""
    load = _wrk if shutil.which("wrk") else _asyncio_load
    load(port, paths, connections, min(2.0, seconds))
    before = _cpu_seconds(process)
    result = load(port, paths, connections, seconds)
    cpu = _cpu_seconds(process) - before
    return Row(
        stack=stack,
        connections=connections,
        requests_per_s=result["requests"] / result["seconds"],
        p50_ms=result["p50_ms"],
        p95_ms=result["p95_ms"],
        p99_ms=result["p99_ms"],
        cpu_us_per_request=1e6 * cpu / max(1, result["requests"]),
        errors=int(result["errors"]),
    )


def _cpu_seconds(process: psutil.Process) -> float:
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def _wrk(port: int, paths: Sequence[str], connections: int, seconds: float) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("paths = {" + ",".join(f'"{path}"' for path in paths) + "}\n" + LUA)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name, f"http://127.0.0.1:{port}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def _asyncio_load(port: int, paths: Sequence[str], connections: int, seconds: float) -> dict[str, float]:
    """For machines without wrk; the client takes more CPU than wrk, so its figures are lower."""
    spent: list[float] = []
    errors = 0

    async def caller(client: httpx.AsyncClient, rng: random.Random, until: float) -> None:
        nonlocal errors
        while time.perf_counter() < until:
            start = time.perf_counter()
            response = await client.get(rng.choice(paths))
            spent.append(time.perf_counter() - start)
            errors += not response.is_success

    async def drive() -> float:
        limits = httpx.Limits(max_connections=connections)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30) as client:
            start = time.perf_counter()
            await asyncio.gather(*(caller(client, random.Random(seed), start + seconds) for seed in range(connections)))
            return time.perf_counter() - start

    took = asyncio.run(drive())
    p50, p95, p99 = np.percentile(np.array(spent) * 1e3, [50, 95, 99])
    return {"requests": len(spent), "seconds": took, "errors": errors, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def figures_of(rows: Sequence[Row], most: int) -> dict[str, float]:
    """What a reader wants first: ours on Ray's fast path over the bare app's, at `most` connections."""
    by = {(row.stack, row.connections): row for row in rows}
    ours, bare, app = by["ray serve, haproxy", most], by["bare", most], by["create_app, bare", most]
    return {
        "requests_per_s": ours.requests_per_s,
        "p50_ms": ours.p50_ms,
        "p95_ms": ours.p95_ms,
        "p99_ms": ours.p99_ms,
        "bare_requests_per_s": bare.requests_per_s,
        "throughput_vs_bare_ratio": ours.requests_per_s / bare.requests_per_s,
        "cpu_vs_bare_ratio": bare.cpu_us_per_request / ours.cpu_us_per_request,
        "app_without_ray_vs_bare_ratio": app.requests_per_s / bare.requests_per_s,
        "errors": float(sum(row.errors for row in rows)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller catalogue, shorter load; within a minute")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--items", type=int, help="catalogue size (default 10000; quick 2000)")
    options = parser.parse_args()
    num_items = options.items or (2_000 if options.quick else 10_000)
    seconds, concurrency = (3.0, (16,)) if options.quick else (10.0, (1, 16))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as root:
        users = write_world(Workspace.open(root), num_items, 200 if options.quick else 2_000)
        paths = [f"/v1/users/{user}/recommendations?k={K}" for user in users[:500]]
        stacks: dict[str, Callable[[int], AbstractContextManager[psutil.Process]]] = {
            "bare": lambda port: in_process(run_bare, root, port),
            "create_app, bare": lambda port: in_process(run_app, root, port),
            "ray serve, haproxy": lambda port: on_ray(FAST_RAY, root, port),
        }
        if not options.quick:
            stacks["ray serve, python proxy"] = lambda port: on_ray(RAY, root, port)
        for stack, started in stacks.items():
            port = free_port()
            with started(port) as process:
                rows += [measure(stack, process, port, paths, connections, seconds) for connections in concurrency]
    print(f"{num_items} items, {len(users)} users, k = {K}, {'wrk' if shutil.which('wrk') else 'asyncio client'}, {os.cpu_count()} cores")
    print(f"{'stack':26}{'conn.':>6}{'req/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'CPU us/req':>12}{'errors':>8}")
    for row in rows:
        print(
            f"{row.stack:26}{row.connections:6}{row.requests_per_s:9.0f}{row.p50_ms:9.2f}{row.p95_ms:9.2f}{row.p99_ms:9.2f}"
            f"{row.cpu_us_per_request:12.0f}{row.errors:8}"
        )
    figures = figures_of(rows, concurrency[-1])
    print(f"throughput: {figures['throughput_vs_bare_ratio']:.2f} x the bare app; per CPU second {figures['cpu_vs_bare_ratio']:.2f} x")
    if options.json:
        result = {"benchmark": "serving", "quick": options.quick, "figures": figures, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
