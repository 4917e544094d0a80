"""The judge against a real OpenAI-compatible server: what it is asked, and what becomes of its answers, broken ones too."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from fastapi import Response
from intently.core.config import Config
from intently.core.schema import EXPLANATION, ITEM, VERDICT
from intently.core.workspace import Workspace, open_stage
from intently.interests.explanations import ExplanationConfig, explain
from intently.interests.reason_rules import ReasonRules, RuleConfig
from intently.judge.explanations import ExplanationJudge
from intently.judge.judging import JudgeConfig
from intently.judge.rubrics import EXPLANATIONS
from intently.llm import contract
from intently.llm.engines.endpoint import EndpointConfig
from intently.llm.engines.scripted import ScriptedEngine

from tests.chat_server import chat_server, completion

TEXTS = {
    ("boots", "mountain hiking"): "Leather boots keep feet dry on mountain paths.",
    ("boots", ""): "Boots that never wear out.",
    ("kettle", "mountain hiking"): "A kettle for the summit.",
}


class JudgeServer:
    """Says no to what is too good to be true, to what does not fit, and nonsense about kettles for nobody in particular."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.base_url = ""

    async def respond(self, body: dict[str, Any]) -> Response:
        self.bodies.append(body)
        question = body["messages"][1]["content"]
        verdict = {name: {"verdict": "yes", "reason": "it does"} for name in EXPLANATIONS.criteria}
        if "never wear out" in question:
            verdict["factuality"] = {"verdict": "no", "reason": "nothing wears out never"}
        if "summit" in question:
            verdict["relevance"] = {"verdict": "no", "reason": "nobody carries a kettle up"}
        return completion("I would rather not say." if "Kitchen kettle" in question else json.dumps(verdict))


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    judge = JudgeServer()
    with chat_server(judge.respond) as judge.base_url:
        yield judge


@pytest.fixture
def items() -> pa.Table:
    rows = [("boots", "Leather hiking boots", "Hiking", 119.0), ("kettle", "Gooseneck kettle", "Coffee", None)]
    fixed = {"brand": None, "categories": [], "attributes": ["material: leather"], "description": None}
    return ITEM.from_rows([{"item_id": i, "title": t, "category": c, "price": p, **fixed} for i, t, c, p in rows])


@pytest.fixture
def judge(server: JudgeServer, workspace: Workspace) -> ExplanationJudge:
    engine = EndpointConfig(base_url=server.base_url, model="judge-7b", max_retries=0, timeout_s=20)
    stage = open_stage(workspace, "explanation_verdict", VERDICT, {}, Config())
    # As it travels to the process that judges.
    return pickle.loads(pickle.dumps(ExplanationJudge(JudgeConfig(engine=engine), stage)))


def explanations(texts: dict[tuple[str, str], str]) -> pa.Table:
    return EXPLANATION.from_rows([{"item_id": i, "interest": n, "text": t, "model": "m"} for (i, n), t in texts.items()])


def test_judge_answers_every_criterion_with_a_reason(server: JudgeServer, judge: ExplanationJudge, items: pa.Table) -> None:
    verdicts = judge.judge(explanations(TEXTS), items).to_pylist()
    assert len(verdicts) == 3 * 4
    assert {(row["task"], row["judge"]) for row in verdicts} == {("explanations", "endpoint:judge-7b")}
    said_no = {(row["subject"], row["criterion"]): row["reason"] for row in verdicts if row["label"] == "no"}
    assert said_no == {
        ("boots/", "factuality"): "nothing wears out never",
        ("kettle/mountain hiking", "relevance"): "nobody carries a kettle up",
    }
    assert {row["criterion"] for row in verdicts} == {"relevance", "factuality", "clarity", "safety"}


def test_judge_is_shown_the_text_its_item_and_the_interest(server: JudgeServer, judge: ExplanationJudge, items: pa.Table) -> None:
    judge.judge(explanations({key: TEXTS[key] for key in [("boots", "mountain hiking")]}), items)
    assert server.bodies[-1]["messages"][1]["content"].splitlines() == [
        "Text: Leather boots keep feet dry on mountain paths.",
        "Item: Leather hiking boots",
        "Category: Hiking",
        "Price: 119.00",
        "Facts: material: leather",
        "Interest: mountain hiking",
    ]
    schema = server.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == set(EXPLANATIONS.criteria)


def test_judge_without_a_valid_answer_has_said_no_to_everything(server: JudgeServer, judge: ExplanationJudge, items: pa.Table) -> None:
    asked = len(server.bodies)
    verdicts = judge.judge(explanations({("kettle", ""): "Kitchen kettle."}), items).to_pylist()
    assert len(server.bodies) == asked + 2, "one repair"
    assert {(row["label"], row["reason"]) for row in verdicts} == {("no", "no verdict: answer is not JSON")}


def test_judge_of_nothing_says_nothing(server: JudgeServer, judge: ExplanationJudge, items: pa.Table) -> None:
    assert judge.judge(EXPLANATION.empty(), items).num_rows == 0


def test_explanations_pass_only_with_every_criterion_and_are_drawn_again(
    server: JudgeServer, judge: ExplanationJudge, items: pa.Table
) -> None:
    def respond(request: contract.Request) -> str:
        again = request.sampling.seed is not None
        return json.dumps({"explanation": "Boots of strong leather." if again else "Boots that never wear out."})

    pairs = pa.table({"item_id": ["boots"], "interest": [""]})
    rules = ReasonRules(items, [], str.isascii, RuleConfig())
    explained = explain(pairs, items, rules, ScriptedEngine(respond), ExplanationConfig(max_attempts=2), judge)
    assert explained.explanations["text"].to_pylist() == ["Boots of strong leather."]
    assert [(row["row"], row["reason"], row["detail"]) for row in explained.rejects.to_pylist()] == [
        ("boots/#1", "judged: factuality", "Boots that never wear out. (nothing wears out never)")
    ]
    assert {(row["subject"], row["label"]) for row in explained.verdicts.to_pylist()} == {("boots/", "yes")}
    stubborn = ScriptedEngine(lambda request: json.dumps({"explanation": "Boots that never wear out."}))
    refused = explain(pairs, items, rules, stubborn, ExplanationConfig(max_attempts=2), judge)
    assert refused.counts == {"pairs": 1, "passed": 0, "passed_at_once": 0, "from_facts": 1}
