"""The Ray session: joins the cluster that the environment names, else starts one on this machine and ends it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from intently.core.config import Resources

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


def resource_bundle(resources: Resources) -> dict[str, float]:
    """What Ray sets aside for one worker, under Ray's own names (memory in bytes); what is 0 is left out."""
    asked = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_gb * 2**30, **resources.custom}
    return {name: amount for name, amount in asked.items() if amount}
