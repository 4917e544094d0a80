"""How far mined interests tell the truth, where a simulator knows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.interests.phrases import normalise

KEY = ["user_id", "chunk", "phrase"]


@dataclass(frozen=True)
class Faithfulness:
    """Mined phrases against true ones, counted over (user, chunk, phrase).

    Attributes:
        precision: share of the mined phrases that were in force while the chunk lasted.
        recall: share of the true phrases that were mined.
        f1: harmonic mean of the two.
        num_mined: distinct mined phrases.
        num_true: distinct true phrases that recall is a share of.
        num_hits: mined phrases that were in force.
        num_chunks: chunks that were measured.
    """

    precision: float
    recall: float
    f1: float
    num_mined: int
    num_true: int
    num_hits: int
    num_chunks: int


def asked_chunks(chunks: pa.Table, interests: pa.Table, rejects: pa.Table) -> pa.Table:
    """The CHUNK rows that a mining run asked about: answered ones, and those whose answer was refused.

    Args:
        chunks: CHUNK rows.
        interests: USER_INTEREST rows of the run.
        rejects: REJECT rows of the run.
    """
    answered = pc.binary_join_element_wise(interests["user_id"], interests["chunk"].cast(pa.string()), "/")
    asked = pa.chunked_array([*answered.chunks, *rejects["row"].chunks], pa.string())
    keys = pc.binary_join_element_wise(chunks["user_id"], chunks["chunk"].cast(pa.string()), "/")
    return chunks.filter(pc.is_in(keys, asked.combine_chunks()))


def active_truths(chunks: pa.Table, truths: pa.Table) -> pa.Table:
    """The true interests that overlapped each chunk in time.

    Args:
        chunks: CHUNK rows.
        truths: TRUE_INTEREST rows.
    Returns:
        columns user_id, chunk, phrase (normalised), category; distinct.
    """
    began, ended = truths["start"], truths["end"]
    wanted = {"phrase": _normalised(truths["interest"]), "category": truths["category"], "began": began, "ended": ended}
    joined = chunks.select(["user_id", "chunk", "start", "end"]).join(
        pa.table({"user_id": truths["user_id"], **wanted}), "user_id", join_type="inner"
    )
    overlapping = pc.and_(pc.less_equal(joined["began"], joined["end"]), pc.greater_equal(joined["ended"], joined["start"]))
    return joined.filter(overlapping).group_by([*KEY, "category"]).aggregate([])


def shown_truths(active: pa.Table, chunks: pa.Table, items: pa.Table, min_items: int) -> pa.Table:
    """The rows of `active_truths` whose chunk holds at least `min_items` different items of their category.

    An interest may be in force through a chunk in which nothing was done for it; nobody could read that.
    """
    row = pa.array(np.repeat(np.arange(chunks.num_rows), pc.list_value_length(chunks["item_ids"]).to_numpy()))
    seen = pa.table({"row": row, "item_id": pc.list_flatten(chunks["item_ids"])}).drop_null().group_by(["row", "item_id"]).aggregate([])
    category = items["category"].take(pc.index_in(seen["item_id"], items["item_id"].combine_chunks()))
    counted = pa.table({"row": seen["row"], "category": category, "item_id": seen["item_id"]}).drop_null()
    counted = counted.group_by(["row", "category"]).aggregate([("item_id", "count")])
    enough = counted.filter(pc.greater_equal(counted["item_id_count"], min_items))
    of_chunk = chunks.select(["user_id", "chunk"]).take(enough["row"])
    shown = pa.table({"user_id": of_chunk["user_id"], "chunk": of_chunk["chunk"], "category": enough["category"]})
    return active.join(shown, ["user_id", "chunk", "category"], join_type="left semi")


def measure_faithfulness(
    interests: pa.Table, chunks: pa.Table, truths: pa.Table, items: pa.Table | None = None, min_items: int = 2
) -> Faithfulness:
    """Mined phrases against the truths in force in their chunk's time span; a match is an equal phrase.

    Args:
        interests: USER_INTEREST rows; those of other chunks than `chunks` are passed over.
        chunks: CHUNK rows that were asked about (`asked_chunks`): one without an answer counts against recall.
        truths: TRUE_INTEREST rows.
        items: ITEM rows; recall is then a share of the truths that the chunk shows (`shown_truths`). Without them it is a
            share of all that were in force, and no reader can reach 1.
        min_items: items of its category that a truth needs in the chunk to count as shown.
    """
    keys = chunks.select(["user_id", "chunk"])
    mined = pa.table({"user_id": interests["user_id"], "chunk": interests["chunk"], "phrase": _normalised(interests["interest"])})
    mined = mined.join(keys, ["user_id", "chunk"], join_type="left semi").group_by(KEY).aggregate([])
    active = active_truths(chunks, truths)
    wanted = active if items is None else shown_truths(active, chunks, items, min_items)
    num_hits = mined.join(active.select(KEY), KEY, join_type="left semi").num_rows
    precision = _share(num_hits, mined.num_rows)
    recall = _share(wanted.join(mined, KEY, join_type="left semi").num_rows, wanted.num_rows)
    f1 = _share(2 * precision * recall, precision + recall)
    return Faithfulness(precision, recall, f1, mined.num_rows, wanted.num_rows, num_hits, chunks.num_rows)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _normalised(phrases: pa.ChunkedArray) -> pa.Array:
    """Each distinct phrase is normalised once."""
    encoded = phrases.combine_chunks().dictionary_encode()
    spelled = pa.array([normalise(phrase) for phrase in encoded.dictionary.to_pylist()], pa.string())
    return spelled.take(encoded.indices)
