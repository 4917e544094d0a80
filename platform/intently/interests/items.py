"""Why people want an item, read by several language models side by side (DeepInterestGR, MLIM): item → item_interest.

Where a model that sees is configured, it first says what the picture shows, and its words join every other model's prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import ITEM_INTEREST, REJECT
from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.interests.asking import ask, refusal, refuse
from intently.interests.ensemble import Drafts, EnsembleConfig, item_interests, merge
from intently.interests.phrases import BrandFinder, normalise, stutters
from intently.interests.usage import Usage
from intently.llm.answer import Outcome, Question
from intently.llm.contract import Engine, Sampling
from intently.llm.encoder import EncoderConfig
from intently.llm.encoder import TextEncoder as SentenceEncoder
from intently.llm.engines.build import EngineConfig, cached_engine
from intently.llm.tasks import TASKS, ItemInterests, PictureLook

STAGE = "item_interest"
SHOWN = ("item_id", "title", "category", "categories", "brand", "price", "attributes", "description")
"""Columns of Item that the models are shown."""


class ItemMiningConfig(Config):
    """How items are read."""

    max_items: int | None = Field(None, ge=1, description="read only the first so many items; None reads all")
    max_attributes: int = Field(6, ge=0, description="attributes that a model is shown")
    sampling: Sampling = Field(Sampling(max_tokens=400), description="how interests are drawn")
    picture_sampling: Sampling = Field(Sampling(max_tokens=160), description="how the words for a picture are drawn")
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="when models agree")


@dataclass(frozen=True)
class MinedItems:
    """What came of a set of items.

    Attributes:
        interests: ITEM_INTEREST rows that the ensemble keeps.
        readings: ITEM_INTEREST rows of all that was said, equal words of several models in one row.
        rejects: REJECT rows of the answers, of single interests, and of the ensemble.
        usage: what the questions cost, by the name of the engine.
    """

    interests: pa.Table
    readings: pa.Table
    rejects: pa.Table
    usage: dict[str, Usage]


def mine_items(
    items: pa.Table, brands: BrandFinder, engines: Sequence[Engine], vision: Engine | None, encoder: TextEncoder, config: ItemMiningConfig
) -> MinedItems:
    """Ask every engine about every item, and keep what they agree on.

    Args:
        items: ITEM rows; `image` is read only where there is a `vision`.
        brands: of the whole catalogue; no interest may name one.
        engines: different models, asked at the same time.
        vision: describes pictures; None passes them over.
        encoder: says which phrases mean the same.
        config: how items are read.
    Raises:
        EngineError: an engine has died.
    """
    rows = [row | {"attributes": row["attributes"][: config.max_attributes]} for row in items.select(SHOWN).to_pylist()]
    rejects: list[dict[str, str]] = []
    usage: dict[str, Usage] = {}
    looks: dict[str, str] = {}
    if vision is not None:
        looks, refused, usage[vision.name] = _describe(rows, items["image"].to_pylist(), vision, config)
        rejects += refused
    questions = [Question(row["item_id"], {"item": row, "look": looks.get(row["item_id"])}, config.sampling) for row in rows]
    with ThreadPoolExecutor(max_workers=max(1, len(engines))) as pool:
        asked = list(pool.map(lambda engine: ask(engine, questions, TASKS["item_interests"]), engines))
    drafts = Drafts([], [], [], np.zeros(0))
    for engine, (outcomes, cost) in zip(engines, asked, strict=True):
        usage[engine.name] = usage.get(engine.name, Usage()) + cost
        found, refused = _drafts(outcomes, engine.name, brands)
        drafts = Drafts(
            drafts.subject + found.subject,
            drafts.model + found.model,
            drafts.phrase + found.phrase,
            np.concatenate([drafts.confidence, found.confidence]),
        )
        rejects += refused
    merged = merge(drafts, encoder, config.ensemble, len(engines), STAGE)
    return MinedItems(item_interests(drafts, merged), _readings(drafts), REJECT.from_rows(rejects + merged.rejects), usage)


def _describe(
    rows: Sequence[Mapping[str, Any]], images: Sequence[bytes | None], vision: Engine, config: ItemMiningConfig
) -> tuple[dict[str, str], list[dict[str, str]], Usage]:
    """Item id → what its picture shows; pictures of which nothing could be said; what it cost."""
    questions = [
        Question(row["item_id"], {"item": row}, config.picture_sampling, (image,)) for row, image in zip(rows, images, strict=True) if image
    ]
    outcomes, usage = ask(vision, questions, TASKS["item_picture"])
    looks, rejects = {}, []
    for outcome in outcomes:
        if isinstance(outcome.answer, PictureLook):
            looks[outcome.question_id] = "; ".join((outcome.answer.style, outcome.answer.aesthetics, outcome.answer.lifestyle))
        else:
            rejects.append(refusal(STAGE, f"{outcome.question_id}/picture", outcome))
    return looks, rejects, usage


def _drafts(outcomes: Sequence[Outcome], model: str, brands: BrandFinder) -> tuple[Drafts, list[dict[str, str]]]:
    """What one model said, without what a rule refuses."""
    found: list[tuple[str, str, float]] = []
    rejects = []
    for outcome in outcomes:
        place = f"{outcome.question_id}/{model}"
        if not isinstance(outcome.answer, ItemInterests):
            rejects.append(refusal(STAGE, place, outcome))
            continue
        seen: set[str] = set()
        for rank, draft in enumerate(outcome.answer.interests):
            phrase = normalise(draft.interest)
            if not phrase:
                reason = "interest without a word"
            elif stutters(phrase):
                reason = "runs in circles"
            elif phrase in seen:
                reason = "named twice in one answer"
            elif brands.find(draft.interest):
                reason = "names a brand"
            else:
                seen.add(phrase)
                found.append((outcome.question_id, phrase, draft.confidence))
                continue
            rejects.append(refuse(STAGE, f"{place}/{rank}", reason, draft.interest))
    subjects, phrases, confidences = ([row[column] for row in found] for column in range(3))
    return Drafts(subjects, [model] * len(found), phrases, np.array(confidences, np.float64)), rejects


def _readings(drafts: Drafts) -> pa.Table:
    """All drafts as ITEM_INTEREST rows; the same words of several models are one row."""
    said: dict[tuple[str, str], dict[str, float]] = {}
    for subject, model, phrase, confidence in zip(drafts.subject, drafts.model, drafts.phrase, drafts.confidence.tolist(), strict=True):
        said.setdefault((subject, phrase), {})[model] = confidence
    rows = [
        {
            "item_id": subject,
            "interest": phrase,
            "confidence": sum(by.values()) / len(by),
            "support": len(by),
            "sources": sorted(by),
        }
        for (subject, phrase), by in sorted(said.items())
    ]
    return ITEM_INTEREST.from_rows(rows)


class ItemMiner:
    """Worker of `map_parts`: slices of items → item_interest and item_reading parts.

    Args:
        interests: takes what the ensemble keeps.
        readings: takes all that was said.
        items: artifact of ITEM.
        config: how items are read.
        items_per_part: items in a part.
        engines: the language models.
        vision: the one that sees; None where there is none.
        encoder: which text encoder.
    """

    def __init__(
        self,
        interests: Stage,
        readings: Stage,
        items: Artifact,
        config: ItemMiningConfig,
        items_per_part: int,
        engines: Sequence[EngineConfig],
        vision: EngineConfig | None,
        encoder: EncoderConfig,
    ) -> None:
        self._interests, self._readings, self._config, self._items_per_part = interests, readings, config, items_per_part
        columns = [*SHOWN, "image"] if vision is not None else list(SHOWN)
        self._items = items.read(columns=columns)
        self._brands = BrandFinder.of_items(self._items)
        self._engines = [cached_engine(engine, interests) for engine in engines]
        self._vision = cached_engine(vision, interests) if vision is not None else None
        self._encoder = SentenceEncoder(encoder)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Mine the items of one part."""
        for engine in [*self._engines, *([self._vision] if self._vision else [])]:
            engine.begin(part)
        first = int(part.removeprefix("part-")) * self._items_per_part
        end = min(first + self._items_per_part, self._config.max_items or self._items.num_rows)
        rows = self._items.slice(first, max(0, end - first))
        mined = mine_items(rows, self._brands, self._engines, self._vision, self._encoder, self._config)
        total = sum(mined.usage.values(), Usage())
        by_model = {f"{model}/{name}": value for model, usage in mined.usage.items() for name, value in asdict(usage).items()}
        save_counts(self._interests, part, {**asdict(total), **by_model, "items": rows.num_rows})
        self._readings.write(part, mined.readings)
        self._interests.write(part, mined.interests, mined.rejects)
        return {
            "items": rows.num_rows,
            "rows": mined.interests.num_rows,
            "rejects": mined.rejects.num_rows,
            "tokens": total.completion_tokens,
        }
