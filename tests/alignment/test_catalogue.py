"""The catalogue teacher on a small log whose answers can be counted by hand, and what it must never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from intently.alignment.catalogue import Aspect, Catalogue, CatalogueConfig, held_out, open_catalogue
from intently.alignment.catalogue_answers import Seen, Shown, interests_of, shown_aspects, tag_answer
from intently.alignment.catalogue_teacher import write_catalogue_examples
from intently.alignment.examples import prompt_messages
from intently.core.schema import CHAT_EXAMPLE
from intently.data.training_log import mark_log
from intently.llm.tasks import ITEM_LIKING, TASKS

NOTHING = np.empty(0, np.int64)
GENRES = ("Comedy", "Drama|War", "Horror", "Comedy|Romance")
NUM_ITEMS, NUM_USERS, NUM_EVENTS = 60, 40, 24


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CatalogueConfig:
    """60 films of four kinds; half of the people like comedies, the other half everything else; the rest gets two stars."""
    folder: Path = tmp_path_factory.mktemp("films")
    items = range(1, NUM_ITEMS + 1)
    pl.DataFrame(
        {
            "item_id": items,
            "title": [f"Title{item:03d} ({1950 + item % 50})" for item in items],
            "categories": [GENRES[item % 4] for item in items],
            "year": [1950 + item % 50 for item in items],
            "description": [f"a {'funny wedding' if item % 4 in (0, 3) else 'dark battle'} unfolds" for item in items],
            "image_url": [""] * NUM_ITEMS,
        }
    ).write_parquet(folder / "items.parquet")
    rng = np.random.default_rng(0)
    rows = []
    for user in range(1, NUM_USERS + 1):
        for pos, item in enumerate((rng.permutation(NUM_ITEMS)[:NUM_EVENTS] + 1).tolist()):
            funny = GENRES[item % 4].startswith("Comedy")
            rows.append((user, item, 5 if funny == (user % 2 == 0) else 2, pos, 10**9 + 90_000 * pos))
    names = ["user_id", "item_id", "rating", "pos", "timestamp"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "interactions.parquet")
    return CatalogueConfig.parse(
        {
            "name": "films",
            "source": {"kind": "shared_parquet", "path": str(folder)},
            "levels": "flat",
            "noun": "films",
            "chunks": {"names": {"facets": ["categories"]}},
            "min_items": 5,
            "chunk_sizes": [4, 8],
            "item_examples": 20,
            "tag_examples": 10,
            "liking_examples": 40,
            "liking_chunks": 10,
        }
    )


@pytest.fixture(scope="module")
def catalogue(config: CatalogueConfig) -> Catalogue:
    return open_catalogue(config)


@pytest.fixture(scope="module")
def examples(config: CatalogueConfig) -> pa.Table:
    return CHAT_EXAMPLE.check(write_catalogue_examples(config, seed=3))


def test_training_part_leaves_out_the_last_tenth_and_at_least_two() -> None:
    events = pa.table({"user_id": ["a"] * 3 + ["b"] * 40, "behaviour": ["rating"] * 43, "value": [5.0, 3.0, 4.0] + [5.0] * 40})
    marked = mark_log(events, min_rating=4.0)
    assert marked["later"].to_pylist() == [False, True, True] + [False] * 36 + [True] * 4
    assert marked["liked"].to_pylist()[:3] == [True, False, True]


def test_catalogue_examples_hold_nothing_of_held_out_people_and_items_or_of_later_events(
    config: CatalogueConfig, catalogue: Catalogue, examples: pa.Table
) -> None:
    titles = catalogue.items["title"].to_pylist()
    hidden = [title for title, teachable in zip(titles, catalogue.teachable, strict=True) if not teachable]
    assert 3 < len(hidden) < 30
    text = "\n".join(examples["prompt"].to_pylist() + examples["completion"].to_pylist())
    assert not [title for title in hidden if title in text]
    assert any(title in text for title in titles)
    users = set(catalogue.events["user_id"].to_pylist())
    assert users and not any(map(held_out, users))
    assert set(catalogue.measured["user_id"].to_pylist()) == {str(u) for u in range(1, NUM_USERS + 1) if held_out(str(u))}
    # Everybody has 24 events, of which the last three are later.
    assert max(catalogue.events["position"].to_pylist()) == NUM_EVENTS - 4


def test_catalogue_examples_parse_with_their_tasks_and_come_the_same_again(config: CatalogueConfig, examples: pa.Table) -> None:
    rows = examples.to_pylist()
    for row in rows:
        if row["task"] == ITEM_LIKING.name:
            assert row["completion"] in ITEM_LIKING.choices
        else:
            TASKS[row["task"]].parse(row["completion"])
    assert {row["task"] for row in rows} == {"user_interests", "item_interests", "item_tags", "item_liking"}
    assert write_catalogue_examples(config, seed=3).equals(examples)


def test_catalogue_liking_is_what_was_rated_in_the_next_chunk(examples: pa.Table) -> None:
    asked = [row for row in examples.to_pylist() if row["task"] == ITEM_LIKING.name]
    by_interest = [row for row in asked if "Interests: comedy films" in prompt_messages(row["prompt"])[1]["content"]]
    assert by_interest
    for row in by_interest:
        item = prompt_messages(row["prompt"])[1]["content"].splitlines()[-2]
        assert row["completion"] == ("Yes" if "Comedy" in item else "No"), row["prompt"]


def test_shown_aspects_are_what_a_chunk_has_more_of_than_everybody(catalogue: Catalogue) -> None:
    place = {aspect.phrase: number for number, aspect in enumerate(catalogue.aspects)}
    assert {"comedy films", "comedy romance films", "drama war films", "horror films"} <= set(place)
    horror = np.flatnonzero(catalogue.shows[:, place["horror films"]])[[0, 5, 10]]
    comedy = np.flatnonzero(catalogue.shows[:, place["comedy films"]] * (1 - catalogue.shows[:, place["romance films"]]))[[0, 5, 10]]
    seen = Seen(np.concatenate([horror, comedy]), np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0]), False, NOTHING)
    found = [catalogue.aspects[one.aspect].phrase for one in shown_aspects(catalogue, seen)]
    # Three of six are horror, a fourth or so of what is liked at all; half are comedies, and so is half of what is liked.
    assert found == ["horror films"]
    disliked = np.flatnonzero(catalogue.shows[:, place["horror films"]])[[1, 2, 3, 4, 6]]
    assert shown_aspects(catalogue, replace(seen, others=disliked)) == []  # three of eight, but every comedy


def test_interests_answer_tells_stage_degree_and_names_words_of_the_chunk(catalogue: Catalogue) -> None:
    place = {aspect.phrase: number for number, aspect in enumerate(catalogue.aspects)}
    shown = [Shown(place["horror films"], 0.6, 1.0), Shown(place["drama war films"], 0.0, 0.3), Shown(place["comedy films"], 0.0, 1.0)]
    war, horror = (np.flatnonzero(catalogue.shows[:, place[phrase]]) for phrase in ("drama war films", "horror films"))
    # Of four war films three are liked, of two horror films one.
    seen = Seen(np.array([*war[:3], horror[0]]), np.array([0.0, 0.1, 0.3, 1.0]), False, np.array([war[3], horror[1]]))
    text = "2001 (rating 5) | A [Horror], B [Drama/War], C [Comedy]"
    answer = interests_of(catalogue, shown, seen, text, ["comedy films"], "rating")
    assert [(draft.interest, draft.stage) for draft in answer.interests] == [
        ("horror films", "emerging"),
        ("drama war films", "fading"),
        ("comedy films", "active"),
    ]
    assert answer.interests[0].reason.startswith("liked half horror, most of the rest, wants to ")
    assert answer.interests[1].reason == "liked most drama and war, half of the rest, wants to be moved by people's fates"
    bought = interests_of(catalogue, shown[1:2], seen, text, [], "purchase")
    assert bought.interests[0].reason == "bought drama and war, wants to be moved by people's fates"


def test_tag_answer_shares_tags_by_stage_and_never_repeats_one() -> None:
    comedy = Aspect("comedy films", ("comedy",), "comedy film", ("romance", "1990s", "wedding", "school"), "comedy")
    war = Aspect("war films", ("war",), "war film", ("drama", "soldiers", "1990s"), "war")
    tags = tag_answer([(comedy, "active"), (war, "fading")], ["The Wedding (1998)"], 6).tags
    assert [tag.tag for tag in tags] == [
        "romance comedy film",
        "1990s comedy film",
        "school comedy film",
        "wedding comedy film",
        "drama war film",
        "soldiers war film",
    ]
    assert {tag.interest for tag in tags} == {"comedy films", "war films"}
