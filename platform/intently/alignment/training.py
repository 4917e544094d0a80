"""Trains a small Qwen3-architecture model from nothing on ChatExample rows: plain torch, one process, CPU or GPU.

What makes minutes on two CPU cores enough (measured, see llm/student/README.md): Muon for the matrices, AdamW for the rest; a
warm-up on copying random tokens, which grows the heads that look things up; part of the loss on the prompt; easy examples
first; batches of like lengths instead of packing, because attention over packed texts is dense on a CPU.

Shapes: B examples of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from intently.alignment.examples import prompt_messages
from intently.alignment.tokenizer import USER, encode, train_tokenizer
from intently.core.config import Config, operational
from intently.core.errors import ConfigError
from intently.llm.engines.vllm import STUDENT, STUDENT_FOLDER

CHECKPOINT = "checkpoint.pt"
_TEXTS_FOR_TOKENIZER = 6000
_TEXTS_FOR_EMBEDDINGS = 6000


class StudentConfig(Config):
    """Size of the student; the defaults make 3.4 M parameters, 6.7 MB in bfloat16."""

    vocabulary: int = Field(6000, ge=300, description="tokens of its own byte-level BPE")
    hidden: int = Field(192, ge=16, description="width")
    layers: int = Field(5, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="query heads")
    kv_heads: int = Field(2, ge=1, description="key and value heads")
    head_size: int = Field(64, ge=8, description="width of a head; vLLM on a CPU wants a multiple of 32")
    feed_forward: int = Field(512, ge=16, description="width between the two matrices of the feed-forward part")
    rope_theta: float = Field(1e6, gt=1, description="base of rotary positions; large, so that words are found at any distance")
    context: int = Field(2048, ge=128, description="longest prompt plus answer, in tokens")


class TrainingConfig(Config):
    """How the student is trained."""

    student: StudentConfig = Field(StudentConfig(), description="its size")
    start: str | None = Field(None, description="model folder to go on from, 'student' is the shipped one; None starts from nothing")
    seed: int = Field(0, ge=0, description="of weights, order and copying drill")
    num_steps: int = Field(1600, ge=1, description="optimiser steps, the drill included")
    batch_tokens: int = Field(6144, ge=64, description="tokens of a batch, padding included")
    copy_steps: int = Field(0, ge=0, description="steps at the start that are spent on copying random tokens")
    easy_steps: int = Field(250, ge=0, description="steps after the drill that see only difficulty 0 and 1")
    prompt_share: float = Field(0.12, ge=0, le=1, description="share of the user message's tokens that count in the loss")
    decisive_keys: tuple[str, ...] = Field(("interest", "stage", "tag"), description="JSON keys of an answer whose values decide its worth")
    decisive_weight: float = Field(5.0, gt=0, description="weight of those values' tokens in the loss, against 1 of any other")
    matrix_lr: float = Field(0.02, gt=0, description="Muon's learning rate")
    other_lr: float = Field(0.003, gt=0, description="AdamW's, for embeddings and norms")
    warmup_steps: int = Field(20, ge=1, description="steps in which learning rates rise from 0")
    decay_steps: int = Field(400, ge=1, description="steps at the end in which they fall to 3 %; up to there num_steps changes nothing")
    threads: int = operational(2, ge=1, description="CPU threads")
    checkpoint_every: int = operational(100, ge=1, description="steps between checkpoints")
    print_every: int = operational(20, ge=1, description="steps between progress lines")


@dataclass(frozen=True)
class Encoded:
    """One example as tokens; `decisive` is EncodedChat's."""

    tokens: list[int]
    prompt_length: int
    decisive: list[bool]
    system_length: int
    difficulty: int


def train(examples: pa.Table, config: TrainingConfig, work: Path, until: int | None = None) -> list[float]:
    """Train on CHAT_EXAMPLE rows and leave a model folder that vLLM loads in `work`/model; goes on from a checkpoint in `work`.

    Args:
        examples: CHAT_EXAMPLE rows.
        config: size and recipe.
        work: folder of the checkpoint and of the model; of one config and one set of examples only.
        until: stop after this step with a checkpoint and no model folder; None trains to the end.
    Returns:
        loss of the steps done in this call.
    Raises:
        ConfigError: an example is longer than the context, or there is none.
    """
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(examples, config, work)
    encoded = encode_examples(tokenizer, examples, config)
    torch.manual_seed(config.seed)
    model = _first_model(tokenizer, encoded, config).to(device)
    optimizers = _optimizers(model, config)
    first = _resume(work / CHECKPOINT, model, optimizers, device)
    plan = plan_batches(encoded, config)
    losses, began, seen = [], time.monotonic(), 0
    last = min(until or config.num_steps, config.num_steps)
    for step in range(first, last):
        _set_rates(optimizers, config, step)
        tokens, targets, weights = (part.to(device) for part in _batch(encoded, plan[step], config, tokenizer, step))
        counted = weights > 0
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model.model(input_ids=tokens).last_hidden_state[counted]  # [N, hidden]; the head is costly, so only where needed
            logits = model.lm_head(hidden)  # [N, V]
        each = F.cross_entropy(logits.float(), targets[counted], reduction="none")
        loss = (each * weights[counted]).sum() / weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seen += tokens.numel()
        if (step + 1) % config.print_every == 0 or step + 1 == last:
            recent = float(np.mean(losses[-config.print_every :]))
            speed = seen / (time.monotonic() - began)
            phase = "copying" if plan[step] is None else "examples"
            print(f"train_student: step {step + 1}/{config.num_steps} ({phase}), loss {recent:.3f}, {speed:.0f} tokens/s", flush=True)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == last:
            _save_checkpoint(work / CHECKPOINT, model, optimizers, step + 1)
    if last == config.num_steps:
        save_model(model, tokenizer, work / "model")
    return losses


