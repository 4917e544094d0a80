"""A task whose optimum is known: items in a ring, each followed by the next, so that a policy can earn everything there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from intently.core.config import Config
from intently.core.schema import HISTORY, SEMANTIC_ID
from intently.core.workspace import Workspace, open_stage
from intently.generative.generator import put_generator
from intently.generative.policy_training import PolicyConfig
from intently.generative.semantic_ids import semantic_id_rows
from intently.generative.training import DecoderConfig, GeneratorConfig, build_decoder
from intently.generative.trie import read_trie

from tests.retrieval.world import history, put

RING, USERS = 8, 16
SIZES = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 16, "feed_forward": 32, "text_tokens": 256}
LEARNING = {
    "num_rounds": 8,
    "rollouts_per_round": 5,
    "prompts": 32,
    "group_size": 16,
    "temperature": 1.0,
    "kl": 0.05,
    "learning_rate": 5e-3,
    "schedule": "linear",
    "warmup_rollouts": 2,
    "patience": 8,
}
BEST_REWARD = 1.5
"""Hit 1, and half of the whole prefix."""


def item(number: int) -> str:
    """Item id at a place of the ring."""
    return f"i{number % RING}"


def write_ring(workspace: Workspace, folder: Path) -> dict[str, str]:
    """Histories of three train items, one of validation and one of test, and an untrained generator; artifact → version."""
    for split, (start, stop) in {"train": (0, 3), "validation": (3, 4), "test": (4, 5)}.items():
        rows = {f"u{n:02d}": [(item(n + step), "purchase") for step in range(start, stop)] for n in range(USERS)}
        put(workspace, f"history_{split}", HISTORY, history(rows))
    ids = pa.array([item(n) for n in range(RING)])
    codes = np.array([[n // 4, n % 4] for n in range(RING)], np.int32)
    put(workspace, "semantic_id", SEMANTIC_ID, semantic_id_rows(ids, codes))
    made = workspace.artifact("semantic_id")
    trie = read_trie(made.read(), made.version)
    settings = GeneratorConfig(decoder=DecoderConfig.parse(SIZES))
    model, vocabulary = build_decoder(settings.decoder, ["a title"], trie.code_counts, seed=0)
    model.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
    stage = open_stage(workspace, "generator", None, {"semantic_id": made.version}, Config())
    put_generator(stage, folder, trie, settings)
    stage.finish()
    return {name: workspace.artifact(name).version for name in ("generator", "history_train", "history_validation", "history_test")}


def policy_config(**grpo: object) -> PolicyConfig:
    """Settings of the toy task."""
    return PolicyConfig.parse(
        {
            "grpo": LEARNING | grpo,
            "rewards": {"weights": {"hit": 1.0, "prefix": 0.5}},
            "validation": {"cutoffs": [1, 2, 4], "choose": "hr1", "keep": "hr4"},
        }
    )
