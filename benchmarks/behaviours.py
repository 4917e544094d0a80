"""Ingest and compression of lifelong logs: events a second a core, memory at twice the input, and pandas doing the same work.

    PYTHONPATH=platform python benchmarks/behaviours.py [--quick] [--json FILE]

A simulated log is written as Parquet, then read back by the `files` adapter, bucketed, put together, and compressed, by the very
workers that the jobs map over buckets, but in one process with one thread a step: rates are events over CPU seconds, so that they hold
for one core. Buckets grow in number with the log, not in size. Each step is a child process of its own; its peak memory is what
the operating system counted for it, at N events and at 2N. Every rate counts the events that go in, clicks and impressions that
extraction drops included; the table also gives events that count. Pandas gets a few users' events as a DataFrame and has to come
to the same texts and token counts, to the byte; that is checked. Last, how much of these lives fits 128k tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from intently.core.config import Config
from intently.core.schema import CHUNK, HISTORY, ITEM, USER
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.data.chunking import ChunkConfig, Chunker, HistoryCompressor
from intently.data.coverage import CoverageConfig, CoverageMeter
from intently.data.extraction import ReliablePolicy
from intently.data.files import FilesConfig, open_files
from intently.data.flat import EVENT_COLUMNS, flat_columns
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, spill_source
from intently.data.item_names import NAME_COLUMNS, NameConfig, short_names
from intently.data.simulator import SimulatorConfig, simulate

BUDGET = 131_072
COLUMNS = {name: name for name in (*EVENT_COLUMNS.values(), "user_id")}
LONG_LIFE = 30_000
WORDS = r"[^\W_]+|_|[^\w\s]"
"""Words and signs, as data.tokens counts them, for Python's regular expressions."""


@dataclass(frozen=True)
class Scale:
    """How large a log is made: N has half of the users."""

    num_users: int
    num_items: int
    events_per_user: int
    users_per_block: int
    events_per_bucket: int
    pandas_users: int


FULL = Scale(1640, 20_000, 36_000, 16, 1_000_000, 8)
QUICK = Scale(48, 2_000, 12_000, 6, 60_000, 4)


