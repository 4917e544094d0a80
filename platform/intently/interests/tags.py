"""Which kinds of items a user would be glad to find next: predicted by a language model from the user's interests, then checked by rules.

RecGPT §2.3: a tag is modifiers and a core word, names no brand, and repeats nothing that was touched in the last month.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, create_model

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import REJECT, TAG, USER_INTEREST, Behaviour
from intently.interests.asking import ask, refusal, refuse
from intently.interests.phrases import BrandFinder, normalise, stutters
from intently.interests.usage import Usage
from intently.interests.vectors import item_texts, nearest
from intently.llm.answer import Outcome, Question
from intently.llm.contract import Engine, Sampling
from intently.llm.tasks import TASKS, ItemTags, TagDraft, Task

STAGE = "tag"
MICROSECONDS_PER_DAY = 86_400_000_000


class TagConfig(Config):
    """How tags are asked for and checked."""

    num_tags: int = Field(50, ge=1, le=60, description="tags asked for, a user")
    min_tags: int = Field(10, ge=0, description="users with fewer tags after the checks are counted in the manifest")
    max_interests: int = Field(12, ge=1, description="current interests that a question names")
    recent_days: float = Field(30.0, ge=0, description="what was touched in these last days may not be repeated")
    max_recent: int = Field(12, ge=0, description="titles touched lately that a question names; the check knows them all")
    interest_similarity: float = Field(0.7, ge=0, le=1, description="cosine from which an answer's interest is one that was asked about")
    nearest_items: int = Field(5, ge=1, description="items whose categories decide a tag's category")
    category_similarity: float = Field(0.25, ge=0, le=1, description="cosine below which an item has no say; none left, no category")
    sampling: Sampling = Field(Sampling(max_tokens=3000), description="how answers are drawn")


@dataclass(frozen=True)
class Predicted:
    """What came of a set of users.

    Attributes:
        tags: TAG rows, by user and rank.
        rejects: REJECT rows: answers that stayed invalid, tags that broke a rule.
        usage: what the questions cost.
        users_below_min: users who were asked about and have fewer than `min_tags` tags now.
    """

    tags: pa.Table
    rejects: pa.Table
    usage: Usage
    users_below_min: int


@dataclass(frozen=True)
class _Person:
    """What is known of one user when tags are asked for."""

    user_id: str
    bucket: int
    interests: list[dict[str, str]]
    season: str
    recent: list[str]


def season_of(month: int) -> str:
    """1 … 12 → the season of the northern hemisphere, as catalogues of the data sets we know count it."""
    return ("winter", "spring", "summer", "autumn")[month % 12 // 3]


@cache
def bounded_task(num_tags: int) -> Task:
    """The task `item_tags` with an answer of at most `num_tags` tags, so that guided decoding ends a list that the model does not."""
    tags = (list[TagDraft], Field(min_length=1, max_length=num_tags))
    return replace(TASKS["item_tags"], answer=create_model("ItemTags", __base__=ItemTags, tags=tags))


def current_interests(interests: pa.Table, max_interests: int) -> dict[str, list[dict[str, str]]]:
    """User → the interests that hold now, best first, each with `interest` and `stage`.

    Those of the user's last chunk come first, by rank; then those of the chunk before it that had lasted already
    (continued) and were not fading, which the last chunk merely did not show.
    """
    rows = interests.select(["user_id", "chunk", "rank", "interest", "stage", "shift"]).sort_by(
        [("user_id", "ascending"), ("chunk", "descending"), ("rank", "ascending")]
    )
    found: dict[str, dict[str, dict[str, str]]] = {}
    chunks: dict[str, list[int]] = {}
    for row in rows.to_pylist():
        seen = chunks.setdefault(row["user_id"], [])
        if row["chunk"] not in seen:
            seen.append(row["chunk"])
        lasting = row["shift"] == "continued" and row["stage"] != "fading"
        if len(seen) == 1 or (len(seen) == 2 and lasting):
            kept = found.setdefault(row["user_id"], {})
            kept.setdefault(normalise(row["interest"]), {"interest": row["interest"], "stage": row["stage"]})
    return {user: list(kept.values())[:max_interests] for user, kept in found.items()}


def recent_titles(history: pa.Table, items: pa.Table, days: float) -> list[list[str]]:
    """[H] HISTORY rows → for each, the titles touched in the `days` before the user's last event, latest first.

    An impression touches nothing.
    """
    if not history.num_rows:
        return []
    lengths = pc.list_value_length(history["item_ids"]).to_numpy()
    row = np.repeat(np.arange(history.num_rows), lengths)
    item = pc.index_in(pc.list_flatten(history["item_ids"]), items["item_id"].combine_chunks()).fill_null(-1).to_numpy()
    time = pc.list_flatten(history["timestamps"]).cast(pa.int64()).to_numpy()
    shown = pc.equal(pc.list_flatten(history["behaviours"]), Behaviour.IMPRESSION.value).to_numpy()
    last = np.zeros(history.num_rows, np.int64)
    np.maximum.at(last, row, time)
    touched = np.flatnonzero((item >= 0) & ~shown & (time >= last[row] - days * MICROSECONDS_PER_DAY))[::-1]
    # Of several touches of one item the latest comes first in `touched`, and unique keeps the first.
    _, first = np.unique(row[touched] * items.num_rows + item[touched], return_index=True)
    kept = touched[np.sort(first)]
    titles = items["title"].take(pa.array(item[kept])).to_pylist()
    grouped: list[list[str]] = [[] for _ in range(history.num_rows)]
    for user, title in zip(row[kept].tolist(), titles, strict=True):
        grouped[user].append(title)
    return grouped


def predict_tags(
    interests: pa.Table, history: pa.Table, items: pa.Table, brands: BrandFinder, engine: Engine, encoder: TextEncoder, config: TagConfig
) -> Predicted:
    """Ask the engine for tags of every user who has interests, and check them.

    Args:
        interests: USER_INTEREST rows of any users; whole users only.
        history: HISTORY rows of at least these users, from before whatever the tags will be measured on.
        items: ITEM rows of the catalogue.
        brands: its brands, which no tag may name.
        engine: answers the questions.
        encoder: finds the interest and the category that a tag belongs to.
        config: how tags are asked for and checked.
    """
    people = _people(USER_INTEREST.check(interests), history, items, config)
    questions = [
        Question(
            person.user_id,
            {
                "interests": person.interests,
                "recent": person.recent[: config.max_recent],
                "season": person.season,
                "num_tags": config.num_tags,
            },
            config.sampling,
        )
        for person in people
    ]
    outcomes, usage = ask(engine, questions, bounded_task(config.num_tags))
    served = _served_interests(people, outcomes, encoder, config.interest_similarity)
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    users_below_min = 0
    for person, outcome in zip(people, outcomes, strict=True):
        kept: list[dict[str, Any]] = []
        if isinstance(outcome.answer, ItemTags):
            kept, refused = _check(person, outcome.answer.tags, served, brands)
            rejects += refused
        else:
            rejects.append(refusal(STAGE, person.user_id, outcome))
        users_below_min += len(kept) < config.min_tags
        rows += [{**row, "rank": rank, "model": engine.name} for rank, row in enumerate(kept)]
    _add_categories(rows, items, encoder, config)
    tags = TAG.from_rows(rows).sort_by([(name, "ascending") for name in TAG.key])
    return Predicted(tags, REJECT.from_rows(rejects), usage, users_below_min)


def _people(interests: pa.Table, history: pa.Table, items: pa.Table, config: TagConfig) -> list[_Person]:
    """Users with interests and a history, in the order of their ids."""
    current = current_interests(interests, config.max_interests)
    asked = history.filter(pc.is_in(history["user_id"], pa.array(sorted(current), pa.string()))).sort_by("user_id")
    asked = asked.filter(pc.greater(pc.list_value_length(asked["timestamps"]), 0))
    recent = recent_titles(asked, items, config.recent_days)
    columns = (asked["user_id"].to_pylist(), asked["bucket"].to_pylist(), last_months(asked), recent)
    return [_Person(user, bucket, current[user], season_of(month), titles) for user, bucket, month, titles in zip(*columns, strict=True)]


def last_months(history: pa.Table) -> list[int]:
    """HISTORY rows → 1 … 12, the month of each row's last event; every row has one."""
    ends = np.cumsum(pc.list_value_length(history["timestamps"]).to_numpy()) - 1
    return pc.month(pc.list_flatten(history["timestamps"]).take(pa.array(ends))).to_pylist()


