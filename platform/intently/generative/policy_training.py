"""Reinforcement after fine-tuning: the generator as a policy, paid by a rubric, held to what it was, measured as it is served.

`ItemPolicy` is the task that runtime.grpo trains for: it draws groups of items that exist, scores them whole (also when a group is spread
over workers), and validates by the very search that serves. Every sample and what it was paid goes into the table rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, model_validator
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from intently.core.config import Config
from intently.core.schema import ROLLOUT
from intently.core.workspace import Stage, Workspace
from intently.generative.beam import BeamConfig, ConstrainedBeam
from intently.generative.evaluate import ranks_of_found, read_targets
from intently.generative.examples import ItemTokens
from intently.generative.examples import prompts as prompt_tokens
from intently.generative.generator import Bundle, TrainedGenerator, open_bundle
from intently.generative.policy import head_of, imitation_loss, read_items, score_completions
from intently.generative.prompts import PromptConfig, draw_prompts
from intently.generative.rewards import RewardConfig, Rubric, Term, read_rubric
from intently.generative.rollout import draw_groups, numbers_of
from intently.generative.sequences import Sequences, read_sequences
from intently.generative.trie import Trie, read_trie
from intently.metrics.ranking import hit_rate, ndcg
from intently.runtime.grpo import SCORE, Gather, GrpoConfig, Rollout, optimise

if TYPE_CHECKING:  # see training.py
    from intently.runtime.train import TrainSession

TABLES = ("interest_verdict", "user_vector", "item_vector", "item_embedding")
"""What rewards may read, where it stands."""


class ValidationConfig(Config):
    """How a policy is measured while it trains, and which one is kept."""

    cutoffs: tuple[int, ...] = Field((5, 10, 20, 50), min_length=1, description="k of HR and NDCG")
    max_users: int = Field(2000, ge=1, description="users of history_validation, drawn once; all where there are fewer")
    filter_seen: bool = Field(False, description="leave out what the user has taken")
    scores: Literal["level", "children", "vocabulary"] = Field("children", description="of the beam search; children is the policy itself")
    choose: str = Field("hr10", description="figure of which the highest is kept: hr or ndcg and one of the cutoffs")
    keep: str = Field("hr50", description="figure that may not fall below the fine-tuned model's; a policy of which it does is not kept")

    @model_validator(mode="after")
    def _figures_are_measured(self) -> ValidationConfig:
        known = [f"{name}{k}" for name in ("hr", "ndcg") for k in self.cutoffs]
        for figure in (self.choose, self.keep):
            if figure not in known:
                raise ValueError(f"{figure} is not measured; there are {known}")
        return self


class PolicyConfig(Config):
    """Everything that decides a policy."""

    grpo: GrpoConfig = Field(GrpoConfig(), description="how it is trained")
    rewards: RewardConfig = Field(RewardConfig(), description="what is paid for")
    prompts: PromptConfig = Field(PromptConfig(), description="what is asked")
    validation: ValidationConfig = Field(ValidationConfig(), description="how it is measured on the way")


@dataclass(frozen=True)
class ItemPolicy:
    """Implements runtime.grpo.PolicyTask for semantic IDs.

    Attributes:
        trie: the catalogue, on the model's device.
        bundle: of the fine-tuned generator.
        config: everything else.
        rubric: what an item is worth.
        past: sequences of history_train.
        questions: all prompts, those of which replacements are drawn.
        users, targets: [V] validation users (rows of past) and their items.
        stage: takes ROLLOUT rows; None keeps none.
    """

    trie: Trie
    bundle: Bundle
    config: PolicyConfig
    rubric: Rubric
    past: Sequences
    questions: Sequence[dict[str, Any]]
    users: np.ndarray
    targets: np.ndarray
    stage: Stage | None

    @property
    def weights(self) -> Mapping[str, float]:
        """Term → weight in the reward."""
        return {str(term): weight for term, weight in self.config.rewards.weights.items()}

    def rollout(self, model: PreTrainedModel, prompts: Sequence[dict[str, Any]], rollout: int, rank: int, gather: Gather) -> Rollout:
        """Draw an item for each prompt; groups without variance are asked something else, as often as the config says."""
        grpo, device = self.config.grpo, self.trie.codes.device
        beam = ConstrainedBeam(model, self.bundle.vocabulary.sid, BeamConfig())
        asked, count = list(prompts), len(prompts)
        places = rank * count + np.arange(count)  # among the samples of all workers
        drawn = _Samples(np.zeros(count, np.int64), np.zeros((count, self.trie.depth), np.float32))
        todo, replaced = np.arange(count), 0
        for attempt in range(grpo.attempts + 1):
            if len(todo):
                self._draw(beam, [asked[row] for row in todo], places[todo], (rollout, attempt), drawn, todo)
            sums = torch.from_numpy(drawn.log_probs.sum(axis=1)).to(device)
            told = [drawn.items, [row["target"] for row in asked], [row["user"] for row in asked]]
            items, targets, users = gather(torch.tensor(np.stack(told, axis=1), device=device)).cpu().numpy().T
            log_probs = gather(sums).cpu().numpy()
            shape = (-1, grpo.group_size)
            target, user = (part.reshape(shape)[:, 0] for part in (targets, users))
            scored = self.rubric.score(items.reshape(shape), target, log_probs.reshape(shape), user)
            total = self.rubric.total(scored)
            flat = np.ptp(total, axis=1) <= 1e-6
            if attempt == grpo.attempts or not flat.any():
                break
            others = np.random.default_rng([grpo.seed, rollout, attempt, 37]).integers(len(self.questions), size=len(flat))
            todo = np.flatnonzero(flat[places // grpo.group_size])
            for row in todo:
                asked[row] = self.questions[others[places[row] // grpo.group_size]]
            replaced += int(flat.sum())
        if rank == 0 and self.stage is not None:
            self._keep(self.stage, rollout, items, targets, users, log_probs, scored, total)
        completions = [self._tokens(item) for item in drawn.items]
        bonus = [scored[term] for term in (Term.INTEREST, Term.GATED) if term in scored]
        figures = {
            "hit_rate": float(scored[Term.HIT].mean()),
            "bonus_rate": float(np.mean([term.mean() for term in bonus])) if bonus else 0.0,
            "zero_advantage": float(flat.mean()),
            "replaced": replaced / len(flat),
            "invalid": self._invalid(completions, gather),
        }
        return Rollout(
            prompt_ids=[row["tokens"] for row in asked],
            completion_ids=completions,
            log_probs=[row[: len(codes)].tolist() for row, codes in zip(drawn.log_probs, completions, strict=True)],
            rewards={str(term): scored[term].ravel()[places].tolist() for term in self.config.rewards.weights},
            targets=[self._tokens(row["target"]) for row in asked],
            flat=flat[places // grpo.group_size].tolist(),
            figures=figures,
        )

    def log_probs(
        self,
        model: torch.nn.Module,
        bare: PreTrainedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        completion_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the constrained policy, and its entropies, [B, L] each."""
        return score_completions(
            model,
            head_of(bare),
            prompt_ids,
            prompt_mask,
            completion_ids,
            self.trie,
            self.bundle.vocabulary.sid,
            self.config.grpo.temperature,
        )

    def imitate(self, model: torch.nn.Module, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Fine-tuning's loss on the histories and what came next."""
        return imitation_loss(model, prompt_ids, prompt_mask, targets)

    def validate(self, model: PreTrainedModel, rank: int, world_size: int) -> np.ndarray:
        """[n, 1] ranks of this worker's share of the validation items, by the search that serves."""
        setting = self.config.validation
        beam = BeamConfig(width=max(setting.cutoffs), scores=setting.scores)
        generator = TrainedGenerator(model, self.bundle.vocabulary, self.trie, self.bundle.config, beam)
        histories = [self.past.of(user) for user in self.users[rank::world_size]]
        items, _ = generator.rank(histories, beam.width, histories if setting.filter_seen else None)
        return ranks_of_found(items, self.targets[rank::world_size])[:, None]

    def figures(self, found: np.ndarray, reference: Mapping[str, float] | None) -> dict[str, float]:
        """Of ranks; see `figures_of`."""
        return figures_of(found[:, 0], self.config.validation, reference)

    def _draw(
        self,
        beam: ConstrainedBeam,
        asked: Sequence[dict[str, Any]],
        places: np.ndarray,
        turn: tuple[int, int],
        drawn: _Samples,
        rows: np.ndarray,
    ) -> None:
        """Fill `rows` of `drawn`; prompts of one group are read once."""
        grpo, device = self.config.grpo, self.trie.codes.device
        groups, owner = np.unique(places // grpo.group_size, return_inverse=True)
        slot = places % grpo.group_size
        numbers = numbers_of(grpo.seed, *turn, grpo.prompts * grpo.group_size, self.trie.depth)
        spread = np.zeros((len(groups), grpo.group_size, self.trie.depth))
        spread[owner, slot] = numbers[places]
        first = [int(np.argmax(owner == group)) for group in range(len(groups))]
        lengths = torch.tensor([len(asked[row]["tokens"]) for row in first])
        prompts = torch.nn.utils.rnn.pad_sequence([torch.tensor(asked[row]["tokens"]) for row in first], batch_first=True)
        found = draw_groups(beam, prompts.to(device), lengths.to(device), self.trie, torch.from_numpy(spread).to(device), grpo.temperature)
        drawn.items[rows] = found.items.cpu().numpy()[owner, slot]
        drawn.log_probs[rows] = found.log_probs.float().cpu().numpy()[owner, slot]

    def _keep(
        self,
        stage: Stage,
        rollout: int,
        items: np.ndarray,
        targets: np.ndarray,
        users: np.ndarray,
        log_probs: np.ndarray,
        scored: Mapping[Term, np.ndarray],
        total: np.ndarray,
    ) -> None:
        count, names = len(items), [str(term) for term in scored]
        values = np.stack([values.ravel() for values in scored.values()], axis=1)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(names))
        columns = {
            "rollout": pa.repeat(pa.scalar(rollout, pa.int32()), count),
            "sample": pa.array(np.arange(count, dtype=np.int32)),
            "user_id": self.past.user_ids.take(pa.array(users)),
            "item_id": self.trie.ids.take(pa.array(items)),
            "target_id": self.trie.ids.take(pa.array(targets)),
            "log_prob": pa.array(log_probs.astype(np.float32)),
            "reward": pa.array(total.ravel().astype(np.float32)),
            "terms": pa.MapArray.from_arrays(offsets, pa.array(names * count), pa.array(values.ravel())),
        }
        stage.write(f"rollout-{rollout:06d}", pa.table([columns[c.name] for c in ROLLOUT.columns], schema=ROLLOUT.schema))

    def _tokens(self, item: int) -> list[int]:
        return ItemTokens(self.trie.semantic_ids, self.bundle.vocabulary.sid).write(np.array([item]))[0].tolist()

    def _invalid(self, completions: Sequence[list[int]], gather: Gather) -> float:
        """Share of completions that no item has."""
        device = self.trie.codes.device
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(codes) for codes in completions], batch_first=True).to(device)
        return float(gather((read_items(padded, self.trie, self.bundle.vocabulary.sid) < 0).float()).mean())


