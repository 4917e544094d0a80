"""A language model reads each explanation beside its item and says of every criterion whether it holds, and why."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import VERDICT
from intently.judge.rubrics import EXPLANATIONS, NO
from intently.llm.answer import Outcome, Question, answer
from intently.llm.contract import Engine, Sampling
from intently.llm.engines.build import EngineConfig, build_engine
from intently.llm.tasks import ExplanationVerdict, Judgement

SHOWN = ["item_id", "title", "category", "brand", "price", "attributes", "description"]


class JudgeConfig(Config):
    """Who judges."""

    engine: EngineConfig = Field(description="the language model that judges; the shipped student was not trained to")
    sampling: Sampling = Field(Sampling(max_tokens=400), description="how verdicts are drawn")


class ExplanationJudge:
    """Judges explanations. Picklable until it is first used: the engine starts in the process that judges."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config

    @cached_property
    def _engine(self) -> Engine:
        return build_engine(self._config.engine)

    def judge(self, explanations: pa.Table, items: pa.Table) -> pa.Table:
        """Judge every explanation under every criterion.

        Args:
            explanations: EXPLANATION rows.
            items: ITEM rows, all that they name.
        Returns:
            VERDICT rows, subject `item_id/interest`. A judge that gives no valid answer has said no to everything, with the error as
            its reason: what nobody vouches for does not pass.
        Raises:
            ConfigError: the engine cannot be had as configured.
            EngineError: it cannot start or has died.
        """
        rows = items.select(SHOWN).take(pc.index_in(explanations["item_id"], items["item_id"].combine_chunks())).to_pylist()
        questions = [
            Question(
                f"{row['item_id']}/{interest}", {"explanation": text, "item": row, "interest": interest or None}, self._config.sampling
            )
            for row, interest, text in zip(rows, explanations["interest"].to_pylist(), explanations["text"].to_pylist(), strict=True)
        ]
        outcomes = answer(self._engine, questions, EXPLANATIONS.question)
        return VERDICT.from_rows([row for outcome in outcomes for row in self._verdicts(outcome)])

    def _verdicts(self, outcome: Outcome) -> list[dict[str, Any]]:
        fixed = {"subject": outcome.question_id, "task": EXPLANATIONS.name, "judge": self._engine.name}
        if not isinstance(outcome.answer, ExplanationVerdict):
            return [fixed | {"criterion": name, "label": NO, "reason": f"no verdict: {outcome.error}"} for name in EXPLANATIONS.criteria]
        judgements: list[tuple[str, Judgement]] = list(outcome.answer)
        return [fixed | {"criterion": name, "label": one.verdict, "reason": one.reason} for name, one in judgements]
