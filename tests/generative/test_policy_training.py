"""A task whose optimum is known, trained for real: the reward rises to it with one worker and with two, and again after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from intently.core.config import Resources
from intently.core.errors import ConfigError
from intently.core.schema import ROLLOUT
from intently.core.workspace import Workspace, open_stage
from intently.generative.generator import open_bundle
from intently.generative.policy_training import (
    ItemPolicy,
    PolicyConfig,
    ValidationConfig,
    ask,
    choose,
    figures_of,
    load_policy,
    train_policy,
)
from intently.generative.prompts import PromptConfig, draw_prompts
from intently.generative.rewards import read_rubric
from intently.generative.sequences import Sequences, read_sequences
from intently.generative.trie import read_trie
from intently.runtime.deepspeed import DeepSpeedConfig
from intently.runtime.grpo import BEST, SCORE, Gather, Rollout, build_trainer
from intently.runtime.train import Store, TrainConfig, TrainSession, train
from transformers import PreTrainedModel

from tests.generative.policy_worlds import BEST_REWARD, policy_config, write_ring

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old; TRL and accelerate do so of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LOCAL = TrainConfig(launcher="local", resources=Resources(cpus=1), checkpoint_every=2)


@dataclass(frozen=True)
class Ring:
    """A workspace with the toy task, and the versions of its tables."""

    workspace: Workspace
    versions: dict[str, str]

    def curve(self, config: PolicyConfig, harness: TrainConfig, name: str, **more: object) -> list[dict[str, float]]:
        """The notes of a run."""
        arguments = {"workspace": self.workspace, "versions": self.versions, "config": config, **more}
        with train(train_policy, arguments, harness, self.workspace, f"policy/{name}/training") as result:
            assert (result.folder / BEST).is_dir() == any(note[SCORE] > result.history[0][SCORE] for note in result.history)
            return result.history


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Ring:
    folder = tmp_path_factory.mktemp("ring")
    workspace = Workspace.open(folder / "workspace")
    return Ring(workspace, write_ring(workspace, folder / "model"))


@pytest.fixture(scope="module")
def alone(ring: Ring) -> Iterator[list[dict[str, float]]]:
    """One worker's run, with its samples kept."""
    stage = open_stage(ring.workspace, "rollout", ROLLOUT, ring.versions, policy_config())
    yield ring.curve(policy_config(), LOCAL, "alone", stage=stage)


def test_toy_reward_rises_to_what_there_is_to_earn(ring: Ring, alone: list[dict[str, float]]) -> None:
    rewards = [note["reward"] for note in alone[1:]]
    assert rewards[0] < 0.5 * BEST_REWARD and rewards[-1] > 0.95 * BEST_REWARD
    assert alone[-1]["hr2"] >= 0.5 > 2 * alone[0]["hr2"], "of items that followed no history of that length in training"
    assert {note["invalid"] for note in alone[1:]} == {0.0}
    assert alone[1]["clipped"] > 0, "from the second pass over a rollout on"
    assert alone[-1]["entropy"] < 0.2 * alone[1]["entropy"]
    assert alone[-1]["zero_advantage"] > alone[1]["zero_advantage"]


def test_toy_samples_are_kept_with_what_they_were_paid(ring: Ring, alone: list[dict[str, float]]) -> None:
    config = policy_config().grpo
    stage = open_stage(ring.workspace, "rollout", ROLLOUT, ring.versions, policy_config())
    rows = stage.finish().read().to_pylist()
    assert len(rows) == config.num_rollouts * config.prompts * config.group_size
    assert all(row["reward"] == pytest.approx(dict(row["terms"])["hit"] + 0.5 * dict(row["terms"])["prefix"]) for row in rows)
    assert all((row["item_id"] == row["target_id"]) == (dict(row["terms"])["hit"] == 1) for row in rows)
    last = [row["reward"] for row in rows if row["rollout"] >= config.num_rollouts - config.rollouts_per_round]
    assert np.mean(last) == pytest.approx(alone[-1]["reward"], abs=1e-5)
    # The item next on the ring is the only target after a history, and it is told of the user whose history it was.
    assert {(int(row["target_id"][1:]) - int(row["user_id"][1:])) % 8 for row in rows} <= {1, 2}


class KilledError(Exception):
    """Stands for a machine that is gone."""