def start_folder(start: str) -> Path:
    """The folder that `TrainingConfig.start` means."""
    return STUDENT_FOLDER if start == STUDENT else Path(start)


def _first_model(tokenizer: PreTrainedTokenizerFast, encoded: Sequence[Encoded], config: TrainingConfig) -> Qwen3ForCausalLM:
    """The weights before the first step, in float32: those of `start`, else new ones."""
    if config.start is not None:
        return Qwen3ForCausalLM.from_pretrained(start_folder(config.start), dtype=torch.float32)
    model = Qwen3ForCausalLM(model_config(config.student, tokenizer))
    model.model.embed_tokens.weight.data.copy_(cooccurrence_vectors(tokenizer, encoded, config.student.hidden, config.seed))
    return model


def model_config(student: StudentConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The Qwen3 configuration of a student."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=student.hidden,
        intermediate_size=student.feed_forward,
        num_hidden_layers=student.layers,
        num_attention_heads=student.heads,
        num_key_value_heads=student.kv_heads,
        head_dim=student.head_size,
        max_position_embeddings=student.context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": student.rope_theta},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def encode_examples(tokenizer: PreTrainedTokenizerFast, examples: pa.Table, config: TrainingConfig) -> list[Encoded]:
    """CHAT_EXAMPLE rows → tokens.

    Raises:
        ConfigError: an example is longer than the context, or there is none.
    """
    chats = [prompt_messages(prompt) for prompt in examples["prompt"].to_pylist()]
    coded = encode(tokenizer, chats, examples["completion"].to_pylist(), config.decisive_keys)
    if not coded:
        raise ConfigError("chat_example", 0, "there is nothing to train on")
    user = tokenizer.convert_tokens_to_ids(USER)
    encoded = []
    names, difficulties = examples["example_id"].to_pylist(), examples["difficulty"].to_pylist()
    for chat, name, difficulty in zip(coded, names, difficulties, strict=True):
        if len(chat.tokens) > config.student.context:
            raise ConfigError("student.context", config.student.context, f"example {name} has {len(chat.tokens)} tokens")
        encoded.append(Encoded(chat.tokens, chat.prompt_length, chat.decisive, chat.tokens.index(user), difficulty))
    return encoded


def cooccurrence_vectors(tokenizer: PreTrainedTokenizerFast, encoded: Sequence[Encoded], width: int, seed: int) -> torch.Tensor:
    """[V, width] embeddings to start from: tokens that share lines start close together.

    Positive pointwise mutual information over lines (of a prompt) and objects (of an answer), cut down to `width` dimensions
    (Levy & Goldberg 2014). A word of a title and the phrase of its interest are then neighbours from the first step, which
    gradient descent alone needs millions of tokens to find.
    """
    V = len(tokenizer)
    ends = np.array(["\n" in text or "},{" in text for text in tokenizer.batch_decode([[token] for token in range(V)])])
    rng = np.random.default_rng([seed, 5])
    chosen = np.sort(rng.permutation(len(encoded))[:_TEXTS_FOR_EMBEDDINGS])
    joint = np.zeros(V * V, np.float32)
    for start in range(0, len(chosen), 250):
        pairs = [pair for i in chosen[start : start + 250] for pair in _pairs(np.array(encoded[i].tokens), ends, V)]
        joint += np.bincount(np.concatenate(pairs), minlength=V * V).astype(np.float32)
    counts = torch.from_numpy(joint.reshape(V, V))
    margin = counts.sum(dim=1).clamp(min=1.0) ** 0.75  # tempered, or rare tokens get the largest scores
    scores = torch.log((counts * margin.sum() / (margin[:, None] * margin[None, :])).clamp(min=1e-9)).clamp(min=0.0)
    torch.manual_seed(seed)
    left, strength, _ = torch.svd_lowrank(scores, q=width, niter=2)
    vectors = left * strength.sqrt()
    vectors = 0.5 * vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return vectors + 0.01 * torch.randn(vectors.shape)


def _pairs(tokens: np.ndarray, ends: np.ndarray, vocabulary: int) -> Iterator[np.ndarray]:
    """The pairs of distinct tokens of each line, as first × vocabulary + second."""
    for line in np.split(tokens, np.flatnonzero(ends[tokens])):
        distinct = np.unique(line)
        if 1 < len(distinct) <= 64:
            yield (distinct[:, None] * vocabulary + distinct[None, :]).ravel()


def plan_batches(encoded: Sequence[Encoded], config: TrainingConfig) -> list[list[int] | None]:
    """For each step the examples of its batch, or None for the copying drill; decided by the config alone, so that a run can resume."""
    rng = np.random.default_rng([config.seed, 1])
    drill = min(config.copy_steps, config.num_steps)
    easy = min(config.easy_steps, config.num_steps - drill)
    simple = [i for i, example in enumerate(encoded) if example.difficulty <= 1]
    plan: list[list[int] | None] = [None] * drill
    phases = [(simple or list(range(len(encoded))), drill + easy), (list(range(len(encoded))), config.num_steps)]
    for chosen, end in phases:
        lengths = np.array([len(encoded[i].tokens) for i in chosen])
        batches = _endless_batches(np.array(chosen), lengths, config.batch_tokens, rng)
        plan += [next(batches) for _ in range(end - len(plan))]
    return plan


def _endless_batches(chosen: np.ndarray, lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of like lengths, epoch after epoch: shuffled, sorted within large groups, cut by the longest × count."""
    while True:
        order = rng.permutation(len(chosen))
        batches: list[list[int]] = []
        for start in range(0, len(order), 1024):
            group = order[start : start + 1024]
            group = group[np.argsort(lengths[group], kind="stable")]
            batch: list[int] = []
            for place in group:
                if batch and lengths[place] * (len(batch) + 1) > batch_tokens:
                    batches.append(batch)
                    batch = []
                batch.append(int(chosen[place]))
            batches.append(batch)
        yield from (batches[i] for i in rng.permutation(len(batches)))


def _batch(
    encoded: Sequence[Encoded], chosen: list[int] | None, config: TrainingConfig, tokenizer: PreTrainedTokenizerFast, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, targets, weights of the targets in the loss), [B, T] each; 0 for padding and the system message."""
    if chosen is None:
        return _drill(config, len(tokenizer), step)
    rng = np.random.default_rng([config.seed, 4, step])
    examples = [encoded[i] for i in chosen]
    width = max(len(example.tokens) for example in examples)
    tokens = np.full((len(examples), width), tokenizer.pad_token_id, np.int64)
    weights = np.zeros((len(examples), width), np.float32)
    for row, example in enumerate(examples):
        asked = slice(example.system_length + 1, example.prompt_length)
        tokens[row, : len(example.tokens)] = example.tokens
        weights[row, asked] = rng.random(asked.stop - asked.start) < config.prompt_share
        weights[row, example.prompt_length : len(example.tokens)] = np.where(example.decisive, config.decisive_weight, 1.0)
    return torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:]), torch.from_numpy(weights[:, 1:])


