"""What a replica holds in memory: lookups by key."""

from __future__ import annotations

import pyarrow as pa
import pytest
from intently.core.config import Config
from intently.core.errors import MissingArtifactError
from intently.core.schema import CHUNK, INTEREST_NODE
from intently.core.workspace import Workspace, open_stage
from intently.retrieval.towers import TowerConfig
from intently.retrieval.training import TrainingConfig

from benchmarks.serving_world import write_untrained_towers
from serve.state import Catalogue, Grouped, Histories, State


def test_grouped_rows_of_a_key_lie_together_in_order() -> None:
    table = pa.table({"user_id": ["b", "a", "b", "a"], "rank": [1, 1, 0, 0], "tag": ["b1", "a1", "b0", "a0"]})
    grouped = Grouped(table, "user_id", ["rank"])
    assert (grouped.column("a", "tag"), grouped.column("b", "tag")) == (["a0", "a1"], ["b0", "b1"])
    assert grouped.rows("b")[0] == {"user_id": "b", "rank": 0, "tag": "b0"}
    assert "a" in grouped and "c" not in grouped
    assert grouped.rows("c") == []
    assert len(grouped) == 2


def test_grouped_table_without_rows_knows_nobody() -> None:
    grouped = Grouped(CHUNK.empty(), "user_id", ["chunk"])
    assert len(grouped) == 0
    assert grouped.rows("a") == []


def test_catalogue_price_is_as_written_and_a_gone_item_is_none(tables: Workspace) -> None:
    catalogue = Catalogue(tables.artifact("item").read())
    assert catalogue.card("i05").price == 18.9
    assert catalogue.card("gone") is None and catalogue.card(None) is None and catalogue.title("gone") is None
    assert catalogue.image("i11") is None


def test_history_items_are_the_last_ones_without_searches(tables: Workspace) -> None:
    histories = Histories(tables.artifact("history").read())
    assert histories.told("ada", 3) == [("i04", "detail_view", None), ("i04", "purchase", None), ("i09", "favourite", None)]
    assert len(histories.told("ada", 100)) == len(histories.told("ada")) == 9
    assert histories.told("nobody") == []
    assert histories.length("cyd") == 1


def test_state_without_towers_names_what_is_missing(tables: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="'towers'"):
        State.load(tables)


def test_state_shows_the_readings_that_interests_were_chosen_from(served: Workspace) -> None:
    oldest, *others = State.load(served).interests_of("ada").periods
    assert [(branch.path, branch.interests, branch.chosen) for branch in oldest.branches] == [
        ("0", ["hiking in wet weather", "running on trails"], True),
        ("1", ["walking dogs"], False),
    ]
    assert all(period.branches == [] for period in others)


def test_state_trees_of_another_run_are_not_shown(tables: Workspace) -> None:
    write_untrained_towers(tables, TrainingConfig(towers=TowerConfig(dim=8, hidden=16)), beta=0.5)
    stage = open_stage(tables, "interest_node", INTEREST_NODE, {"chunk": "another"}, Config())
    stage.write("part-00000", tables.artifact("interest_node").read())
    stage.finish()
    assert State.load(tables).interests_of("ada").periods[0].branches == []


def test_state_current_interests_are_newest_first_and_fading_last(served: Workspace) -> None:
    state = State.load(served)
    assert state.current_interests("ada") == ["baking sourdough at home", "hiking in wet weather", "running on trails"]
    assert state.interest_of_category("ada") == {"kitchen": "baking sourdough at home", "outdoor": "hiking in wet weather"}
    assert state.current_interests("cyd") == []