@dataclass(frozen=True)
class LastStore:
    """Keeps one checkpoint, then everything ends."""

    kept: Store

    def latest(self, into: Path) -> bool:
        return self.kept.latest(into)

    def save(self, folder: Path, epoch: int) -> None:
        self.kept.save(folder, epoch)
        raise KilledError


def train_to_the_first_checkpoint(session: TrainSession, **arguments: object) -> None:
    session.store = LastStore(session.store)
    train_policy(session, **arguments)  # type: ignore[arg-type]


def test_toy_killed_and_resumed_has_the_same_curve(ring: Ring, alone: list[dict[str, float]]) -> None:
    arguments = {"workspace": ring.workspace, "versions": ring.versions, "config": policy_config()}
    with (
        pytest.raises(KilledError),
        train(train_to_the_first_checkpoint, arguments, LOCAL, ring.workspace, "policy/killed/training"),
    ):
        pass
    resumed = ring.curve(policy_config(), LOCAL, "killed")
    for name in ("reward", "kl", "entropy", "hr1", "ndcg4", SCORE):
        np.testing.assert_allclose([n[name] for n in resumed[1:]], [n[name] for n in alone[1:]], rtol=1e-4, atol=1e-6, err_msg=name)


def test_toy_two_workers_zero_2_in_ray_learn_the_same(ring: Ring, alone: list[dict[str, float]], ray_session: None) -> None:
    # 15 prompts of 8 samples and two workers: one group lies half with each.
    config = policy_config(prompts=15, num_rounds=3)
    shared = TrainConfig(
        deepspeed=DeepSpeedConfig(zero_stage=2),
        launcher="ray",
        resources=Resources(num_workers=2, cpus=0.5),
        max_failures=0,
        checkpoint_every=3,
    )
    single = ring.curve(config, LOCAL, "single")
    double = ring.curve(config, shared, "double")
    assert double[0]["hr1"] == single[0]["hr1"]
    for name, tolerance in (("reward", 0.04), ("hit_rate", 0.03), ("zero_advantage", 0.1), ("entropy", 0.03)):
        np.testing.assert_allclose([n[name] for n in double[1:]], [n[name] for n in single[1:]], atol=tolerance, err_msg=name)
    # Rounding differs, so that now and then another item is drawn, and more so the longer they learn; the first round is the same.
    assert double[1]["reward"] == pytest.approx(single[1]["reward"], abs=1e-3)
    assert double[-1]["reward"] > 1.5 * double[1]["reward"]


def test_toy_one_pass_never_clips_and_groups_that_tell_nothing_are_replaced(ring: Ring) -> None:
    settings = {"iterations": 1, "num_rounds": 2, "group_size": 2, "prompts": 12, "imitation": 0.5}
    plain = ring.curve(policy_config(**settings), LOCAL, "plain")
    dynamic = ring.curve(policy_config(**settings, attempts=3), LOCAL, "dynamic")
    assert {note["clipped"] for note in plain[1:]} == {0.0}
    assert plain[1]["replaced"] == 0 < dynamic[1]["replaced"]
    assert dynamic[1]["zero_advantage"] < plain[1]["zero_advantage"]
    assert plain[-1]["imitation"] < plain[1]["imitation"]


class Scripted(ItemPolicy):
    """The policy itself, paid by hand."""

    def rollout(self, model: PreTrainedModel, prompts: list, rollout: int, rank: int, gather: Gather) -> Rollout:
        drawn = super().rollout(model, prompts, rollout, rank, gather)
        return drawn._replace(rewards={"hit": [1.0, 0.0, 0.0, 0.0, 0.3, 0.3, 0.3, 0.3], "prefix": [0.0] * 8}, flat=[False] * 4 + [True] * 4)


def look_at_advantages(session: TrainSession, workspace: Workspace, versions: dict[str, str], config: PolicyConfig, seen: list) -> None:
    bundle = open_bundle(workspace.artifact("generator", versions["generator"]))
    trie = read_trie(workspace.artifact("semantic_id").read(), bundle.semantic_id)
    past = read_sequences(workspace.artifact("history_train").read(), trie.ids, bundle.config.sequences)
    rubric, questions = read_rubric(trie, config.rewards, {}, past), ask(past, trie, bundle, config)
    nobody = np.zeros(0, np.int64)
    task = Scripted(trie, bundle, config, rubric, past, questions, nobody, nobody, None)
    trainer = build_trainer(session, load_policy(bundle), bundle.vocabulary.tokenizer, questions, task, config.grpo, Path("unused"))
    rows = [{"prompt": question} for question in questions[:2] for _ in range(4)]
    trainer.model.train()
    output = trainer._generate_and_score_completions(rows)
    logps, *_ = trainer._get_per_token_logps_and_entropies(
        trainer.model_wrapped,
        torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
        torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
        output["completion_ids"].shape[1],
    )
    seen.append({name: output[name].tolist() for name in ("advantages", "sampling_per_token_logps", "ref_per_token_logps")})
    seen.append({"logps": logps.tolist()})
    raise KilledError