@dataclass(frozen=True)
class _Samples:
    items: np.ndarray
    """[n] rows of the catalogue."""
    log_probs: np.ndarray
    """[n, L]."""


def train_policy(
    session: TrainSession,
    workspace: Workspace,
    versions: Mapping[str, str],
    config: PolicyConfig,
    stage: Stage | None = None,
    log_folder: str | None = None,
) -> None:
    """The loop: reads its tables, draws its prompts, and trains.

    Args:
        session: the harness's.
        workspace: holds the tables.
        versions: artifact → version of generator, history_train, history_validation, and of what rewards read.
        config: everything else.
        stage: takes ROLLOUT rows; None keeps none.
        log_folder: where TensorBoard's events go; None writes none.
    Raises:
        ConfigError: a reward needs what does not stand, or there is nothing to ask about.
    """
    bundle = open_bundle(workspace.artifact("generator", versions["generator"]))
    trie = read_trie(workspace.artifact("semantic_id", bundle.semantic_id).read(), bundle.semantic_id)
    past, held_out = (
        read_sequences(
            workspace.artifact(name, versions[name]).read(columns=["user_id", "item_ids", "behaviours"]), trie.ids, bundle.config.sequences
        )
        for name in ("history_train", "history_validation")
    )
    tables = {name: workspace.artifact(name, versions[name]).read() for name in TABLES if name in versions}
    rubric = read_rubric(trie, config.rewards, tables, past)
    users, targets = read_targets(past, held_out)
    chosen = np.random.default_rng([config.grpo.seed, 43]).permutation(len(users))[: config.validation.max_users]
    questions = ask(past, trie, bundle, config)
    task = ItemPolicy(trie.to(session.device), bundle, config, rubric, past, questions, users[chosen], targets[chosen], stage)
    if session.rank == 0:
        print(f"{session.label}: {len(questions):,} prompts, {len(chosen):,} validation users, reward {dict(task.weights)}", flush=True)
    optimise(session, load_policy(bundle), bundle.vocabulary.tokenizer, questions, task, config.grpo, log_folder)


