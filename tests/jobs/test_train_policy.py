"""The job that goes on from a generator by reinforcement: what it keeps, what it says of it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import train_policy
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.generative.generator import TrainedGenerator
from safetensors.torch import load_file

from tests.generative.policy_worlds import LEARNING, item, write_ring

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old; TRL and accelerate do so of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("ring")
    workspace = Workspace.open(folder / "workspace")
    write_ring(workspace, folder / "model")
    return workspace


def settings(start: str | None, **grpo: object) -> train_policy.TrainPolicyConfig:
    return train_policy.TrainPolicyConfig.parse(
        {
            "start": start,
            "policy": {
                "grpo": LEARNING | {"num_rounds": 3, "rollouts_per_round": 6} | grpo,
                "rewards": {"weights": {"hit": 1.0, "gated": 0.5}, "labels": "uniform", "gate_levels": 1},
                "validation": {"cutoffs": [1, 2, 4], "choose": "ndcg4", "keep": "hr4"},
            },
            "harness": {"launcher": "local", "resources": {"cpus": 1}, "checkpoint_every": 3},
        }
    )


def test_train_policy_better_policy_is_shipped_and_everything_is_kept(ring: Workspace) -> None:
    start = ring.artifact("generator").version
    config = settings(start)
    artifact = train_policy.JOB.execute(config, ring)
    told, metrics = artifact.manifest.notes, artifact.manifest.metrics
    assert (told["shipped"], told["start"]) == ("rl", start)
    assert "best on validation" in told["why"]
    assert metrics["shipped_ndcg4"] > metrics["sft_ndcg4"] and metrics["shipped_hr4"] >= metrics["sft_hr4"]
    assert ring.artifact("generator").version == artifact.version != start
    folder = Path(ring.path("generator", artifact.version))
    assert list((folder / "tensorboard").glob("events.*")) and not (folder / "training").exists()
    measured = ring.artifact("policy_metric")
    assert measured.fetch("training.png").read_bytes().startswith(b"\x89PNG")
    rows = measured.read().to_pylist()
    assert {(row["subject"], row["split"], row["filter_seen"]) for row in rows} == {
        (s, p, f) for s in ("sft", "shipped") for p in ("validation", "test") for f in (False, True)
    }
    validated = {row["name"] + str(row["k"]): row["value"] for row in rows if row["subject"] == "shipped" and row["split"] == "validation"}
    assert ring.artifact("rollout").manifest.rows == 18 * LEARNING["prompts"] * LEARNING["group_size"]
    assert validated["NDCG4"] > 0
    # It serves as any generator does, and the next step round the ring comes before most others.
    found = TrainedGenerator.load(ring).generate_items([item(2), item(3)], 8, filter_seen=False)
    assert item(4) in found["item_id"].to_pylist()[:4]
    ended = artifact.manifest.ended
    assert train_policy.JOB.execute(config, ring).manifest.ended == ended


def test_train_policy_nothing_learned_ships_the_generator_it_began_with(ring: Workspace) -> None:
    start = ring.latest_version("generator")
    artifact = train_policy.JOB.execute(settings(start, learning_rate=1e-12, patience=1), ring)
    assert artifact.manifest.notes["shipped"] == "sft"
    assert "none of 1 rounds" in artifact.manifest.notes["why"]
    before, after = (load_file(ring.artifact("generator", v).fetch("model.safetensors")) for v in (start, artifact.version))
    assert all((before[name] == after[name]).all() for name in before)


def test_train_policy_without_a_generator_to_begin_with_refused(ring: Workspace) -> None:
    with pytest.raises(ConfigError, match="name a version of generator; LATEST is"):
        train_policy.JOB.execute(settings(None), ring)
