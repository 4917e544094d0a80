"""The service under load while its parts fail: replicas are killed, Redis is killed and started again, index and tables are swapped.

    PYTHONPATH=platform:jobs:. RAY_AUTH_MODE=token python benchmarks/serving_faults.py [--minutes 10] [--json FILE]

Three replicas on Ray Serve with HAProxy; events go to a Redis stream that syncs before it answers. All the time callers ask for
recommendations of random users and others report events; nobody retries, and whatever is not an answer counts as an error. Every answer
names the set of tables it came from (X-Tables) and is compared with what that set says, computed here. Every 20 seconds one of two replicas
is killed (the third is spared, so that its memory can be watched), Redis is killed twice, the table of reasons and the index are each
swapped and swapped back. At the end the event job runs, and every event that was acknowledged must be in the Event table, once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import ingest_log
import numpy as np
import psutil
from intently.core.workspace import Workspace, open_stage
from intently.data.event_log import EventStreamConfig
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.index import IndexConfig
from intently.retrieval.index_files import build_here
from intently.runtime.session import ray_session

from benchmarks.redis_server import RedisServer
from benchmarks.serving import on_ray
from benchmarks.serving_world import Made, free_port, write_explanations, write_world
from serve.recommend import Asked, Recommender
from serve.reload import name_of, newest_versions
from serve.state import State
from serve.telemetry import Telemetry

REPLICAS = 3
KILL_EVERY_S = 20.0
READERS, READS_PER_S = 16, 60.0
WRITERS, WRITES_PER_S = 4, 12.0
K = 20
WORD = "ServeReplica:intently"

Answer = list[tuple[str, str | None]]
"""(item, text of its reason), best first."""


@dataclass
class Tally:
    """What happened.

    Attributes:
        statuses: number of answers by HTTP status; 0 for a connection that broke.
        wrong: answers that are not what their set of tables says.
        sets: answers by set of tables.
        acknowledged: ids of events that were answered with 200.
        latencies_s: of answers with recommendations.
        notes: errors, for whoever reads the report.
        spared_mib: memory of the replica that is not killed, over time.
        kills, swaps, restarts: faults.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sets: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    latencies_s: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    spared_mib: list[float] = field(default_factory=list)
    kills: int = 0
    swaps: int = 0
    restarts: int = 0

    def note(self, status: int, text: str) -> None:
        """Count an answer; keep the text of the first errors."""
        self.statuses[status] += 1
        if status != 200 and len(self.notes) < 20:
            self.notes.append(f"{status}: {text[:300]}")


# --- two editions of everything that is swapped --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Editions:
    """Versions to swap between, and what is right with each.

    Attributes:
        index, reasons: version of each edition; reasons are (explanation, explanation_store).
        right: name of a set of tables → user → answer.
    """

    index: tuple[str, str]
    reasons: tuple[str, str]
    right: dict[str, dict[str, Answer]]


def write_editions(workspace: Workspace, users: Sequence[str]) -> Editions:
    """A second index (every item has its neighbour's vector) and second reasons; the first of each stay the latest."""
    index, store = (workspace.artifact(name).version for name in ("index", "explanation_store"))
    table = workspace.artifact("item_vector").read()
    stage = open_stage(workspace, "index", None, {}, Made(edition=1))
    build_here(stage, np.roll(vectors_of(table), 1, axis=0), table["id"].combine_chunks(), IndexConfig())
    other_index = stage.finish().version
    rows = workspace.artifact("explanation").read().to_pylist()
    write_explanations(workspace, [row | {"text": f"Second edition: {row['text']}"} for row in rows], edition=1)
    other_store = workspace.artifact("explanation_store").version
    right: dict[str, dict[str, Answer]] = {}
    for one in (index, other_index):
        for other in (store, other_store):
            name_latest(workspace, "index", one)
            name_latest(workspace, "explanation_store", other)
            versions = newest_versions(workspace)
            right[name_of(versions)] = asyncio.run(answers(State.load(workspace, versions=versions), users))
    name_latest(workspace, "index", index)
    name_latest(workspace, "explanation_store", store)
    return Editions((index, other_index), (store, other_store), right)


async def answers(state: State, users: Sequence[str]) -> dict[str, Answer]:
    """What the service must say with these tables."""
    recommender = Recommender(state, Telemetry("expected", state.versions))
    asked = Asked(K, None, True)
    return {
        user: [(one.item.item_id, one.reason.text if one.reason else None) for one in await recommender.for_user(user, asked)]
        for user in users
    }