def _served_interests(
    people: Sequence[_Person], outcomes: Sequence[Outcome], encoder: TextEncoder, threshold: float
) -> dict[tuple[str, str], str]:
    """(user, interest as the answer words it) → the interest that was asked about; pairs that match none are left out."""
    worded = {
        (person.user_id, normalise(draft.interest))
        for person, outcome in zip(people, outcomes, strict=True)
        if isinstance(outcome.answer, ItemTags)
        for draft in outcome.answer.tags
    }
    asked = {person.user_id: {normalise(entry["interest"]): entry["interest"] for entry in person.interests} for person in people}
    served = {pair: asked[pair[0]][pair[1]] for pair in worded if pair[1] in asked[pair[0]]}
    other = sorted(worded - served.keys())
    if other:
        phrases = sorted({phrase for _, phrase in other} | {phrase for user, _ in other for phrase in asked[user]})
        vectors = dict(zip(phrases, encoder.encode(phrases), strict=True))
        for user, phrase in other:
            options = list(asked[user])
            similarity = np.stack([vectors[option] for option in options]) @ vectors[phrase]
            if similarity.max() >= threshold:
                served[user, phrase] = asked[user][options[int(similarity.argmax())]]
    return served


def _check(
    person: _Person, drafts: Sequence[TagDraft], served: dict[tuple[str, str], str], brands: BrandFinder
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The tags of one answer that keep the rules, and the others with the rule that they broke."""
    touched = {normalise(title) for title in person.recent}
    kept: dict[str, dict[str, Any]] = {}
    rejects = []
    for rank, draft in enumerate(drafts):
        tag, interest = normalise(draft.tag), served.get((person.user_id, normalise(draft.interest)))
        if not tag:
            reason = "tag without a word"
        elif stutters(tag) or stutters(draft.reason):
            reason = "runs in circles"
        elif tag in kept:
            reason = "tag named twice"
        elif tag in touched:
            reason = "touched in the last month"
        elif brands.find(draft.tag):
            reason = "names a brand"
        elif interest is None:
            reason = "serves no interest of the user"
        else:
            base = {"user_id": person.user_id, "bucket": person.bucket, "interest": interest}
            kept[tag] = {**base, "tag": draft.tag, "reason": draft.reason}
            continue
        rejects.append(refuse(STAGE, f"{person.user_id}/{rank}", reason, f"{draft.tag} | {draft.interest}"))
    return list(kept.values()), rejects


def _add_categories(rows: list[dict[str, Any]], items: pa.Table, encoder: TextEncoder, config: TagConfig) -> None:
    """Give each row the category that the items nearest to the tag and its interest agree on.

    A tag alone ("soft-glow floor cushion") leaves open what the interest decides: their mean finds the category of
    96 in 100 tags of the simulator's world, the tag alone that of 84. The vote is the fourth power of the cosine.
    """
    pairs = sorted({(row["tag"], row["interest"]) for row in rows})
    categories = items["category"].to_pylist()
    if not pairs or not categories:
        return
    meanings = encoder.encode([tag for tag, _ in pairs]) + encoder.encode([interest for _, interest in pairs])
    meanings /= np.linalg.norm(meanings, axis=1, keepdims=True)
    indices, cosines = nearest(meanings, encoder.encode(item_texts(items).to_pylist()), config.nearest_items)
    chosen: dict[tuple[str, str], str | None] = {}
    for pair, neighbours, row_cosines in zip(pairs, indices.tolist(), cosines.tolist(), strict=True):
        votes: Counter[str] = Counter()
        for item, cosine in zip(neighbours, row_cosines, strict=True):
            if cosine >= config.category_similarity:
                votes[categories[item]] += cosine**4
        chosen[pair] = max(votes, key=votes.__getitem__) if votes else None
    for row in rows:
        row["category"] = chosen[row["tag"], row["interest"]]
