"""How much of a life fits a model's context: tokens a user before and after compression (RecGPT §2.1.1, 88 % → 98 % within 128k)."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from intently.core.config import Config
from intently.core.workspace import Artifact, Stage
from intently.data.chunking import ChunkConfig, Chunker
from intently.data.coding import FlatEvents, NameTable, encode_events
from intently.data.compression import CompressionConfig, write_plain, write_texts
from intently.data.days import Histories
from intently.data.extraction import ReliablePolicy, reliable
from intently.data.item_names import NAME_COLUMNS, NameConfig, names_of
from intently.data.tokens import MINILM, TokenCounter

WHOLE_LIFE = 2**62
"""Events a chunk when a user's whole life is one text."""
STEPS = ("raw", "named", "compressed")
"""One line an event with full titles; with short names; and with lines shared as well."""


class CoverageConfig(Config):
    """What is measured."""

    policy: ReliablePolicy = Field(ReliablePolicy(), description="which events count")
    names: NameConfig = Field(NameConfig(), description="item-level compression")
    compression: CompressionConfig = Field(CompressionConfig(), description="sequence-level compression")
    tokenizer: str | None = Field(MINILM, description="tokenizer.json that counts, or all-MiniLM-L6-v2; None counts words and signs")
    trim_to: int = Field(131_072, ge=16, description="token budget that users over it are trimmed to, strong and recent behaviours first")


class CoverageMeter:
    """Measures histories; names and tokenizer are made once.

    Args:
        items: at least the columns item_names.NAME_COLUMNS of ITEM.
        config: what is measured.
        written: ITEM_NAME rows, None without.
    """

    def __init__(self, items: pa.Table, config: CoverageConfig, written: pa.Table | None = None) -> None:
        self._config = config
        titles = pl.from_arrow(items.select(["item_id", "title"]).rename_columns(["item_id", "name"]))
        assert isinstance(titles, pl.DataFrame)
        self._titles, self._names = NameTable(titles), NameTable(names_of(items, config.names, written))
        self._counter = TokenCounter(config.tokenizer)
        trim = ChunkConfig(
            policy=config.policy,
            names=config.names,
            compression=config.compression,
            num_events=WHOLE_LIFE,
            max_tokens=config.trim_to,
            tokenizer=config.tokenizer,
        )
        self._trimmer = Chunker(items, trim, written)

    def measure(self, history: pa.Table) -> pa.Table:
        """HISTORY rows → one row a user.

        Returns:
            user_id; events; reliable (events that count); raw, named, compressed (tokens of the whole life as text, see STEPS); fitting
            (events left after trimming to the budget).
        """
        flat = FlatEvents.of(history)
        kept, _ = reliable(flat, self._config.policy)
        index = np.flatnonzero(kept)
        chosen, strength, users = flat.take(index), self._config.policy.strength(), history.num_rows
        titled = encode_events(chosen, index, self._titles, strength)
        named = encode_events(chosen, index, self._names, strength)
        number = np.bincount(named.row, minlength=users)
        compressed = write_texts(named, named.row, users, self._names, self._config.compression, self._counter).num_tokens
        return pa.table(
            {
                "user_id": history["user_id"],
                "events": np.bincount(flat.row, minlength=users),
                "reliable": number,
                "raw": write_plain(titled, titled.row, users, self._titles, self._counter).num_tokens,
                "named": write_plain(named, named.row, users, self._names, self._counter).num_tokens,
                "compressed": compressed,
                "fitting": self._fitting(history, compressed, number),
            }
        )

    def _fitting(self, history: pa.Table, tokens: np.ndarray, number: np.ndarray) -> np.ndarray:
        over = np.flatnonzero(tokens > self._config.trim_to)
        left = number.copy()
        if len(over):
            trimmed = self._trimmer.chunk(history.take(pa.array(over))).chunks
            sizes = {row["user_id"]: len(row["event_ids"]) for row in trimmed.select(["user_id", "event_ids"]).to_pylist()}
            left[over] = [sizes.get(user, 0) for user in history["user_id"].take(pa.array(over)).to_pylist()]
        return left


class CoverageWorker:
    """Measures one bucket a call and puts it into the report's stage.

    Args:
        stage: of the report.
        history: what is measured.
        items: the artifact of ITEM.
        config: how.
        item_names: the artifact of ITEM_NAME, None where there is none.
    """

    def __init__(self, stage: Stage, history: Histories, items: Artifact, config: CoverageConfig, item_names: Artifact | None) -> None:
        self._stage, self._history = stage, history
        self._meter = CoverageMeter(items.read(columns=NAME_COLUMNS), config, item_names.read() if item_names else None)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Measure a bucket; figures about it."""
        measured = self._meter.measure(self._history.read(part))
        sink = io.BytesIO()
        pq.write_table(measured, sink)
        self._stage.put(f"{part}.parquet", sink.getvalue())
        return {"users": measured.num_rows, "events": int(np.sum(measured["events"].to_numpy()))}
