"""Tree search over interests against doing it level by level: one engine, the same prompts, one call.

    PYTHONPATH=platform OMP_NUM_THREADS=1 python benchmarks/tree_search.py [--quick] [--json FILE]

Ours is `interests.tree.search_users` as jobs/mine_interest_tree.py runs it: every user walks its own chunks, N samples of one request
share its prefix, the two rating heads score a step's candidates together, the next question joins the running batch. The other sides ask
the very requests that ours asked, a level (the i-th chunk of everybody) at a time, and score the same candidates: once with one engine for
all levels, once with an engine started for each level, as HiT-LBM's released code does. That start is the cheap one: the process lives
on, nothing is imported anew. Heads are untrained, which costs the same. The prefix cache is emptied before every side. Last, the same
people are shared out to two replicas, each an actor with an engine of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from intently.core.schema import CHUNK
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.histories import build_histories
from intently.data.simulator import SimulatorConfig, simulate
from intently.interests.rating import RatingHeads, RatingModelConfig, RatingModels
from intently.interests.tree import TreeConfig, final_scores, search_users
from intently.interests.vectors import RememberingEncoder, interests_vector
from intently.llm.contract import OnReply, Reply, Request
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.build import engine_environment
from intently.llm.engines.vllm import VLLMConfig, VLLMEngine
from intently.llm.tasks import TASKS, AnswerError, UserInterests
from intently.runtime.session import ray_session


class Recorder:
    """Hands everything to the engine and keeps the requests."""

    def __init__(self, engine: VLLMEngine) -> None:
        self._engine = engine
        self.requests: list[Request] = []

    @property
    def name(self) -> str:
        return self._engine.name

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """The engine's own replies."""

        def told(reply: Reply) -> Sequence[Request]:
            more = (on_reply(reply) or ()) if on_reply else ()
            self.requests += more
            return more

        self.requests += requests
        return self._engine.generate(requests, told)

    def close(self) -> None:
        """Nothing is held."""


class Replica:
    """An engine, an encoder and two untrained heads in a process of their own."""

    def __init__(self, config: TreeConfig, items: pa.Table) -> None:
        self._config, self._items = config, items
        self._engine = VLLMEngine(VLLMConfig())
        self._encoder = TextEncoder(EncoderConfig())
        self._models = RatingModels(RatingHeads(self._encoder.dimension, RatingModelConfig()), self._encoder.name)

    def search(self, chunks: pa.Table) -> tuple[float, list[Request]]:
        """Ours → seconds, what was asked."""
        self._engine._llm.reset_prefix_cache()
        recorder, encoder = Recorder(self._engine), RememberingEncoder(self._encoder)
        start = time.perf_counter()
        search_users(chunks, self._items, recorder, encoder, self._models, self._config)
        return time.perf_counter() - start, recorder.requests

    def by_level(self, levels: list[list[Request]], restart: bool) -> float:
        """The same requests level by level → seconds."""
        self._engine._llm.reset_prefix_cache()
        encoder = RememberingEncoder(self._encoder)
        start = time.perf_counter()
        for requests in levels:
            if restart:
                self._engine.close()
                self._engine = VLLMEngine(VLLMConfig())
            for reply in self._engine.generate(requests):
                self._choose(reply, encoder)
        return time.perf_counter() - start

    def _choose(self, reply: Reply, encoder: RememberingEncoder) -> None:
        drafts = [answer.interests for text in reply.texts if (answer := _parsed(text))]
        if drafts:
            vectors = [interests_vector([draft.interest for draft in one], encoder) for one in drafts]
            continuity, effectiveness = self._models.rate(vectors[0], np.stack(vectors))
            final_scores(continuity, effectiveness, self._config.continuity_weight).argmax()


def _parsed(text: str) -> UserInterests | None:
    try:
        answer = TASKS["user_interests"].parse(text)
    except AnswerError:
        return None
    assert isinstance(answer, UserInterests)
    return answer


