"""Tree search by hand: which candidate is kept, what the next question carries, what the table says."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import CHUNK
from intently.core.workspace import Workspace
from intently.interests.tree import Searched, TreeConfig, final_scores, search_users
from intently.interests.vectors import RememberingEncoder, item_texts
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine
from intently.llm.request_cache import CachedEngine, RequestCache

from tests.interests.test_users import answer, chunk

CONFIG = TreeConfig.parse({"mining": {"sampling": {"temperature": 0.8, "num_samples": 3}}})


class Preferences:
    """Scores phrases as it is told: S_e of a candidate, and S_c of a candidate after another."""

    def __init__(self, encoder: TextEncoder, effectiveness: dict[str, float], continuity: dict[tuple[str, str], float]) -> None:
        self._phrases = [*effectiveness, *{phrase for pair in continuity for phrase in pair} - effectiveness.keys()]
        self._vectors = np.concatenate([encoder.encode([phrase]) for phrase in self._phrases])
        self._effectiveness, self._continuity = effectiveness, continuity
        self.steps: list[int] = []

    def _named(self, vector: np.ndarray) -> str:
        return self._phrases[int((self._vectors @ vector).argmax())]

    def rate(self, previous: np.ndarray | None, candidates: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        self.steps.append(len(candidates))
        names = [self._named(vector) for vector in candidates]
        effectiveness = np.array([self._effectiveness[name] for name in names])
        if previous is None:
            return None, effectiveness
        return np.array([self._continuity[self._named(previous), name] for name in names]), effectiveness


class Samples:
    """Three answers to every question, by chunk; keeps the questions."""

    def __init__(self, samples: dict[str, tuple[str, ...]]) -> None:
        self.samples, self.asked = samples, []
        self.engine = ScriptedEngine(self.respond)

    def respond(self, request: Request) -> str | tuple[str, ...] | None:
        self.asked.append(request.messages[1]["content"])
        found = next(texts for line, texts in self.samples.items() if f"behaviours of {line}" in self.asked[-1])
        return found[:1] if request.sampling.num_samples == 1 else found


@pytest.fixture
def two_chunks() -> pa.Table:
    """Ann with two chunks, Bob with one."""
    return CHUNK.from_rows([chunk("ann", 0, ["boots"]), chunk("ann", 1, ["kettle"]), chunk("bob", 0, ["guitar"])])


SAMPLES = {
    "ann in chunk 0": (answer("hiking"), answer("coffee"), answer("guitar")),
    "ann in chunk 1": (answer("hiking"), "no JSON", answer("tea")),
    "bob in chunk 0": (answer("guitar"), answer("guitar"), answer("hiking")),
}
EFFECTIVENESS = {"hiking": 0.2, "coffee": 0.7, "guitar": 0.6, "tea": 0.4}
CONTINUITY = {("coffee", "hiking"): 0.9, ("coffee", "tea"): 0.8}


def search(chunks: pa.Table, items: pa.Table, encoder: TextEncoder, script: Samples, config: TreeConfig = CONFIG) -> Searched:
    return search_users(chunks, items, script.engine, RememberingEncoder(encoder), Preferences(encoder, EFFECTIVENESS, CONTINUITY), config)


def test_search_users_keeps_the_best_of_each_step_and_goes_on_from_it(two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    script = Samples(SAMPLES)
    searched = search(two_chunks, items, encoder, script)
    rows = [
        (r["user_id"], r["chunk"], r["interest"], r["shift"], r["path"], r["s_continuity"], r["s_effectiveness"], r["s_final"])
        for r in searched.mined.interests.to_pylist()
    ]
    close = pytest.approx
    # Chunk 0 goes by S_e alone. Chunk 1: hiking (.9 + .2) / 2 = .55, tea (.8 + .4) / 2 = .6. Bob's equal ones: the first.
    assert rows == [
        ("ann", 0, "coffee", "new", "1", None, close(0.7), close(0.7)),
        ("ann", 1, "tea", "new", "1/2", close(0.8), close(0.4), close(0.6)),
        ("bob", 0, "guitar", "new", "0", None, close(0.6), close(0.6)),
    ]
    assert any("Interests before: coffee\n" in text for text in script.asked)
    assert len(script.asked) == 3


def test_search_users_keeps_the_whole_tree_as_a_table(two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    searched = search(two_chunks, items, encoder, Samples(SAMPLES))
    nodes = [
        (n["user_id"], n["chunk"], n["sample"], n["parent"], n["path"], n["interests"], n["chosen"]) for n in searched.nodes.to_pylist()
    ]
    assert nodes == [
        ("ann", 0, 0, None, "0", ["hiking"], False),
        ("ann", 0, 1, None, "1", ["coffee"], True),
        ("ann", 0, 2, None, "2", ["guitar"], False),
        ("ann", 1, 0, "1", "1/0", ["hiking"], False),
        ("ann", 1, 2, "1", "1/2", ["tea"], True),
        ("bob", 0, 0, None, "0", ["guitar"], True),
        ("bob", 0, 1, None, "1", ["guitar"], False),
        ("bob", 0, 2, None, "2", ["hiking"], False),
    ]
    assert searched.nodes["stages"].to_pylist()[0] == ["active"]
    assert [row["row"] for row in searched.mined.rejects.to_pylist()] == ["ann/1/1"]


def test_search_users_scores_all_candidates_of_a_step_together(two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    rater = Preferences(encoder, EFFECTIVENESS, CONTINUITY)
    search_users(two_chunks, items, Samples(SAMPLES).engine, RememberingEncoder(encoder), rater, CONFIG)
    assert sorted(rater.steps) == [2, 3, 3]


def test_search_users_lets_no_answer_wait_for_the_encoding_of_items(two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    told: list[str] = []

    class Telling:
        name = encoder.name

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            told.extend(texts)
            return encoder.encode(texts)

    rater = Preferences(encoder, EFFECTIVENESS, CONTINUITY)
    search_users(two_chunks, items, Samples(SAMPLES).engine, RememberingEncoder(Telling()), rater, CONFIG)
    titles = [place for place, text in enumerate(told) if text in set(item_texts(items).to_pylist())]
    assert len(titles) == 3 and min(titles) > max(told.index(phrase) for phrase in ("hiking", "coffee", "guitar", "tea"))


def test_search_users_without_rating_models_keeps_the_first_and_says_no_score(
    two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    searched = search_users(two_chunks, items, Samples(SAMPLES).engine, RememberingEncoder(encoder), None, CONFIG)
    kept = searched.mined.interests
    assert kept["interest"].to_pylist() == ["hiking", "hiking", "guitar"]
    assert kept["path"].to_pylist() == ["0", "0/0", "0"]
    assert kept["s_final"].null_count == 3 and searched.nodes["s_final"].null_count == 8


def test_search_users_chunk_without_a_valid_answer_leaves_the_path_where_it_was(
    two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    broken = SAMPLES | {"ann in chunk 0": ("nothing", "at", "all")}
    searched = search(two_chunks, items, encoder, Samples(broken))
    ann = [(r["chunk"], r["path"], r["s_continuity"]) for r in searched.mined.interests.to_pylist() if r["user_id"] == "ann"]
    # Nothing was kept before chunk 1: it starts the path, by S_e alone.
    assert ann == [(1, "2", None)]


def test_search_users_resumed_from_the_request_cache_asks_only_what_is_new_and_ends_alike(
    two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder, workspace: Workspace
) -> None:
    first = Samples({key: texts for key, texts in SAMPLES.items() if key != "ann in chunk 1"})

    def dies(request: Request) -> str | tuple[str, ...] | None:
        if "ann in chunk 1" in request.messages[1]["content"]:
            raise KeyboardInterrupt
        return first.respond(request)

    first.engine = ScriptedEngine(dies)
    first.engine = CachedEngine(first.engine, RequestCache(workspace, "m"), "user_interest@1")  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        search(two_chunks, items, encoder, first)
    again = Samples(SAMPLES)
    again.engine = CachedEngine(again.engine, RequestCache(workspace, "m"), "user_interest@1")  # type: ignore[assignment]
    resumed = search(two_chunks, items, encoder, again)
    assert [text for text in again.asked if "ann in chunk 1" not in text] == []
    assert resumed.nodes.equals(search(two_chunks, items, encoder, Samples(SAMPLES)).nodes)


def test_final_scores_weigh_continuity_against_effectiveness() -> None:
    continuity, effectiveness = np.array([1.0, 0.0]), np.array([0.0, 0.5])
    assert final_scores(continuity, effectiveness, 0.25).tolist() == [0.25, 0.375]
    assert final_scores(None, effectiveness, 0.25).tolist() == [0.0, 0.5]


def test_tree_config_samples_that_would_be_alike_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 samples at temperature 0"):
        TreeConfig.parse({"mining": {"sampling": {"num_samples": 3}}})


def test_independent_reading_carries_nothing_but_still_tells_the_shift(two_chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    script = Samples({name: (answer("hiking"),) * 3 for name in SAMPLES})
    config = TreeConfig.parse({"mining": {"cascade": False, "sampling": {"temperature": 0.8, "num_samples": 3}}})
    searched = search_users(two_chunks, items, script.engine, RememberingEncoder(encoder), None, config)
    assert not any("Interests before" in text for text in script.asked)
    assert searched.mined.interests["shift"].to_pylist() == ["new", "continued", "new"]
    assert json.loads(script.samples["bob in chunk 0"][0])["interests"]
