"""Asks a language model the questions of a rubric and makes Verdict rows of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import VERDICT
from intently.core.workspace import Stage
from intently.judge.rubrics import NO, Rubric
from intently.llm.answer import Question, answer
from intently.llm.contract import Sampling
from intently.llm.engines.build import EngineConfig, cached_engine, share_of
from intently.llm.request_cache import CachedEngine
from intently.llm.tasks import Judgement


class JudgeConfig(Config):
    """Who judges."""

    engine: EngineConfig = Field(description="the language model that judges; the shipped student was not trained to")
    sampling: Sampling = Field(Sampling(max_tokens=400), description="how verdicts are drawn")

    def share(self, num_workers: int) -> Self:
        """What one of several workers may spend."""
        return self.model_copy(update={"engine": share_of(self.engine, num_workers)})


class Judge:
    """Asks about results of any rubric. Picklable until it is first used: the engine starts in the process that judges.

    Args:
        config: who judges.
        stage: what the verdicts are for; its workspace keeps the answers.
    """

    def __init__(self, config: JudgeConfig, stage: Stage) -> None:
        self._config, self._stage = config, stage
        self._engine: CachedEngine | None = None

    def begin(self, part: str) -> None:
        """From now on this part pays."""
        self._started().begin(part)

    def ask(self, rubric: Rubric, subjects: Mapping[str, Mapping[str, Any]]) -> pa.Table:
        """Judge every subject under every criterion of a rubric.

        Args:
            rubric: what is asked.
            subjects: Verdict.subject → the fields of the rubric's question.
        Returns:
            VERDICT rows. A judge that gives no valid answer has said no to everything, with the error as its reason: what nobody vouches
            for does not pass.
        Raises:
            ConfigError: the engine cannot be had as configured.
            EngineError: it cannot start or has died.
        """
        questions = [Question(subject, dict(fields), self._config.sampling) for subject, fields in subjects.items()]
        rows: list[dict[str, Any]] = []
        engine = self._started()
        for outcome in answer(engine, questions, rubric.question):
            fixed = {"subject": outcome.question_id, "task": rubric.name, "judge": engine.name}
            if outcome.answer is None:
                rows += [fixed | {"criterion": name, "label": NO, "reason": f"no verdict: {outcome.error}"} for name in rubric.criteria]
            else:
                judgements: list[tuple[str, Judgement]] = list(outcome.answer)
                rows += [fixed | {"criterion": name, "label": one.verdict, "reason": one.reason} for name, one in judgements]
        return VERDICT.from_rows(rows)

    def _started(self) -> CachedEngine:
        if self._engine is None:
            self._engine = cached_engine(self._config.engine, self._stage)
        return self._engine
