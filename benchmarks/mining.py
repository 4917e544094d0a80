"""What mining adds to vLLM, and what it saves against asking one question at a time: one engine, the same prompts, one call.

    PYTHONPATH=platform OMP_NUM_THREADS=1 python benchmarks/mining.py [--quick] [--json FILE]

Ours is the worker of jobs/mine_user_interests.py as it stands: parts read from Parquet, prompts rendered, answers checked, repaired and
kept in the request cache, interests embedded, evidence picked, parts written. Bare is `vllm.LLM.generate` on the very prompts (token ids,
sampling, schema) that ours asked, all at once, although ours cannot ask about a chunk before the last one is answered. Naive sends some
of them one at a time.
The prefix cache is emptied before every side; rates are output tokens per second of wall time, best of the rounds for ours and bare alike.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from intently.core.config import Config
from intently.core.schema import CHUNK, ITEM, USER_INTEREST, Table
from intently.core.workspace import Stage, Workspace, open_stage
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.counts import total_counts
from intently.data.histories import build_histories
from intently.data.simulator import SimulatorConfig, simulate
from intently.interests.users import MiningConfig
from intently.interests.workers import UserMiner
from intently.llm.contract import OnReply, Reply, Request, Sampling
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.scripted import ScriptedConfig
from intently.llm.engines.vllm import VLLMConfig, VLLMEngine, vllm_environment
from intently.llm.request_cache import CachedEngine, RequestCache


class Recorder:
    """Hands everything to the engine, and keeps the requests and the replies."""

    def __init__(self, engine: VLLMEngine) -> None:
        self._engine = engine
        self.requests: list[Request] = []
        self.replies: list[Reply] = []

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
        replies = self._engine.generate(requests, told)
        self.replies += replies
        return replies

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    """A simulated world in a workspace, and one engine for all sides."""

    def __init__(self, folder: str, num_users: int, num_parts: int) -> None:
        self.workspace = Workspace.open(folder)
        simulation = simulate(SimulatorConfig(seed=3, num_users=num_users, pictures=False))
        history = build_histories(pa.concat_tables(list(simulation.events())), 0).history
        self._write("item", ITEM, {"part-00000": simulation.items})
        chunks = build_chunks(history, simulation.items, ChunkConfig(max_tokens=600))
        users = sorted(set(chunks["user_id"].to_pylist()))
        self.parts = [f"bucket-{part:05d}" for part in range(num_parts)]
        of_part = {part: pc.is_in(chunks["user_id"], pa.array(users[n::num_parts])) for n, part in enumerate(self.parts)}
        self._write("chunk", CHUNK, {part: chunks.filter(mask) for part, mask in of_part.items()})
        self.config = VLLMConfig()
        self.engine = VLLMEngine(self.config)
        self.llm = self.engine._llm

    def _write(self, name: str, table: Table, parts: dict[str, pa.Table]) -> None:
        stage = open_stage(self.workspace, name, table, {}, Config())
        for part, rows in parts.items():
            stage.write(part, rows)
        stage.finish()

    def mine(self, name: str) -> tuple[float, Recorder, dict[str, float], Stage]:
        """All parts through the job's worker → seconds, what was asked, the counts, the stage."""
        stage = open_stage(self.workspace, name, USER_INTEREST, {}, Config())
        recorder = Recorder(self.engine)
        chunks, items = self.workspace.artifact("chunk"), self.workspace.artifact("item")
        miner = UserMiner(stage, chunks, items, MINING, None, ScriptedConfig(), EncoderConfig())
        # The engine that all sides share, and a cache of its own that knows nothing yet.
        miner._engine = CachedEngine(recorder, RequestCache(self.workspace, name), name)
        self.llm.reset_prefix_cache()
        start = time.perf_counter()
        for part in self.parts:
            miner(part)
        return time.perf_counter() - start, recorder, total_counts(stage, self.parts), stage

    def tokens(self, requests: Sequence[Request]) -> list[list[int]]:
        """The prompts as token ids."""
        return self.engine._tokenize(requests)

    def bare(self, prompts: list[list[int]], requests: Sequence[Request], reset: bool = True) -> tuple[float, int]:
        """One `LLM.generate` → seconds, tokens written."""
        from vllm import TokensPrompt  # heavy, and only after the process has its environment

        params = [_params(request, self.config.max_model_len - len(prompt)) for request, prompt in zip(requests, prompts, strict=True)]
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        if reset:
            self.llm.reset_prefix_cache()
        start = time.perf_counter()
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return time.perf_counter() - start, sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


MINING = MiningConfig(max_chunks=3)


def _params(request: Request, room: int) -> Any:
    from vllm import SamplingParams  # heavy, and only after the process has its environment
    from vllm.sampling_params import StructuredOutputsParams

    sampling = request.sampling
    return SamplingParams(
        n=sampling.num_samples,
        temperature=sampling.temperature,
        max_tokens=min(sampling.max_tokens, room),
        seed=sampling.seed,
        structured_outputs=StructuredOutputsParams(json=request.json_schema) if request.json_schema else None,
    )


