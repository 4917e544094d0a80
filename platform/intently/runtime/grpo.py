"""GRPO with TRL's trainer inside the one Train harness: DeepSpeed, any number of workers, goes on from a checkpoint.

TRL keeps the loop: it repeats each prompt for its group, hands whole or split groups to the workers, normalises rewards over the group
across them, and computes ratio, clipping and KL. What is asked, drawn, paid and measured comes from a `PolicyTask`; its log-probabilities
take the place of TRL's, so that rollout, loss, ratio and KL speak of one and the same policy.

A *rollout* draws `prompts · group_size` samples; `iterations · minibatches` optimizer steps are made with them. Some rollouts make a
*round*, after which the policy is validated and its figures are noted. The first note of a run's history is the reference itself.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.runtime.deepspeed import deepspeed_settings, quiet_deepspeed
from intently.runtime.sft import MODEL
from intently.runtime.train import PROGRESS, TrainSession

if TYPE_CHECKING:
    from trl import GRPOTrainer

BEST = "best"
"""Folder of a checkpoint that holds the best policy so far; none where nothing has beaten the reference."""
SCORE = "score"
"""Name of the figure that policies are chosen by."""


class GrpoConfig(Config):
    """How a policy is trained. Prompts are the whole group of workers': each takes its share."""

    num_rounds: int = Field(20, ge=1, description="rounds at most; each ends with a validation")
    rollouts_per_round: int = Field(10, ge=1, description="rollouts between validations")
    prompts: int = Field(32, ge=1, description="prompts of a rollout")
    group_size: int = Field(10, ge=2, description="samples of a prompt")
    iterations: int = Field(2, ge=1, description="passes over a rollout; from the second on the ratio differs from 1 and clipping acts")
    minibatches: int = Field(1, ge=1, description="optimizer steps of a pass; more than 1 lets clipping act within the first pass, too")
    temperature: float = Field(0.5, gt=0, description="logits are divided by it in rollout, loss and KL")
    clip: float = Field(0.2, gt=0, lt=1, description="ratios beyond 1 ± clip earn nothing more")
    kl: float = Field(1e-3, ge=0, description="weight of the KL divergence to the reference")
    imitation: float = Field(0.0, ge=0, description="weight of fine-tuning's own loss on the same prompts")
    attempts: int = Field(0, ge=0, description="times that prompts whose samples all earn the same are replaced by others; 0 keeps them")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW after the warm-up")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="of the learning rate after that; the others fall to 0 by the last round"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    warmup_rollouts: int = Field(0, ge=0, description="rollouts in which the rate rises")
    patience: int = Field(5, ge=1, description="rounds without a better policy after which training ends")
    seed: int = Field(0, description="of samples and of the order within a rollout")

    @model_validator(mode="after")
    def _minibatches_are_whole(self) -> GrpoConfig:
        if self.prompts * self.group_size % self.minibatches:
            raise ValueError(f"prompts {self.prompts} · group_size {self.group_size} cannot be cut into {self.minibatches} minibatches")
        return self

    @property
    def num_rollouts(self) -> int:
        """Rollouts of a run that is not ended early."""
        return self.num_rounds * self.rollouts_per_round

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that are made with one rollout."""
        return self.iterations * self.minibatches


class Rollout(NamedTuple):
    """This worker's samples of one rollout, n of them in the order of the prompts that it was given."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    log_probs: list[list[float]]
    rewards: dict[str, list[float]]
    """Term → its value before weights."""
    targets: list[list[int]]
    """Tokens of what should have been written."""
    flat: list[bool]
    """Whether all samples of the sample's group earned the same."""
    figures: dict[str, float]
    """Of the whole group of workers, for the log."""


Gather = Callable[[torch.Tensor], torch.Tensor]
"""[n, …] of each worker → [n · workers, …], workers in order."""


class PolicyTask(Protocol):
    """What a policy is trained for."""

    weights: Mapping[str, float]
    """Term → weight in the reward."""

    def rollout(self, model: PreTrainedModel, prompts: Sequence[dict[str, Any]], rollout: int, rank: int, gather: Gather) -> Rollout:
        """Draw a sample for each of this worker's prompts; equal prompts stand next to each other."""

    def log_probs(
        self,
        model: torch.nn.Module,
        bare: PreTrainedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        completion_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, L] log-probabilities of completions and entropies; `bare` is the model without its wrapper."""

    def imitate(self, model: torch.nn.Module, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Fine-tuning's loss on prompts and targets (0 where filled up)."""

    def validate(self, model: PreTrainedModel, rank: int, world_size: int) -> np.ndarray:
        """This worker's share of what is measured, one row a case."""

    def figures(self, found: np.ndarray, reference: Mapping[str, float] | None) -> dict[str, float]:
        """Figures over all cases with SCORE, higher is better; `reference` are the reference's own, None when it is measured."""


