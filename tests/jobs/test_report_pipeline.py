"""What the report reads out of the tables, and that its page and its summary say it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from intently.core.config import Config
from intently.core.schema import CANDIDATE, CHUNK, EXPLANATION, HISTORY, ITEM, METRIC, REJECT, TAG, TRUE_INTEREST, USER, USER_INTEREST
from intently.core.workspace import Workspace, open_stage
from intently.interests.faithfulness import Faithfulness
from report.contents import Contents, Reach
from report.figures import (
    Compression,
    Score,
    count_behaviours,
    history_lengths,
    measure_compression,
    read_scores,
    read_sweeps,
    seconds_in_words,
    stage_lines,
)
from report.page import best, draw, headline, pick_sweep, ranking_table, render, summarise
from report.people import Person, Tables, choose_people, tell

PNG = b"\x89PNG\r\n\x1a\n"


def month(number: int) -> datetime:
    return datetime(2026, number, 1, tzinfo=UTC)


def metric(subject: str, value: float, **other: object) -> dict[str, object]:
    row = {"subject": subject, "split": "test", "name": "NDCG", "k": 10, "value": value, "setting": "{}", "filter_seen": True}
    return row | {"num_users": 4, "seed": 0} | other


def history(user: str, events: list[tuple[str | None, str]]) -> dict[str, object]:
    nothing = [None] * len(events)
    return {
        "user_id": user,
        "bucket": 0,
        "event_ids": [f"{user}-{i}" for i in range(len(events))],
        "item_ids": [item for item, _ in events],
        "behaviours": [behaviour for _, behaviour in events],
        "timestamps": [month(1)] * len(events),
        "values": nothing,
        "queries": nothing,
        "dwell_s": nothing,
    }


def interest(chunk: int, rank: int, phrase: str, stage: str, shift: str, user: str = "ann") -> dict[str, object]:
    row = {"user_id": user, "bucket": 0, "chunk": chunk, "rank": rank, "interest": phrase, "stage": stage, "shift": shift}
    return row | {"reason": f"because of {phrase}", "evidence": [], "model": "m"}


def truth(phrase: str, start: int, end: int) -> dict[str, object]:
    return {"user_id": "ann", "interest": phrase, "category": "c", "start": month(start), "end": month(end), "strength": 0.5}


@pytest.fixture
def tables() -> Tables:
    def chunk(number: int, start: int, end: int) -> dict[str, object]:
        row = {"user_id": "ann", "bucket": 0, "chunk": number, "event_ids": [], "item_ids": []}
        return row | {"start": month(start), "end": month(end), "text": "", "num_tokens": 5 + number}

    def item(name: str, title: str, image: bytes | None = None) -> dict[str, object]:
        return {"item_id": name, "title": title, "category": "c", "categories": [], "attributes": [], "image": image}

    return Tables(
        history_train=HISTORY.from_rows([history("ann", [("i1", "click"), (None, "search"), ("i2", "purchase"), ("i2", "purchase")])]),
        history_test=HISTORY.from_rows([history("ann", [("i3", "purchase")])]),
        item=ITEM.from_rows([item("i1", "Lamp"), item("i2", "Tent <b>"), item("i3", "Rope", PNG), item("i4", "Stove")]),
        user=USER.from_rows([{"user_id": "ann", "attributes": ["age: 30"]}]),
        true_interest=TRUE_INTEREST.from_rows([truth("Camping", 1, 2), truth("home light", 3, 4), truth("cycling", 1, 4)]),
        chunk=CHUNK.from_rows([chunk(0, 1, 2), chunk(1, 3, 4)]),
        user_interest=USER_INTEREST.from_rows(
            [
                interest(0, 0, "camping", "emerging", "new"),
                interest(1, 0, "home light", "emerging", "new"),
                interest(1, 1, "camping", "fading", "continued"),
            ]
        ),
        tag=TAG.from_rows(
            [
                {"user_id": "ann", "bucket": 0, "rank": rank, "tag": tag, "interest": "camping", "reason": "r", "model": "m"}
                for rank, tag in ((1, "gas stove"), (0, "long rope"))
            ]
        ),
        explanation=EXPLANATION.from_rows(
            [
                {"item_id": "i3", "interest": "camping", "text": "Holds the tent.", "model": "m"},
                {"item_id": "i3", "interest": "", "text": "Strong.", "model": "m"},
                {"item_id": "i4", "interest": "", "text": "Boils water.", "model": "m"},
                {"item_id": "i4", "interest": "knitting", "text": "Not for ann.", "model": "m"},
            ]
        ),
    )


@pytest.fixture
def ann(tables: Tables) -> Person:
    common = {"user_id": "ann", "source": "towers"}
    rows = [common | {"item_id": "i4", "rank": 1, "score": 0.0}, common | {"item_id": "i3", "rank": 0, "score": 1.0}]
    return tell("ann", tables, CANDIDATE.from_rows(rows))


def contents(people: list[Person], faithfulness: Faithfulness | None = None, metrics: list[dict[str, object]] | None = None) -> Contents:
    sweep = [metric("fused", value, split="validation", setting=json.dumps({"beta": beta})) for beta, value in ((0.0, 0.1), (0.5, 0.3))]
    rows = METRIC.from_rows(metrics if metrics is not None else [metric("towers", 0.5), metric("popularity", 0.25, filter_seen=False)])
    return Contents(
        stages=[],
        behaviours={"click": 100, "purchase": 3},
        lengths=np.array([3, 5, 90]),
        compression=Compression(np.array([5, 6]), 4, 11, 22),
        k=10,
        scores=read_scores(rows, ("NDCG", "HR"), 10),
        spread=[],
        sweeps=read_sweeps(METRIC.from_rows(sweep)),
        beta=0.5,
        faithfulness=faithfulness,
        reach=Reach(10, 3, 4, 0.75, 0.25),
        people=people,
    )


def test_read_scores_of_two_seeds_are_averaged_and_sorted_best_first() -> None:
    rows = [
        metric("popularity", 0.2),
        metric("towers", 0.3),
        metric("towers", 0.5, seed=1),
        metric("towers", 0.9, k=50),
        metric("towers", 0.9, split="validation"),
        metric("towers", 0.25, filter_seen=False),
        metric("item_knn", 0.3, setting='{"neighbours": 20}'),
    ]
    scores = read_scores(METRIC.from_rows(rows), ("NDCG", "HR"), 10)
    assert [(score.label, round(score.value, 6), score.filter_seen) for score in scores] == [
        ("towers", 0.4, True),
        ("towers", 0.25, False),
        ("item knn neighbours 20", 0.3, True),
        ("popularity", 0.2, True),
    ]


def test_ranking_table_joins_filters_in_one_row_and_best_is_the_highest_of_each_column() -> None:
    scores = read_scores(METRIC.from_rows([metric("a", 0.3), metric("b", 0.2), metric("b", 0.6, filter_seen=False)]), ("NDCG",), 10)
    assert ranking_table(scores) == [("a", 4, {"NDCG filtered": 0.3}), ("b", 4, {"NDCG filtered": 0.2, "NDCG unfiltered": 0.6})]
    assert best(scores) == {"NDCG filtered": 0.3, "NDCG unfiltered": 0.6}


def test_read_sweeps_orders_the_points_by_beta_and_passes_over_other_settings_and_single_points() -> None:
    points = ((1.0, 0.1), (0.0, 0.2), (0.5, 0.4))
    rows = [metric("f", value, split="validation", setting=json.dumps({"beta": beta})) for beta, value in points]
    (sweep,) = read_sweeps(METRIC.from_rows([*rows, metric("f", 0.3, setting='{"beta": 0.5}'), metric("popularity", 0.9)]))
    assert sweep.betas.tolist() == [0.0, 0.5, 1.0]
    assert sweep.values.tolist() == [0.2, 0.4, 0.1]


def test_count_behaviours_goes_from_the_weakest_signal_to_the_strongest() -> None:
    rows = HISTORY.from_rows([history("a", [("i", "purchase"), ("i", "click")]), history("b", [("i", "click")])])
    assert list(count_behaviours(rows).items()) == [("click", 2), ("purchase", 1)]
    assert history_lengths(rows).tolist() == [2, 1]


def test_stage_lines_say_what_the_manifests_say(workspace: Workspace) -> None:
    stage = open_stage(workspace, "user", USER, {}, Config())
    refused = REJECT.from_rows([{"stage": "user", "row": str(row), "reason": "no id", "detail": ""} for row in range(2)])
    stage.write("part-00000", USER.from_rows([{"user_id": "a", "attributes": []}]), refused)
    (line,) = stage_lines([stage.finish({"share": 0.5}, {"users": "one"})])
    assert (line.name, line.rows, line.rejects, line.reasons) == ("user", 1, 2, (("no id", 2),))
    assert (line.metrics, line.notes) == ({"share": 0.5}, {"users": "one"})
    assert 0 <= line.seconds < 60


def test_measure_compression_counts_the_same_events_written_out(tables: Tables) -> None:
    chunk = tables.chunk.slice(0, 1).to_pylist()[0]
    chunk |= {"item_ids": ["i1", None, "i2"], "event_ids": ["a", "b", "c"], "text": "today (purchase) | Lamp, Tent."}
    measured = measure_compression(CHUNK.from_rows([chunk]), tables.item)
    # A stamp '2025-03-04 12:11 (purchase)' is 11 words and signs; 'Lamp' is 1, 'Tent <b>' is 4, a search without a choice has no title.
    assert (measured.num_events, measured.written_out) == (3, 3 * 11 + 1 + 4)
    assert measured.compressed == 9
    assert measured.ratio == 38 / 9


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (92.4, "1 min 32 s"), (3600.0, "60 min 0 s")])
def test_seconds_in_words_reads_well(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


def test_choose_people_prefers_those_whose_interests_moved() -> None:
    rows = [interest(0, 0, "x", "active", "new", "still"), interest(0, 0, "x", "active", "new", "moved")]
    rows += [interest(1, 0, "x", "active", "continued", "moved"), interest(1, 0, "y", "active", "returned", "unknown")]
    table = USER_INTEREST.from_rows(rows)
    assert choose_people(table, ["moved", "still"], 5) == ["moved", "still"]
    assert choose_people(table, ["moved", "still"], 1) == ["moved"]


def test_tell_lays_interests_over_periods_and_marks_what_was_true_then(ann: Person) -> None:
    assert [period.chunk for period in ann.periods] == [0, 1]
    light, camping = ann.wishes
    assert light.interest == "home light"
    assert light.cells[0] is None
    assert (light.last.stage, light.last.true) == ("emerging", True)
    assert [(cell.stage, cell.shift, cell.true) for cell in camping.cells if cell] == [
        ("emerging", "new", True),
        ("fading", "continued", False),
    ]
    assert ann.truths == ("cycling",)


def test_tell_gives_each_item_the_reason_for_a_wish_or_the_general_one(ann: Person) -> None:
    rope, stove = ann.offers
    assert (rope.title, rope.interest, rope.reason, rope.is_target) == ("Rope", "camping", "Holds the tent.", True)
    assert rope.picture == "data:image/png;base64,iVBORw0KGgo="
    assert (stove.interest, stove.reason, stove.is_target, stove.picture) == (None, "Boils water.", False, None)


def test_tell_shows_history_tags_and_target(ann: Person) -> None:
    assert ann.behaviours == {"purchase": 2, "click": 1, "search": 1}
    assert ann.recent == (("Tent <b>", "purchase"), ("Lamp", "click"))
    assert ann.tags == (("long rope", "camping"), ("gas stove", "camping"))
    assert ann.target == "Rope"


def test_tell_without_known_truths_marks_nothing(tables: Tables) -> None:
    blind = Tables(**{**vars(tables), "true_interest": TRUE_INTEREST.empty()})
    person = tell("ann", blind, CANDIDATE.empty())
    assert {cell.true for wish in person.wishes for cell in wish.cells if cell} == {None}
    assert person.offers == ()


def test_page_escapes_what_came_from_data_and_needs_no_network(ann: Person) -> None:
    shown = contents([ann], Faithfulness(0.5, 0.25, 1 / 3, 10, 20, 5, 4))
    plots = draw(shown)
    assert plots["path_0.png"].startswith(PNG)
    page = render(shown, plots)
    assert "Tent &lt;b&gt;" in page
    assert "<b>purchase" not in page
    for expected in ("Holds the tent.", "home light", "0.5000", "cycling", "age: 30", "what this person really went for next", "0.250"):
        assert expected in page
    assert "http://" not in page
    assert "https://" not in page


def test_page_of_a_line_without_people_truths_or_rankings_still_renders() -> None:
    bare = Contents(**{**vars(contents([], metrics=[])), "sweeps": []})
    page = render(bare, draw(bare))
    assert "How well it ranks" in page
    assert "None" not in page
    assert "no rankings were measured" in summarise(bare)


def test_draw_makes_a_png_of_everything_there_is() -> None:
    plots = draw(contents([]))
    assert set(plots) == {"behaviours.png", "history_lengths.png", "chunk_tokens.png", "ndcg.png", "fusion.png"}
    assert all(png.startswith(PNG) for png in plots.values())


def test_page_shows_the_front_of_the_sweep_and_the_chosen_weight() -> None:
    values = {"NDCG": (0.1, 0.3, 0.2), "category_coverage": (0.9, 0.4, 0.3), "tail_share": (0.2, 0.2, 0.1)}
    rows = [
        metric("towers", value, name=name, split="validation", setting=json.dumps({"beta": beta}))
        for name, found in values.items()
        for beta, value in zip((0.0, 0.5, 1.0), found, strict=True)
    ]
    shown = Contents(**{**vars(contents([])), "sweeps": read_sweeps(METRIC.from_rows(rows))})
    plots = draw(shown)
    assert plots["fusion_front.png"].startswith(PNG)
    page = render(shown, plots)
    assert "0.50 (chosen)" in page
    assert "<td>0.00</td>" in page
    assert "<td>1.00</td>" not in page, "a weight that another one beats is not on the front"


def test_pick_sweep_prefers_filtered_validation_at_the_reports_cut_off() -> None:
    def at(beta: float, **other: object) -> dict[str, object]:
        return metric("fused", 0.1, setting=json.dumps({"beta": beta}), **other)

    kinds = [{"split": "test"}, {"split": "validation", "filter_seen": False}, {"split": "validation", "k": 50}, {"split": "validation"}]
    rows = [at(beta, **kind) for kind in kinds for beta in (0.0, 1.0)]
    shown = Contents(**{**vars(contents([])), "sweeps": read_sweeps(METRIC.from_rows(rows))})
    picked = pick_sweep(shown, "NDCG")
    assert picked is not None
    assert (picked.split, picked.filter_seen, picked.k) == ("validation", True, 10)
    assert pick_sweep(shown, "HR") is None


def test_summary_names_people_their_wishes_and_items_with_reasons(ann: Person) -> None:
    text = summarise(contents([ann], Faithfulness(0.5, 0.25, 1 / 3, 10, 20, 5, 4)))
    assert "ann: 4 behaviours" in text
    assert "wants: home light (emerging), camping (fading)" in text
    assert "- Rope [camping]: Holds the tent." in text
    assert "- Stove: Boils water." in text
    assert "precision 0.50, recall 0.25" in text
    assert "75.0% of 4 items" in text


def test_headline_holds_the_filtered_figures_by_name() -> None:
    figures = {"towers_ndcg_10": 0.5, "beta": 0.5, "catalogue_coverage": 0.75, "gini": 0.25, "compression_ratio": 2.0}
    assert headline(contents([])) == figures


def test_score_label_reads_as_words() -> None:
    assert Score("item_knn", "", "HR", 10, 0.1, True, 3).label == "item knn"
