"""The generator: a decoder with tokens for codes, from nothing or from a checkpoint, and the loop that the harness runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.workspace import Artifact, Workspace
from intently.generative.examples import Collate, Example, ItemTokens, MixtureConfig, build_examples
from intently.generative.quantiser import TOKENIZER, load_quantiser
from intently.generative.sequences import SequenceConfig, Sequences, read_sequences
from intently.generative.trie import Trie, read_trie
from intently.generative.vocabulary import Vocabulary, add_codes, learn_tokenizer
from intently.runtime.sft import SftConfig, fine_tune, save_merged

if TYPE_CHECKING:  # the harness brings Ray Train and DeepSpeed along; serving reads this module without them
    from intently.runtime.train import TrainSession


class DecoderConfig(Config):
    """Which model writes semantic IDs: a small Qwen3 from nothing, or a checkpoint."""

    checkpoint: str | None = Field(
        None, description="folder or hub name of a causal language model; None trains a Qwen3 of the sizes below"
    )
    text_tokens: int = Field(1000, ge=256, description="tokens of its own byte-level BPE over titles")
    hidden: int = Field(192, ge=8, description="width")
    layers: int = Field(4, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="query heads")
    kv_heads: int = Field(4, ge=1, description="key and value heads")
    head_size: int = Field(48, ge=8, description="width of a head")
    feed_forward: int = Field(512, ge=8, description="width between the matrices of the feed-forward part")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="share of attention weights that are left out in training")


class GeneratorConfig(Config):
    """Everything that decides a trained generator."""

    decoder: DecoderConfig = Field(DecoderConfig(), description="the model")
    sequences: SequenceConfig = Field(SequenceConfig(), description="what a history is")
    mixture: MixtureConfig = Field(MixtureConfig(), description="what is taught")
    sft: SftConfig = Field(SftConfig(num_epochs=20, batch_size=128, learning_rate=1e-3), description="how")


@dataclass(frozen=True)
class GeneratorData:
    """What a generator is trained on, all of it from history_train.

    Attributes:
        trie: the catalogue, with as many codes a level as later items may get.
        past: sequences of history_train.
        titles: [N] in the trie's order.
        interests: ITEM_INTEREST rows where they stand.
    """

    trie: Trie
    past: Sequences
    titles: list[str]
    interests: pa.Table | None


def read_generator_data(workspace: Workspace, versions: Mapping[str, str], config: GeneratorConfig) -> GeneratorData:
    """The tables at the given versions (artifact → version).

    Raises:
        MissingArtifactError: one of them, or the tokenizer of semantic_id, is not there.
    """
    semantic_ids = workspace.artifact("semantic_id", versions["semantic_id"])
    trie = read_trie(semantic_ids.read(), semantic_ids.version)
    trie = replace(trie, code_counts=_code_counts(semantic_ids, trie))
    items = workspace.artifact("item", versions["item"]).read(columns=["item_id", "title"])
    named = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    # An item that left the catalogue keeps its semantic ID, but nobody knows its title any more.
    titles = [named.get(item, "") for item in trie.item_ids]
    history = workspace.artifact("history_train", versions["history_train"]).read(columns=["user_id", "item_ids", "behaviours"])
    interests = workspace.artifact("item_interest", versions["item_interest"]).read() if "item_interest" in versions else None
    return GeneratorData(trie, read_sequences(history, trie.ids, config.sequences), titles, interests)


def _code_counts(semantic_ids: Artifact, trie: Trie) -> tuple[int, ...]:
    """[L] what the quantiser can give, a counter included; what is given already where the quantiser is not known."""
    tokenizer = semantic_ids.manifest.notes.get(TOKENIZER)
    if tokenizer is None:
        return trie.code_counts
    return (load_quantiser(semantic_ids.workspace.artifact("tokenizer", tokenizer)).config.num_codes,) * trie.depth


def build_decoder(config: DecoderConfig, titles: list[str], code_counts: tuple[int, ...], seed: int) -> tuple[PreTrainedModel, Vocabulary]:
    """A model with rows for codes and marks, and its tokens; the same for the same seed.

    Args:
        config: from nothing or from a checkpoint.
        titles: what a new tokenizer learns from.
        code_counts: [L] codes of each level.
        seed: of new weights.
    Raises:
        ConfigError: the checkpoint cannot be loaded.
    """
    torch.manual_seed(seed)
    if config.checkpoint is None:
        vocabulary = add_codes(learn_tokenizer(titles, config.text_tokens), code_counts)
        return Qwen3ForCausalLM(_qwen3(config, vocabulary)), vocabulary
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.checkpoint)
        model = AutoModelForCausalLM.from_pretrained(config.checkpoint, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError("decoder.checkpoint", config.checkpoint, f"cannot be loaded: {error}") from error
    vocabulary = add_codes(tokenizer, code_counts)
    # New rows of embedding and head (one matrix where they are tied) begin near the mean of the old ones.
    model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    return model, vocabulary


def _qwen3(config: DecoderConfig, vocabulary: Vocabulary) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(vocabulary.tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        attention_dropout=config.attention_dropout,
        tie_word_embeddings=True,
        pad_token_id=vocabulary.pad,
        eos_token_id=vocabulary.end,
        bos_token_id=None,
    )


def trained_folder(checkpoint: Path, data: GeneratorData, config: GeneratorConfig, scratch: Path) -> Path:
    """The folder of a whole model: the checkpoint's own, or one in `scratch` into which LoRA was merged."""
    if not config.sft.lora_rank:
        return checkpoint
    model, _ = build_decoder(config.decoder, data.titles, data.trie.code_counts, config.sft.seed)
    save_merged(model, checkpoint, scratch)
    return scratch


def train_generator(session: TrainSession, workspace: Workspace, versions: Mapping[str, str], config: GeneratorConfig) -> None:
    """The loop: reads its tables, writes its examples, and fine-tunes.

    Args:
        session: the harness's.
        workspace: holds the tables.
        versions: artifact → version of what is read.
        config: everything else.
    """
    data = read_generator_data(workspace, versions, config)
    model, vocabulary = build_decoder(config.decoder, data.titles, data.trie.code_counts, config.sft.seed)
    items = ItemTokens(data.trie.semantic_ids, vocabulary.sid)
    examples = build_examples(
        data.past, items, data.titles, data.interests, data.trie.ids, vocabulary, config.mixture, config.sequences.max_items
    )
    if session.rank == 0:
        tokens = sum(len(example.tokens) for example in examples)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{session.label}: {len(examples)} examples, {tokens:,} tokens, {size:,} parameters", flush=True)
    collate = Collate(vocabulary.pad, config.mixture.item_dropout)
    fine_tune(session, model, vocabulary.tokenizer, [_row(example) for example in examples], collate, config.sft)


def _row(example: Example) -> dict[str, np.ndarray | int]:
    return {"input_ids": example.tokens, "labels": example.tokens, "start": example.start, "sizes": example.sizes}