def world(num_users: int) -> tuple[pa.Table, pa.Table]:
    """Items and chunks of simulated people."""
    simulation = simulate(SimulatorConfig(seed=3, num_users=num_users, pictures=False))
    history = build_histories(pa.concat_tables(list(simulation.events())), 0).history
    return simulation.items, build_chunks(history, simulation.items, ChunkConfig(max_tokens=600, num_events=30))


def by_level(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests named user/chunk → the first of every user, the second of every user, and so on."""
    of_user: dict[str, list[tuple[int, Request]]] = {}
    for request in requests:
        user, _, chunk = request.request_id.rpartition("/")
        if request.messages[-1]["role"] == "user" and len(request.messages) == 2:  # repairs are few and ours alone
            of_user.setdefault(user, []).append((int(chunk), request))
    chains = [[request for _, request in sorted(own, key=lambda each: each[0])] for own in of_user.values()]
    return [[chain[level] for chain in chains if len(chain) > level] for level in range(max(map(len, chains)))]


def start_replicas(config: TreeConfig, items: pa.Table, number: int) -> list[Any]:
    """Actors with their engines up."""
    environment = {"env_vars": engine_environment(VLLMConfig())}
    made = [ray.remote(num_cpus=0.5, runtime_env=environment)(Replica).remote(config, items) for _ in range(number)]
    ray.get([replica.search.remote(CHUNK.empty()) for replica in made])
    return made


def measure(config: TreeConfig, num_users: int, rounds: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All sides, in turns; the best of each side's rounds counts."""
    items, chunks = world(num_users)
    users = chunks["user_id"].unique()
    halves = [chunks.filter(pc.is_in(chunks["user_id"], users[place::2])) for place in (0, 1)]
    replicas = start_replicas(config, items, 2)
    first = replicas[0]
    ray.get([replica.search.remote(half.slice(0, 8)) for replica, half in zip(replicas, halves, strict=True)])  # grammars, first calls
    rows = []
    for number in range(rounds):
        seconds, requests = ray.get(first.search.remote(chunks))
        levels = by_level(requests)
        took = {
            "tree search, every user at its own pace": seconds,
            "level by level, one engine": ray.get(first.by_level.remote(levels, False)),
            "level by level, an engine a level": ray.get(first.by_level.remote(levels, True)),
        }
        start = time.perf_counter()
        ray.get([replica.search.remote(half) for replica, half in zip(replicas, halves, strict=True)])
        took["tree search, two replicas"] = time.perf_counter() - start
        sizes = {"round": number, "chunks": chunks.num_rows, "levels": len(levels), "users": len(users)}
        rows += [{"side": side, **sizes, "seconds": spent, "chunks_per_s": chunks.num_rows / spent} for side, spent in took.items()]
        for row in rows[-len(took) :]:
            print(", ".join(f"{key} {value:,.4g}" if key != "side" else f"{value:<42}" for key, value in row.items()), flush=True)
    ours, level, restart, two = (max(row["chunks_per_s"] for row in rows if row["side"] == side) for side in took)
    figures = {
        "tree_vs_engine_per_level_ratio": ours / restart,
        "tree_vs_level_by_level_ratio": ours / level,
        "two_replicas_vs_one_ratio": two / ours,
        "tree_chunks_per_s": ours,
    }
    return figures, rows


def main() -> None:
    """Parse the flags, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer people, one round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if os.environ.get("RAY_AUTH_MODE") != "token":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"RAY_AUTH_MODE": "token"})  # ray reads it when imported
    sampling = {"temperature": 0.8, "max_tokens": 200, "num_samples": 4, "seed": 0}
    config = TreeConfig.parse({"mining": {"max_chunks": 100, "max_evidence": 0, "sampling": sampling}})
    with ray_session():
        figures, rows = measure(config, 30, 1) if options.quick else measure(config, 120, 2)
    print("\n".join(f"{name:<36}{value:.4g}" for name, value in figures.items()), flush=True)
    if options.json:
        result = {"benchmark": "tree_search", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
