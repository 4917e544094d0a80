"""HiT-LBM's Tables 2, 3 and 5 and its ablation on MovieLens-1M, beside the paper's columns, and the same without a language model.

PYTHONPATH=platform python benchmarks/ctr_movielens.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER] [--mined WORKSPACE]

Declared protocol: users with 50 ratings or more, a rating above 3 is positive, rows from the first finished chunk of 50 on; the last
tenth of each user's ratings is test, the tenth before it validation, in the exact order of the log. Every setting and the epoch are
chosen by AUC on validation. Gains are paired: same rows, same seeds, an interval from drawing test users with replacement.

--mined names a workspace with user_interest tables (`interests_<kind>=VERSION` below); without it, what needs no language model runs.
Every finished run is kept under --workspace, and a run of the benchmark that was killed goes on behind it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from intently.core.config import Config
from intently.core.schema import CHUNK, EMBEDDING, HISTORY, ITEM, USER, Table
from intently.core.workspace import Workspace, open_stage
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.flat import flat_columns, fold
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, spill_source
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import open_source
from intently.llm.embedding import ItemTextConfig, embedding_rows, interest_texts, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.metrics.ctr import paired_auc_gain
from intently.ranking.features import Catalogue, Log, Rows, read_catalogue, read_log, read_rows
from intently.ranking.knowledge import ChunkVectors, histogram_vectors, interest_vectors, item_vectors
from intently.ranking.samples import SPLITS, SampleConfig, label_events, split_samples
from intently.ranking.training import BatchCutter, CtrData, CtrTrainingConfig, figures, predict, restore_model, train_ctr
from intently.runtime.train import WEIGHTS, TrainConfig, train

MAIN = ("din", "dcnv2", "autoint")
OTHERS = ("deepfm", "xdeepfm", "fibinet", "fignn", "dien")
KINDS = ("cube", "independent", "hts")
"""Interests: the cascade with one sample; chunks read on their own; the tree's kept path with its scores."""
PAPER = {
    "base": {"din": .7761, "dcnv2": .7747, "autoint": .7745, "deepfm": .7746, "xdeepfm": .7750, "fibinet": .7749, "fignn": .7744, "dien": .7744},
    "hit": {"din": .8063, "dcnv2": .8081, "autoint": .8077, "deepfm": .8063, "xdeepfm": .8029, "fibinet": .8086, "fignn": .8076, "dien": .8064},
    "sim": {"din": .7853}, "kar": {"din": .7935}, "trsr": {"din": .7818}, "liber": {"din": .7952},
    "mlp": {"din": .7860}, "self_attention": {"din": .7963}, "gru": {"din": .7978},
}  # fmt: skip
"""AUC as published (Tables 2, 3, 5)."""
