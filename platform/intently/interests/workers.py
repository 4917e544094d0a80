"""What the jobs map over parts: each worker builds its engine and encoder once, reads a part, writes a part.

The plain functions of this room do the work; nothing here knows Ray. What an encoder remembers lasts one part: the last bits of a
vector depend on the batch that it was encoded in, and a part must come out the same whichever parts its actor did before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pyarrow as pa

from intently.core.schema import ITEM, REJECT
from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.interests.ensemble import EnsembleConfig, merge_users
from intently.interests.explanations import ExplanationConfig, ReasonJudge, explain, pairs_of_part, plan_pairs
from intently.interests.phrases import BrandFinder
from intently.interests.rating_labels import RatingLabelConfig, label_ratings
from intently.interests.reason_rules import ReasonRules
from intently.interests.tags import TagConfig, predict_tags
from intently.interests.tree import TreeConfig, search_users
from intently.interests.usage import Usage
from intently.interests.users import Mined, MiningConfig, keep_chosen, mine_users
from intently.interests.vectors import RememberingEncoder
from intently.llm.contract import Engine
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.build import EngineConfig, cached_engine

TEXT_COLUMNS = [column.name for column in ITEM.columns if column.name != "image"]
"""What is read of items: pictures stay on disk."""


class UserMiner:
    """Chunk parts → user_interest parts.

    Args:
        stage: takes the parts.
        chunks: artifact of CHUNK.
        items: artifact of ITEM.
        config: how users are read.
        last_place: `users.chosen_users` over the whole artifact.
        engine: which language model.
        encoder: which text encoder.
        others: further models that read the same chunks at the same time; what all of them say is merged.
        ensemble: what is kept of it.
    """

    def __init__(
        self,
        stage: Stage,
        chunks: Artifact,
        items: Artifact,
        config: MiningConfig,
        last_place: str | None,
        engine: EngineConfig,
        encoder: EncoderConfig,
        others: Sequence[EngineConfig] = (),
        ensemble: EnsembleConfig | None = None,
    ) -> None:
        self._stage, self._chunks, self._config, self._last_place = stage, chunks, config, last_place
        self._items = items.read(columns=TEXT_COLUMNS)
        self._engine, self._encoder = cached_engine(engine, stage), TextEncoder(encoder)
        self._others, self._ensemble = [cached_engine(other, stage) for other in others], ensemble or EnsembleConfig()

    def __call__(self, part: str) -> dict[str, int | float]:
        """Mine the users of one bucket."""
        chunks = keep_chosen(self._chunks.read(part), self._last_place)
        engines = [self._engine, *self._others]
        for engine in engines:
            engine.begin(part)
        with ThreadPoolExecutor(max_workers=len(engines)) as pool:
            mined = list(pool.map(lambda engine: self._mine(chunks, engine), engines))
        if len(mined) == 1:
            return _write(self._stage, part, mined[0].interests, mined[0].rejects, mined[0].usage)
        encoder = RememberingEncoder(self._encoder)
        interests, refused = merge_users([one.interests for one in mined], encoder, self._ensemble, self._stage.name)
        rejects = pa.concat_tables([*(one.rejects for one in mined), REJECT.from_rows(refused)])
        by_model = {f"{e.name}/{name}": value for e, one in zip(engines, mined, strict=True) for name, value in asdict(one.usage).items()}
        return _write(self._stage, part, interests, rejects, sum((one.usage for one in mined), Usage()), by_model)

    def _mine(self, chunks: pa.Table, engine: Engine) -> Mined:
        return mine_users(chunks, self._items, engine, RememberingEncoder(self._encoder), self._config)


class TreeMiner:
    """Chunk parts → user_interest and interest_node parts.

    Args:
        stage: takes the interests of the kept paths.
        nodes: takes the trees, a part for each part.
        chunks: artifact of CHUNK.
        items: artifact of ITEM.
        config: how trees are searched.
        last_place: `users.chosen_users` over the whole artifact.
        engine: which language model.
        encoder: which text encoder.
        rating_model: the artifact of the rating models; None keeps the first candidate of each chunk.
    """

    def __init__(
        self,
        stage: Stage,
        nodes: Stage,
        chunks: Artifact,
        items: Artifact,
        config: TreeConfig,
        last_place: str | None,
        engine: EngineConfig,
        encoder: EncoderConfig,
        rating_model: Artifact | None,
    ) -> None:
        self._stage, self._nodes, self._chunks, self._config, self._last_place = stage, nodes, chunks, config, last_place
        self._items = items.read(columns=TEXT_COLUMNS)
        self._encoder = TextEncoder(encoder)
        self._rater = None
        if rating_model:
            from intently.interests.rating import RatingModels  # brings torch along

            self._rater = RatingModels.load(rating_model)
        if self._rater:
            self._rater.require(self._encoder)
        self._engine = cached_engine(engine, stage)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Search the trees of one bucket's users."""
        self._engine.begin(part)
        chunks = keep_chosen(self._chunks.read(part), self._last_place)
        searched = search_users(chunks, self._items, self._engine, RememberingEncoder(self._encoder), self._rater, self._config)
        self._nodes.write(part, searched.nodes)
        mined = searched.mined
        return _write(self._stage, part, mined.interests, mined.rejects, mined.usage, {"nodes": searched.nodes.num_rows})