def name_latest(workspace: Workspace, name: str, version: str) -> None:
    """Let LATEST name a version that stands, as a job does that finds its work done."""
    workspace.write_bytes(workspace.path(name, "LATEST"), version.encode())


# --- the load ------------------------------------------------------------------------------------------------------------------------


async def paced(per_s: float, until: float, act: Callable[[], Awaitable[None]]) -> None:
    """Do something at random moments, so often on average; an act that takes long delays the next."""
    while time.monotonic() < until:
        start = time.monotonic()
        await act()
        await asyncio.sleep(max(0.0, random.expovariate(per_s) - (time.monotonic() - start)))


async def read(client: httpx.AsyncClient, users: Sequence[str], editions: Editions, tally: Tally) -> None:
    """Ask for one user's recommendations and compare the answer."""
    user = random.choice(users)
    start = time.monotonic()
    try:
        response = await client.get(f"/v1/users/{user}/recommendations", params={"k": K})
    except httpx.TransportError as error:
        tally.note(0, repr(error))
        return
    tally.note(response.status_code, response.text)
    if response.status_code == 200:
        tally.latencies_s.append(time.monotonic() - start)
        name = response.headers["x-tables"]
        tally.sets[name] += 1
        found = [(one["item"]["item_id"], one["reason"] and one["reason"]["text"]) for one in response.json()["items"]]
        if editions.right.get(name, {}).get(user) != found:
            tally.wrong.append(f"{user} from {name}: {found[:3]} …")


async def write(client: httpx.AsyncClient, users: Sequence[str], items: Sequence[str], tally: Tally) -> None:
    """Report one to three events."""
    made = [
        {"event_id": f"load-{random.getrandbits(64):x}", "user_id": random.choice(users), "item_id": random.choice(items)}
        for _ in range(random.randint(1, 3))
    ]
    try:
        response = await client.post("/v1/events", json=[event | {"behaviour": "cart"} for event in made])
    except httpx.TransportError as error:
        tally.note(0, repr(error))
        return
    tally.note(response.status_code, response.text)
    if response.status_code == 200:
        tally.acknowledged |= {event["event_id"] for event in made}


# --- the faults ----------------------------------------------------------------------------------------------------------------------


def replicas_of(stack: psutil.Process) -> list[psutil.Process]:
    """Replica processes, the oldest first."""
    found = []
    for process in stack.children(recursive=True):
        try:
            if WORD in " ".join(process.cmdline()):
                found.append((process.create_time(), process))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def wait_for_replicas(stack: psutil.Process, timeout_s: float = 180.0) -> None:
    """Return when all replicas run. Raises TimeoutError."""
    until = time.monotonic() + timeout_s
    while len(replicas_of(stack)) < REPLICAS:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(replicas_of(stack))} of {REPLICAS} replicas after {timeout_s:.0f} s")
        time.sleep(0.2)


async def kill_replicas(stack: psutil.Process, every_s: float, until: float, tally: Tally) -> None:
    """Kill the replica that has lived longest, but for the spared one."""
    spared, *_ = replicas_of(stack)
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        others = [replica for replica in replicas_of(stack) if replica.pid != spared.pid]
        if others:
            others[0].kill()
            tally.kills += 1


async def watch_memory(stack: psutil.Process, until: float, tally: Tally) -> None:
    """Note the memory of the spared replica, without what it shares with others."""
    spared, *_ = replicas_of(stack)
    while time.monotonic() < until:
        tally.spared_mib.append(spared.memory_full_info().uss / 2**20)
        await asyncio.sleep(2.0)


async def swap_and_restart(workspace: Workspace, editions: Editions, server: RedisServer, seconds: float, tally: Tally) -> None:
    """Swap the reasons, the index, the reasons back, the index back, and kill Redis twice, spread over the time."""
    steps: list[Callable[[], None]] = [
        lambda: name_latest(workspace, "explanation_store", editions.reasons[1]),
        lambda: name_latest(workspace, "index", editions.index[1]),
        server.kill,
        lambda: name_latest(workspace, "explanation_store", editions.reasons[0]),
        lambda: name_latest(workspace, "index", editions.index[0]),
        server.kill,
    ]
    for step in steps:
        await asyncio.sleep(seconds / (len(steps) + 1))
        await asyncio.to_thread(step)
        if step == server.kill:
            await asyncio.to_thread(server.start)
            tally.restarts += 1
        else:
            tally.swaps += 1


