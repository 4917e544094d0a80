"""Sweeps: every point is measured once, also when the first attempt broke off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import ray
from intently.core.config import Resources
from intently.core.workspace import Workspace
from intently.runtime.tune import SweepConfig, SweepError, sweep

pytestmark = [
    # Ray 2.60 uses names that Python calls old, and leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CONFIG = SweepConfig(resources=Resources(num_workers=1, cpus=0.5), max_failures=0)
POINTS = [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]


def square(point: Mapping[str, float], data: Path) -> dict[str, float]:
    """Leaves a line for every call; fails at 3 until the file `mended` is there."""
    with (data / "calls").open("a") as calls:
        calls.write(f"{point['x']}\n")
    if point["x"] == 3.0 and not (data / "mended").exists():
        raise ValueError("three is broken")
    return {"square": point["x"] ** 2}


def test_sweep_trial_fails_is_refused_and_next_run_measures_only_the_rest(workspace: Workspace, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(SweepError, match="three is broken"):
        sweep(square, POINTS, tmp_path, CONFIG, workspace, "squares/v/trials")
    (tmp_path / "mended").touch()
    results = sweep(square, POINTS, tmp_path, CONFIG, workspace, "squares/v/trials")
    assert results == [{"square": 1.0}, {"square": 4.0}, {"square": 9.0}]
    assert (tmp_path / "calls").read_text().split() == ["1.0", "2.0", "3.0", "3.0"]


def memory(point: Mapping[str, float], data: None) -> dict[str, float]:
    """Bytes that are set aside for the trial."""
    return {"memory": ray.get_runtime_context().get_assigned_resources()["memory"]}


def test_sweep_trial_has_its_memory_set_aside(workspace: Workspace, ray_session: None) -> None:
    config = SweepConfig(resources=Resources(num_workers=1, cpus=0.5, memory_gb=0.25), max_failures=0)
    assert sweep(memory, POINTS[:1], None, config, workspace, "memory/v/trials") == [{"memory": 0.25 * 2**30}]
