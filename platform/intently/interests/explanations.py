"""Why an item suits an interest: written ahead of time for pairs that share a category, and once for every item by itself (RecGPT §2.4).

Serving looks a reason up by (item, interest) and falls back to the one with the empty interest, so no reason is ever written
for a user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import EXPLANATION, REJECT, VERDICT
from intently.interests.asking import ask, refusal, refuse
from intently.interests.reason_rules import ReasonRules, RuleConfig
from intently.interests.usage import Usage
from intently.interests.vectors import item_texts, nearest
from intently.llm.answer import Outcome, Question
from intently.llm.contract import Engine, Sampling
from intently.llm.tasks import TASKS, ExplanationText

STAGE = "explanation"
ANYBODY = ""
"""The interest of a reason that fits anybody."""
BY_RULE = "rule"
"""The model of a reason that was made of the item's facts."""
ASKED = ["item_id", "title", "category", "categories", "brand", "price", "attributes", "description"]
"""What the question and the rules see of an item."""


class ExplanationConfig(Config):
    """Which reasons are written, and how they are checked."""

    items_per_interest: int = Field(10, ge=0, description="items that each distinct interest is explained for, closest first")
    categories_per_interest: int = Field(3, ge=1, description="the most frequent categories of an interest's evidence and tags")
    max_interests: int | None = Field(None, ge=1, description="only the interests of the most users; None takes all")
    min_category_share: float = Field(
        0.2, ge=0, le=1, description="of them, those with at least this share of the interest's evidence and tags"
    )
    min_similarity: float = Field(
        0.3, ge=-1, le=1, description="cosine of interest and item below which the two have nothing to do with each other"
    )
    rules: RuleConfig = Field(RuleConfig(), description="where the rules draw their lines")
    sampling: Sampling = Field(Sampling(max_tokens=128), description="how answers are drawn")
    max_attempts: int = Field(3, ge=1, description="texts drawn for a pair until one passes the rules; the first as `sampling` says")
    retry_temperature: float = Field(0.7, gt=0, le=2, description="temperature of the further ones, each with a seed of its own")


class ReasonJudge(Protocol):
    """Says of explanations whether they are good; a job passes one in."""

    def begin(self, part: str) -> None:
        """The part that is judged next."""

    def judge(self, explanations: pa.Table, items: pa.Table) -> pa.Table:
        """EXPLANATION rows, ITEM rows → VERDICT rows with the subject `item_id/interest`."""


@dataclass(frozen=True)
class Explained:
    """What came of a set of pairs.

    Attributes:
        explanations: EXPLANATION rows, by item and interest.
        verdicts: VERDICT rows of the judge, on the last text of each pair that it saw; none without a judge.
        rejects: REJECT rows, one a refused text (`item/interest#attempt`): answers that stayed invalid, broken rules, a judge's no.
        usage: what the questions cost.
        counts: pairs, passed (with a text of the model), passed_at_once, from_facts (reasons that are made of the item's facts).
    """

    explanations: pa.Table
    verdicts: pa.Table
    rejects: pa.Table
    usage: Usage
    counts: dict[str, int]


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
    count = shared["count"].to_numpy()
    share = count / np.maximum(1, np.bincount(row + 1, count, len(phrases) + 1)[row + 1])
    known = (row >= 0) & (column >= 0) & (_place_in_run(row) < config.categories_per_interest) & (share >= config.min_category_share)
    allowed[row[known], column[known]] = True
    item_category = pc.index_in(items["category"], categories).to_numpy()
    closest, cosines = nearest(
        encoder.encode(phrases), encoder.encode(item_texts(items).to_pylist()), config.items_per_interest, allowed[:, item_category]
    )
    real = cosines >= config.min_similarity  # what is not allowed has -inf
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


