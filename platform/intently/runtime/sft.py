"""Supervised fine-tuning with TRL's trainer, inside the one Train harness: DeepSpeed, any number of workers, goes on from a checkpoint.

Examples come as tokens, and the caller's collate says which of them count, so that the loss is on completions only whatever the task.
What is kept of an epoch is TRL's own checkpoint (model, optimizer, schedule, random state) in MODEL beside the harness's PROGRESS.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from intently.core.config import Config
from intently.runtime.deepspeed import deepspeed_settings, quiet_deepspeed
from intently.runtime.train import PROGRESS, TrainSession

MODEL = "model"
"""Folder of a checkpoint that `from_pretrained` loads."""


class SftConfig(Config):
    """How a language model is fine-tuned. Batches are the whole group's: each worker takes its share."""

    num_epochs: int = Field(3, ge=1, description="passes over the examples")
    batch_size: int = Field(64, ge=1, description="examples of a step")
    learning_rate: float = Field(3e-4, gt=0, description="peak of AdamW's learning rate")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field("cosine", description="of the learning rate after that")
    activation_checkpointing: Literal["off", "on"] = Field("off", description="on: activations are computed twice instead of kept")
    lora_rank: int = Field(0, ge=0, description="rank of LoRA on every matrix, embeddings trained whole; 0 trains everything")
    seed: int = Field(0, description="of the order of examples and of dropout")


def fine_tune(
    session: TrainSession,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
    config: SftConfig,
) -> None:
    """Train to the end, or go on; the last checkpoint is the result.

    Args:
        session: the harness's.
        model: changed in place.
        tokenizer: kept beside the model.
        examples: with `input_ids` each; like lengths are put into one batch by it.
        collate: examples → input_ids, labels (−100 where nothing is asked) and attention_mask, [B, T] each.
        config: how.
    """
    quiet_deepspeed()
    # TRL and accelerate probe the machine on import, and DeepSpeed has to be quietened before accelerate sees it.
    from datasets import Dataset
    from transformers.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    disable_progress_bar()

    deepspeed, share = session.config.deepspeed, max(1, config.batch_size // session.world_size)
    gpu = session.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=config.num_epochs,
            per_device_train_batch_size=share,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup,
            lr_scheduler_type=config.schedule,
            max_grad_norm=deepspeed.max_gradient_norm,
            activation_checkpointing=config.activation_checkpointing == "on",
            bf16=deepspeed.precision == "bf16",
            use_cpu=not gpu,
            deepspeed=deepspeed_settings(deepspeed, share),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=gpu,
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
        )
        trainer = (SFTTrainer if gpu else _without_fused_head())(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=Dataset.from_list(list(examples)),
            processing_class=tokenizer,
            peft_config=_lora(model, config.lora_rank) if config.lora_rank else None,
            callbacks=[_Epochs(session, config.num_epochs)],
        )
        trainer.remove_callback(PrinterCallback)  # the session prints
        with tempfile.TemporaryDirectory() as last:
            resumed = session.store.latest(Path(last))
            if resumed:
                session.history = json.loads((Path(last) / PROGRESS).read_text())
            if len(session.history) < config.num_epochs:
                trainer.train(resume_from_checkpoint=str(Path(last) / MODEL) if resumed else None)


def save_merged(model: PreTrainedModel, checkpoint: Path, folder: Path) -> None:
    """Save the whole model of a checkpoint that LoRA left: the base with what it learned added, and the tokenizer.

    Args:
        model: the base as it was before training; changed in place.
        checkpoint: MODEL of a run with `lora_rank`.
        folder: where to.
    """
    from peft import PeftModel  # only where there was LoRA

    PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


def _without_fused_head() -> type:
    """TRL's trainer with the model's own loss.

    TRL's head works tile by tile, twice, and adds entropy and accuracy to every step. Its kernel saves memory on a GPU; without the kernel
    it is a quarter to a half of a small model's step.
    """
    # Not at the top for the reason that fine_tune gives.
    from transformers import Trainer
    from trl import SFTTrainer

    class OwnLossTrainer(SFTTrainer):
        compute_loss = Trainer.compute_loss

    return OwnLossTrainer


def _lora(model: PreTrainedModel, rank: int) -> Any:
    from peft import LoraConfig  # only where there is LoRA

    # Rows of new tokens are at their mean and have to learn; where head and embeddings are one matrix, they stay one.
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    embeddings, head = (names[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=[head],
        modules_to_save=[embeddings] if tied else [embeddings, head],
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )


class _Epochs(TrainerCallback):
    """Notes each epoch in the session and keeps a checkpoint where one is due."""

    def __init__(self, session: TrainSession, num_epochs: int) -> None:
        self.session, self.num_epochs = session, num_epochs

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        epoch = round(state.epoch or 0)
        control.should_save = epoch == self.num_epochs or epoch % self.session.config.checkpoint_every == 0
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.session.note(self.num_epochs, {"loss": float(logs["loss"]), "learning_rate": float(logs["learning_rate"])})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        saved = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            saved.rename(folder / MODEL)
            if self.session.rank == 0:
                (folder / PROGRESS).write_text(json.dumps(self.session.history))
            self.session.store.save(folder, len(self.session.history))
        shutil.rmtree(saved, ignore_errors=True)
