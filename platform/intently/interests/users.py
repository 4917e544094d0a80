"""What a user wants, read chunk by chunk: the question about chunk i carries what was read from chunk i-1 (HiT-LBM's cascade).

All users walk side by side, each at its own pace: a user's next question joins the running batch as soon as the last is answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, create_model

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import CHUNK, REJECT, USER_INTEREST
from intently.interests.asking import ask, refusal, refuse
from intently.interests.phrases import normalise, stutters
from intently.interests.usage import Usage
from intently.interests.vectors import item_texts
from intently.llm.answer import Outcome, Question
from intently.llm.contract import Engine, Sampling
from intently.llm.tasks import TASKS, InterestDraft, Task, UserInterests

STAGE = "user_interest"


class MiningConfig(Config):
    """How users are read."""

    max_users: int | None = Field(None, ge=1, description="read only so many users, chosen by a hash of their ids; None reads all")
    max_chunks: int = Field(8, ge=1, description="the most recent chunks of a user that are read")
    cascade: bool = Field(True, description="a question carries the interests of the chunk before; false reads each chunk alone (LIBER)")
    max_interests: int = Field(16, ge=1, le=16, description="interests that an answer may hold; its form allows no more")
    max_previous: int = Field(12, ge=0, description="interests of the chunk before that a question carries")
    same_similarity: float = Field(0.85, ge=0, le=1, description="cosine from which two phrases are the same interest")
    evidence_similarity: float = Field(0.35, ge=0, le=1, description="cosine from which an item of the chunk supports an interest")
    max_evidence: int = Field(5, ge=0, description="items that are kept as evidence of one interest; 0 spares encoding the items")
    sampling: Sampling = Field(Sampling(max_tokens=640), description="how answers are drawn")


@dataclass(frozen=True)
class Mined:
    """What came of a set of chunks.

    Attributes:
        interests: USER_INTEREST rows, by user, chunk and rank.
        rejects: REJECT rows: answers that stayed invalid, interests named twice.
        usage: what the questions cost.
    """

    interests: pa.Table
    rejects: pa.Table
    usage: Usage


@dataclass(frozen=True)
class Candidate:
    """One answer to the question about a chunk.

    Attributes:
        sample: its number among the answers that were drawn.
        drafts: its distinct interests, at least one.
    """

    sample: int
    drafts: list[InterestDraft]


@dataclass(frozen=True)
class Picked:
    """The candidate that the user's walk goes on from.

    Attributes:
        candidate: which.
        columns: what its rows of UserInterest say of the choice: scores and path; none where nothing was to choose by.
    """

    candidate: Candidate
    columns: Mapping[str, float | str | None] = field(default_factory=dict)


Pick = Callable[[Mapping[str, Any], Sequence[Candidate]], Picked]
"""(columns of a CHUNK row, its candidates, at least one) → the one that is kept; called for a user's chunks oldest first."""


def first_candidate(entry: Mapping[str, Any], candidates: Sequence[Candidate]) -> Picked:
    """The first answer that could be read."""
    return Picked(candidates[0])


@dataclass
class _Memory:
    """The vectors of what one user's earlier chunks gave: the last good chunk's, and those before it."""

    previous_vectors: np.ndarray | None = None  # [P, D]
    older_vectors: list[np.ndarray] = field(default_factory=list)  # each [P, D]

    def shifts(self, vectors: np.ndarray, threshold: float) -> list[str]:
        """[I, D] interests of a new chunk → new, continued or returned, for each."""
        continued = _known(vectors, self.previous_vectors, threshold)
        returned = _known(vectors, np.concatenate(self.older_vectors) if self.older_vectors else None, threshold)
        return np.where(continued, "continued", np.where(returned, "returned", "new")).tolist()

    def remember(self, vectors: np.ndarray) -> None:
        """Take in the interests of the chunk that was just read."""
        if self.previous_vectors is not None:
            self.older_vectors.append(self.previous_vectors)
        self.previous_vectors = vectors


@cache
def bounded_task(max_interests: int) -> Task:
    """The task `user_interests` with at most so many interests, so that guided decoding ends a list that the model does not."""
    interests = (list[InterestDraft], Field(min_length=1, max_length=max_interests))
    return replace(TASKS["user_interests"], answer=create_model("UserInterests", __base__=UserInterests, interests=interests))


