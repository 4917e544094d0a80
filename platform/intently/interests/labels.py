"""What is good among what was mined: labels of item interests (DeepInterestGR, RLDI), and criteria that rules can decide (RecGPT §2, §3).

Every label is a VERDICT row with its reason. The label source is a choice: a language model, rules, and the paper's ablations random and
uniform. Rules decide what can be looked up (is the evidence in the chunk, is a brand named, was it seen last month, is it in season); what
needs reading is a judge's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import VERDICT
from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.interests.asking import ask
from intently.interests.items import SHOWN
from intently.interests.phrases import BrandFinder, normalise, words
from intently.interests.tags import last_months, recent_titles, season_of
from intently.interests.usage import Usage
from intently.interests.vectors import item_texts
from intently.llm.answer import Question
from intently.llm.contract import Engine, Sampling
from intently.llm.encoder import EncoderConfig
from intently.llm.encoder import TextEncoder as SentenceEncoder
from intently.llm.engines.build import EngineConfig, cached_engine
from intently.llm.tasks import TASKS, ItemInterestLabel

RULE, RLDI = "rule", "rldi"
YES, NO = "yes", "no"
EMPTY_WORDS = frozenset(
    "quality product products item items thing things stuff shopping buying good great nice best general various "  # noqa: SIM905
    "everyday daily use value people person customer customers lifestyle life online popular".split()
)
"""Words that make no interest specific."""
SEASONS = {
    "winter": ("winter", "snow", "ski", "christmas"),
    "spring": ("spring", "easter"),
    "summer": ("summer", "beach", "sunscreen"),
    "autumn": ("autumn", "fall", "halloween"),
}
"""Season → words that belong to it alone."""


class LabelConfig(Config):
    """Who labels the interests of items."""

    source: Literal["llm", "rule", "random", "uniform"] = Field("rule", description="random and uniform are the paper's ablations")
    min_similarity: float = Field(0.3, ge=0, le=1, description="rule: cosine of interest and item from which the item supports it")
    min_words: int = Field(2, ge=1, description="rule: words that say something, for an interest to be specific")
    positive_share: float = Field(0.5, ge=0, le=1, description="random: share that is labelled yes")
    seed: int = Field(0, description="random: another seed, other labels")
    sampling: Sampling = Field(Sampling(max_tokens=120), description="llm: how labels are drawn")


def label_item_interests(
    interests: pa.Table, items: pa.Table, brands: BrandFinder, encoder: TextEncoder, engine: Engine | None, config: LabelConfig
) -> tuple[pa.Table, Usage]:
    """Label every interest of every item yes (specific, actionable, authentic) or no.

    Args:
        interests: ITEM_INTEREST rows.
        items: ITEM rows, all that they name.
        brands: of the catalogue.
        encoder: rule: how close an interest is to its item.
        engine: llm: who labels; an answer that stays invalid is a no, with its error as the reason.
        config: which source.
    Returns:
        VERDICT rows, subject `item_id/interest`, criterion rldi; what the questions cost.
    """
    subjects = pc.binary_join_element_wise(interests["item_id"], interests["interest"], "/").to_pylist()
    usage = Usage()
    match config.source:
        case "uniform":
            told = [(YES, "labelled alike")] * len(subjects)
            judge = "uniform"
        case "random":
            told = [(YES if _chance(subject, config.seed) < config.positive_share else NO, "by lot") for subject in subjects]
            judge = "random"
        case "rule":
            told, judge = _by_rule(interests, items, brands, encoder, config), RULE
        case "llm":
            assert engine is not None, "the source llm needs an engine"
            rows = items.select(SHOWN).take(pc.index_in(interests["item_id"], items["item_id"].combine_chunks())).to_pylist()
            pairs = zip(subjects, rows, interests["interest"].to_pylist(), strict=True)
            questions = [Question(subject, {"item": row, "interest": phrase}, config.sampling) for subject, row, phrase in pairs]
            outcomes, usage = ask(engine, questions, TASKS["item_interest_label"])
            told = [
                (YES if outcome.answer.label == "1" else NO, outcome.answer.reason)
                if isinstance(outcome.answer, ItemInterestLabel)
                else (NO, f"no label: {outcome.error}")
                for outcome in outcomes
            ]
            judge = engine.name
    return _verdicts(subjects, "interests", RLDI, told, judge), usage


def check_user_interests(interests: pa.Table, chunks: pa.Table) -> pa.Table:
    """What rules can say of user interests: is there evidence, and is all of it in the chunk that was read?

    Args:
        interests: USER_INTEREST rows.
        chunks: CHUNK rows, all that they name.
    Returns:
        VERDICT rows, subject `user/chunk/rank`, criteria `evidence` and `specific`.
    """
    read = dict(zip(_keys(chunks, "user_id", "chunk"), chunks["item_ids"].to_pylist(), strict=True))
    subjects = _keys(interests, "user_id", "chunk", "rank")
    told = []
    for key, evidence in zip(_keys(interests, "user_id", "chunk"), interests["evidence"].to_pylist(), strict=True):
        missing = sorted(set(evidence) - set(read.get(key) or ()))
        reason = f"not in the chunk: {', '.join(missing)}" if missing else f"{len(evidence)} items of the chunk"
        told.append((NO if missing or not evidence else YES, reason if evidence else "no item of the chunk supports it"))
    specific = [_specific(phrase, 1) for phrase in interests["interest"].to_pylist()]
    return pa.concat_tables(
        [_verdicts(subjects, "interests", "evidence", told, RULE), _verdicts(subjects, "interests", "specific", specific, RULE)]
    )


def check_tags(tags: pa.Table, history: pa.Table, items: pa.Table, brands: BrandFinder, recent_days: float = 30.0) -> pa.Table:
    """What rules can say of tags: modifier and core word, no brand, not seen last month, in season.

    Args:
        tags: TAG rows.
        history: HISTORY rows of their users, as they stood when the tags were asked for.
        items: ITEM rows of the catalogue.
        brands: its brands.
        recent_days: days before a user's last event that count as the last month.
    Returns:
        VERDICT rows, subject `user/rank`, criteria `specific`, `no_brand`, `not_seen` and `in_season`.
    """
    known = history.filter(pc.greater(pc.list_value_length(history["timestamps"]), 0))
    users = known["user_id"].to_pylist()
    seen = {user: {normalise(t) for t in titles} for user, titles in zip(users, recent_titles(known, items, recent_days), strict=True)}
    season = {user: season_of(month) for user, month in zip(users, last_months(known), strict=True)}
    subjects, owners, texts = _keys(tags, "user_id", "rank"), tags["user_id"].to_pylist(), tags["tag"].to_pylist()
    criteria: dict[str, Callable[[str, str], tuple[str, str]]] = {
        "specific": lambda user, tag: _specific(tag, 2),
        "no_brand": lambda user, tag: _against(brands.find(tag), "names"),
        "not_seen": lambda user, tag: _against([tag] if normalise(tag) in seen.get(user, ()) else [], "was touched in the last month:"),
        "in_season": lambda user, tag: _in_season(tag, season.get(user)),
    }
    return pa.concat_tables(
        [
            _verdicts(subjects, "tags", name, [rule(user, tag) for user, tag in zip(owners, texts, strict=True)], RULE)
            for name, rule in criteria.items()
        ]
    )


def shares_of_yes(verdicts: pa.Table) -> dict[str, float]:
    """VERDICT rows → 'task/criterion' → share of yes."""
    counted = verdicts.group_by(["task", "criterion", "label"]).aggregate([([], "count_all")]).to_pylist()
    total: dict[str, int] = {}
    good: dict[str, int] = {}
    for row in counted:
        name = f"{row['task']}/{row['criterion']}"
        total[name] = total.get(name, 0) + row["count_all"]
        good[name] = good.get(name, 0) + row["count_all"] * (row["label"] == YES)
    return {name: good[name] / total[name] for name in sorted(total)}


class ItemLabeller:
    """Worker of `map_parts`: item_interest parts → interest_verdict parts.

    Args:
        stage: takes the parts.
        interests: artifact of ITEM_INTEREST.
        items: artifact of ITEM.
        config: which source labels.
        engine: the language model of the source llm; None for the others.
        encoder: which text encoder.
    """

    def __init__(
        self, stage: Stage, interests: Artifact, items: Artifact, config: LabelConfig, engine: EngineConfig | None, encoder: EncoderConfig
    ) -> None:
        self._stage, self._interests, self._config = stage, interests, config
        self._items = items.read(columns=list(SHOWN))
        self._brands = BrandFinder.of_items(self._items)
        self._engine = cached_engine(engine, stage) if engine is not None else None
        self._encoder = SentenceEncoder(encoder)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Label one part."""
        if self._engine is not None:
            self._engine.begin(part)
        interests = self._interests.read(part)
        verdicts, usage = label_item_interests(interests, self._items, self._brands, self._encoder, self._engine, self._config)
        good = pc.sum(pc.equal(verdicts["label"], YES)).as_py() or 0
        save_counts(self._stage, part, {**asdict(usage), "labelled": verdicts.num_rows, "labelled_yes": good})
        self._stage.write(part, verdicts)
        return {"labelled": verdicts.num_rows, "yes": good}


