"""Why an item suits an interest: written ahead of time for pairs that share a category, and once for every item by itself (RecGPT §2.4).

Serving looks a reason up by (item, interest) and falls back to the one with the empty interest, so no reason is ever written
for a user.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import EXPLANATION, REJECT
from intently.interests.asking import ask, refusal, refuse
from intently.interests.phrases import BrandFinder, normalise, stutters, words
from intently.interests.usage import Usage
from intently.interests.vectors import item_texts, nearest
from intently.llm.answer import Question
from intently.llm.contract import Engine, Sampling
from intently.llm.tasks import TASKS, ExplanationText

STAGE = "explanation"
ANYBODY = ""
"""The interest of a reason that fits anybody."""

CLICHES = (
    "a must have",
    "must have item",
    "game changer",
    "look no further",
    "next level",
    "elevate your",
    "treat yourself",
    "you deserve",
    "stand out from the crowd",
    "makes a great gift for anyone",
    "perfect for everyone",
    "something for everyone",
    "best of the best",
    "one of a kind",
    "unleash your",
    "like never before",
)
"""Wordings, normalised, that say nothing about the item."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")


class ExplanationConfig(Config):
    """Which reasons are written, and how they are checked."""

    items_per_interest: int = Field(10, ge=0, description="items that each distinct interest is explained for, closest first")
    categories_per_interest: int = Field(3, ge=1, description="the most frequent categories of an interest's evidence and tags")
    max_interests: int | None = Field(None, ge=1, description="only the interests of the most users; None takes all")
    title_overlap: float = Field(0.8, ge=0, le=1, description="share of common words from which a text merely repeats the title")
    sampling: Sampling = Field(Sampling(max_tokens=128), description="how answers are drawn")


@dataclass(frozen=True)
class Explained:
    """What came of a set of pairs.

    Attributes:
        explanations: EXPLANATION rows, by item and interest.
        rejects: REJECT rows: answers that stayed invalid, texts that broke a rule.
        usage: what the questions cost.
    """

    explanations: pa.Table
    rejects: pa.Table
    usage: Usage


def interest_categories(interests: pa.Table, tags: pa.Table, items: pa.Table) -> pa.Table:
    """Which categories an interest shows in, by the items that are its evidence and by its tags.

    Args:
        interests: USER_INTEREST rows.
        tags: TAG rows.
        items: ITEM rows.
    Returns:
        columns interest, category, count; one row a pair, ordered by interest, then by count from high to low.
    """
    lengths = pc.list_value_length(interests["evidence"]).to_numpy()
    row = pa.array(np.repeat(np.arange(interests.num_rows), lengths))
    found = pc.index_in(pc.list_flatten(interests["evidence"]), items["item_id"].combine_chunks())
    by_evidence = pa.table({"interest": interests["interest"].take(row), "category": items["category"].take(found)})
    by_tag = pa.table({"interest": tags["interest"], "category": tags["category"]})
    both = pa.concat_tables([by_evidence, by_tag]).drop_null()
    counted = both.append_column("one", pa.array(np.ones(both.num_rows, np.int64))).group_by(["interest", "category"])
    order = [("interest", "ascending"), ("count", "descending"), ("category", "ascending")]
    return counted.aggregate([("one", "sum")]).rename_columns({"one_sum": "count"}).sort_by(order)


def plan_pairs(interests: pa.Table, tags: pa.Table, items: pa.Table, encoder: TextEncoder, config: ExplanationConfig) -> pa.Table:
    """The pairs that get a reason: every item for anybody, and for each distinct interest its closest items of its categories.

    Args:
        interests: USER_INTEREST rows of all users.
        tags: TAG rows of all users.
        items: ITEM rows of the catalogue.
        encoder: compares interests with items.
        config: how many pairs.
    Returns:
        columns item_id, interest; distinct, ordered by interest and item.
    """
    anybody = pa.table({"item_id": items["item_id"], "interest": pa.array([ANYBODY] * items.num_rows, pa.string())})
    phrases = _distinct_interests(interests, config.max_interests)
    if not phrases or not config.items_per_interest or not items.num_rows:
        return anybody.sort_by("item_id")
    shared = interest_categories(interests, tags, items)
    categories = pc.unique(items["category"])
    allowed = np.zeros((len(phrases), len(categories)), bool)  # [I, C]
    row = pc.index_in(shared["interest"], pa.array(phrases)).fill_null(-1).to_numpy()
    column = pc.index_in(shared["category"], categories).fill_null(-1).to_numpy()
    known = (row >= 0) & (column >= 0) & (_place_in_run(row) < config.categories_per_interest)
    allowed[row[known], column[known]] = True
    item_category = pc.index_in(items["category"], categories).to_numpy()
    closest, cosines = nearest(
        encoder.encode(phrases), encoder.encode(item_texts(items).to_pylist()), config.items_per_interest, allowed[:, item_category]
    )
    real = np.isfinite(cosines)
    pairs = pa.table(
        {
            "item_id": items["item_id"].take(pa.array(closest[real])),
            "interest": pa.array(np.array(phrases, dtype=object)[np.nonzero(real)[0]], pa.string()),
        }
    )
    return pa.concat_tables([anybody, pairs]).sort_by([("interest", "ascending"), ("item_id", "ascending")])


