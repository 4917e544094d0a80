"""The request cache: what is kept, who pays, and what a kill may leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from intently.core.errors import EngineError
from intently.core.workspace import Workspace
from intently.llm import request_cache
from intently.llm.contract import Message, OnReply, Reply, Request, Sampling
from intently.llm.engines.pace import BudgetSpentError
from intently.llm.engines.scripted import ScriptedConfig, ScriptedEngine
from intently.llm.request_cache import FOLDER, CachedEngine, RequestCache, model_identity, request_key


class Counting(ScriptedEngine):
    """Keeps what it was asked; dies after `answers`, if that is given."""

    def __init__(self, answers: int | None = None) -> None:
        super().__init__(lambda request: None if "fail" in request.messages[0]["content"] else f"to {request.messages[0]['content']}")
        self.asked: list[str] = []
        self._answers = answers

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        whole = self._answers is None
        replies = super().generate(requests if whole else requests[: self._answers], on_reply)
        self.asked += [reply.request_id for reply in replies]
        if not whole:
            raise EngineError("the engine died")
        return replies


def ask(name: str, text: str, **others: object) -> Request:
    return Request(name, (Message(role="user", content=text),), Sampling(), **others)  # type: ignore[arg-type]


def cached(engine: ScriptedEngine, workspace: Workspace, part: str = "p", artifact: str = "a@1") -> CachedEngine:
    made = CachedEngine(engine, RequestCache(workspace, "model"), artifact)
    made.begin(part)
    return made


def told(replies: list[Reply]) -> list[tuple[str, tuple[str, ...], int, int, bool]]:
    return [(r.request_id, r.texts, r.prompt_tokens, r.completion_tokens, r.reused) for r in replies]


def files(workspace: Workspace) -> list[Path]:
    return sorted(Path(workspace.path(FOLDER, "model")).glob("*.jsonl"))


def test_cache_choices_are_a_question_of_their_own_and_keep_their_probabilities(workspace: Workspace) -> None:
    engine = ScriptedEngine(lambda request: ("0.8", "0.2") if request.choices else "text")
    choice, text = ask("1", "tea?", choices=("Yes", "No")), ask("2", "tea?")
    asked = cached(engine, workspace).generate([choice, text])
    again = cached(ScriptedEngine(lambda request: None), workspace).generate([choice, text])
    for chosen, written in (asked, again):
        assert (chosen.texts, chosen.probabilities) == (("Yes",), pytest.approx((0.8, 0.2)))
        assert (written.texts, written.probabilities) == (("text",), ())


def test_cache_another_process_asks_only_what_is_new(workspace: Workspace) -> None:
    first, second = Counting(), Counting()
    assert told(cached(first, workspace).generate([ask("1", "a b"), ask("2", "c")])) == [
        ("1", ("to a b",), 2, 3, False),
        ("2", ("to c",), 1, 2, False),
    ]
    replies = cached(second, workspace, "q").generate([ask("x", "c"), ask("y", "new")])
    assert told(replies) == [("x", ("to c",), 0, 0, True), ("y", ("to new",), 1, 2, False)]
    assert (first.asked, second.asked) == (["1", "2"], ["y"])


def test_cache_engine_that_dies_leaves_what_it_answered_and_the_same_part_counts_it_once(workspace: Workspace) -> None:
    requests = [ask(str(i), f"q{i}") for i in range(5)]
    with pytest.raises(EngineError):
        cached(Counting(answers=3), workspace).generate(requests)
    again = Counting()
    engine = cached(again, workspace)
    assert [(r.prompt_tokens, r.reused) for r in engine.generate(requests)] == [(1, False)] * 5
    assert again.asked == ["3", "4"]
    assert [(r.prompt_tokens, r.reused) for r in engine.generate(requests)] == [(0, True)] * 5, "a second time it is free"


def test_cache_equal_requests_of_one_call_are_asked_and_counted_once(workspace: Workspace) -> None:
    engine = Counting()
    replies = cached(engine, workspace).generate([ask("1", "same"), ask("2", "same")])
    assert told(replies) == [("1", ("to same",), 1, 2, False), ("2", ("to same",), 0, 0, True)]
    assert engine.asked == ["1"]


def test_cache_failed_request_is_not_kept(workspace: Workspace) -> None:
    engine = cached(Counting(), workspace)
    (reply,) = engine.generate([ask("1", "fail")])
    assert reply.error == "the script fails here"
    assert not cached(Counting(), workspace).generate([ask("2", "fail")])[0].texts


def test_cache_line_cut_by_a_kill_is_asked_again_and_the_others_are_not(workspace: Workspace) -> None:
    cached(Counting(), workspace).generate([ask("1", "a"), ask("2", "b")])
    (path,) = files(workspace)
    path.write_bytes(path.read_bytes().rpartition(b"stop")[0][:-9])
    (path.parent / "noise.jsonl").write_bytes(b"\xff\xfe\n\nzz\tq\t{}\n" + b"00" * 16 + b"\tq\tnot json\n")
    again = Counting()
    assert [r.texts for r in cached(again, workspace).generate([ask("1", "a"), ask("2", "b")])] == [("to a",), ("to b",)]
    assert again.asked == ["2"]


def test_cache_two_writers_that_paid_for_the_same_are_both_believed(workspace: Workspace) -> None:
    one, two = cached(Counting(), workspace, "p"), cached(Counting(), workspace, "q")
    one.generate([ask("1", "a")])
    two.generate([ask("1", "a")])
    assert len(files(workspace)) == 2
    for part, reused in (("p", False), ("q", False), ("r", True)):
        (reply,) = cached(Counting(), workspace, part).generate([ask("1", "a")])
        assert reply.reused == reused, part


def test_cache_takes_in_at_the_next_part_what_others_wrote(workspace: Workspace) -> None:
    mine, theirs = Counting(), cached(Counting(), workspace, "q")
    engine = cached(mine, workspace)
    theirs.generate([ask("1", "a")])
    engine.begin("r")
    engine.generate([ask("1", "a")])
    assert mine.asked == []


def test_cache_on_an_object_store_puts_whole_files() -> None:
    store = Workspace.open("mock:///bucket/ws")
    assert cached(Counting(), store).generate([ask("1", "a")])[0].texts == ("to a",)
    engine = cached(Counting(), store)
    engine.generate([ask("1", "b")])
    engine.begin("q")
    engine.generate([ask("1", "c")])
    engine.close()
    again = Counting()
    reader = CachedEngine(again, RequestCache(Workspace(store.root, store.filesystem, store.base), "model"), "a@1")
    assert [r.texts for r in reader.generate([ask("1", "b"), ask("2", "c")])] == [("to b",), ("to c",)]
    assert again.asked == []


def test_cache_follow_ups_of_kept_answers_are_answered_or_asked(workspace: Workspace) -> None:
    def follow(reply: Reply) -> list[Request]:
        depth = len(reply.request_id)
        return [ask(reply.request_id + "x", f"q{depth}")] if depth < 4 else []

    first, again = Counting(), Counting()
    told_of = cached(first, workspace).generate([ask("a", "q0")], lambda reply: follow(reply) if len(reply.request_id) < 3 else None)
    assert [reply.request_id for reply in told_of] == ["a", "ax", "axx"]
    replies = cached(again, workspace).generate([ask("a", "q0"), ask("z", "q0")], follow)
    assert [reply.request_id for reply in replies] == ["a", "z", "ax", "zx", "axx", "zxx", "axxx", "zxxx"]
    assert again.asked == ["axxx"], "its twin waits for it"
    assert [reply.reused for reply in replies] == [False, True] * 4


class Mortal(Counting):
    """Answers one after the other until it is asked what kills it."""

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        for request in requests:
            self.asked.append(request.request_id)
            if "poison" in request.messages[0]["content"]:
                raise EngineError("the engine died")
            ScriptedEngine.generate(self, [request], on_reply)
        return []


def test_cache_request_that_kills_the_engine_is_found_and_the_rest_is_done(workspace: Workspace) -> None:
    requests = [ask("1", "a"), ask("2", "poison"), ask("3", "c")]
    lives: list[list[str]] = []
    replies: list[Reply] = []
    while not replies:
        engine = Mortal()
        lives.append(engine.asked)
        try:
            replies = cached(engine, workspace).generate(requests)
        except EngineError:
            assert len(lives) < 9, "it goes on dying"
    # Begun with nothing known, then twice with one answer and no more; at the third time, and once again, the poison is asked alone.
    assert lives == [["1", "2"], ["2"], ["2"], ["2"], ["2"], ["3"]]
    assert [(reply.texts, reply.error) for reply in replies] == [(("to a",), None), ((), "the engine died of it"), (("to c",), None)]
    assert sum(reply.prompt_tokens for reply in replies) == 2
    other = Mortal()
    assert [reply.error for reply in cached(other, workspace, "q").generate(requests[:1])] == [None], "another part is asked as ever"


class Poor(Counting):
    """Has no budget."""

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        raise BudgetSpentError("the budget is spent")


def test_cache_part_left_for_want_of_budget_is_not_taken_for_deadly(workspace: Workspace) -> None:
    for _ in range(5):
        with pytest.raises(BudgetSpentError):
            cached(Poor(), workspace).generate([ask("1", "a"), ask("2", "b")])
    rich = Counting()
    assert [reply.error for reply in cached(rich, workspace).generate([ask("1", "a"), ask("2", "b")])] == [None, None]
    assert not any("try" in path.read_text() for path in files(workspace))


def let_it_die_alone(workspace: Workspace, request: Request) -> None:
    """Until the part is asked request by request, and died of this one once."""
    for _ in range(3):
        with pytest.raises(EngineError):
            cached(Counting(answers=0), workspace).generate([request])
    assert sum(path.read_text().count("\ntry\t") for path in files(workspace)) == 1


def test_cache_request_that_fails_when_asked_alone_is_asked_again_in_every_run(workspace: Workspace) -> None:
    let_it_die_alone(workspace, ask("1", "fail"))
    for _ in range(4):
        engine = Counting()
        assert [reply.error for reply in cached(engine, workspace).generate([ask("1", "fail")])] == ["the script fails here"]
    mended = ScriptedEngine(lambda request: "fine")
    assert [reply.texts for reply in cached(mended, workspace).generate([ask("1", "fail")])] == [("fine",)]


def test_cache_budget_that_ends_when_asked_alone_leaves_no_mark(workspace: Workspace) -> None:
    let_it_die_alone(workspace, ask("1", "a"))
    for _ in range(4):
        with pytest.raises(BudgetSpentError):
            cached(Poor(), workspace).generate([ask("1", "a")])
    assert [reply.texts for reply in cached(Counting(), workspace).generate([ask("1", "a")])] == [("to a",)]


def test_cache_part_whose_requests_all_fail_is_not_taken_for_deadly(workspace: Workspace) -> None:
    for _ in range(5):
        cached(Counting(), workspace).generate([ask("1", "fail"), ask("2", "fail again")])
    assert not any("try" in path.read_text() for path in files(workspace))


def test_cache_engine_that_is_not_asked_leaves_no_mark(workspace: Workspace) -> None:
    for _ in range(5):
        cached(Counting(), workspace).generate([])
    assert files(workspace) == []


def test_cache_two_engines_of_one_model_are_begun_once_by_one_death(workspace: Workspace) -> None:
    for _ in range(2):
        looks, reads = cached(Counting(), workspace), cached(Counting(answers=0), workspace)
        looks.generate([ask("1", "fail")])
        with pytest.raises(EngineError):
            reads.generate([ask("2", "a")])
    assert not any("try" in path.read_text() for path in files(workspace)), "two deaths are fewer than three"
    with pytest.raises(EngineError):
        cached(Counting(answers=0), workspace).generate([ask("2", "a")])
    assert any("try" in path.read_text() for path in files(workspace))


def test_cache_on_an_object_store_is_seen_by_others_when_a_call_ends() -> None:
    store = Workspace.open("mock:///bucket/ws")
    cached(Counting(), store).generate([ask("1", "a")])
    again = Counting()
    assert [reply.texts for reply in cached(again, store).generate([ask("1", "a")])] == [("to a",)]
    assert again.asked == []


def test_cache_on_an_object_store_is_seen_by_others_while_a_long_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_cache, "SECONDS_A_FILE", 0.05)
    store, first = Workspace.open("mock:///bucket/ws"), ask("1", "a")
    reader, seen = RequestCache(store, "model"), threading.Event()

    class Slow(Counting):
        def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
            replies = super().generate(requests, on_reply)
            until = time.monotonic() + 20
            while not reader.find(request_key("model", first)) and time.monotonic() < until:
                seen.wait(0.01)
                reader.refresh()
            return replies

    assert cached(Slow(), store).generate([first])[0].texts == ("to a",)
    assert reader.find(request_key("model", first))


def test_request_key_follows_the_content_and_not_the_id() -> None:
    key = request_key("m", ask("1", "a"))
    assert key == request_key("m", ask("2", "a"))
    others = [ask("1", "b"), ask("1", "a", json_schema="{}"), ask("1", "a", images=(b"x",))]
    others.append(Request("1", others[0].messages[:0] + ask("1", "a").messages, Sampling(seed=1)))
    assert len({key, request_key("n", ask("1", "a")), *(request_key("m", other) for other in others)}) == 6


def test_model_identity_follows_what_decides_answers() -> None:
    one = model_identity(ScriptedConfig(default="x"))
    assert one == model_identity(ScriptedConfig(default="x")) != model_identity(ScriptedConfig(default="y"))