def _by_rule(interests: pa.Table, items: pa.Table, brands: BrandFinder, encoder: TextEncoder, config: LabelConfig) -> list[tuple[str, str]]:
    row = pc.index_in(interests["item_id"], items["item_id"].combine_chunks())
    texts = item_texts(items).take(row).to_pylist()
    phrases = interests["interest"].to_pylist()
    if not phrases:
        return []
    cosine = np.einsum("nd,nd->n", encoder.encode(phrases), encoder.encode(texts))
    told = []
    for phrase, close in zip(phrases, cosine.tolist(), strict=True):
        specific = _specific(phrase, config.min_words)
        if specific[0] == NO:
            told.append(specific)
        elif found := brands.find(phrase):
            told.append((NO, f"names {found[0]}"))
        else:
            supported = close >= config.min_similarity
            told.append((YES, "specific and close to the item") if supported else (NO, "the item does not support it"))
    return told


def _specific(phrase: str, min_words: int) -> tuple[str, str]:
    saying = [word for word in words(phrase) if word not in EMPTY_WORDS]
    return (YES, f"{len(saying)} words that say something") if len(saying) >= min_words else (NO, "too few words that say something")


def _against(found: Sequence[str], verb: str) -> tuple[str, str]:
    return (NO, f"{verb} {found[0]}") if found else (YES, "none was found")


def _in_season(tag: str, season: str | None) -> tuple[str, str]:
    said = set(words(tag))
    named = [name for name, signs in SEASONS.items() if said & set(signs)]
    if not named or season is None:
        return YES, "fits any season"
    return (YES, f"of {season}") if season in named else (NO, f"of {named[0]}, but it is {season}")


def _chance(subject: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}/{subject}".encode()).digest()[:8], "big") / 2**64


def _keys(table: pa.Table, *columns: str) -> list[str]:
    return pc.binary_join_element_wise(*(table[column].cast(pa.string()) for column in columns), "/").to_pylist()


def _verdicts(subjects: Sequence[str], task: str, criterion: str, told: Sequence[tuple[str, str]], judge: str) -> pa.Table:
    fixed: dict[str, Any] = {"task": task, "criterion": criterion, "judge": judge}
    return VERDICT.from_rows(
        [{"subject": subject, "label": label, "reason": reason, **fixed} for subject, (label, reason) in zip(subjects, told, strict=True)]
    )
