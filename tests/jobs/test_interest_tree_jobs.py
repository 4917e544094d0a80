"""Trees without scores, labels, heads, trees with scores: the line of tree search on real Ray, scripted engine, real encoder."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import label_interest_ratings
import mine_interest_tree
import pyarrow as pa
import pytest
import train_rating_models
from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.core.schema import CHUNK, HISTORY, INTEREST_NODE, ITEM, Table
from intently.core.workspace import Workspace, open_stage

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    # DeepSpeed 0.19 uses names that torch 2.13 and Python call old.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

START = datetime(2024, 5, 1, tzinfo=UTC)
BUCKETS = {f"bucket-{bucket:05d}": [f"user-{n}" for n in range(bucket, 24, 2)] for bucket in (0, 1)}
FILMS = {"alien": 5.0, "heat": 4.0, "big": 2.0, "clue": 1.0}


def interests(*phrases: str) -> str:
    return json.dumps({"interests": [{"interest": phrase, "stage": "active", "reason": "often rated high"} for phrase in phrases]})


ENGINE = {
    "kind": "scripted",
    "replies": {
        # Space adventures foretell what these people like, comedies do not, and the raw chunk is of two minds.
        "space adventures\nItem: alien": ("0.9", "0.1"),
        "space adventures\nItem: heat": ("0.8", "0.2"),
        "space adventures\nItem": ("0.3", "0.7"),
        "comedies\nItem: big": ("0.9", "0.1"),
        "Will this person like it?": ("0.5", "0.5"),
        "Behaviours": (interests("light comedies"), interests("space adventures"), "no JSON"),
    },
}
TREE = {"mining": {"max_chunks": 5, "sampling": {"temperature": 0.8, "num_samples": 3, "max_tokens": 64}}}


def write(workspace: Workspace, name: str, table: Table, parts: dict[str, list[dict]]) -> None:
    stage = open_stage(workspace, name, table, {}, Config())
    for part, rows in parts.items():
        stage.write(part, table.from_rows(rows))
    stage.finish()


def chunk(user: str, number: int) -> dict:
    start = START + timedelta(days=number)
    events = {"event_ids": [f"{number}-{film}" for film in FILMS], "item_ids": list(FILMS)}
    identity = {"user_id": user, "bucket": 0, "chunk": number, "start": start, "end": start}
    return identity | events | {"text": f"{user} rates, day {number}", "num_tokens": 4}


def history(user: str) -> dict:
    events = [(f"{number}-{film}", film, stars) for number in range(3) for film, stars in FILMS.items()]
    ids, items, values = (list(column) for column in zip(*events, strict=True))
    same = {"behaviours": ["rating"] * 12, "timestamps": [START] * 12, "queries": [None] * 12, "dwell_s": [None] * 12}
    return {"user_id": user, "bucket": 0, "event_ids": ids, "item_ids": items, "values": values, **same}


@pytest.fixture
def inputs(workspace: Workspace) -> Workspace:
    """Two buckets of twelve users with three chunks each."""
    films = [{"item_id": film, "title": film, "category": "Film", "categories": [], "attributes": []} for film in FILMS]
    write(workspace, "item", ITEM, {"part-00000": films})
    write(workspace, "chunk", CHUNK, {part: [chunk(user, n) for user in users for n in range(3)] for part, users in BUCKETS.items()})
    write(workspace, "history_train", HISTORY, {part: [history(user) for user in users] for part, users in BUCKETS.items()})
    return workspace


def kept(workspace: Workspace) -> pa.Table:
    return workspace.artifact("user_interest").read()


def test_label_interest_ratings_of_trees_over_another_cut_of_chunks_refused(inputs: Workspace) -> None:
    stage = open_stage(inputs, "interest_node", INTEREST_NODE, {"chunk": "earlier"}, Config())
    stage.write("bucket-00000", INTEREST_NODE.empty())
    stage.finish()
    with pytest.raises(SchemaError, match=r"interest_node: version .* was made from chunk@earlier"):
        label_interest_ratings.run(label_interest_ratings.LabelInterestRatingsConfig.parse({"engine": ENGINE}), inputs)


def test_tree_line_learns_from_its_own_trees_which_reading_to_keep(inputs: Workspace) -> None:
    mining = mine_interest_tree.MineInterestTreeConfig.parse({"engine": ENGINE, "tree": TREE})
    first = mine_interest_tree.run(mining, inputs)
    assert set(kept(inputs)["interest"].to_pylist()) == {"light comedies"} and kept(inputs)["s_final"].null_count == kept(inputs).num_rows
    assert (first.manifest.metrics["nodes"], first.manifest.reject_reasons) == (24 * 3 * 2, {"answer is not JSON": 24 * 3})
    assert first.manifest.notes["choice"] == "no rating model stood: the first reading was kept"

    labelling = label_interest_ratings.LabelInterestRatingsConfig.parse(
        {"engine": ENGINE, "names": {"facets": []}, "labels": {"max_chunks": 2, "share": 1}}
    )
    ratings = label_interest_ratings.run(labelling, inputs).read()
    assert ratings.num_rows == 24 * 2 * 2  # chunk 2 has no next one
    told = {(row["interests"][0], row["chunk"]): row for row in ratings.to_pylist()}
    space, light = told["space adventures", 1], told["light comedies", 1]
    assert (space["auc_current"], space["auc_raw"], space["continuity"], space["effectiveness"]) == (1.0, 0.5, 1, 1)
    assert (light["auc_current"], light["continuity"], light["effectiveness"]) == (0.25, 0, 0)

    training = train_rating_models.TrainRatingModelsConfig.parse(
        {
            "model": {"num_epochs": 30, "batch_size": 16, "learning_rate": 0.01},
            "harness": {"resources": {"num_workers": 2, "cpus": 0.5}, "checkpoint_every": 30},
        }
    )
    quality = train_rating_models.run(training, inputs).manifest.metrics
    assert quality["continuity_auc"] == quality["effectiveness_auc"] == 1.0
    assert quality["auc_of_picked_candidate"] == 1.0 > quality["auc_of_mean_candidate"] == 0.625

    second = mine_interest_tree.run(mining, inputs)
    assert second.version != first.version
    found = kept(inputs)
    assert set(found["interest"].to_pylist()) == {"space adventures"} and found["s_final"].null_count == 0
    assert set(found["path"].to_pylist()) == {"1", "1/1", "1/1/1"}
    nodes = inputs.artifact("interest_node").read()
    assert nodes.filter(nodes["chosen"]).num_rows == 24 * 3 and found["s_continuity"].null_count == 24
    # The first chunk's answers were paid for before; the later ones are new questions, since another interest stands before them.
    assert second.manifest.metrics["reused"] == 24