def throughput(bench: Bench, rounds: int, num_naive: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ours, bare and naive on the same prompts."""
    rows: list[dict[str, Any]] = []
    bench.mine("warm")  # compilation of grammars, first calls
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    counts: dict[str, float] = {}
    for number in range(rounds):
        seconds, recorder, counts, _ = bench.mine(f"round_{number}")
        written = sum(reply.completion_tokens for reply in recorder.replies)
        rates["ours"].append(written / seconds)
        sizes = {"requests": len(recorder.requests), "tokens": written}
        rows.append({"side": "ours", **sizes, "seconds": seconds, "of_it_asking": counts["seconds"]})
        prompts = bench.tokens(recorder.requests)
        seconds, written = bench.bare(prompts, recorder.requests)
        rates["bare"].append(written / seconds)
        rows.append({"side": "bare vllm", "requests": len(prompts), "tokens": written, "seconds": seconds, "of_it_asking": seconds})
        print_rows(rows[-2:])
    bench.llm.reset_prefix_cache()
    step = max(1, len(prompts) // num_naive)
    some = list(zip(prompts, recorder.requests, strict=True))[::step][:num_naive]
    asked = [bench.bare([prompt], [request], reset=False) for prompt, request in some]
    seconds, written = sum(took for took, _ in asked), sum(tokens for _, tokens in asked)
    rows.append({"side": "one at a time", "requests": len(some), "tokens": written, "seconds": seconds, "of_it_asking": seconds})
    print_rows(rows[-1:])
    ours, bare, naive = max(rates["ours"]), max(rates["bare"]), written / seconds
    figures = {
        "mining_vs_bare_vllm_ratio": ours / bare,
        "mining_vs_naive_ratio": ours / naive,
        "mining_tokens_per_s": ours,
        "bare_vllm_tokens_per_s": bare,
        "naive_tokens_per_s": naive,
        "asking_share_of_mining": counts["seconds"] / rows[-3]["seconds"],
        "student_valid_share": 1 - counts["repairs"] / counts["questions"],
        "questions": counts["questions"],
    }
    return figures, rows


def samples(bench: Bench, num_prompts: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ten samples of one prompt against ten requests."""
    _, recorder, _, _ = bench.mine("samples")
    longest = sorted(recorder.requests, key=lambda request: -len(request.messages[1]["content"]))[:num_prompts]
    drawn = Sampling(temperature=0.8, max_tokens=32, num_samples=10, seed=1)
    one = [replace(request, sampling=drawn) for request in longest]
    ten = [[replace(r, sampling=drawn.model_copy(update={"num_samples": 1, "seed": seed})) for seed in range(10)] for r in longest]
    prompts = bench.tokens(one)
    sides: dict[str, float] = {}
    bench.bare(prompts[:1], one[:1])
    sides["n = 10"] = sum(bench.bare([prompt], [request])[0] for prompt, request in zip(prompts, one, strict=True))
    sides["10 requests, one at a time"] = sum(
        bench.bare([prompt], [request], reset=number == 0)[0]
        for prompt, requests in zip(prompts, ten, strict=True)
        for number, request in enumerate(requests)
    )
    sides["10 requests together"] = sum(bench.bare([prompt] * 10, requests)[0] for prompt, requests in zip(prompts, ten, strict=True))
    # A first token of its own parts the prefixes: what ten requests cost where nothing is shared.
    apart = [[[number + 10, *prompt] for number in range(10)] for prompt in prompts]
    sides["10 requests together, nothing shared"] = sum(bench.bare(p, requests)[0] for p, requests in zip(apart, ten, strict=True))
    rows = [{"side": name, "requests": num_prompts, "seconds": seconds} for name, seconds in sides.items()]
    print_rows(rows)
    figures = {
        "n10_vs_10_requests_ratio": sides["10 requests, one at a time"] / sides["n = 10"],
        "n10_vs_10_together_ratio": sides["10 requests together"] / sides["n = 10"],
        "n10_vs_10_nothing_shared_ratio": sides["10 requests together, nothing shared"] / sides["n = 10"],
        "n10_prompt_tokens": sum(map(len, prompts)) / num_prompts,
    }
    return figures, rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    """One line a row."""
    for row in rows:
        told = ", ".join(f"{key} {value:,.4g}" for key, value in row.items() if key != "side")
        rate = f", {row['tokens'] / row['seconds']:,.0f} tokens/s" if "tokens" in row else ""
        print(f"{row['side']:<38}{told}{rate}", flush=True)


def main() -> None:
    """Parse the flags, start again in the engine's environment, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer people, one round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    environment = vllm_environment(VLLMConfig())
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)  # threads are bound before Python runs
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, 60, 1) if options.quick else Bench(folder, 300, 2)
        figures, rows = throughput(bench, rounds=1 if options.quick else 2, num_naive=8 if options.quick else 40)
        more, others = samples(bench, 2 if options.quick else 6)
    figures |= more
    print("\n".join(f"{name:<36}{value:.4g}" for name, value in figures.items()), flush=True)
    if options.json:
        result = {"benchmark": "mining", "quick": options.quick, "figures": figures, "rows": rows + others}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # vLLM's libraries complain for a second otherwise


if __name__ == "__main__":
    main()
