"""The tokens of a generator: those of its text tokenizer, one a code of each level, one a task, one that asks and one that ends.

Codes are ordinary tokens, next to each other level by level, so that the head's rows of a level are one slice. A task is one token at the
beginning of a prompt instead of an instruction in words: it is learned in fine-tuning all the same, and a prompt stays short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from intently.generative.beam import SidTokens

PAD, ANSWER, END = "<|fill|>", "<|answer|>", "<|over|>"


class Task(StrEnum):
    """What an example teaches."""

    HISTORY = "history"
    """Semantic IDs of a person's items in order; every one is foretold from those before it."""
    TITLE_TO_SID = "title_to_sid"
    """An item's title → its semantic ID."""
    SID_TO_TITLE = "sid_to_title"
    """An item's semantic ID → its title."""
    HISTORY_TO_TITLE = "history_to_title"
    """Semantic IDs of the past → the title of the next item."""
    TITLES_TO_SID = "titles_to_sid"
    """Titles of the last items → the semantic ID of the next."""
    INTERESTS_TO_SID = "interests_to_sid"
    """An item's deep interests → its semantic ID."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that knows codes and marks.

    Attributes:
        tokenizer: with them added.
        sid: where the codes are.
        marks: task → the token that begins its prompts.
        answer: behind a prompt, before what is asked for.
        end: behind a text that was asked for.
        pad: fills up batches.
    """

    tokenizer: PreTrainedTokenizerBase
    sid: SidTokens
    marks: dict[Task, int]
    answer: int
    end: int
    pad: int


def learn_tokenizer(texts: Iterable[str], num_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the catalogue's texts, for a model that is trained from nothing.

    Args:
        texts: what merges are learned from.
        num_tokens: at most; 256 of them are the bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def add_codes(tokenizer: PreTrainedTokenizerBase, code_counts: Sequence[int]) -> Vocabulary:
    """Add the tokens of codes and marks to a tokenizer; those that it has already are found again.

    Args:
        tokenizer: of the model; changed.
        code_counts: [L] codes of each level.
    """
    codes = [[f"<s{level}_{code}>" for code in range(count)] for level, count in enumerate(code_counts)]
    marks = [f"<|{task}|>" for task in Task]
    names = [PAD, ANSWER, END, *marks, *(name for level in codes for name in level)]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = PAD
    number = tokenizer.convert_tokens_to_ids
    first = tuple(number(level[0]) for level in codes)
    assert all(number(level[-1]) == start + len(level) - 1 for level, start in zip(codes, first, strict=True)), "a level is one slice"
    tasks = {task: number(f"<|{task}|>") for task in Task}
    return Vocabulary(tokenizer, SidTokens(first, tuple(code_counts)), tasks, number(ANSWER), number(END), tokenizer.pad_token_id)