def pairs_of_part(pairs: pa.Table, part: int, num_parts: int) -> pa.Table:
    """The pairs whose hash falls into one of `num_parts` parts."""
    keys = zip(pairs["item_id"].to_pylist(), pairs["interest"].to_pylist(), strict=True)
    digests = (hashlib.sha256(f"{item}\n{interest}".encode()).digest() for item, interest in keys)
    return pairs.filter(pa.array([int.from_bytes(digest[:8], "big") % num_parts == part for digest in digests], pa.bool_()))


def explain(pairs: pa.Table, items: pa.Table, brands: BrandFinder, engine: Engine, config: ExplanationConfig) -> Explained:
    """Ask the engine for the reason of every pair, and check what it says against the item.

    Args:
        pairs: columns item_id, interest, as from `plan_pairs`.
        items: ITEM rows, all that the pairs name.
        brands: those of the whole catalogue; a text may name none but the item's own.
        engine: answers the questions.
        config: how texts are drawn and checked.
    """
    row = pc.index_in(pairs["item_id"], items["item_id"].combine_chunks())
    asked = items.select(["item_id", "title", "category", "brand", "price", "attributes", "description"]).take(row).to_pylist()
    phrases = pairs["interest"].to_pylist()
    keys = [f"{item['item_id']}/{phrase}" for item, phrase in zip(asked, phrases, strict=True)]
    questions = [
        Question(key, {"item": item, "interest": phrase or None}, config.sampling)
        for key, item, phrase in zip(keys, asked, phrases, strict=True)
    ]
    outcomes, usage = ask(engine, questions, TASKS["explanation"])
    rows: list[dict[str, Any]] = []
    rejects = []
    for key, item, phrase, outcome in zip(keys, asked, phrases, outcomes, strict=True):
        if not isinstance(outcome.answer, ExplanationText):
            rejects.append(refusal(STAGE, key, outcome))
            continue
        text = " ".join(outcome.answer.explanation.split())
        reason = broken_rule(text, item, brands, config.title_overlap)
        if reason:
            rejects.append(refuse(STAGE, key, reason, text))
        else:
            rows.append({"item_id": item["item_id"], "interest": phrase, "text": text, "model": engine.name})
    explanations = EXPLANATION.from_rows(rows).sort_by([(name, "ascending") for name in EXPLANATION.key])
    return Explained(explanations, REJECT.from_rows(rejects), usage)


def broken_rule(text: str, item: dict[str, Any], brands: BrandFinder, title_overlap: float) -> str | None:
    """Which rule an explanation breaks, or None.

    Args:
        text: the explanation.
        item: the item's row.
        brands: knows the brands of the whole catalogue.
        title_overlap: share of common words (Jaccard) from which the text merely repeats the title.
    """
    said, title = words(text), words(item["title"])
    if not 10 <= len(text) <= 200:
        return "not 10 to 200 characters"
    facts = _facts(item)
    if _numbers(text) - _numbers(facts) - _prices(item["price"]):
        return "a number that is no fact of the item"
    own = normalise(facts)
    if any(f" {normalise(brand)} " not in f" {own} " for brand in brands.find(text)):
        return "names another brand"
    if len(set(said) & set(title)) >= title_overlap * len(set(said) | set(title)):
        return "repeats the title"
    if stutters(text):
        return "runs in circles"
    if any(f" {cliche} " in f" {' '.join(said)} " for cliche in CLICHES):
        return "a cliché"
    return None


def _distinct_interests(interests: pa.Table, max_interests: int | None) -> list[str]:
    """The distinct phrases, those of the most users first, ties by alphabet."""
    users = interests.group_by(["interest"]).aggregate([("user_id", "count_distinct")])
    ranked = users.sort_by([("user_id_count_distinct", "descending"), ("interest", "ascending")])
    return ranked["interest"].to_pylist()[:max_interests]


def _place_in_run(keys: np.ndarray) -> np.ndarray:
    """[N] keys, equal ones adjacent → [N] place of each within its run, from 0."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    return np.arange(len(keys)) - np.repeat(starts, np.diff(np.concatenate([starts, [len(keys)]])))


def _facts(item: dict[str, Any]) -> str:
    return " ; ".join([item["title"], item["category"], item["brand"] or "", item["description"] or "", *item["attributes"]])


def _numbers(text: str) -> set[str]:
    return {_THOUSANDS.sub("", number).replace(",", ".") for number in _NUMBER.findall(text)}


def _prices(price: float | None) -> set[str]:
    """The ways in which a price may be written."""
    return set() if price is None else {f"{price:.2f}", f"{price:.1f}", f"{price:.0f}", f"{price:g}"}
