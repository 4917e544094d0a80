"""Several models read the same people: is what they agree on closer to what the people did later than what each says alone?

    PYTHONPATH=platform python benchmarks/mining_ensemble.py --workspace FOLDER [--second MODEL_FOLDER] [--quick] [--json FILE]

Readers that are really different: the shipped student in vLLM, another student (other worlds, another tokenizer, half the width; trained
here once and kept in {workspace}/second_student, unless --second names a folder), and a rule behind a local OpenAI-compatible server, which
names the words that a chunk repeats most. The workspace
holds item, chunk and history_test, and true_interest where it is simulated. The mining worker reads the people with each model alone,
then with all; the request cache answers for the members of the ensemble what they said alone. Interest quality (IQ: mean cosine of a
user's interests and later items) is taken over the users that all of them know.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
from intently.alignment.teacher import TeacherConfig, write_examples
from intently.alignment.training import StudentConfig, TrainingConfig, train
from intently.core.config import Config, Resources
from intently.core.schema import USER_INTEREST
from intently.core.workspace import Workspace, open_stage
from intently.data.counts import total_counts
from intently.interests.ensemble import EnsembleConfig
from intently.interests.faithfulness import asked_chunks, measure_faithfulness
from intently.interests.outcomes import quality_of_interests
from intently.interests.users import MiningConfig, chosen_users
from intently.interests.workers import UserMiner
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.build import EngineConfig, engine_environment
from intently.llm.engines.endpoint import EndpointConfig
from intently.llm.engines.vllm import VLLMConfig
from intently.runtime.mapping import map_parts
from intently.runtime.session import ray_session

SECOND_WORLDS = 20
TEXTS = ["item_id", "title", "category", "categories", "brand", "attributes", "description"]
WORD = re.compile(r"[a-z][a-z'-]{3,}")


class Asked(Config):
    """What decides one run of mining."""

    mining: MiningConfig
    engines: tuple[EngineConfig, ...]
    ensemble: EnsembleConfig


class RuleReader(BaseHTTPRequestHandler):
    """An OpenAI-compatible model that can only count words."""

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        items = " ".join(line.partition("|")[2] for line in body["messages"][-1]["content"].splitlines())
        named = [word for word, _ in Counter(WORD.findall(items.lower())).most_common(6)] or ["nothing"]
        interests = [{"interest": word, "stage": "active", "reason": f"{word} stands there most"} for word in named]
        usage = {"prompt_tokens": len(items.split()), "completion_tokens": 12 * len(named)}
        message = {"role": "assistant", "content": json.dumps({"interests": interests})}
        content = json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing of single requests."""


@contextmanager
def rule_server() -> Iterator[str]:
    """The rule's base_url while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), RuleReader)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()


def second_student(folder: Path) -> Path:
    """The folder of a student that learned from other worlds than the shipped one; trained if it is not there, in some minutes."""
    if not (folder / "model" / "config.json").exists():
        teacher = TeacherConfig(seed=700_000, num_worlds=SECOND_WORLDS)
        examples = pa.concat_tables([write_examples(teacher, world) for world in range(SECOND_WORLDS)])
        size = StudentConfig(vocabulary=4000, hidden=96, heads=2, kv_heads=1, feed_forward=256)
        train(examples, TrainingConfig(student=size, seed=7, num_steps=900, decay_steps=300, batch_tokens=3072, threads=1), folder)
    return folder / "model"


def mine(source: Workspace, scratch: Workspace, mining: MiningConfig, engines: Sequence[EngineConfig]) -> tuple[pa.Table, pa.Table, dict]:
    """What the job's worker makes of the chunks with these engines: interests, rejects, counts."""
    ensemble = EnsembleConfig(same_similarity=0.6)
    asked = Asked(mining=mining, engines=tuple(engines), ensemble=ensemble)
    stage = open_stage(scratch, "user_interest", USER_INTEREST, {}, asked)
    chunks = source.artifact("chunk")
    users = chunks.read(columns=["user_id"])["user_id"].unique().to_pylist()
    arguments = {
        "stage": stage,
        "chunks": chunks,
        "items": source.artifact("item"),
        "config": mining,
        "last_place": chosen_users(users, mining.max_users),
        "engine": engines[0],
        "encoder": EncoderConfig(),
        "others": tuple(engines[1:]),
        "ensemble": ensemble,
    }
    environment = reduce(lambda known, engine: known | engine_environment(engine), engines, dict[str, str]())
    map_parts(UserMiner, arguments, chunks.parts(), Resources(), "mine", environment)
    artifact = stage.finish()
    return artifact.read(), artifact.rejects(), total_counts(stage, chunks.parts())


def measure(source: Workspace, mined: dict[str, tuple[pa.Table, pa.Table, dict]]) -> list[dict[str, Any]]:
    """One row a reader: IQ with its interval, interests a user, and precision and recall of the truth where it is known."""
    items, later = source.artifact("item").read(columns=TEXTS), source.artifact("history_test").read()
    quality = quality_of_interests({name: table for name, (table, _, _) in mined.items()}, later, items, TextEncoder(EncoderConfig()))
    truths = source.artifact("true_interest").read() if source.latest_version("true_interest") else None
    chunks = source.artifact("chunk").read()
    rows = []
    for found in quality:
        table, rejects, counts = mined[found.name]
        row = {"reader": found.name, "iq": found.value, "iq_low": found.low, "iq_high": found.high, "users": found.num_users}
        row |= {"interests": table.num_rows, "asked": counts["questions"], "reused": counts["reused"]}
        if truths is not None and truths.num_rows:
            told = measure_faithfulness(table, asked_chunks(chunks, table, rejects), truths, items)
            row |= {"precision": told.precision, "recall": told.recall}
        rows.append(row)
    return rows


def main() -> None:
    """Parse the flags, mine, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="a workspace with item, chunk, history_test")
    parser.add_argument("--second", type=Path, help="model folder of another student; one is trained without it")
    parser.add_argument("--quick", action="store_true", help="20 people")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    source = Workspace.open(options.workspace)
    second = options.second or second_student(Path(options.workspace) / "second_student")
    mining = MiningConfig(max_users=20 if options.quick else 200, max_chunks=2)
    with tempfile.TemporaryDirectory() as folder, rule_server() as base_url, ray_session():
        scratch = Workspace.open(folder)
        engines: dict[str, EngineConfig] = {
            "student": VLLMConfig(kv_cache_gb=0.25),
            "second student": VLLMConfig(model=str(second), kv_cache_gb=0.25),
            "rule server": EndpointConfig(base_url=base_url, model="counts-words"),
        }
        mined = {name: mine(source, scratch, mining, [engine]) for name, engine in engines.items()}
        mined["ensemble"] = mine(source, scratch, mining, list(engines.values()))
    rows = measure(source, mined)
    for row in rows:
        print("  ".join(f"{key} {value:,.4g}" if isinstance(value, int | float) else f"{value:<16}" for key, value in row.items()))
    if options.json:
        figures = {f"iq_{row['reader'].replace(' ', '_')}": row["iq"] for row in rows}
        result = {"benchmark": "mining_ensemble", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
