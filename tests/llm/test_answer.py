"""Asking a task's question: checked answers, one repair, errors as data. Scripted engine, real tasks."""

from __future__ import annotations

import pytest
from intently.llm.answer import LONGEST_QUOTE, Outcome, Question, answer
from intently.llm.contract import OnReply, Reply, Request, Sampling
from intently.llm.engines.scripted import ScriptedConfig, ScriptedEngine
from intently.llm.tasks import TASKS, ExplanationText

EXPLANATION = TASKS["explanation"]
GOOD = '{"explanation": "Light shoes for long runs."}'


class Recorder:
    """Keeps what was asked; answers from a list, one reply list a round: the questions, then what follows from the replies."""

    name = "scripted:recorder"

    def __init__(self, *calls: list[Reply]) -> None:
        self.asked: list[list[Request]] = []
        self._calls = list(calls)

    def generate(self, requests: list[Request], on_reply: OnReply) -> list[Reply]:
        replies = []
        while requests:
            self.asked.append(list(requests))
            told = self._calls.pop(0)
            replies += told
            requests = [request for one in told for request in on_reply(one) or ()]
        return replies

    def close(self) -> None:
        """Nothing is held."""


def question(name: str, num_samples: int = 1) -> Question:
    item = {"title": name, "category": "Shoes", "brand": None, "price": None, "attributes": [], "description": None}
    return Question(name, {"item": item, "interest": "trail running"}, Sampling(num_samples=num_samples))


def reply(name: str, *texts: str) -> Reply:
    return Reply(name, texts, None, 10, 4)


def test_answer_valid_replies_come_back_parsed_in_order_with_their_tokens() -> None:
    engine = Recorder([reply("a", GOOD), reply("b", '{"explanation": "Warm boots for snow."}')])
    first, second = answer(engine, [question("a"), question("b")], EXPLANATION)
    assert (first.question_id, first.answer, first.error, first.repaired) == (
        "a",
        ExplanationText(explanation="Light shoes for long runs."),
        None,
        False,
    )
    assert second.answer == ExplanationText(explanation="Warm boots for snow.")
    assert (first.prompt_tokens, first.completion_tokens) == (10, 4)
    (asked,) = engine.asked
    assert asked[0].json_schema == EXPLANATION.json_schema
    assert "Item: a\n" in asked[0].messages[1]["content"]


def test_answer_broken_reply_is_sent_back_once_with_what_was_wrong() -> None:
    engine = Recorder([reply("a", GOOD), reply("b", '{"explanation": "short"}', "[]")], [reply("b", GOOD)])
    _, repaired = answer(engine, [question("a"), question("b", num_samples=2)], EXPLANATION)
    assert repaired.answer == ExplanationText(explanation="Light shoes for long runs.")
    assert (repaired.repaired, repaired.prompt_tokens, repaired.completion_tokens) == (True, 20, 8)
    (request,) = engine.asked[1]
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[2]["content"] == "[]"
    assert "Input should be an object" in request.messages[3]["content"]
    assert request.sampling.num_samples == 1


def test_answer_nonsense_twice_is_an_error_in_countable_words_with_the_raw_text() -> None:
    engine = ScriptedEngine(lambda request: f"I am no machine, dear {request.request_id}")
    outcomes = answer(engine, [question("a"), question("b")], EXPLANATION)
    assert [outcome.answer for outcome in outcomes] == [None, None]
    assert {outcome.error for outcome in outcomes} == {"answer is not JSON"}
    assert outcomes[1].raw == "I am no machine, dear b"
    assert all(outcome.repaired for outcome in outcomes)


def test_answer_same_fault_at_other_places_has_the_same_reason() -> None:
    def interests(stages: list[str]) -> str:
        drafts = ",".join(f'{{"interest": "hiking", "stage": "{stage}", "reason": "walks a lot"}}' for stage in stages)
        return f'{{"interests": [{drafts}]}}'

    answers = {"one": interests(["lost"]), "two": interests(["active", "lost"])}
    engine = ScriptedEngine.from_config(ScriptedConfig(replies=answers))
    questions = [Question(key, {"behaviours": key, "previous": []}, Sampling()) for key in answers]
    reasons = [outcome.error for outcome in answer(engine, questions, TASKS["user_interests"])]
    assert reasons == ["interests.*.stage: Input should be 'emerging', 'active' or 'fading'"] * 2


def test_answer_engine_error_is_not_asked_again() -> None:
    engine = Recorder([Reply("a", (), "the prompt is longer than 511 tokens", 900, 0)])
    (outcome,) = answer(engine, [question("a")], EXPLANATION)
    assert (outcome.answer, outcome.error, outcome.raw) == (None, "the prompt is longer than 511 tokens", "")
    assert len(engine.asked) == 1


def test_answer_failed_repair_request_keeps_the_first_fault() -> None:
    engine = Recorder([reply("a", "nonsense")], [Reply("a", (), "the prompt is longer than 511 tokens", 900, 0)])
    (outcome,) = answer(engine, [question("a")], EXPLANATION)
    assert (outcome.error, outcome.raw, outcome.prompt_tokens) == ("answer is not JSON", "nonsense", 910)


def test_answer_first_valid_sample_counts() -> None:
    engine = Recorder([reply("a", "nonsense", GOOD, "{}")])
    (outcome,) = answer(engine, [question("a", num_samples=3)], EXPLANATION)
    assert outcome.answer == ExplanationText(explanation="Light shoes for long runs.")
    assert not outcome.repaired


def test_answer_blank_text_is_repaired_too() -> None:
    engine = Recorder([reply("a", "")], [reply("a", GOOD)])
    (outcome,) = answer(engine, [question("a")], EXPLANATION)
    assert outcome.answer is not None


def test_answer_endless_text_is_quoted_shortened() -> None:
    engine = Recorder([reply("a", "x" * 9999)], [reply("a", GOOD)])
    answer(engine, [question("a")], EXPLANATION)
    assert len(engine.asked[1][0].messages[2]["content"]) == LONGEST_QUOTE


def test_answer_no_questions_asks_nothing() -> None:
    engine = Recorder()
    assert answer(engine, [], EXPLANATION) == []
    assert engine.asked == []


def test_answer_wrong_fields_are_a_programming_error() -> None:
    with pytest.raises(TypeError, match="task explanation takes"):
        answer(Recorder(), [Question("a", {"item": {}}, Sampling())], EXPLANATION)


def test_answer_follow_ups_join_the_batch_and_their_outcomes_come_last() -> None:
    def follow(outcome: Outcome) -> list[Question]:
        return [question(f"{outcome.question_id}+")] if outcome.question_id in ("a", "b") else []

    engine = Recorder([reply("a", "no"), reply("b", GOOD)], [reply("a", GOOD), reply("b+", GOOD)], [reply("a+", "no")], [reply("a+", "no")])
    outcomes = answer(engine, [question("a"), question("b")], EXPLANATION, follow)
    assert [(outcome.question_id, outcome.answer is not None, outcome.repaired) for outcome in outcomes] == [
        ("a", True, True),
        ("b", True, False),
        ("b+", True, False),
        ("a+", False, True),
    ]
    assert [[request.request_id for request in requests] for requests in engine.asked] == [["a", "b"], ["a", "b+"], ["a+"], ["a+"]]