def optimise(
    session: TrainSession,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    task: PolicyTask,
    config: GrpoConfig,
    log_folder: str | None = None,
) -> None:
    """Train to the end, or go on; the last checkpoint is the result, and BEST in it the policy to keep.

    Args:
        session: the harness's.
        model: as it was loaded from a folder, without dropout; changed in place. The reference is loaded from the same folder.
        tokenizer: of the model.
        prompts: of all rollouts in their order, `num_rollouts · prompts` of them, each a dict of plain values with `tokens`.
        task: what is drawn, paid and measured.
        config: how.
        log_folder: where TensorBoard's events are written while it trains; None writes none.
    Raises:
        ConfigError: the samples of a rollout cannot be shared out among the workers.
    """
    samples = config.prompts * config.group_size
    if samples % (session.world_size * config.minibatches):
        shared = f"{samples} samples cannot be shared out to {session.world_size} workers and {config.minibatches} minibatches"
        raise ConfigError("grpo.prompts", config.prompts, shared)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as last:
        rounds = _Rounds(session, task, config, tokenizer, Path(folder) / BEST, log_folder)
        resumed = session.store.latest(Path(last))
        if resumed:
            session.history = json.loads((Path(last) / PROGRESS).read_text())
            if (Path(last) / BEST).is_dir():
                shutil.copytree(Path(last) / BEST, rounds.best)
        if session.history and rounds.ended:
            return
        trainer = build_trainer(session, model, tokenizer, prompts, task, config, Path(folder))
        trainer.add_callback(rounds)
        rounds.trainer = trainer
        trainer.remove_callback(PrinterCallback)  # the session prints
        trainer.train(resume_from_checkpoint=str(Path(last) / MODEL) if resumed else None)


def build_trainer(
    session: TrainSession,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, Any]],
    task: PolicyTask,
    config: GrpoConfig,
    folder: Path,
) -> GRPOTrainer:
    """TRL's trainer for a task; its output, checkpoints among it, goes to `folder`. The rest as in `optimise`."""
    quiet_deepspeed()
    # TRL and accelerate probe the machine on import, and DeepSpeed has to be quietened before accelerate sees it.
    from datasets import Dataset
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOConfig

    disable_progress_bar()
    deepspeed, gpu = session.config.deepspeed, session.device.type == "cuda"
    share = config.prompts * config.group_size // (session.world_size * config.minibatches)
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=config.num_rollouts * config.steps_per_rollout,
        per_device_train_batch_size=share,
        steps_per_generation=config.minibatches,
        num_generations=config.group_size,
        num_iterations=config.iterations,
        temperature=config.temperature,
        epsilon=config.clip,
        beta=config.kl,
        loss_type="grpo",
        reward_weights=list(task.weights.values()),
        shuffle_dataset=False,
        disable_dropout=True,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_rollouts * config.steps_per_rollout,
        lr_scheduler_type=config.schedule,
        max_grad_norm=deepspeed.max_gradient_norm,
        gradient_checkpointing=False,
        bf16=deepspeed.precision == "bf16",
        use_cpu=not gpu,
        deepspeed=deepspeed_settings(deepspeed, share),
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        logging_steps=config.rollouts_per_round * config.steps_per_rollout,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # the part of TRL that may change is this one
        return _trainer_class()(
            model=model,
            args=arguments,
            reward_funcs=[_paid(term) for term in task.weights],
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            rollout_func=_rollout_with(task, config, session.rank),
        ).trained_for(task, config)


def _paid(term: str) -> Callable[..., list[float]]:
    """TRL's reward function of a term: its values stand in the rows, where the rollout put them."""

    def read(**columns: Any) -> list[float]:
        return columns[f"reward_{term}"]

    read.__name__ = term
    return read


