"""The teacher's examples: they read like the mining jobs' questions, parse as answers, and say what is true."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from intently.alignment.answers import PHRASES, completion, explanation_answer, interest_reason, interests_answer, tags_answer
from intently.alignment.examples import prompt_messages, prompt_text
from intently.alignment.teacher import TeacherConfig, World, draw_world, world_chunks, write_examples
from intently.alignment.truth import Wish, histories, read_truth
from intently.core.schema import CHAT_EXAMPLE
from intently.data.world import THEMES
from intently.llm.tasks import TASKS, ItemTags, UserInterests

SMALL = TeacherConfig(num_worlds=2, users_per_world=15, tags_per_world=8, explanations_per_world=10)
HIKING, CAKES = PHRASES["trail hiking"], PHRASES["festive cake decorating"]


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    return pa.concat_tables([write_examples(SMALL, world) for world in range(4)])


def test_examples_every_completion_parses_with_its_task(examples):
    for row in examples.to_pylist():
        TASKS[row["task"]].parse(row["completion"])
    assert set(examples["task"].to_pylist()) == set(TASKS) & {"user_interests", "item_tags", "explanation"}


def test_examples_keep_the_contract_and_have_own_ids(examples):
    CHAT_EXAMPLE.check(examples)
    assert len(set(examples["example_id"].to_pylist())) == examples.num_rows


def test_examples_same_config_and_world_give_the_same_rows():
    assert write_examples(SMALL, 1).equals(write_examples(SMALL, 1))


def test_examples_prompt_is_the_tasks_own_chat(examples):
    row = next(row for row in examples.to_pylist() if row["task"] == "user_interests")
    system, user = prompt_messages(row["prompt"])
    rendered = TASKS["user_interests"].render(behaviours="2025 (purchase) | Tent", previous=[])
    assert system == rendered[0]
    assert "Behaviours:\n" in user["content"]
    assert prompt_messages(prompt_text(rendered)) == list(rendered)


def test_examples_completion_keys_stand_in_the_order_that_guided_decoding_forces(examples):
    for row in examples.slice(0, 40).to_pylist():
        schema = json.loads(TASKS[row["task"]].json_schema)
        assert list(json.loads(row["completion"])) == list(schema["properties"])
    schema = json.loads(TASKS["user_interests"].json_schema)
    draft = json.loads(next(r["completion"] for r in examples.to_pylist() if r["task"] == "user_interests"))["interests"][0]
    assert list(draft) == list(schema["$defs"]["InterestDraft"]["properties"])


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(SMALL.model_copy(update={"rating_share": 0.0, "users_per_world": 60}), 1, np.random.default_rng(1))


def test_truth_every_wish_is_a_true_interest_of_the_person(world):
    chunks = world_chunks(world, 30)
    truth = {(row["user_id"], row["interest"]) for row in world.simulation.true_interests.to_pylist()}
    found = read_truth(world.simulation, world.events, chunks, 2)
    assert len(found) == chunks.num_rows
    for user, wishes in zip(chunks["user_id"].to_pylist(), found, strict=True):
        assert all((user, wish.theme.phrase) in truth and wish.num_events >= 2 for wish in wishes)
        assert [wish.num_events for wish in wishes] == sorted((wish.num_events for wish in wishes), reverse=True)


def test_truth_stage_is_read_off_the_spells_within_the_chunk(world):
    chunks = world_chunks(world, 50)
    rows = world.simulation.true_interests.to_pylist()
    seen = set()
    for chunk, wishes in zip(chunks.to_pylist(), read_truth(world.simulation, world.events, chunks, 2), strict=True):
        span = chunk["end"] - chunk["start"]
        for wish in wishes:
            spells = [row for row in rows if (row["user_id"], row["interest"]) == (chunk["user_id"], wish.theme.phrase)]
            begins_late = min(row["start"] for row in spells) > chunk["start"] + 0.4 * span
            ends_early = max(row["end"] for row in spells if row["start"] <= chunk["end"]) < chunk["start"] + 0.7 * span
            assert wish.stage == ("emerging" if begins_late else "fading" if ends_early else "active")
            seen.add(wish.stage)
    assert seen == {"emerging", "active", "fading"}


def test_histories_hold_every_event_of_each_person_in_order(world):
    history = histories(world.events)
    assert sum(len(ids) for ids in history["event_ids"].to_pylist()) == world.events.num_rows
    assert history["event_ids"][0].as_py() == [f"u00000-{n}" for n in range(len(history["event_ids"][0]))]


def test_interest_reason_names_what_was_seen_and_the_motive():
    wish = Wish(HIKING, 5, "active", nouns=(1, 0), deed="purchase", deed_noun=0, query=None)
    assert interest_reason(wish) == "bought hiking boots and saw trekking poles, wants to walk the hills at weekends"
    searched = Wish(HIKING, 2, "active", nouns=(), deed="search", deed_noun=None, query="padded day pack")
    assert interest_reason(searched) == "searched for padded day pack, wants to stay dry on long trails"


def test_interests_answer_is_written_without_white_space_between_tokens():
    text = completion(TASKS["user_interests"], interests_answer([Wish(HIKING, 5, "fading", (0,), "cart", 0, None)]))
    assert '": ' not in text
    answer = TASKS["user_interests"].parse(text)
    assert isinstance(answer, UserInterests)
    assert (answer.interests[0].interest, answer.interests[0].stage) == ("trail hiking", "fading")


def test_tags_answer_leaves_out_what_is_out_of_season_and_was_touched():
    answer = tags_answer([("trail hiking", "active"), ("festive cake decorating", "active")], ["Velmora Padded Day Pack"], "summer", 6)
    assert {tag.interest for tag in answer.tags} == {"trail hiking"}
    assert not any("day pack" in tag.tag for tag in answer.tags)
    assert len({tag.tag for tag in answer.tags}) == 6


def test_tags_answer_serves_what_is_there_when_nothing_is_in_season():
    answer = tags_answer([("festive cake decorating", "active")], [], "summer", 4)
    assert [tag.tag for tag in answer.tags] == [
        "festive piping set",
        "glittery cake stand",
        "star-shaped sugar pearls",
        "rotating fondant roller",
    ]


def test_tags_answer_fading_interest_gets_half_the_share():
    answer = tags_answer([("trail hiking", "active"), ("crime novels", "fading")], [], "summer", 12)
    assert [tag.interest for tag in answer.tags] == ["trail hiking"] * 8 + ["crime novels"] * 4


@pytest.mark.parametrize("num_tags", [1, 7, 50])
def test_tags_answer_has_at_most_as_many_as_wanted_and_no_tag_twice(num_tags):
    answer = tags_answer([("trail hiking", "active"), ("war epics", "emerging")], [], "autumn", num_tags)
    assert isinstance(answer, ItemTags)
    tags = [tag.tag for tag in answer.tags]
    assert len(tags) == len(set(tags)) <= num_tags


def test_explanation_answer_uses_the_items_facts_and_no_brand():
    item = {
        "title": "Velmora Padded Hiking Boots", "category": "Hiking", "brand": "Velmora", "price": 80.0,
        "description": "Padded, in red. Made for people who want to stay dry on long trails.", "attributes": ["feature: padded"],
    }  # fmt: skip
    told = explanation_answer(item, HIKING, 0, "trail hiking").explanation
    assert told == "Padded hiking boots for your interest in trail hiking: helps you stay dry on long trails."
    near = explanation_answer(item | {"attributes": [], "description": None}, HIKING, 0, "winter mountaineering").explanation
    assert near == "Padded hiking boots, close to your interest in winter mountaineering: helps you stay dry on long trails."
    assert "Velmora" not in explanation_answer(item, HIKING, 0, None).explanation


def test_world_disguised_as_rating_log_holds_ratings_only():
    world = draw_world(SMALL.model_copy(update={"rating_share": 1.0}), 0, np.random.default_rng(0))
    assert set(world.shown["behaviour"].to_pylist()) == {"rating"}
    assert set(world.shown["value"].to_pylist()) == {3.0, 4.0, 5.0}
    assert world.shown["event_id"].equals(world.events["event_id"])


def test_every_theme_has_words_for_every_task():
    for theme in THEMES:
        assert theme.tag_nouns and theme.motives and all(len(motive) < 60 for motive in theme.motives)
    assert len(PHRASES) == len(THEMES)
    assert CAKES.suits("winter") and not CAKES.suits("summer")
