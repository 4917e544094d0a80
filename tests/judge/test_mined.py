"""The judge of interests and tags against a real OpenAI-compatible server; what rules refused is not asked about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from fastapi import Response
from intently.core.config import Config
from intently.core.schema import CHUNK, TAG, USER_INTEREST, VERDICT, Table
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.data.counts import total_counts
from intently.judge.mined import MinedJudge, MinedJudgeConfig, passed, refused, tag_subjects
from intently.judge.rubrics import INTERESTS, TAGS
from intently.llm.engines.endpoint import EndpointConfig

from tests.chat_server import chat_server, completion

PART = "part-00000"


class JudgeServer:
    """Finds washing up no wish, tags of one word too broad, and has no words for cider."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.base_url = ""

    async def respond(self, body: dict[str, Any]) -> Response:
        question = body["messages"][1]["content"]
        self.questions.append(question)
        if "cider" in question:
            return completion("...")
        names = TAGS.criteria if "Proposed:" in question else INTERESTS.criteria
        verdict = {name: {"reason": "it does", "verdict": "yes"} for name in names}
        if "Interest: washing up" in question:
            verdict["willingness"] = {"reason": "everybody must", "verdict": "no"}
        if "Proposed: gear" in question:
            verdict["specificity"] = {"reason": "a whole department", "verdict": "no"}
        return completion(json.dumps(verdict))


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    judge = JudgeServer()
    with chat_server(judge.respond) as judge.base_url:
        yield judge


def written(workspace: Workspace, name: str, table: Table, rows: pa.Table) -> Artifact:
    stage = open_stage(workspace, name, table, {}, Config())
    stage.write(PART, rows)
    return stage.finish()


def interests() -> pa.Table:
    said = [("ann", 0, "tea"), ("ann", 1, "hiking"), ("ann", 1, "washing up"), ("bob", 0, "cider")]
    fixed = {"bucket": 0, "stage": "active", "reason": "bought boots", "shift": "new", "evidence": [], "model": "m"}
    return USER_INTEREST.from_rows(
        [{"user_id": u, "chunk": c, "rank": rank, "interest": i, **fixed} for rank, (u, c, i) in enumerate(said)]
    )


def chunks() -> pa.Table:
    when = datetime(2024, 7, 1, tzinfo=UTC)
    fixed = {"bucket": 0, "event_ids": ["e"], "item_ids": ["boots"], "start": when, "end": when, "num_tokens": 3}
    texts = {("ann", 0): "2023 (purchase) | Tea", ("ann", 1): "2024 (purchase) | Boots", ("bob", 0): "2024 (purchase) | Press"}
    return CHUNK.from_rows([{"user_id": u, "chunk": c, "text": text, **fixed} for (u, c), text in texts.items()])


def tags() -> pa.Table:
    fixed = {"bucket": 0, "interest": "hiking", "reason": "to walk far", "category": None, "model": "m"}
    return TAG.from_rows([{"user_id": "ann", "rank": rank, "tag": tag, **fixed} for rank, tag in enumerate(("light tent", "gear"))])


def judge_of(server: JudgeServer, workspace: Workspace, no: dict[str, frozenset[str]], **settings: Any) -> tuple[MinedJudge, Any]:
    engine = EndpointConfig(base_url=server.base_url, model="judge-7b", max_retries=0, timeout_s=20)
    stage = open_stage(workspace, "interest_verdict", VERDICT, {}, Config())
    artifacts = [
        written(workspace, "user_interest", USER_INTEREST, interests()),
        written(workspace, "tag", TAG, tags()),
        written(workspace, "chunk", CHUNK, chunks()),
    ]
    return MinedJudge(stage, MinedJudgeConfig(engine=engine, **settings), *artifacts, no), stage


def test_mined_judge_says_of_every_criterion_what_it_thinks_and_is_not_asked_what_rules_refused(
    server: JudgeServer, workspace: Workspace
) -> None:
    judge, stage = judge_of(server, workspace, {"interests": frozenset({"ann/0/0"})})
    before = len(server.questions)
    assert judge(f"judged-interests-{PART}") == {"judged": 3, "passed": 1}
    assert judge(f"judged-tags-{PART}") == {"judged": 2, "passed": 1}
    asked = server.questions[before:]
    assert len(asked) == 3 + 1 + 2, "one repair, and nothing of tea"
    assert not any("Interest: tea" in question for question in asked)
    counts = total_counts(stage, [f"judged-interests-{PART}", f"judged-tags-{PART}"])
    assert (
        counts["interests/asked"] == counts["interests/judged"] == 3
        and counts["interests/willingness_yes"] == 1
        and counts["interests/reasonableness_yes"] == 2
    )
    assert counts["tags/specificity_yes"] == 1 and counts["tags/validity_yes"] == 2
    verdicts = stage.finish().read()
    assert passed(verdicts, "interests") == {"ann/1/1": True, "ann/1/2": False, "bob/0/3": False}
    assert passed(verdicts, "tags") == {"ann/0": True, "ann/1": False}
    why = {(row["subject"], row["criterion"]): row["reason"] for row in verdicts.to_pylist() if row["label"] == "no"}
    assert why[("ann/1/2", "willingness")] == "everybody must"
    assert why[("bob/0/3", "reasonableness")] == "no verdict: answer is not JSON"
    assert why[("ann/1", "specificity")] == "a whole department"


def test_mined_judge_of_a_few_users_asks_about_those_alone_and_pays_once(server: JudgeServer, workspace: Workspace) -> None:
    judge, _ = judge_of(server, workspace, {}, max_users=1)
    before = len(server.questions)
    assert judge(f"judged-interests-{PART}")["judged"] == 3
    assert judge(f"judged-interests-{PART}")["judged"] == 3
    assert len(server.questions) == before + 3


def test_refused_subjects_are_those_of_the_task_with_any_no() -> None:
    said = [("a", "tags", "yes"), ("a", "tags", "no"), ("b", "tags", "yes"), ("c", "interests", "no"), ("a", "tags", "no")]
    fixed = {"criterion": "evidence", "reason": "-", "judge": "rule"}
    rules = VERDICT.from_rows([{"subject": subject, "task": task, "label": label, **fixed} for subject, task, label in said])
    assert refused(rules, "tags") == {"a"} and refused(rules, "interests") == {"c"}
    assert refused(VERDICT.empty(), "tags") == frozenset()


def test_tag_subjects_show_the_last_chunk_and_its_interests() -> None:
    shown = tag_subjects(tags(), interests(), chunks())["ann/0"]
    assert shown["behaviours"] == "2024 (purchase) | Boots"
    assert shown["interests"] == ["hiking", "washing up"]
    assert shown["tag"] == "light tent"
