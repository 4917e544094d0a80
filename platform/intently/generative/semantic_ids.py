"""Items to SEMANTIC_ID rows: quantise, make unique, report; new items later, with what is published left where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.errors import SchemaError
from intently.core.schema import SEMANTIC_ID
from intently.generative.assignment import assign_codes
from intently.generative.quality import code_report, meaning_report
from intently.generative.quantiser import Distances, Quantised
from intently.generative.trie import code_matrix


@dataclass(frozen=True)
class SemanticIds:
    """What came of a catalogue.

    Attributes:
        table: SEMANTIC_ID rows, published ones first and as they were.
        report: figures of quality.code_report over all items and quality.meaning_report over those that were given.
    """

    table: pa.Table
    report: Mapping[str, float]


def assign_semantic_ids(item_ids: pa.Array, vectors: np.ndarray, quantiser: Quantised, published: pa.Table | None = None) -> SemanticIds:
    """Give every item without a semantic ID one that nobody has.

    Args:
        item_ids: [N] the catalogue.
        vectors: [N, D] what the quantiser reads, of the same items.
        quantiser: trained.
        published: SEMANTIC_ID rows that stay, items that left the catalogue included: their codes are not given away.
    Raises:
        SchemaError: a published semantic ID has another number of codes, or there is no room left.
    """
    config = quantiser.config
    published = SEMANTIC_ID.empty() if published is None else published
    taken = code_matrix(published["codes"]) if published.num_rows else np.zeros((0, config.num_levels), np.int32)
    if taken.shape[1] != config.num_levels:
        raise SchemaError(f"published semantic IDs have {taken.shape[1]} codes, the quantiser makes {config.num_levels}")
    places = pc.fill_null(pc.index_in(item_ids, value_set=published["item_id"].combine_chunks()), -1).to_numpy(zero_copy_only=False)
    new = places < 0
    raw, latents = quantiser.encode(vectors)
    distances = Distances(latents[new], quantiser.codebooks.detach().numpy(), config.last_level == "counter")
    assigned = assign_codes(raw[new][:, : config.num_levels - 1], distances, taken)
    table = pa.concat_tables([published, semantic_id_rows(item_ids.filter(pa.array(new)), assigned)])
    codes = np.empty((len(item_ids), config.num_levels), np.int32)
    codes[new], codes[~new] = assigned, taken[places[~new]]
    report = code_report(raw, codes, config.num_codes) | meaning_report(vectors, codes, quantiser, config.seed)
    return SemanticIds(table.combine_chunks(), report | {"num_new": float(new.sum()), "num_published": float(published.num_rows)})


def semantic_id_rows(item_ids: pa.Array, codes: np.ndarray) -> pa.Table:
    """[N] ids and [N, H] codes → SEMANTIC_ID rows."""
    offsets = pa.array(np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(codes.ravel(), pa.int32()))
    return SEMANTIC_ID.check(pa.table({"item_id": item_ids, "codes": lists}))
