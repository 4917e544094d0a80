"""How far mined interests tell the truth, where a simulator knows it."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from intently.interests.phrases import normalise

KEY = ["user_id", "chunk", "phrase"]


@dataclass(frozen=True)
class Faithfulness:
    """Mined phrases against true ones, counted over (user, chunk, phrase).

    Attributes:
        precision: share of the mined phrases that were true while the chunk lasted.
        recall: share of the true phrases that were mined.
        f1: harmonic mean of the two.
        num_mined: distinct mined phrases.
        num_true: distinct true phrases.
        num_hits: phrases that are both.
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


def active_truths(chunks: pa.Table, truths: pa.Table, min_strength: float = 0.0) -> pa.Table:
    """The true interests that overlapped each chunk in time.

    Args:
        chunks: CHUNK rows.
        truths: TRUE_INTEREST rows.
        min_strength: weaker interests are not counted as true.
    Returns:
        columns user_id, chunk, phrase (normalised); distinct.
    """
    strong = truths.filter(pc.greater_equal(truths["strength"], min_strength))
    wanted = pa.table(
        {"user_id": strong["user_id"], "phrase": _normalised(strong["interest"]), "began": strong["start"], "ended": strong["end"]}
    )
    spans = chunks.select(["user_id", "chunk", "start", "end"])
    joined = spans.join(wanted, "user_id", join_type="inner")
    overlapping = pc.and_(pc.less_equal(joined["began"], joined["end"]), pc.greater_equal(joined["ended"], joined["start"]))
    return joined.filter(overlapping).select(KEY).group_by(KEY).aggregate([])


def measure_faithfulness(interests: pa.Table, chunks: pa.Table, truths: pa.Table, min_strength: float = 0.0) -> Faithfulness:
    """Precision and recall of mined phrases against the truths active in their chunk's time span; a match is an equal phrase.

    Args:
        interests: USER_INTEREST rows; those of other chunks than `chunks` are passed over.
        chunks: CHUNK rows that were asked about (`asked_chunks`): one without an answer counts against recall.
        truths: TRUE_INTEREST rows.
        min_strength: weaker interests are not counted as true.
    """
    keys = chunks.select(["user_id", "chunk"])
    mined = pa.table({"user_id": interests["user_id"], "chunk": interests["chunk"], "phrase": _normalised(interests["interest"])})
    mined = mined.join(keys, ["user_id", "chunk"], join_type="left semi").group_by(KEY).aggregate([])
    true = active_truths(chunks, truths, min_strength)
    hits = mined.join(true, KEY, join_type="left semi").num_rows
    precision = hits / mined.num_rows if mined.num_rows else 0.0
    recall = hits / true.num_rows if true.num_rows else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return Faithfulness(precision, recall, f1, mined.num_rows, true.num_rows, hits, chunks.num_rows)


def _normalised(phrases: pa.ChunkedArray) -> pa.Array:
    """Each distinct phrase is normalised once."""
    encoded = phrases.combine_chunks().dictionary_encode()
    spelled = pa.array([normalise(phrase) for phrase in encoded.dictionary.to_pylist()], pa.string())
    return spelled.take(encoded.indices)
