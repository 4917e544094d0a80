"""Sweeps with Ray Tune: one function measured at many points, over data that is put into the object store once.

Trials take seconds, so starting a process for each would be most of the time: actors are reused from trial to trial. Each trial keeps its
figures in a file of its own before it reports, so that a sweep that was killed measures only the points that are not there; Tune's own
snapshots lag behind by seconds, which is many trials here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from pydantic import Field
from ray import tune

from intently.core.config import Config, Resources, operational
from intently.core.errors import IntentlyError
from intently.core.workspace import Workspace
from intently.runtime.session import ray_session, resource_bundle

Point = Mapping[str, float]
Measure = Callable[[Point, Any], dict[str, float]]


class SweepError(IntentlyError, RuntimeError):
    """A trial failed; the message names the point and the cause."""


class SweepConfig(Config):
    """How trials run."""

    resources: Resources = operational(
        Resources(num_workers=2, cpus=1), description="of one trial; num_workers is how many run side by side"
    )
    max_failures: int = operational(1, ge=0, description="times that a trial is tried again after its process died")
    verbose: int = Field(0, ge=0, le=2, description="Ray Tune's own progress tables: 0 none", json_schema_extra={"operational": True})


def sweep(
    measure: Measure, points: Sequence[Point], data: Any, config: SweepConfig, workspace: Workspace, name: str
) -> list[dict[str, float]]:
    """Measure every point that is not measured yet, and print progress.

    Args:
        measure: module-level function, (point, data) → figures, the same keys for every point.
        points: what is varied, the same keys for every point.
        data: what all trials read; travels once.
        config: how trials run.
        workspace: the trials' results are kept in it, under `name`, so that a killed sweep goes on.
        name: a path that stands for everything that decides the result.
    Returns:
        The figures of each point, in the points' order.
    Raises:
        SweepError: a trial failed.
    """
    files = [workspace.path(name, f"point-{place:05d}.json") for place in range(len(points))]
    pending = [place for place, file in enumerate(files) if not workspace.exists(file)]
    if pending:
        _run(measure, points, pending, files, data, config, workspace, name)
    return [json.loads(workspace.read_bytes(file)) for file in files]


def _run(
    measure: Measure,
    points: Sequence[Point],
    pending: Sequence[int],
    files: Sequence[str],
    data: Any,
    config: SweepConfig,
    workspace: Workspace,
    name: str,
) -> None:
    # Our own lines are the progress; Tune would print a table of all trials every few seconds.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with ray_session():
        trials = [{"place": place, "point": dict(points[place]), "file": files[place]} for place in pending]
        trainable = tune.with_parameters(_trial, measure=measure, data=data, workspace=workspace)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resource_bundle(config.resources)),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=config.resources.num_workers),
            run_config=tune.RunConfig(
                name=f"tune-{uuid4().hex}",  # of its own: Tune would take up what it finds under the same name
                storage_path=workspace.path(name),
                storage_filesystem=workspace.filesystem,
                failure_config=tune.FailureConfig(max_failures=config.max_failures),
                callbacks=[_Progress(name.partition("/")[0], len(points) - len(pending), len(points))],
                verbose=config.verbose,
            ),
        )
        results = tuner.fit()
        if results.errors:
            raise SweepError(f"{name}: {results.num_errors} of {len(pending)} trials failed, first: {results.errors[0]}")


def _trial(config: dict[str, Any], measure: Measure, data: Any, workspace: Workspace) -> None:
    trial = config["trial"]
    workspace.write_bytes(trial["file"], json.dumps(measure(trial["point"], data)).encode())
    tune.report({"place": trial["place"], "point": json.dumps(trial["point"])})


class _Progress(tune.Callback):
    """A line a finished point."""

    def __init__(self, label: str, done: int, total: int) -> None:
        self.label, self.done, self.total, self.start = label, done, total, time.monotonic()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Ray Tune calls it with what a trial reports."""
        self.done += 1
        print(f"{self.label}: {self.done}/{self.total} {result['point']}, {time.monotonic() - self.start:.1f} s", flush=True)