def figures_of(ranks: np.ndarray, setting: ValidationConfig, reference: Mapping[str, float] | None) -> dict[str, float]:
    """HR and NDCG at the cutoffs, and SCORE: the figure to choose by, less 1 where the one to keep is below the reference's.

    Args:
        ranks: [V] place of each held-out item from 0.
        setting: cutoffs and the two figures.
        reference: figures of the fine-tuned model; None where these are its own.
    """
    figures = {f"{name}{k}": measure(ranks, k) for name, measure in (("hr", hit_rate), ("ndcg", ndcg)) for k in setting.cutoffs}
    lost = reference is not None and figures[setting.keep] < reference[setting.keep]
    return {**figures, SCORE: figures[setting.choose] - lost}


@dataclass(frozen=True)
class Choice:
    """Which of both is kept.

    Attributes:
        shipped: sft or rl.
        why: in words, with figures.
        figures: of both on validation, and the round that the kept one is of (0 is the fine-tuned model).
    """

    shipped: Literal["sft", "rl"]
    why: str
    figures: dict[str, float]


def choose(history: Sequence[Mapping[str, float]], setting: ValidationConfig) -> Choice:
    """The better of the fine-tuned model (the history's first note) and the best policy, by validation."""
    scores = [note[SCORE] for note in history]
    best = scores.index(max(scores))
    before, after = history[0], history[best]
    told = ", ".join(f"{name} {before[name]:.4f} before and {after[name]:.4f} after" for name in (setting.choose, setting.keep))
    rounds = len(history) - 1
    why = (
        f"round {best} of {rounds} is the best on validation: {told}"
        if best
        else f"none of {rounds} rounds had a higher {setting.choose} than {before[setting.choose]:.4f} without losing {setting.keep}"
    )
    measured = [f"{name}{k}" for name in ("hr", "ndcg") for k in setting.cutoffs]
    figures = {f"{which}_{name}": note[name] for which, note in (("sft", before), ("shipped", after)) for name in measured}
    return Choice("rl" if best else "sft", why, figures | {"round": float(best), "num_rounds": float(rounds)})


def load_policy(bundle: Bundle) -> PreTrainedModel:
    """The fine-tuned model without dropout: ratios and KL compare probabilities, not masks."""
    settings = AutoConfig.from_pretrained(bundle.folder)
    settings.attention_dropout = 0.0
    return AutoModelForCausalLM.from_pretrained(bundle.folder, config=settings, dtype=torch.float32)


def ask(past: Sequences, trie: Trie, bundle: Bundle, config: PolicyConfig) -> list[dict[str, Any]]:
    """All prompts of a run in their order: tokens of the history, the target's row, the user's row; each travels as one."""
    drawn = draw_prompts(past, config.grpo.num_rollouts * config.grpo.prompts, config.prompts)
    items, asked = ItemTokens(trie.semantic_ids, bundle.vocabulary.sid), []
    for user, place in zip(drawn.users.tolist(), drawn.places.tolist(), strict=True):
        history = past.of(user)
        tokens, lengths = prompt_tokens([history[:place]], items, bundle.vocabulary, bundle.config.sequences.max_items)
        asked.append({"tokens": tokens[0, : int(lengths[0])].tolist(), "target": int(history[place]), "user": user})
    return asked