def _rollout_with(task: PolicyTask, config: GrpoConfig, rank: int) -> Callable[[list[dict[str, Any]], Any], dict[str, Any]]:
    """TRL's rollout function."""

    def roll(prompts: list[dict[str, Any]], trainer: Any) -> dict[str, Any]:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.eval()
        drawn = task.rollout(model, prompts, trainer.state.global_step // config.steps_per_rollout, rank, trainer.accelerator.gather)
        model.train()
        trainer.drawn = drawn
        paid = {f"reward_{term}": values for term, values in drawn.rewards.items()}
        return {"prompt_ids": drawn.prompt_ids, "completion_ids": drawn.completion_ids, "logprobs": drawn.log_probs, **paid}

    return roll


def _trainer_class() -> type:
    from trl import GRPOTrainer  # see build_trainer

    class PolicyTrainer(GRPOTrainer):
        """TRL's trainer with the task's log-probabilities, exact zeros for groups that tell nothing, and a share of imitation."""

        drawn: Rollout

        def trained_for(self, task: PolicyTask, config: GrpoConfig) -> PolicyTrainer:
            self.task, self.config = task, config
            return self

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, *_: Any, **__: Any
        ) -> tuple[torch.Tensor, torch.Tensor, None]:
            prompts, completions = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
            bare = self.accelerator.unwrap_model(model)
            return *self.task.log_probs(model, bare, prompts, attention_mask[:, :-logits_to_keep], completions), None

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            # Rounding leaves a little where all rewards are equal, and that is divided by almost nothing.
            output["advantages"][torch.tensor(self.drawn.flat, device=output["advantages"].device)] = 0.0
            longest = max(len(target) for target in self.drawn.targets)
            rows = [target + [0] * (longest - len(target)) for target in self.drawn.targets]
            output["targets"] = torch.tensor(rows, device=output["prompt_ids"].device)
            for name, value in self.drawn.figures.items():
                self._metrics["train"][name].append(value)
            return output

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> torch.Tensor:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.config.imitation:
                told = self.task.imitate(model, inputs["prompt_ids"], inputs["prompt_mask"], inputs["targets"])
                self._metrics["train"]["imitation"].append(told.item())
                loss = loss + self.config.imitation * told
            return loss

    return PolicyTrainer


class _Rounds(TrainerCallback):
    """Validates after each round, notes it, keeps the best policy and checkpoints, and ends the run where nothing gets better."""

    def __init__(
        self,
        session: TrainSession,
        task: PolicyTask,
        config: GrpoConfig,
        tokenizer: PreTrainedTokenizerBase,
        best: Path,
        log_folder: str | None,
    ) -> None:
        self.session, self.task, self.config, self.tokenizer, self.best, self.log_folder = (
            session,
            task,
            config,
            tokenizer,
            best,
            log_folder,
        )
        self.trainer: Any = None
        self.writer: Any = None

    @property
    def ended(self) -> bool:
        """Whether the rounds are used up, or the last ones brought nothing."""
        scores = [note[SCORE] for note in self.session.history]
        return len(scores) > self.config.num_rounds or len(scores) - 1 - scores.index(max(scores)) >= self.config.patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.log_folder and self.session.rank == 0:
            from tensorboardX import SummaryWriter  # only where there is somewhere to write to

            self.writer = SummaryWriter(self.log_folder)
        if not self.session.history:
            self._note({})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.writer:
            self.writer.close()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> TrainerControl:
        if logs and "reward" in logs:
            self._note(_figures(logs, self.task.weights))
            done = len(self.session.history) - 1
            control.should_training_stop = control.should_training_stop or self.ended
            control.should_save = self.ended or done % self.session.config.checkpoint_every == 0
        return control

    def _note(self, learned: Mapping[str, float]) -> None:
        history, model = self.session.history, self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        model.eval()
        found = self.task.validate(model, self.session.rank, self.session.world_size)
        model.train()
        shares: list[Any] = [None] * self.session.world_size
        torch.distributed.all_gather_object(shares, found)
        figures = self.task.figures(np.concatenate(shares), history[0] if history else None)
        if history and self.session.rank == 0 and figures[SCORE] > max(note[SCORE] for note in history):
            shutil.rmtree(self.best, ignore_errors=True)
            model.save_pretrained(self.best)
            self.tokenizer.save_pretrained(self.best)
        self.session.note(self.config.num_rounds + 1, {**learned, **figures})
        for name, value in history[-1].items() if self.writer else ():
            self.writer.add_scalar(name, value, (len(history) - 1) * self.config.rollouts_per_round)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        saved = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            saved.rename(folder / MODEL)
            if self.session.rank == 0:
                (folder / PROGRESS).write_text(json.dumps(self.session.history))
                if self.best.is_dir():
                    shutil.copytree(self.best, folder / BEST)
            self.session.store.save(folder, len(self.session.history))
        shutil.rmtree(saved, ignore_errors=True)


def _figures(logs: Mapping[str, float], terms: Mapping[str, float]) -> dict[str, float]:
    """A round's means, from TRL's names to ours."""
    names = {
        "reward": "reward",
        **{f"rewards/{term}/mean": f"reward_{term}" for term in terms},
        **{
            name: name
            for name in ("hit_rate", "bonus_rate", "zero_advantage", "replaced", "invalid", "kl", "entropy", "imitation", "grad_norm")
        },
        "clip_ratio/region_mean": "clipped",
    }
    return {ours: float(logs[theirs]) for theirs, ours in names.items() if logs.get(theirs) is not None}
