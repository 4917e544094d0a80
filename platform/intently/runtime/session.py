"""The Ray session: joins the cluster that the environment names, else starts one on this machine and ends it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

MINIMUM_LOGICAL_CPUS = 4
"""Actor pools hold their CPUs while the tasks that feed them wait for one: on two cores they would wait for ever."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray while the block runs.

    An initialised Ray is used as it is and left running. Otherwise `RAY_ADDRESS` (set by `ray job submit`) names the cluster;
    without it a local one is started, and stopped at the end.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, logging_level=logging.WARNING)
    else:
        cpus = max(MINIMUM_LOGICAL_CPUS, os.cpu_count() or 1)
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