class RatingLabeller:
    """Interest_node parts → interest_rating parts.

    Args:
        stage: takes the parts.
        nodes: artifact of INTEREST_NODE.
        chunks: artifact of CHUNK, with the same parts.
        history: artifact of HISTORY, with the same parts; nothing that is held out.
        names: item id → short name.
        config: which candidates are judged, and by what.
        last_place: `users.chosen_users` over the whole artifact.
        engine: which language model.
    """

    def __init__(
        self,
        stage: Stage,
        nodes: Artifact,
        chunks: Artifact,
        history: Artifact,
        names: Mapping[str, str],
        config: RatingLabelConfig,
        last_place: str | None,
        engine: EngineConfig,
    ) -> None:
        self._stage, self._nodes, self._chunks, self._history = stage, nodes, chunks, history
        self._names, self._config, self._last_place = names, config, last_place
        self._engine = cached_engine(engine, stage)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Judge the candidates of one bucket's users."""
        self._engine.begin(part)
        nodes, chunks, history = (keep_chosen(each.read(part), self._last_place) for each in (self._nodes, self._chunks, self._history))
        labelled = label_ratings(nodes, chunks, history, self._names, self._engine, self._config)
        counts = {"skipped_chunks": labelled.skipped_chunks}
        return _write(self._stage, part, labelled.ratings, labelled.rejects, labelled.usage, counts)


class TagPredictor:
    """User_interest parts → tag parts.

    Args:
        stage: takes the parts.
        interests: artifact of USER_INTEREST.
        history: artifact of HISTORY, with the same parts.
        items: artifact of ITEM.
        config: how tags are asked for and checked.
        engine: which language model.
        encoder: which text encoder.
    """

    def __init__(
        self,
        stage: Stage,
        interests: Artifact,
        history: Artifact,
        items: Artifact,
        config: TagConfig,
        engine: EngineConfig,
        encoder: EncoderConfig,
    ) -> None:
        self._stage, self._interests, self._history, self._config = stage, interests, history, config
        self._items = items.read(columns=TEXT_COLUMNS)
        self._brands = BrandFinder.of_items(self._items)
        self._engine, self._encoder = cached_engine(engine, stage), TextEncoder(encoder)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Predict the tags of one bucket's users."""
        self._engine.begin(part)
        interests, history = self._interests.read(part), self._history.read(part)
        predicted = predict_tags(
            interests, history, self._items, self._brands, self._engine, RememberingEncoder(self._encoder), self._config
        )
        below = {"users_below_min_tags": predicted.users_below_min}
        return _write(self._stage, part, predicted.tags, predicted.rejects, predicted.usage, below)


class Explainer:
    """Writes the parts of the explanation table.

    The pairs follow from the inputs alone, so each actor plans them for itself, and the driver needs no encoder.

    Args:
        stage: takes the parts.
        interests: artifact of USER_INTEREST.
        tags: artifact of TAG.
        items: artifact of ITEM.
        config: which reasons are written.
        parts: names of all parts; a pair's hash says in which it lies.
        engine: which language model.
        encoder: which text encoder.
        verdicts: takes what the judge said, a part for each part.
        judge: reads what passed the rules; None asks nobody.
    """

    def __init__(
        self,
        stage: Stage,
        interests: Artifact,
        tags: Artifact,
        items: Artifact,
        config: ExplanationConfig,
        parts: list[str],
        engine: EngineConfig,
        encoder: EncoderConfig,
        verdicts: Stage,
        judge: ReasonJudge | None,
    ) -> None:
        self._stage, self._config, self._parts = stage, config, parts
        self._verdicts, self._judge = verdicts, judge
        self._items = items.read(columns=TEXT_COLUMNS)
        mined, encodes = interests.read(columns=["user_id", "interest", "evidence"]), TextEncoder(encoder)
        self._pairs = plan_pairs(mined, tags.read(columns=["interest", "category"]), self._items, encodes, config)
        self._rules = ReasonRules(self._items, mined["interest"].unique().to_pylist(), encodes.is_word, config.rules)
        self._engine = cached_engine(engine, stage)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Write the reasons of the pairs that fall into one part."""
        self._engine.begin(part)
        if self._judge is not None:
            self._judge.begin(part)
        pairs = pairs_of_part(self._pairs, self._parts.index(part), len(self._parts))
        explained = explain(pairs, self._items, self._rules, self._engine, self._config, self._judge)
        self._verdicts.write(part, explained.verdicts)
        return _write(self._stage, part, explained.explanations, explained.rejects, explained.usage, explained.counts)


def _write(
    stage: Stage, part: str, rows: pa.Table, rejects: pa.Table, usage: Usage, others: Mapping[str, int | float] | None = None
) -> dict[str, int | float]:
    """Write a part with its counts; the figures of its progress line."""
    save_counts(stage, part, {**asdict(usage), **(others or {})})
    stage.write(part, rows, rejects)
    speed = usage.completion_tokens / usage.seconds if usage.seconds else 0.0
    counts = {"rows": rows.num_rows, "rejects": rejects.num_rows, "questions": usage.questions}
    return counts | {"tokens": usage.completion_tokens, "tokens_per_s": round(speed, 1)}