def test_trainer_advantages_by_hand_and_one_policy_in_rollout_loss_and_reference(ring: Ring) -> None:
    seen: list[dict[str, list]] = []
    config = policy_config(prompts=2, group_size=4, num_rounds=1, rollouts_per_round=1, warmup_rollouts=0)
    arguments = {"workspace": ring.workspace, "versions": ring.versions, "config": config, "seen": seen}
    with pytest.raises(KilledError), train(look_at_advantages, arguments, LOCAL, ring.workspace, "policy/looked/training"):
        pass
    # Rewards 1, 0, 0, 0: mean 1/4, standard deviation of a sample 1/2.
    expected = [0.75 / 0.5001, *[-0.25 / 0.5001] * 3, 0, 0, 0, 0]
    assert seen[0]["advantages"] == pytest.approx(expected, abs=1e-5)
    assert seen[0]["advantages"][4:] == [0.0] * 4, "exactly, although 0.3 has no exact mean"
    np.testing.assert_allclose(seen[0]["sampling_per_token_logps"], seen[1]["logps"], atol=1e-5)
    np.testing.assert_allclose(seen[0]["ref_per_token_logps"], seen[1]["logps"], atol=1e-5)


def test_choose_better_policy_is_kept_and_a_lost_tail_is_not() -> None:
    setting = ValidationConfig()
    measured = [f"{name}{k}" for name in ("hr", "ndcg") for k in setting.cutoffs]
    before = dict.fromkeys(measured, 0.1) | {SCORE: 0.1}
    better = before | {"hr10": 0.2, SCORE: 0.2}
    sharper = before | {"hr10": 0.3, "hr50": 0.05, SCORE: 0.3 - 1}
    kept = choose([before, better, sharper], setting)
    assert (kept.shipped, kept.figures["round"], kept.figures["shipped_hr10"]) == ("rl", 1.0, 0.2)
    assert "round 1 of 2" in kept.why
    kept = choose([before, sharper], setting)
    assert (kept.shipped, kept.figures["shipped_hr50"]) == ("sft", 0.1)
    assert "without losing hr50" in kept.why


def test_figures_of_policy_that_loses_the_tail_scores_below_every_other() -> None:
    setting, ranks = ValidationConfig(cutoffs=(1, 2, 4), choose="hr1", keep="hr4"), np.array([0, 1, 4, 4])
    figures = figures_of(ranks, setting, None)
    assert (figures["hr1"], figures["hr2"], figures["hr4"], figures[SCORE]) == (0.25, 0.5, 0.5, 0.25)
    assert figures_of(ranks, setting, figures | {"hr4": 0.75})[SCORE] == 0.25 - 1


def test_draw_prompts_everybody_once_before_anybody_again_and_places_within_the_history() -> None:
    past = Sequences(None, np.array([0, 1, 4, 9]), np.arange(9))  # type: ignore[arg-type]
    drawn = draw_prompts(past, 5, PromptConfig(places="any", min_history=1))
    assert sorted(drawn.users[:2].tolist()) == sorted(drawn.users[2:4].tolist()) == [1, 2], "a single item leaves nothing to ask with"
    assert all(1 <= place < length for place, length in zip(drawn.places, np.diff(past.offsets)[drawn.users], strict=True))
    assert set(draw_prompts(past, 4, PromptConfig(places="last")).places.tolist()) == {2, 4}
    with pytest.raises(ConfigError, match="min_history"):
        draw_prompts(past, 5, PromptConfig(min_history=5))


def test_policy_config_figures_that_are_not_measured_and_uneven_minibatches_refused() -> None:
    with pytest.raises(ConfigError, match="hr7 is not measured"):
        ValidationConfig.parse({"choose": "hr7"})
    with pytest.raises(ConfigError, match="minibatches"):
        PolicyConfig.parse({"grpo": {"prompts": 3, "group_size": 3, "minibatches": 2}})