def explain(
    pairs: pa.Table, items: pa.Table, rules: ReasonRules, engine: Engine, config: ExplanationConfig, judge: ReasonJudge | None = None
) -> Explained:
    """Ask the engine for the reason of every pair and check what it says; a refused pair is asked again, with another draw.

    Where nothing passes, a reason is made of the item's own facts, so that serving has something true to show.

    Args:
        pairs: columns item_id, interest, as from `plan_pairs`.
        items: ITEM rows, all that the pairs name.
        rules: over the whole catalogue.
        engine: answers the questions.
        config: how texts are drawn.
        judge: reads what passed the rules; None asks nobody.
    """
    row = pc.index_in(pairs["item_id"], items["item_id"].combine_chunks())
    asked = items.select(ASKED).take(row).to_pylist()
    waiting = {f"{item['item_id']}/{phrase}": (item, phrase) for item, phrase in zip(asked, pairs["interest"].to_pylist(), strict=True)}
    kept: dict[str, dict[str, str]] = {}
    verdicts: dict[str, list[dict[str, str]]] = {}
    rejects: list[dict[str, str]] = []
    usage, passed_at_once = Usage(), 0
    for attempt in range(1, config.max_attempts + 1):
        sampling = config.sampling if attempt == 1 else config.sampling.model_copy(update=_redraw(config, attempt))
        questions = [Question(key, {"item": item, "interest": phrase or None}, sampling) for key, (item, phrase) in waiting.items()]
        outcomes, cost = ask(engine, questions, TASKS["explanation"])
        usage += cost
        good, refused = _by_rule(outcomes, waiting, rules, engine.name, attempt)
        rejects += refused
        if judge is not None and good:
            verdicts |= {key: [] for key in good}
            for verdict in judge.judge(EXPLANATION.from_rows(list(good.values())), items).to_pylist():
                verdicts[verdict["subject"]].append(verdict)
            good, refused = _by_judge(good, verdicts, attempt)
            rejects += refused
        kept |= good
        waiting = {key: pair for key, pair in waiting.items() if key not in good}
        passed_at_once = len(kept) if attempt == 1 else passed_at_once
        if not waiting:
            break
    from_facts = [_row(item, phrase, text, BY_RULE) for item, phrase in waiting.values() if (text := rules.from_facts(item, phrase))]
    counts = {"pairs": len(asked), "passed": len(kept), "passed_at_once": passed_at_once, "from_facts": len(from_facts)}
    explanations = EXPLANATION.from_rows([*kept.values(), *from_facts]).sort_by([(name, "ascending") for name in EXPLANATION.key])
    judged = VERDICT.from_rows([verdict for found in verdicts.values() for verdict in found])
    return Explained(explanations, judged, REJECT.from_rows(rejects), usage, counts)


def _by_rule(
    outcomes: Sequence[Outcome], pairs: Mapping[str, tuple[dict[str, Any], str]], rules: ReasonRules, model: str, attempt: int
) -> tuple[dict[str, dict[str, str]], list[dict[str, str]]]:
    """EXPLANATION rows of what passes, by pair, and REJECT rows of the rest."""
    good, refused = {}, []
    for outcome in outcomes:
        key, place = outcome.question_id, f"{outcome.question_id}#{attempt}"
        item, phrase = pairs[key]
        if not isinstance(outcome.answer, ExplanationText):
            refused.append(refusal(STAGE, place, outcome))
            continue
        text = " ".join(outcome.answer.explanation.split())
        if broken := rules.broken(text, item, phrase):
            refused.append(refuse(STAGE, place, broken, text))
        else:
            good[key] = _row(item, phrase, text, model)
    return good, refused


def _by_judge(
    rows: Mapping[str, dict[str, str]], verdicts: Mapping[str, list[dict[str, str]]], attempt: int
) -> tuple[dict[str, dict[str, str]], list[dict[str, str]]]:
    """The rows that the judge let pass under every criterion, and REJECT rows of the rest, named by their first no."""
    against = {key: [verdict for verdict in verdicts[key] if verdict["label"] != "yes"] for key in rows}
    good = {key: row for key, row in rows.items() if verdicts[key] and not against[key]}
    refused = [
        refuse(STAGE, f"{key}#{attempt}", f"judged: {said['criterion']}", f"{rows[key]['text']} ({said['reason']})")
        for key in rows
        for said in against[key][:1]
    ]
    return good, refused


def _redraw(config: ExplanationConfig, attempt: int) -> dict[str, Any]:
    return {"temperature": config.retry_temperature, "seed": (config.sampling.seed or 0) + attempt}


def _row(item: dict[str, Any], interest: str, text: str, model: str) -> dict[str, str]:
    return {"item_id": item["item_id"], "interest": interest, "text": text, "model": model}


def _distinct_interests(interests: pa.Table, max_interests: int | None) -> list[str]:
    """The distinct phrases, those of the most users first, ties by alphabet."""
    users = interests.group_by(["interest"]).aggregate([("user_id", "count_distinct")])
    ranked = users.sort_by([("user_id_count_distinct", "descending"), ("interest", "ascending")])
    return ranked["interest"].to_pylist()[:max_interests]


def _place_in_run(keys: np.ndarray) -> np.ndarray:
    """[N] keys, equal ones adjacent → [N] place of each within its run, from 0."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    return np.arange(len(keys)) - np.repeat(starts, np.diff(np.concatenate([starts, [len(keys)]])))
