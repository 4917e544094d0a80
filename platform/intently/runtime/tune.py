"""Sweeps with Ray Tune: one function measured at many points, over data that is put into the object store once.

Trials take seconds, so starting a process for each would be most of the time: actors are reused from trial to trial. A sweep of the
same name in the same folder goes on where it was killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field
from ray import tune

from intently.core.config import Config, Resources, operational
from intently.core.errors import IntentlyError
from intently.core.workspace import Workspace
from intently.runtime.session import ray_session

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
    """Measure every point.

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
    path = workspace.path(name)
    parent, _, leaf = path.rpartition("/")
    resources: dict[str, float] = {"cpu": config.resources.cpus, "gpu": config.resources.gpus, **config.resources.custom}
    # Our own lines are the progress; Tune would print a table of all trials every few seconds.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with ray_session():
        trainable = tune.with_resources(tune.with_parameters(_trial, measure=measure, data=data), resources)
        if tune.Tuner.can_restore(path, storage_filesystem=workspace.filesystem):
            tuner = tune.Tuner.restore(path, trainable, restart_errored=True, storage_filesystem=workspace.filesystem)
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={"place": tune.grid_search(list(range(len(points)))), "points": [dict(point) for point in points]},
                tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=config.resources.num_workers),
                run_config=tune.RunConfig(
                    name=leaf,
                    storage_path=parent,
                    storage_filesystem=workspace.filesystem,
                    failure_config=tune.FailureConfig(max_failures=config.max_failures),
                    verbose=config.verbose,
                ),
            )
        results = tuner.fit()
        if results.errors:
            raise SweepError(f"{name}: {results.num_errors} of {len(points)} trials failed, first: {results.errors[0]}")
        found = {result.metrics["place"]: result.metrics["figures"] for result in results}
    return [found[place] for place in range(len(points))]


def _trial(config: dict[str, Any], measure: Measure, data: Any) -> None:
    tune.report({"place": config["place"], "figures": measure(config["points"][config["place"]], data)})
