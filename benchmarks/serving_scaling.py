"""The service under a load that one replica does not carry: how long until a second one answers, and what callers see meanwhile.

    PYTHONPATH=platform:. RAY_AUTH_MODE=token python benchmarks/serving_scaling.py [--quick] [--json FILE] [--items 10000]

One replica on Ray Serve with HAProxy, which may become two by the rules of serve/config.yaml. wrk asks from 32 connections as fast as it is
answered, in slices of two seconds; between slices the replicas that answer are counted by the name each gives its own metrics.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from intently.core.workspace import Workspace

from benchmarks.serving import CONNECTIONS, K, on_ray, wrk
from benchmarks.serving_world import free_port, write_world

SLICE_S = 2.0
ASKED = 12
"""Times that a name is asked for between slices: the second of two replicas is missed once in four thousand times."""


@dataclass(frozen=True)
class Slice:
    """Two seconds of load.

    Attributes:
        ended_s: seconds since the load began, at its end.
        replicas: how many answered right after it.
        requests_per_s, p99_ms, errors: of its requests.
    """

    ended_s: float
    replicas: int
    requests_per_s: float
    p99_ms: float
    errors: int


def answering(port: int) -> int:
    """How many replicas answer; every question comes over a connection of its own."""
    names = [re.findall(r'replica="([^"]+)"', httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)[0] for _ in range(ASKED)]
    return len(set(names))


def measure(port: int, paths: Sequence[str], seconds: float) -> list[Slice]:
    """Load without a pause but for the counting."""
    slices, start = [], time.monotonic()
    while time.monotonic() - start < seconds:
        told = wrk(port, paths, CONNECTIONS, SLICE_S, 0.0)
        now = time.monotonic() - start
        slices.append(Slice(now, answering(port), told["requests"] / told["seconds"], told["p99_ms"], int(told["errors"])))
        print(f"{now:5.0f} s: {slices[-1]}", flush=True)
    return slices


def figures_of(slices: Sequence[Slice]) -> dict[str, float]:
    """What a reader wants first; before and after are means over slices with one and with two replicas."""
    alone, both = [one for one in slices if one.replicas == 1], [one for one in slices if one.replicas > 1]
    figures = {
        "seconds_until_two_answer": both[0].ended_s if both else float("nan"),
        "errors": float(sum(one.errors for one in slices)),
        "requests": sum(one.requests_per_s for one in slices) * SLICE_S,
    }
    for name, part in (("before", alone), ("after", both[1:])):
        if part:
            figures[f"requests_per_s_{name}"] = sum(one.requests_per_s for one in part) / len(part)
            figures[f"p99_ms_{name}"] = sum(one.p99_ms for one in part) / len(part)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller catalogue, 30 s of load; within a minute")
    parser.add_argument("--items", type=int, help="catalogue size (default 10000; quick 2000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    num_items, seconds = options.items or (2_000 if options.quick else 10_000), 30.0 if options.quick else 75.0
    with tempfile.TemporaryDirectory() as root:
        users = write_world(Workspace.open(root), num_items, 200 if options.quick else 2_000)
        port = free_port()
        with on_ray(root, port, 1, flags=["--most-replicas", "2"]):
            slices = measure(port, [f"/v1/users/{user}/recommendations?k={K}" for user in users[:500]], seconds)
    figures = figures_of(slices)
    for name, value in figures.items():
        print(f"{name:28}{value:12.4g}")
    if options.json:
        result = {"benchmark": "serving_scaling", "quick": options.quick, "figures": figures, "rows": [asdict(one) for one in slices]}
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
