"""Map a worker over the parts of an artifact: an actor pool on Ray Data, one part at a time an actor, no shuffle.

The worker reads its part and writes its part, so that a killed run starts again with `Stage.pending(parts)` and only small
summaries travel. What is expensive to set up (an engine, an encoder) is built once in the worker's constructor.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ray.data

from intently.core.config import Resources
from intently.core.errors import IntentlyError
from intently.runtime.session import ray_session, resource_bundle

Summary = dict[str, int | float]


class PartWorker(Protocol):
    """What `map_parts` builds in each actor."""

    def __call__(self, part: str) -> Summary:
        """Do one part; return figures about it, the same keys for every part."""


class _Actor:
    """Ray drops the cause of an exception on its way to the driver, so ours travels as data, from the constructor too."""

    def __init__(self, worker: type[PartWorker], arguments: Mapping[str, Any]) -> None:
        self.failed = b""
        try:
            self.worker = worker(**arguments)
        except IntentlyError as error:
            self.failed = pickle.dumps(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.failed:
            return {"part": row["part"], "error": self.failed}
        try:
            return {"part": row["part"], "error": b"", **self.worker(row["part"])}
        except IntentlyError as error:
            return {"part": row["part"], "error": pickle.dumps(error)}


def map_parts(
    worker: type[PartWorker],
    arguments: Mapping[str, Any],
    parts: Sequence[str],
    resources: Resources,
    label: str,
    env_vars: Mapping[str, str] | None = None,
) -> list[Summary]:
    """Run `worker(**arguments)(part)` for every part and print progress.

    Args:
        worker: picklable class; built once an actor.
        arguments: keyword arguments of its constructor, picklable.
        parts: part names; none of them means nothing to do, and no actor is started.
        resources: what one actor needs and how many run side by side.
        label: what the progress lines are headed with.
        env_vars: environment of the actors' processes, set before they start.
    Returns:
        One summary a part, in the order in which they were finished.
    Raises:
        IntentlyError: as raised in the worker.
    """
    if not parts:
        return []
    with ray_session():
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map(
            _Actor,
            fn_constructor_kwargs={"worker": worker, "arguments": dict(arguments)},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(resources.num_workers, len(parts))),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resource_bundle(resources).get("memory"),
            resources=resources.custom or None,
            runtime_env={"env_vars": dict(env_vars or {})},
        )
        return _collect(rows, len(parts), label)


def _collect(rows: ray.data.Dataset, num_parts: int, label: str) -> list[Summary]:
    start = time.monotonic()
    summaries: list[Summary] = []
    for row in rows.iter_rows():
        part, error = row.pop("part"), row.pop("error")
        if error:
            raise pickle.loads(error)
        summaries.append(row)
        figures = ", ".join(f"{key} {value:g}" for key, value in row.items())
        print(f"{label}: {len(summaries)}/{num_parts} {part}, {time.monotonic() - start:.1f} s; {figures}", flush=True)
    return summaries