def _drill(config: TrainingConfig, vocabulary: int, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens, twice; only the second time counts."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    length = int(torch.randint(16, min(128, config.student.context // 2 - 1), (1,), generator=generator))
    count = max(1, config.batch_tokens // (2 * length))
    once = torch.randint(5, vocabulary, (count, length), generator=generator)  # 0 to 4 are special
    tokens = torch.cat([once, once], dim=1)
    weights = torch.zeros(tokens.shape)
    weights[:, length + 1 :] = 1.0
    return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]


def _optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=config.matrix_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _set_rates(optimizers: Sequence[torch.optim.Optimizer], config: TrainingConfig, step: int) -> None:
    rise = min(1.0, (step + 1) / config.warmup_steps)
    fall = min(1.0, 0.03 + 0.97 * (config.num_steps - step - 1) / config.decay_steps)
    for optimizer, rate in zip(optimizers, (config.matrix_lr, config.other_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(rise, fall)


def _tokenizer(examples: pa.Table, config: TrainingConfig, work: Path) -> PreTrainedTokenizerFast:
    """That of the model that a run goes on from, or the one that it began with, else a new one."""
    if config.start is not None:
        return PreTrainedTokenizerFast.from_pretrained(start_folder(config.start))
    folder, unfinished = work / "tokenizer", work / "tokenizer.unfinished"
    if not folder.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        rows = np.random.default_rng([config.seed, 2]).permutation(examples.num_rows)[:_TEXTS_FOR_TOKENIZER]
        part = examples.take(pa.array(np.sort(rows)))
        texts = part["prompt"].to_pylist() + part["completion"].to_pylist()
        train_tokenizer(texts, config.student.vocabulary, config.student.context).save_pretrained(unfinished)
        unfinished.rename(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _resume(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: torch.device) -> int:
    """Steps that a checkpoint holds, 0 without one."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, part in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(part)
    return int(state["step"])


def _save_checkpoint(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step}
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def save_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that vLLM and transformers load: bfloat16 safetensors, config, tokenizer with its chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(torch.bfloat16).cpu().contiguous() for name, tensor in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)  # tied to the embeddings
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = model.config
    settings.architectures = ["Qwen3ForCausalLM"]
    settings.dtype = "bfloat16"
    settings.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
