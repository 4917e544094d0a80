"""The three jobs with the shipped student in real vLLM, on a small simulated world that it was not trained on."""

from __future__ import annotations

import build_explanations
import mine_user_interests
import predict_tags
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from intently.core.config import Config
from intently.core.schema import CHUNK, HISTORY, ITEM, Table
from intently.core.workspace import Workspace, open_stage
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.histories import build_histories
from intently.data.simulator import Simulation, SimulatorConfig, simulate
from intently.data.splits import SplitConfig, split_histories
from intently.interests.faithfulness import asked_chunks, measure_faithfulness

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def world(workspace: Workspace) -> Simulation:
    """Fifteen people and 140 items, with their item, history_train and chunk tables in the workspace."""
    simulation = simulate(SimulatorConfig(seed=5, num_users=15, num_items=140, events_per_user=200))
    train = split_histories(build_histories(pa.concat_tables(list(simulation.events())), 0).history, SplitConfig()).train
    write(workspace, "item", ITEM, simulation.items)
    write(workspace, "history_train", HISTORY, train)
    write(workspace, "chunk", CHUNK, build_chunks(train, simulation.items, ChunkConfig(max_tokens=400)))
    return simulation


def write(workspace: Workspace, name: str, table: Table, rows: pa.Table) -> None:
    stage = open_stage(workspace, name, table, {}, Config())
    stage.write("bucket-00000", rows)
    stage.finish()


def test_interest_jobs_with_the_student_write_true_interests_fitting_tags_and_reasons(world: Simulation, workspace: Workspace) -> None:
    config = mine_user_interests.JOB.config.load(None, ["mining.max_chunks=2"])
    mined = mine_user_interests.run(config, workspace)
    interests, items = mined.read(), world.items
    assert pc.unique(interests["model"]).to_pylist() == ["vllm:student"]
    assert mined.manifest.metrics["valid_share"] >= 0.95
    asked = asked_chunks(workspace.artifact("chunk").read(), interests, mined.rejects())
    measured = measure_faithfulness(interests, asked, world.true_interests, items)
    assert measured.precision > 0.5 and measured.recall > 0.25

    config = predict_tags.JOB.config.load(None, ["tags.num_tags=10", "tags.max_interests=6", "tags.max_recent=8", "tags.min_tags=3"])
    predicted = predict_tags.run(config, workspace)
    tags = predicted.read()
    assert predicted.manifest.metrics["valid_share"] >= 0.9
    served = set(zip(interests["user_id"].to_pylist(), interests["interest"].to_pylist(), strict=True))
    assert set(zip(tags["user_id"].to_pylist(), tags["interest"].to_pylist(), strict=True)) <= served
    assert tags.num_rows and tags["category"].null_count == 0

    config = build_explanations.JOB.config.load(None, ["num_parts=1", "explanations.items_per_interest=3"])
    explained = build_explanations.run(config, workspace)
    texts = explained.read()
    assert explained.manifest.metrics["valid_share"] >= 0.95
    for_anybody = pc.sum(pc.equal(texts["interest"], "")).as_py()
    assert for_anybody > 0.8 * items.num_rows and texts.num_rows > for_anybody