async def drive(
    address: str, stack: psutil.Process, workspace: Workspace, editions: Editions, server: RedisServer, seconds: float, every_s: float
) -> Tally:
    """All of it for so many seconds."""
    tally = Tally()
    users = list(next(iter(editions.right.values())))
    everybody, items = (workspace.artifact(name).read()[f"{name}_id"].to_pylist() for name in ("user", "item"))
    # Events are of other users than those whose answers are compared, for events change answers.
    acting = sorted(set(everybody) - set(users))
    until = time.monotonic() + seconds
    # httpx gives idle connections up after 5 s, long before HAProxy closes them (90 s): no request meets that close.
    limits = httpx.Limits(max_connections=READERS + WRITERS, max_keepalive_connections=READERS + WRITERS)
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as client:
        readers = [paced(READS_PER_S / READERS, until, lambda: read(client, users, editions, tally)) for _ in range(READERS)]
        writers = [paced(WRITES_PER_S / WRITERS, until, lambda: write(client, acting, items, tally)) for _ in range(WRITERS)]
        faults = [
            kill_replicas(stack, every_s, until, tally),
            watch_memory(stack, until, tally),
            swap_and_restart(workspace, editions, server, seconds, tally),
        ]
        await asyncio.gather(*readers, *writers, *faults)
    return tally


def events_in_table(workspace: Workspace, server: RedisServer) -> list[str]:
    """Run the event job; the ids in the Event table."""
    config = ingest_log.IngestLogConfig(source=EventStreamConfig(url=server.url))
    with ray_session():
        ingest_log.JOB.execute(config, workspace)
    return workspace.artifact("event").read(columns=["event_id"])["event_id"].to_pylist()


def figures_of(tally: Tally, stored: Sequence[str]) -> dict[str, float]:
    """What a reader wants first."""
    errors = {status: number for status, number in tally.statuses.items() if status != 200}
    half = len(tally.spared_mib) // 2
    first, second = tally.spared_mib[half // 2 : half], tally.spared_mib[half + half // 2 :]
    return {
        "requests": float(tally.statuses.total()),
        "error_share_under_faults": sum(errors.values()) / tally.statuses.total(),
        "errors_other_than_503": float(sum(number for status, number in errors.items() if status != 503)),
        "wrong_answers": float(len(tally.wrong)),
        "acknowledged_events": float(len(tally.acknowledged)),
        "lost_events": float(len(tally.acknowledged - set(stored))),
        "repeated_events": float(len(stored) - len(set(stored))),
        "p99_ms": float(np.percentile(np.array(tally.latencies_s) * 1e3, 99)),
        "memory_growth_mib": float(np.mean(second) - np.mean(first)) if half > 3 else 0.0,
        "memory_mib": float(np.mean(second)) if half > 3 else tally.spared_mib[-1],
        "kills": float(tally.kills),
        "swaps": float(tally.swaps),
        "redis_restarts": float(tally.restarts),
        "sets_of_tables_seen": float(len(tally.sets)),
    }


def run(seconds: float, every_s: float, num_items: int) -> tuple[dict[str, float], Tally]:
    """The whole measurement."""
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(root)
        users = write_world(workspace, num_items, 400)
        editions = write_editions(workspace, users[:300])
        server, port = RedisServer(Path(folder), free_port(21_000)), free_port()
        settings = ["events.store=redis", f"redis.url={server.url}", "watch_s=1.0"]
        try:
            with on_ray(root, port, REPLICAS, settings) as stack:
                wait_for_replicas(stack)
                address = f"http://127.0.0.1:{port}"
                tally = asyncio.run(drive(address, stack, workspace, editions, server, seconds, every_s))
            stored = events_in_table(workspace, server)
        finally:
            server.stop()
    return figures_of(tally, stored), tally


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="18 seconds of load, a kill every 6; within a minute")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    seconds, every_s, num_items = (18.0, 6.0, 1_000) if options.quick else (60 * options.minutes, KILL_EVERY_S, 10_000)
    figures, tally = run(seconds, every_s, num_items)
    for name, value in figures.items():
        print(f"{name:28}{value:12.4g}")
    print(f"answers by status: {dict(tally.statuses)}; by set of tables: {dict(tally.sets)}")
    for note in [*tally.notes, *tally.wrong[:5]]:
        print(f"  {note}")
    if options.json:
        rows = [{"status": status, "answers": number} for status, number in sorted(tally.statuses.items())]
        rows.append({"spared_replica_mib": [round(value, 1) for value in tally.spared_mib]})
        result = {"benchmark": "serving_faults", "quick": options.quick, "figures": figures, "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