def write_log(scale: Scale, folder: Path) -> dict[str, float]:
    """Simulate 2N events: Parquet files in `log1` (the first N) and `log2` (all, the first half by link), and items.parquet."""
    world = simulate(
        SimulatorConfig(
            num_users=scale.num_users,
            num_items=scale.num_items,
            events_per_user=scale.events_per_user,
            activity_spread=0.35,
            years=8,
            users_per_block=scale.users_per_block,
            pictures=False,
        )
    )
    (folder / "log1").mkdir()
    (folder / "log2").mkdir()
    pq.write_table(world.items.select(["item_id", "title", "category", "brand"]), folder / "items.parquet")
    counts = {"events_1": 0, "events_2": 0, "long_lives": 0}
    num_blocks = -(-scale.num_users // scale.users_per_block)
    for block, events in enumerate(world.events()):
        name = f"{block:05d}.parquet"
        first_half = block < num_blocks // 2
        pq.write_table(events.select(list(COLUMNS)), folder / ("log1" if first_half else "log2") / name, compression="zstd")
        if first_half:
            (folder / "log2" / name).symlink_to(folder / "log1" / name)
            counts["events_1"] += events.num_rows
            counts["long_lives"] += int((np.array(pc.value_counts(events["user_id"]).field("counts")) >= LONG_LIFE).sum())
        counts["events_2"] += events.num_rows
    return {name: float(value) for name, value in counts.items()}


def ingest(scale: Scale, folder: Path, times: int, num_events: int) -> dict[str, float]:
    """Log → history parts, in this process; CPU seconds of reading with judging and spilling, and of putting together."""
    workspace = Workspace.open(folder / f"workspace{times}")
    config = HistoryConfig(num_buckets=max(1, round(num_events / scale.events_per_bucket)))
    history, user, item = (open_stage(workspace, t.name, t, {}, config) for t in (HISTORY, USER, ITEM))
    log = FilesConfig(events=str(folder / f"log{times}"), items=str(folder / "items.parquet"), columns=COLUMNS)
    source = open_files(log.model_copy(update={"item_columns": {name: name for name in ("item_id", "title", "category", "brand")}}))
    item.write("part-00000", source.items)
    item.finish()
    begin = time.process_time()
    spill = Spill.of(history, config.num_buckets)
    spill_source(source, spill, config)
    spilled = time.process_time()
    builder = HistoryBuilder(history, user, spill)
    kept = sum(builder(part)["events"] for part in config.parts)
    end = time.process_time()
    spill.remove()
    user.finish()
    history.finish()
    return {"events": kept, "spill_s": spilled - begin, "build_s": end - spilled}


def compress(folder: Path, times: int) -> dict[str, float]:
    """History parts → chunk parts, as the job's worker does; CPU seconds of everything, and of the parts that only read and write."""
    workspace = Workspace.open(folder / f"workspace{times}")
    history = workspace.artifact("history")
    chunk = open_stage(workspace, "chunk", CHUNK, {"history": history.version}, Config())
    begin = time.process_time()
    worker = HistoryCompressor(history, workspace.artifact("item"), chunk, ChunkConfig())
    counts = [worker(part) for part in history.parts()]
    whole = time.process_time() - begin
    artifact = chunk.finish()
    begin = time.process_time()
    again = open_stage(workspace, "copy", CHUNK, {}, Config())
    for part in history.parts():
        history.read(part)
        again.write(part, artifact.read(part))
    files = time.process_time() - begin
    totals = {name: float(sum(count[name] for count in counts)) for name in ("users", "events", "tokens", "chunks")}
    return {**totals, "compress_s": whole, "files_s": files}


def cover(folder: Path, tokenizer: str) -> dict[str, float]:
    """Which lives fit, before and after compression, at N events."""
    workspace = Workspace.open(folder / "workspace1")
    meter = CoverageMeter(workspace.artifact("item").read(columns=NAME_COLUMNS), CoverageConfig(tokenizer=tokenizer))
    begin = time.process_time()
    measured = pa.concat_tables(meter.measure(rows) for _, rows in workspace.artifact("history").iter_parts())
    raw, compressed, reliable = (measured[name].to_numpy() for name in ("raw", "compressed", "reliable"))
    return {
        "raw": float((raw <= BUDGET).mean()),
        "compressed": float((compressed <= BUDGET).mean()),
        "reduction": 1 - compressed.sum() / raw.sum(),
        "raw_per_event": raw.sum() / reliable.sum(),
        "compressed_per_event": compressed.sum() / reliable.sum(),
        "trimmed": float((measured["fitting"].to_numpy() < reliable).sum()),
        "seconds": time.process_time() - begin,
    }


def compare(scale: Scale, folder: Path) -> dict[str, float]:
    """Both sides on a few users: CPU seconds of ours and of pandas, from events in memory to texts and token counts."""
    workspace = Workspace.open(folder / "workspace1")
    items = workspace.artifact("item").read(columns=NAME_COLUMNS)
    history = _some_users(workspace.artifact("history"), scale.pandas_users)
    frame = _as_frame(history)
    names = short_names(items, NameConfig())
    lookup = pd.Series(names["name"].to_list(), index=names["item_id"].to_list())
    chunker = Chunker(items, ChunkConfig())
    chunker.chunk(history.slice(0, 1))
    ours, mine = _timed(lambda: chunker.chunk(history).chunks)
    theirs, other = _timed(lambda: compress_with_pandas(frame, lookup, ChunkConfig()))
    assert mine["text"].to_pylist() == other["text"].tolist(), "both sides must come to the same texts"
    assert mine["num_tokens"].to_pylist() == other["num_tokens"].tolist(), "both sides must count the same tokens"
    return {"events": float(len(frame)), "ours_s": ours, "pandas_s": theirs}


def compress_with_pandas(events: pd.DataFrame, names: pd.Series, config: ChunkConfig) -> pd.DataFrame:
    """The same work as anybody would write it with pandas: whole columns where it has a call for it, lists where it has none."""
    policy: ReliablePolicy = config.policy
    events = events[events["behaviour"].isin([str(behaviour) for behaviour in policy.behaviours])]
    events = events[~((events["behaviour"] == "detail_view") & (events["dwell_s"] < policy.min_dwell_s))].copy()
    events["chunk"] = events.groupby("user_id", sort=False).cumcount() // config.num_events
    text = ["user_id", "chunk"]
    events["name"] = events["item_id"].map(names)
    events["label"] = events["behaviour"].where(events["query"].isna(), 'search "' + events["query"] + '"')
    day = events["timestamp"].dt.normalize()
    age = (day.groupby([events["user_id"], events["chunk"]], sort=False).transform("max") - day).dt.days
    month, year = events["timestamp"].dt.strftime("%Y-%m"), events["timestamp"].dt.strftime("%Y")
    events["period"] = day.dt.strftime("%Y-%m-%d").where(age <= 30, month.where(age <= 365, year))
    distinct = events.drop_duplicates([*text, "name", "period", "label"])
    distinct = distinct.assign(entry=list(zip(distinct["period"], distinct["label"], strict=True)))
    by_item = distinct.groupby([*text, "name"], sort=False, dropna=False)["entry"].agg(list).reset_index()
    by_item["set"] = by_item["entry"].map(frozenset)
    by_item["bare"] = by_item["name"].isna()
    by_item["name"] = by_item["name"].str.replace("\\", "\\\\").str.replace(", ", "\\, ")
    lines = by_item.groupby([*text, "bare", "set"], sort=False).agg({"entry": "first", "name": lambda found: ", ".join(found.dropna())})
    lines = lines.reset_index()
    entries = lines["entry"].map(_write_entries)
    lines["line"] = entries.where(lines["bare"], entries + " | " + lines["name"])
    texts = lines.groupby(text, sort=False)["line"].agg("\n".join).reset_index(name="text")
    return texts.assign(num_tokens=texts["text"].str.count(WORDS))


def _write_entries(entries: list[tuple[str, str]]) -> str:
    runs = itertools.groupby(entries, key=lambda entry: entry[0])
    return ", ".join(f"{period} ({', '.join(label for _, label in run)})" for period, run in runs)


def _some_users(history: Artifact, number: int) -> pa.Table:
    rows = [part.slice(0, number) for _, part in itertools.islice(history.iter_parts(), number)]
    return pa.concat_tables(rows).slice(0, number).combine_chunks()


def _as_frame(history: pa.Table) -> pd.DataFrame:
    row, columns = flat_columns(history, tuple(EVENT_COLUMNS))
    return pa.table({"user_id": history["user_id"].take(pa.array(row)), **columns}).to_pandas()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def child(step: str, arguments: list[str], quick: bool) -> dict[str, float]:
    """Run a step in a process of its own, with one thread; its result and its peak memory."""
    command = [sys.executable, __file__, *(["--quick"] if quick else []), "--step", step, *arguments]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "ARROW_IO_THREADS"), "1")
    environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def perform(step: str, arguments: list[str], scale: Scale) -> None:
    """What a child process does: the step, then one line of JSON."""
    pa.set_cpu_count(1)
    folder = Path(arguments[0])
    match step:
        case "log":
            result = write_log(scale, folder)
        case "ingest":
            result = ingest(scale, folder, int(arguments[1]), int(float(arguments[2])))
        case "compress":
            result = compress(folder, int(arguments[1]))
        case "cover":
            result = cover(folder, arguments[1])
        case "compare":
            result = compare(scale, folder)
        case _:
            raise ValueError(f"step = {step!r}: one of log, ingest, compress, cover, compare")
    print(json.dumps({**result, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measure(scale: Scale, quick: bool, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All steps: figures, and a row a step."""
    place, rows = str(folder), []
    log = child("log", [place], quick)
    steps = {}
    for times in (1, 2):
        size = log[f"events_{times}"]
        ingested = steps["ingest", times] = child("ingest", [place, str(times), str(size)], quick)
        cpu = ingested["spill_s"] + ingested["build_s"]
        rows.append({"step": f"ingest {times}N", "events": size, "cpu_s": cpu, "peak_mb": ingested["peak_mb"], "events_per_s": size / cpu})
        assert ingested["events"] == size, "every event arrives"
        packed = steps["compress", times] = child("compress", [place, str(times)], quick)
        cpu = packed["compress_s"]
        rows.append({"step": f"compress {times}N", "events": size, "cpu_s": cpu, "peak_mb": packed["peak_mb"], "events_per_s": size / cpu})
    compared = child("compare", [place], quick)
    for side in ("ours", "pandas"):
        cpu = compared[f"{side}_s"]
        rows.append({"step": f"in memory, {side}", "events": compared["events"], "cpu_s": cpu, "events_per_s": compared["events"] / cpu})
    covered = child("cover", [place, CoverageConfig().tokenizer or ""], quick)
    one, packed = steps["ingest", 1], steps["compress", 1]
    size = log["events_1"]
    growth = {step: steps[step, 2]["peak_mb"] / steps[step, 1]["peak_mb"] for step in ("ingest", "compress")}
    return {
        "compression_vs_pandas_ratio": compared["pandas_s"] / compared["ours_s"],
        "compression_events_per_second_per_core": size / packed["compress_s"],
        "compression_without_files_events_per_second_per_core": size / (packed["compress_s"] - packed["files_s"]),
        "compression_counting_events_per_second_per_core": packed["events"] / packed["compress_s"],
        "ingest_events_per_second_per_core": size / (one["spill_s"] + one["build_s"]),
        "ingest_spill_events_per_second_per_core": size / one["spill_s"],
        "ingest_build_events_per_second_per_core": size / one["build_s"],
        "memory_growth_ratio": max(growth.values()),
        "memory_growth_ratio_ingest": growth["ingest"],
        "memory_growth_ratio_compression": growth["compress"],
        "log_events": size,
        "log_users_of_30k_events": log["long_lives"],
        "coverage_128k_before": covered["raw"],
        "coverage_128k_after": covered["compressed"],
        "tokens_per_event_before": covered["raw_per_event"],
        "tokens_per_event_after": covered["compressed_per_event"],
        "token_reduction": covered["reduction"],
        "users_trimmed_at_128k": covered["trimmed"],
    }, rows


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small log; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.step:
        perform(options.step, options.arguments, scale)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures, rows = measure(scale, options.quick, Path(folder))
    for row in rows:
        print("  ".join(f"{value:<20}" if isinstance(value, str) else f"{key} {value:,.1f}" for key, value in row.items()))
    print("\n".join(f"{name:<56}{value:,.4g}" for name, value in figures.items()))
    print("paper (RecGPT §2.1.1): 88 % of users fit 128k tokens before, 98 % after, at 37,000 behaviours a user")
    if options.json:
        result = {"benchmark": "behaviours", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
