"""What is known beyond ids: vectors of users' chunks (interests as text, or histograms without a language model) and of items.

Shapes: N chunks of all users, U users, T chunks seen at most, I items, V width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from intently.core.errors import SchemaError
from intently.data.flat import whole
from intently.llm.embedding import chunk_ids
from intently.ranking.features import Catalogue, Log, Rows


class Selection(StrEnum):
    """Which of the chunks that ended before a row it looks at."""

    ALL = "all"
    """All, newest `max_chunks` of them: HiT-LBM, and LIBER on chunks that were read independently."""
    LAST = "last"
    """The newest alone: TRSR, where it is a running summary."""
    FIRST = "first"
    """The oldest alone: one reading of a part of the history, as in KAR."""


class Visible(NamedTuple):
    """Chunks that rows look at."""

    chunks: torch.Tensor
    """[B, T] rows of ChunkVectors, oldest first."""
    valid: torch.Tensor
    """[B, T] bool."""


@dataclass(frozen=True)
class ChunkVectors:
    """One vector a chunk, each user's chunks together, 0 the oldest.

    Attributes:
        vectors: [N, V] float32; zeros for a chunk that nothing is known of.
        scores: [N] S_final of the chunk's interests; 1 where nobody scored.
        known: [N] bool.
        starts: [U + 1] int64, user u's chunk c is row starts[u] + c.
    """

    vectors: torch.Tensor
    scores: torch.Tensor
    known: torch.Tensor
    starts: torch.Tensor

    def visible(self, rows: Rows, selection: Selection, max_chunks: int) -> Visible:
        """The chunks below each row's bound.

        Args:
            rows: B rows.
            selection: which of them.
            max_chunks: T at most; T is no more than the batch needs.
        """
        begin, bounds = self.starts[rows.users], torch.minimum(rows.bounds, self.starts[rows.users + 1] - self.starts[rows.users])
        if selection is Selection.FIRST:
            first, length = torch.zeros_like(bounds), 1
        else:
            most = min(max_chunks, max(1, int(bounds.max()))) if len(bounds) else 1
            length = most if selection is Selection.ALL else 1
            first = (bounds - length).clamp(min=0)
        numbers = first[:, None] + torch.arange(length, device=bounds.device)
        valid = numbers < bounds[:, None]
        chunks = torch.where(valid, begin[:, None] + numbers, 0)
        return Visible(chunks, valid & self.known[chunks])


def chunk_vectors(log: Log, user_ids: pa.Array, chunks: np.ndarray, vectors: np.ndarray, scores: np.ndarray | None = None) -> ChunkVectors:
    """Vectors of (user, chunk) pairs in any order as one table.

    Args:
        log: whose users count; pairs of others are left out.
        user_ids: [M].
        chunks: [M] Chunk.chunk, each pair once.
        vectors: [M, V].
        scores: [M] S_final; None for 1.
    """
    users = pc.fill_null(pc.index_in(user_ids, value_set=log.user_ids), -1).to_numpy(zero_copy_only=False)
    kept = users >= 0
    users, chunks, vectors = users[kept], chunks[kept].astype(np.int64), vectors[kept]
    lengths = np.zeros(len(log.user_ids), np.int64)
    np.maximum.at(lengths, users, chunks + 1)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    # One row at least: padding points at row 0.
    num_rows = max(1, int(starts[-1]))
    table, score, known = np.zeros((num_rows, vectors.shape[1]), np.float32), np.ones(num_rows, np.float32), np.zeros(num_rows, bool)
    place = starts[users] + chunks
    table[place], known[place] = vectors, True
    if scores is not None:
        score[place] = scores[kept]
    return ChunkVectors(torch.from_numpy(table), torch.from_numpy(score), torch.from_numpy(known), torch.from_numpy(starts))


def interest_vectors(log: Log, interests: pa.Table, embedding: pa.Table) -> ChunkVectors:
    """Interests of chunks and the vectors of their texts.

    Args:
        log: whose users count.
        interests: USER_INTEREST rows; a chunk's S_final is the mean of its rows', 1 where it has none.
        embedding: EMBEDDING rows, id `llm.embedding.chunk_ids`.
    Raises:
        SchemaError: a chunk of the interests has no vector.
    """
    grouped = interests.group_by(["user_id", "chunk"]).aggregate([("s_final", "mean")])
    users, chunks = whole(grouped["user_id"]), whole(grouped["chunk"])
    keys = chunk_ids(users, chunks)
    found = pc.index_in(keys, value_set=whole(embedding["id"]))
    if found.null_count:
        raise SchemaError(f"table embedding: no vector of chunk {keys[pc.index(found.is_null(), True).as_py()].as_py()!r}")
    scores = pc.fill_null(whole(grouped["s_final_mean"]), 1.0).to_numpy(zero_copy_only=False).astype(np.float32)
    return chunk_vectors(log, users, chunks.to_numpy(), matrix_of(embedding)[found.to_numpy()], scores)


def matrix_of(embedding: pa.Table) -> np.ndarray:
    """EMBEDDING rows → [M, V] float32."""
    flat = pc.list_flatten(embedding["vector"]).to_numpy(zero_copy_only=False)
    return flat.reshape(embedding.num_rows, -1) if embedding.num_rows else np.zeros((0, 1), np.float32)


def item_vectors(catalogue: Catalogue, embedding: pa.Table) -> torch.Tensor:
    """[I + 1, V] vectors of the items; row 0, and items without one, are zeros."""
    known = matrix_of(embedding)
    found = pc.fill_null(pc.index_in(catalogue.item_ids, value_set=whole(embedding["id"])), -1).to_numpy(zero_copy_only=False)
    table = np.zeros((len(catalogue.item_ids) + 1, known.shape[1]), np.float32)
    table[1:][found >= 0] = known[found[found >= 0]]
    return torch.from_numpy(table)


def item_traits(items: pa.Table) -> np.ndarray:
    """[I, V] which categories and which decade each item has: the facts that histograms count.

    Args:
        items: ITEM rows; a decade comes from an attribute "year: 1994".
    """
    facts = [
        [*genres, *(f"{fact.removeprefix('year: ')[:3]}0s" for fact in attributes if fact.startswith("year: "))]
        for genres, attributes in zip(items["categories"].to_pylist(), items["attributes"].to_pylist(), strict=True)
    ]
    names = {name: column for column, name in enumerate(sorted({name for each in facts for name in each}))}
    traits = np.zeros((len(facts), len(names)), np.float32)
    for row, each in enumerate(facts):
        traits[row, [names[name] for name in each]] = 1
    return traits


def histogram_vectors(log: Log, items: pa.Table, history: pa.Table, chunks: pa.Table) -> tuple[ChunkVectors, torch.Tensor]:
    """The same chunks without a language model: how often each category and decade occurs, and how much it was liked.

    Args:
        log: of `history`.
        items: ITEM rows, in the catalogue's order.
        history: HISTORY rows, for the stars.
        chunks: CHUNK rows.
    Returns:
        Vectors [N, 2V] (shares of events; mean of stars − 3 where there are stars, else shares again), and items' [I + 1, 2V].
    """
    traits = item_traits(items)
    sizes = pc.list_value_length(chunks["event_ids"]).to_numpy(zero_copy_only=False)
    place = pc.index_in(whole(pc.list_flatten(chunks["event_ids"])), value_set=whole(pc.list_flatten(history["event_ids"]))).to_numpy()
    numbers, signals = log.items.numpy()[place], log.signals.numpy()[place]
    padded = np.concatenate([np.zeros((1, traits.shape[1]), np.float32), traits])
    liking = np.where((signals >= 1) & (signals <= 5), signals - 3.0, 1.0)[:, None]
    counted = np.concatenate([padded[numbers], padded[numbers] * liking], axis=1, dtype=np.float32)
    means = np.add.reduceat(counted, np.cumsum(sizes) - sizes) / sizes[:, None]  # a chunk has an event at least
    vectors = chunk_vectors(log, whole(chunks["user_id"]), chunks["chunk"].to_numpy(), means)
    return vectors, torch.from_numpy(np.concatenate([padded, padded], axis=1))
