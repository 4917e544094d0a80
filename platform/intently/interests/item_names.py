"""Item-level compression by a language model (RecGPT §2.1.1, step 1): a title of any length becomes a few words, once an item.

An item is known by its facts (what the model is shown): facts that were named before are not asked again. A name with a word that
the facts do not have, or with too many words, is refused; the item then goes by the rule of `data.item_names`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import ITEM_NAME, REJECT
from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.interests.asking import ask, refusal, refuse
from intently.interests.usage import Usage
from intently.llm.answer import Question
from intently.llm.contract import Engine, Sampling
from intently.llm.engines.build import EngineConfig, cached_engine
from intently.llm.tasks import TASKS, ItemName

STAGE = "item_name"
SHOWN = ("title", "category", "brand", "attributes")
"""Columns of Item that the model is shown."""
WORD = re.compile(r"\w+")


class ItemNameConfig(Config):
    """How items are named."""

    max_words: int = Field(8, ge=1, description="words in a name")
    max_attributes: int = Field(4, ge=0, description="attributes that the model is shown")
    sampling: Sampling = Field(Sampling(max_tokens=48), description="how the answer is drawn")


@dataclass(frozen=True)
class Named:
    """Names, what was refused, and what it cost; `reused` are names that were not asked for."""

    names: pa.Table
    rejects: pa.Table
    usage: Usage
    reused: int


def name_items(items: pa.Table, known: Mapping[str, str], engine: Engine, config: ItemNameConfig) -> Named:
    """ITEM rows → ITEM_NAME rows; an item whose name was refused has none.

    Args:
        items: at least item_id and SHOWN.
        known: digest of facts → name.
        engine: which language model.
        config: how.
    Raises:
        EngineError: the engine has died.
    """
    rows = items.select(["item_id", *SHOWN]).to_pylist()
    shown = [{name: row[name] for name in SHOWN} | {"attributes": row["attributes"][: config.max_attributes]} for row in rows]
    digests = [digest(facts) for facts in shown]
    # Items with the same facts are asked about once.
    asked = {digest: facts for digest, facts in zip(digests, shown, strict=True) if digest not in known}
    questions = [Question(key, {"item": facts, "max_words": config.max_words}, config.sampling) for key, facts in asked.items()]
    outcomes, usage = ask(engine, questions, TASKS["item_name"])
    named, rejects = dict(known), []
    for outcome in outcomes:
        if not isinstance(outcome.answer, ItemName):
            rejects.append(refusal(STAGE, outcome.question_id, outcome))
        elif reason := broken_rule(outcome.answer.name, asked[outcome.question_id], config.max_words):
            rejects.append(refuse(STAGE, outcome.question_id, reason, outcome.answer.name))
        else:
            named[outcome.question_id] = " ".join(outcome.answer.name.split())
    table = [
        {"item_id": row["item_id"], "name": named[key], "facts": key, "model": engine.name}
        for row, key in zip(rows, digests, strict=True)
        if key in named
    ]
    return Named(ITEM_NAME.from_rows(table), REJECT.from_rows(rejects), usage, sum(key in known for key in digests))


def broken_rule(name: str, facts: Mapping[str, Any], max_words: int) -> str | None:
    """Why a name is refused, the same words for the same cause; None if it is not."""
    words = WORD.findall(name.casefold())
    if not words:
        return "name without a word"
    if len(name.split()) > max_words:
        return "name has too many words"
    given = " ".join([str(facts["title"]), str(facts["category"]), str(facts["brand"] or ""), *facts["attributes"]])
    if set(words) - set(WORD.findall(given.casefold())):
        return "name has a word that the item's facts do not have"
    return None


def digest(facts: Mapping[str, Any]) -> str:
    """What the model is shown of an item, as 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class ItemNamer:
    """Item slices → item_name parts.

    Args:
        stage: takes the parts.
        items: artifact of ITEM.
        previous: an earlier artifact of ITEM_NAME, whose names are taken over; None where there is none.
        config: how items are named.
        items_per_part: items in a part; a killed run loses one part at most.
        engine: which language model.
    """

    def __init__(
        self, stage: Stage, items: Artifact, previous: Artifact | None, config: ItemNameConfig, items_per_part: int, engine: EngineConfig
    ) -> None:
        self._stage, self._config, self._items_per_part = stage, config, items_per_part
        self._items = items.read(columns=["item_id", *SHOWN])
        self._engine = cached_engine(engine, stage)
        known = previous.read().to_pylist() if previous else []
        self._known = {row["facts"]: row["name"] for row in known if row["model"] == self._engine.name}

    def __call__(self, part: str) -> dict[str, int | float]:
        """Name the items of one part."""
        self._engine.begin(part)
        first = int(part.removeprefix("part-")) * self._items_per_part
        named = name_items(self._items.slice(first, self._items_per_part), self._known, self._engine, self._config)
        counts: dict[str, int | float] = {
            "names": named.names.num_rows,
            "reused": named.reused,
            "questions": named.usage.questions,
            "valid": named.usage.valid,
            "repairs": named.usage.repairs,
            "prompt_tokens": named.usage.prompt_tokens,
            "completion_tokens": named.usage.completion_tokens,
            "cost": named.usage.cost,
            "answers_reused": named.usage.reused,
        }
        save_counts(self._stage, part, counts)
        self._stage.write(part, named.names, named.rejects)
        return counts