def user_order(user_id: str) -> str:
    """Where a user stands in the fixed shuffle that `max_users` takes the first of."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def chosen_users(user_ids: Iterable[str], max_users: int | None) -> str | None:
    """The last place in the shuffle that is still read, over all users of the job; None when all are."""
    if max_users is None:
        return None
    places = sorted(map(user_order, set(user_ids)))
    return places[max_users - 1] if len(places) > max_users else None


def keep_chosen(chunks: pa.Table, last_place: str | None) -> pa.Table:
    """The rows of users that stand no later than `last_place` (of `chosen_users`)."""
    if last_place is None:
        return chunks
    users = pc.unique(chunks["user_id"])
    kept = [user for user in users.to_pylist() if user_order(user) <= last_place]
    return chunks.filter(pc.is_in(chunks["user_id"], pa.array(kept, pa.string())))


def recent_chunks(chunks: pa.Table, max_chunks: int) -> list[pa.Table]:
    """The most recent chunks of each user, as levels: the first table holds the oldest kept chunk of every user, and so on."""
    ordered = chunks.sort_by([("user_id", "ascending"), ("chunk", "ascending")])
    if not ordered.num_rows:
        return []
    user = ordered["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, count = np.unique(user, return_index=True, return_counts=True)
    start = np.maximum(first, first + count - max_chunks)
    level = np.arange(len(user)) - start[user]
    return [ordered.filter(pa.array(level == depth)) for depth in range(level.max() + 1)]


def mine_users(
    chunks: pa.Table,
    items: pa.Table,
    engine: Engine,
    encoder: TextEncoder,
    config: MiningConfig,
    pick: Pick = first_candidate,
    pick_encodes: bool = False,
) -> Mined:
    """Ask the engine what each user wants, chunk after chunk.

    An answer that stays invalid becomes a Reject; the user's next chunk is then read with the last good interests before it.

    Args:
        chunks: CHUNK rows of any users; whole users only.
        items: ITEM rows, all that the chunks name.
        engine: answers the questions.
        encoder: says which phrases are the same interest and which items support one.
        config: how users are read; `max_users` is the caller's to apply (`keep_chosen`).
        pick: which of the answers drawn for a chunk is kept.
        pick_encodes: `pick` asks the encoder, while the engine waits: items are then encoded when all is answered, not beside it.
    """
    texts = dict(zip(items["item_id"].to_pylist(), item_texts(items).to_pylist(), strict=True))
    levels = [level.select(["user_id", "bucket", "chunk", "item_ids", "text"]).to_pylist() for level in _levels(chunks, config)]
    listed = {item for entries in levels for entry in entries for item in entry["item_ids"]} if config.max_evidence else set()
    named = sorted({texts[item] for item in listed if item in texts})
    with ThreadPoolExecutor(max_workers=1) as beside:
        # While the engine answers, if it may: what the chunks hold is known before.
        encoded = None if pick_encodes else beside.submit(encoder.encode, named)
        found, rejects, usage = _ask(levels, engine, config, pick)
        vectors = dict(zip(named, encoded.result() if encoded else encoder.encode(named), strict=True))
    phrases = sorted({normalise(draft.interest) for picked in found.values() for draft in picked.candidate.drafts})
    vectors |= dict(zip(phrases, encoder.encode(phrases), strict=True))
    memories: dict[str, _Memory] = {}
    rows: list[dict[str, Any]] = []
    for entries in levels:
        for entry in entries:
            if picked := found.get(_key(entry)):
                memory = memories.setdefault(entry["user_id"], _Memory())
                rows += _rows(entry, picked, memory, texts, vectors, config, engine.name)
    interests = USER_INTEREST.from_rows(rows).sort_by([(name, "ascending") for name in USER_INTEREST.key])
    return Mined(interests, REJECT.from_rows(rejects), usage)


def _levels(chunks: pa.Table, config: MiningConfig) -> list[pa.Table]:
    return recent_chunks(CHUNK.check(chunks), config.max_chunks)


def _ask(
    levels: Sequence[Sequence[dict[str, Any]]], engine: Engine, config: MiningConfig, pick: Pick
) -> tuple[dict[str, Picked], list[dict[str, str]], Usage]:
    """Chunk → what was kept of its answers (nothing of invalid ones); what was refused; what it cost."""
    entries = {_key(entry): entry for level in levels for entry in level}
    chains: dict[str, list[str]] = {}
    for key, entry in entries.items():
        chains.setdefault(entry["user_id"], []).append(key)
    following = {key: after for chain in chains.values() for key, after in pairwise(chain)}
    found: dict[str, Picked] = {}
    refused: dict[str, list[dict[str, str]]] = {}
    previous: dict[str, list[str]] = {}  # user → the last good chunk's phrases

    def next_of(outcome: Outcome) -> list[Question]:
        key = outcome.question_id
        user = entries[key]["user_id"]
        candidates, refused[key] = _candidates(key, outcome)
        if candidates:
            found[key] = pick(entries[key], candidates)
            previous[user] = [draft.interest for draft in found[key].candidate.drafts]
        after = following.get(key)
        return [_question(after, entries[after], previous.get(user, ()), config)] if after else []

    firsts = [_question(chain[0], entries[chain[0]], (), config) for chain in chains.values()]
    _, usage = ask(engine, firsts, bounded_task(config.max_interests), next_of)
    return found, [reject for key in entries for reject in refused[key]], usage


def _question(key: str, entry: dict[str, Any], previous: Sequence[str], config: MiningConfig) -> Question:
    carried = list(previous[: config.max_previous]) if config.cascade else []
    return Question(key, {"behaviours": entry["text"], "previous": carried}, config.sampling)


def _key(entry: dict[str, Any]) -> str:
    return f"{entry['user_id']}/{entry['chunk']}"


def _candidates(key: str, outcome: Outcome) -> tuple[list[Candidate], list[dict[str, str]]]:
    """The answers to a question that hold an interest, and what was refused."""
    if outcome.answer is None:
        return [], [refusal(STAGE, key, outcome)]
    candidates, rejects = [], []
    for number, sample in enumerate(outcome.samples):
        place = key if len(outcome.samples) == 1 else f"{key}/{number}"
        if isinstance(sample.answer, UserInterests):
            drafts, refused = _drafts(place, sample.answer)
            candidates += [Candidate(number, drafts)] if drafts else []
            rejects += refused
        else:
            rejects.append(refuse(STAGE, place, sample.error or "", sample.text))
    return candidates, rejects


def _drafts(key: str, answer: UserInterests) -> tuple[list[InterestDraft], list[dict[str, str]]]:
    """The distinct interests of an answer, and what was refused."""
    rejects = []
    distinct: dict[str, InterestDraft] = {}
    for rank, draft in enumerate(answer.interests):
        phrase = normalise(draft.interest)
        if not phrase:
            rejects.append(refuse(STAGE, f"{key}/{rank}", "interest without a word", draft.interest))
        elif stutters(phrase) or stutters(draft.reason):
            rejects.append(refuse(STAGE, f"{key}/{rank}", "runs in circles", f"{draft.interest} | {draft.reason}"))
        elif phrase in distinct:
            rejects.append(refuse(STAGE, f"{key}/{rank}", "named twice in one answer", draft.interest))
        else:
            distinct[phrase] = draft
    return list(distinct.values()), rejects


def _rows(
    entry: dict[str, Any],
    picked: Picked,
    memory: _Memory,
    texts: dict[str, str],
    vectors: dict[str, np.ndarray],
    config: MiningConfig,
    model: str,
) -> list[dict[str, Any]]:
    found = picked.candidate.drafts
    phrase_vectors = np.stack([vectors[normalise(draft.interest)] for draft in found])
    shifts = memory.shifts(phrase_vectors, config.same_similarity)
    memory.remember(phrase_vectors)
    items = [item for item in dict.fromkeys(entry["item_ids"]) if item in texts] if config.max_evidence else []
    evidence = _evidence(phrase_vectors, items, [vectors[texts[item]] for item in items], config)
    return [
        {
            **{name: entry[name] for name in ("user_id", "bucket", "chunk")},
            "rank": rank,
            "interest": draft.interest,
            "stage": draft.stage,
            "reason": draft.reason,
            "shift": shift,
            "evidence": supporting,
            **picked.columns,
            "model": model,
        }
        for rank, (draft, shift, supporting) in enumerate(zip(found, shifts, evidence, strict=True))
    ]


def _evidence(interests: np.ndarray, items: list[str], vectors: list[np.ndarray], config: MiningConfig) -> list[list[str]]:
    """[I, D] interests against the N × [D] items of their own chunk → the ids that support each, closest first."""
    if not items:
        return [[] for _ in interests]
    similarity = interests @ np.stack(vectors).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : config.max_evidence]
    close = np.take_along_axis(similarity, order, axis=1) >= config.evidence_similarity
    names = np.array(items, dtype=object)
    return [names[row[kept]].tolist() for row, kept in zip(order, close, strict=True)]


def _known(vectors: np.ndarray, earlier: np.ndarray | None, threshold: float) -> np.ndarray:
    """[I, D] against [P, D] → [I] bool; a hair below the threshold counts, since equal texts can differ in the last bit."""
    if earlier is None or not len(earlier):
        return np.zeros(len(vectors), bool)
    return (vectors @ earlier.T).max(axis=1) >= threshold - 1e-5
