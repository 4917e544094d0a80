"""A catalogue that grows between trainings: rows for new items and tags behind those that stand, which are copied byte for byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.errors import SchemaError
from intently.core.schema import EMBEDDING
from intently.core.workspace import Artifact, Stage
from intently.retrieval.interactions import rows_of
from intently.retrieval.trained import TrainedTowers, embedding_table


def later_rows(ids: pa.ChunkedArray, standing: Artifact) -> np.ndarray:
    """Places in `ids` of those that have no row in a table of vectors."""
    return np.flatnonzero(rows_of(ids, standing.read(columns=["id"])["id"].combine_chunks()) < 0)


def item_rows(towers: TrainedTowers, items: pa.Table, embeddings: pa.Table, model: str) -> pa.Table:
    """h_v of new items as EMBEDDING rows.

    Args:
        towers: which know nothing of them: they go by category, brand, price, text, and the id that later items share.
        items: ITEM.
        embeddings: EMBEDDING of their texts.
        model: the towers' artifact, as `name@version`.
    """
    return embedding_table("item", items["item_id"].combine_chunks(), towers.embed_items(items, embeddings), model)


def tag_rows(towers: TrainedTowers, tags: pa.Array, model: str) -> pa.Table:
    """h_t of new tags as EMBEDDING rows."""
    return embedding_table("tag", tags, towers.tag_vectors(tags), model)


def check_model(vectors: Artifact, model: str) -> None:
    """Refuse vectors of other towers.

    Raises:
        SchemaError: a row was made by something else than `model`.
    """
    found = pc.unique(vectors.read(columns=["model"])["model"]).to_pylist()
    if found not in ([], [model]):
        raise SchemaError(f"{vectors} was made by {found}, but the towers are {model}: train the towers anew")


def extend(stage: Stage, standing: Artifact, rows: pa.Table) -> Artifact:
    """A new version of a table of vectors: the parts that stand, as they are, and one with further rows, where there are any."""
    parts = standing.parts()
    for part in parts:
        stage.put(f"{part}.parquet", standing.fetch(f"{part}.parquet"))
    if rows.num_rows:
        stage.write(f"part-{len(parts):05d}", EMBEDDING.check(rows))
    return stage.finish(notes={"grew_from": str(standing), "new_rows": str(rows.num_rows)})
