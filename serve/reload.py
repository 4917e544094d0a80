"""Newer tables and models without a restart: looked for, loaded beside the old ones, swapped in one step.

Which versions belong together is written in the manifests: every artifact names the versions that it was made from. While a pipeline
runs, the newest versions do not agree (a new index over old vectors …); nothing is loaded then. A set that cannot be loaded is left alone
until something newer stands, and the old one goes on answering. The set in use is noted in the workspace, so that a replica that starts
in the middle of a pipeline run finds the one that the others serve.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import pyarrow as pa
from intently.core.errors import MissingArtifactError
from intently.core.workspace import Workspace
from intently.data import days
from intently.retrieval import retriever
from prometheus_client import CollectorRegistry, Counter, Gauge

from serve.models import Reload, ReloadOutcome
from serve.state import GENERATOR, TABLES, State

logger = logging.getLogger("serve")

IN_USE = "serving/versions.json"
ARTIFACTS = tuple(dict.fromkeys((*TABLES, *retriever.READS)))
BEHIND = (ReloadOutcome.FAILED, ReloadOutcome.WAITING)
# artifact → what it was made from and must be served with. Edges to `item` are left out: everything names items by id, and the
# catalogue may grow; so are fusion's to item_vector and tag_vector, and the towers' to tag: new items and tags get vectors from standing
# towers every day. History_train is the one that the
# user vectors were made from, so that days may be appended and split before the towers are trained again.
MUST_AGREE: Mapping[str, tuple[str, ...]] = {
    "history_train": ("history",),
    "user_interest": ("chunk",),
    "tag": ("user_interest",),
    "explanation_store": ("user_interest", "tag"),
    "tag_vector": ("tag",),
    "fusion": ("towers", "user_vector"),
    "index": ("item_vector",),
}


def newest_versions(workspace: Workspace) -> dict[str, str]:
    """The newest version of everything that is served.

    Raises:
        MissingArtifactError: something does not stand.
    """
    found = {name: workspace.latest_version(name) for name in (*ARTIFACTS, days.ARTIFACT, GENERATOR)}
    missing = [name for name in ARTIFACTS if found[name] is None]
    if missing:
        raise MissingArtifactError(f"workspace {workspace.root!r} holds no finished artifact {missing[0]!r}; run its job first")
    users = workspace.artifact("user_vector", found["user_vector"]).manifest
    found["history_train"] = users.inputs.get("history_train", found["history_train"])
    return {name: version for name, version in found.items() if version}


def disagreements(workspace: Workspace, versions: Mapping[str, str]) -> list[str]:
    """What keeps these versions from being served together, in words; empty if nothing does."""
    found = []
    for name, inputs in MUST_AGREE.items():
        made_from = workspace.artifact(name, versions[name]).manifest.inputs
        found += [
            f"{name}@{versions[name]} was made from {read}@{made_from[read]}, and {read}@{versions[read]} is newer"
            for read in inputs
            if made_from.get(read, versions[read]) != versions[read]
        ]
    return found


def versions_to_start_with(workspace: Workspace) -> dict[str, str]:
    """The newest versions if they agree, else those that were last in use, else the newest all the same.

    Raises:
        MissingArtifactError: something does not stand.
    """
    newest = newest_versions(workspace)
    path = workspace.path(IN_USE)
    if not disagreements(workspace, newest) or not workspace.exists(path):
        return newest
    used: dict[str, str] = json.loads(workspace.read_bytes(path))
    stand = used.keys() >= set(ARTIFACTS) and all(workspace.stands(name, version) for name, version in used.items())
    return used if stand else newest


def name_of(versions: Mapping[str, str]) -> str:
    """12 hex digits for a set of versions: the answers' X-Tables header."""
    return hashlib.sha256(json.dumps(sorted(versions.items())).encode()).hexdigest()[:12]


class Reloader:
    """Keeps one replica on the newest tables. For one event loop; loading runs in a thread of its own."""

    def __init__(
        self, workspace: Workspace, load: Callable[[Mapping[str, str]], State], state: State, swap: Callable[[State], None], watch_s: float
    ) -> None:
        """
        Args:
            workspace: where the tables are.
            load: versions → state; blocking.
            state: what is in use.
            swap: puts a new state in its place; runs in the event loop.
            watch_s: seconds between looks.
        """
        self._workspace, self._load, self._state, self._swap, self._watch_s = workspace, load, state, swap, watch_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reload")
        self._lock = asyncio.Lock()
        self._refused: Mapping[str, str] = {}
        self.last = Reload(outcome=ReloadOutcome.CURRENT, detail="as started", at=datetime.now(UTC), versions=state.versions)
        self._num_outcomes: Counter | None = None

    def measure(self, registry: CollectorRegistry, replica: str) -> None:
        """Add the figures of reloading to a replica's metrics."""
        self._num_outcomes = Counter("intently_reloads_total", "Looks that found newer tables.", ["replica", "outcome"], registry=registry)
        behind = Gauge("intently_tables_behind", "1 while newer tables stand that are not served.", ["replica"], registry=registry)
        behind.labels(replica).set_function(lambda: float(self.last.outcome in BEHIND))
        self._replica = replica

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._watch_s)
            await self.check()

    async def check(self, again: bool = False) -> Reload:
        """Look for newer tables, and serve them if they agree and can be loaded.

        Args:
            again: also try a set that was refused before.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            # An error is an answer here: whatever is wrong with the new tables, the old ones are served, and the next look comes.
            (found,) = await asyncio.gather(loop.run_in_executor(self._thread, self._look, again), return_exceptions=True)
            if found is None:
                return self.last
            if isinstance(found, BaseException):
                found = ReloadOutcome.FAILED, f"{type(found).__name__}: {found}", None
            outcome, detail, state = found
            if state is not None:
                self._swap(state)
                self._state = state
                del found, state
                await loop.run_in_executor(self._thread, pa.default_memory_pool().release_unused)
            if outcome in BEHIND and (outcome, detail) != (self.last.outcome, self.last.detail):
                logger.warning("newer tables are not served: %s: %s", outcome.value, detail)
            self.last = Reload(outcome=outcome, detail=detail, at=datetime.now(UTC), versions=self._state.versions)
            if outcome is not ReloadOutcome.CURRENT and self._num_outcomes is not None:
                self._num_outcomes.labels(self._replica, outcome.value).inc()
            return self.last

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False)

    def _look(self, again: bool) -> tuple[ReloadOutcome, str, State | None] | None:
        """What came of one look; None if it met the set that was refused before."""
        refused, self._refused = self._refused, {}
        wanted = newest_versions(self._workspace)
        if wanted == self._state.versions:
            return ReloadOutcome.CURRENT, "the newest tables are in use", None
        self._refused = wanted
        if wanted == refused and not again:
            return None
        apart = disagreements(self._workspace, wanted)
        if apart:
            return ReloadOutcome.WAITING, "; ".join(apart), None
        with undisturbed():
            state = self._load(wanted)
        self._workspace.write_bytes(self._workspace.path(IN_USE), json.dumps(state.versions).encode())
        return ReloadOutcome.LOADED, "newer tables are in use", state


@contextmanager
def undisturbed() -> Iterator[None]:
    """Load tables without the garbage collector, and keep it away from them afterwards.

    Tables are millions of objects that stay: every full collection that walks them stops requests for a tenth of a second. Frozen objects
    are still freed when nobody refers to them, so that old tables go when the last request that reads them has its answer.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
