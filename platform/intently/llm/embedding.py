"""Tables of texts to tables of vectors: what is said of an item, which tags there are, what a chunk's interests are, and the worker that
encodes a slice of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import EMBEDDING
from intently.core.workspace import Artifact, Stage
from intently.llm.encoder import EncoderConfig, TextEncoder

ITEM_COLUMNS = ("item_id", "title", "category", "categories", "brand", "description", "attributes")
"""Columns of Item that `item_texts` reads; the picture is not among them."""

INTEREST_COLUMNS = ("user_id", "chunk", "rank", "interest", "stage", "shift", "reason")
"""Columns of UserInterest that `interest_texts` reads."""
INTEREST_ENCODER = EncoderConfig(max_tokens=256)
"""Of the interests of a chunk: half a dozen with their reasons are longer than an item's text."""


class ItemTextConfig(Config):
    """How much of an item its text holds."""

    description_chars: int = Field(120, ge=0, description="characters of the description that are kept")
    attributes_chars: int = Field(80, ge=0, description="characters of the joined attributes that are kept")


@dataclass(frozen=True)
class TextSource:
    """Texts of one kind and where their vectors go. Picklable: each actor reads the texts itself.

    Attributes:
        kind: Embedding.kind; item, tag or interest.
        artifact: the Item, Tag or UserInterest table.
        stage: the Embedding table in the making.
        rows_per_part: texts in one part.
        item_text: how an item is put into words.
    """

    kind: str
    artifact: Artifact
    stage: Stage
    rows_per_part: int
    item_text: ItemTextConfig

    def texts(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """(ids, texts), N each, in an order that only the artifact decides."""
        match self.kind:
            case "item":
                items = self.artifact.read(columns=ITEM_COLUMNS)
                return items["item_id"], item_texts(items, self.item_text)
            case "tag":
                tags = distinct_tags(self.artifact)
                return tags, tags
            case "interest":
                return interest_texts(self.artifact.read(columns=INTEREST_COLUMNS))
        raise AssertionError(f"kind is item, tag or interest, not {self.kind!r}")

    def parts(self) -> list[str]:
        """Names of all parts, at least one."""
        num_texts = self.artifact.manifest.rows if self.kind == "item" else len(self.texts()[0])
        return [f"part-{i:05d}" for i in range(max(1, -(-num_texts // self.rows_per_part)))]


class EmbedTexts:
    """Worker of `map_parts`: encodes one part of one source; parts are called 'kind/part'."""

    def __init__(self, encoder: EncoderConfig, sources: Mapping[str, TextSource]) -> None:
        self._encoder = TextEncoder(encoder)
        self._sources = sources
        self._texts: dict[str, tuple[pa.ChunkedArray, pa.ChunkedArray]] = {}

    def __call__(self, part: str) -> dict[str, int | float]:
        """Write the part's vectors; returns how many, and the seconds it took."""
        start = time.monotonic()
        kind, _, name = part.partition("/")
        source = self._sources[kind]
        if kind not in self._texts:
            self._texts[kind] = source.texts()
        offset = int(name.removeprefix("part-")) * source.rows_per_part
        ids, texts = (column.slice(offset, source.rows_per_part) for column in self._texts[kind])
        vectors = self._encoder.encode(texts.to_pylist())
        source.stage.write(name, embedding_rows(kind, ids, vectors, self._encoder.name))
        return {"texts": len(ids), "seconds": round(time.monotonic() - start, 2)}


def item_texts(items: pa.Table, config: ItemTextConfig) -> pa.ChunkedArray:
    """Title, categories, brand, attributes and description, what matters most first, because encoders cut the end.

    Args:
        items: Item rows, N, with at least ITEM_COLUMNS.
        config: how much is kept.
    Returns:
        N strings such as "Trail shoes X | Shoes > Running | Fleet | weight: 210 g | Light shoes for long …".
    """
    listed = pc.greater(pc.list_value_length(items["categories"]), 0)
    categories = pc.if_else(listed, pc.binary_join(items["categories"], " > "), items["category"])
    attributes = pc.utf8_slice_codeunits(pc.binary_join(items["attributes"], "; "), 0, config.attributes_chars)
    description = pc.utf8_slice_codeunits(items["description"], 0, config.description_chars)
    nothing = pa.scalar(None, pa.string())
    parts = [
        pc.if_else(pc.equal(part, ""), nothing, part) for part in (items["title"], categories, items["brand"], attributes, description)
    ]
    return pc.binary_join_element_wise(*parts, " | ", null_handling="skip")


def distinct_tags(tags: Artifact) -> pa.ChunkedArray:
    """The different texts of a Tag table, sorted; one part at a time is in memory."""
    found = [pc.unique(rows["tag"]) for _, rows in tags.iter_parts(columns=["tag"])]
    distinct = pc.unique(pa.chunked_array(found, pa.string()))
    return pa.chunked_array([distinct.take(pc.sort_indices(distinct))], pa.string())


def interest_texts(interests: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The interests of each chunk as one text, in the model's order: "noir films (active, new): liked most crime; war films …".

    The reason says why and how much, which the phrase does not.

    Args:
        interests: UserInterest rows with at least INTEREST_COLUMNS.
    Returns:
        (`chunk_ids`, texts), one a chunk that has interests, by user and chunk.
    """
    ordered = interests.sort_by([("user_id", "ascending"), ("chunk", "ascending"), ("rank", "ascending")])
    state = pc.binary_join_element_wise(ordered["stage"], ordered["shift"], ", ")
    phrase = pc.binary_join_element_wise(ordered["interest"], " (", state, "): ", ordered["reason"], "")
    grouped = pa.table({"user_id": ordered["user_id"], "chunk": ordered["chunk"], "phrase": phrase})
    grouped = grouped.group_by(["user_id", "chunk"], use_threads=False).aggregate([("phrase", "list")])
    return chunk_ids(grouped["user_id"], grouped["chunk"]), pc.binary_join(grouped["phrase_list"], "; ")


def chunk_ids(users: pa.ChunkedArray, chunks: pa.ChunkedArray) -> pa.ChunkedArray:
    """Embedding.id of the interests of chunks: "user/chunk"."""
    return pc.binary_join_element_wise(users, pc.cast(chunks, pa.string()), "/")


def embedding_rows(kind: str, ids: pa.ChunkedArray, vectors: np.ndarray, model: str) -> pa.Table:
    """Embedding rows.

    Args:
        kind: Embedding.kind, the same for all rows.
        ids: N identifiers.
        vectors: [N, D] float32.
        model: Embedding.model.
    """
    num_rows, dimension = vectors.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * dimension)
    columns = {
        "kind": pa.array([kind] * num_rows, pa.string()),
        "id": ids,
        "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel(), pa.float32())),
        "model": pa.array([model] * num_rows, pa.string()),
    }
    return EMBEDDING.check(pa.table(columns))
