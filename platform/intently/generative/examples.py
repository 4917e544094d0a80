"""Training examples as tokens: which part of each is asked for, and how batches are put together.

An example is a row of tokens and the place from which on they count in the loss: all of a history but its mark, else what stands behind
the answer mark (completion-only loss). Targets come from history_train alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.generative.beam import SidTokens
from intently.generative.inputs import interest_texts
from intently.generative.sequences import Sequences
from intently.generative.trie import END as NO_CODE
from intently.generative.vocabulary import Task, Vocabulary

IGNORED = -100


class MixtureConfig(Config):
    """What is taught, and how much of it."""

    shares: dict[Task, float] = Field(
        {Task.HISTORY: 1.0},
        description="task → its examples as a share of all that there are (one an item, or one a user for those about histories)",
    )
    title_tokens: int = Field(32, ge=1, description="tokens of a title that are kept")
    titles: int = Field(5, ge=1, description="titles_to_sid: how many of the last items' titles a prompt holds")
    item_dropout: float = Field(0.0, ge=0, lt=1, description="chance that an item of a history is left out of a batch; others each epoch")
    seed: int = Field(0, description="of the examples that are drawn")


@dataclass(frozen=True)
class Example:
    """One row of training.

    Attributes:
        tokens: all of them.
        start: the first that counts in the loss.
        sizes: of a history the number of tokens of each item; empty otherwise.
    """

    tokens: np.ndarray
    start: int
    sizes: np.ndarray


@dataclass(frozen=True)
class ItemTokens:
    """Items of the catalogue in the model's tokens.

    Attributes:
        semantic_ids: [N, L] codes; NO_CODE behind a shorter one's end.
        sid: where codes lie in the vocabulary.
    """

    semantic_ids: np.ndarray
    sid: SidTokens

    def write(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of items one after the other, and how many each has."""
        rows = self.semantic_ids[items]
        written = rows != NO_CODE
        return self.sid.encode(rows)[written], written.sum(axis=1)


def build_examples(
    past: Sequences,
    items: ItemTokens,
    titles: Sequence[str],
    interests: pa.Table | None,
    item_ids: pa.Array,
    vocabulary: Vocabulary,
    mixture: MixtureConfig,
    max_items: int,
) -> list[Example]:
    """All examples of an epoch, task by task.

    Args:
        past: of history_train.
        items: semantic IDs, by catalogue row.
        titles: [N] by catalogue row.
        interests: ITEM_INTEREST rows, for interests_to_sid.
        item_ids: [N] the catalogue.
        vocabulary: tokens.
        mixture: shares.
        max_items: items of a history in one example.
    Raises:
        ConfigError: examples about interests are asked for, and there are none.
    """
    rng = np.random.default_rng([mixture.seed, 11])
    examples: list[Example] = []
    text = _Texts(titles, vocabulary, mixture.title_tokens)
    for task, share in mixture.shares.items():
        mark = np.array([vocabulary.marks[task]])
        match task:
            case Task.HISTORY:
                pieces = [piece for user in _drawn(past.num_users, share, rng) for piece in _pieces(past.of(user), max_items)]
                made = [history_example(piece, items, vocabulary) for piece in pieces]
            case Task.TITLE_TO_SID:
                made = [_asked(mark, text.of(row), items.write(row)[0], vocabulary) for row in _rows(len(titles), share, rng)]
            case Task.SID_TO_TITLE:
                made = [_asked(mark, items.write(row)[0], text.ended(row), vocabulary) for row in _rows(len(titles), share, rng)]
            case Task.HISTORY_TO_TITLE | Task.TITLES_TO_SID:
                made = []
                for user in _drawn(past.num_users, share, rng):
                    sequence = past.of(user)
                    if len(sequence) < 2:
                        continue
                    place = int(rng.integers(1, len(sequence)))
                    before, target = sequence[max(0, place - max_items) : place], sequence[place : place + 1]
                    if task == Task.HISTORY_TO_TITLE:
                        made.append(_asked(mark, items.write(before)[0], text.ended(target), vocabulary))
                    else:
                        made.append(_asked(mark, text.of(before[-mixture.titles :]), items.write(target)[0], vocabulary))
            case Task.INTERESTS_TO_SID:
                made = _about_interests(mark, items, interests, item_ids, vocabulary, share, rng)
        examples += made
    return examples


def history_example(piece: np.ndarray, items: ItemTokens, vocabulary: Vocabulary) -> Example:
    """Items in order → the mark and their semantic IDs."""
    tokens, sizes = items.write(piece)
    return Example(np.concatenate([[vocabulary.marks[Task.HISTORY]], tokens]), 1, sizes)


def prompts(
    histories: Sequence[np.ndarray], items: ItemTokens, vocabulary: Vocabulary, max_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the generator is asked: [B, T] tokens, filled up on the right, and [B] their lengths.

    Args:
        histories: rows of items, oldest first; may be empty.
        items: semantic IDs of the catalogue.
        vocabulary: tokens.
        max_items: the latest so many are told.
    """
    rows = [history_example(history[-max_items:], items, vocabulary).tokens for history in histories]
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), int(lengths.max(initial=1))), vocabulary.pad, np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


@dataclass(frozen=True)
class Collate:
    """Examples → the tensors of a batch.

    Attributes:
        pad: token that fills up.
        item_dropout: chance that an item of a history is left out.
    """

    pad: int
    item_dropout: float

    def __call__(self, examples: Sequence[dict]) -> dict[str, torch.Tensor]:
        """[B, T] input_ids, labels (IGNORED where nothing is asked) and attention_mask."""
        rows = [self._row(example) for example in examples]
        lengths = np.array([len(tokens) for tokens, _ in rows])
        tokens = np.full((len(rows), int(lengths.max())), self.pad, np.int64)
        labels = np.full(tokens.shape, IGNORED, np.int64)
        for place, (row, start) in enumerate(rows):
            tokens[place, : len(row)] = row
            labels[place, start : len(row)] = row[start:]
        mask = np.arange(tokens.shape[1]) < lengths[:, None]
        return {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(labels), "attention_mask": torch.from_numpy(mask).long()}

    def _row(self, example: dict) -> tuple[np.ndarray, int]:
        tokens, sizes = np.asarray(example["input_ids"]), np.asarray(example["sizes"], np.int64)
        if not self.item_dropout or len(sizes) < 3:
            return tokens, example["start"]
        # torch's generator, whose state a checkpoint holds: a run that resumes drops the same items.
        kept = torch.rand(len(sizes)).numpy() >= self.item_dropout
        return np.concatenate([tokens[:1], tokens[1:][np.repeat(kept, sizes)]]), example["start"]


@dataclass(frozen=True)
class _Texts:
    titles: Sequence[str]
    vocabulary: Vocabulary
    most: int

    def of(self, items: np.ndarray) -> np.ndarray:
        """Titles of items, a line each."""
        cut = [self._tokens(self.titles[item])[: self.most] for item in items]
        line = self._tokens("\n")
        return np.concatenate([np.array(title if place == 0 else line + title, np.int64) for place, title in enumerate(cut)])

    def ended(self, item: np.ndarray) -> np.ndarray:
        """The title of one item and the end."""
        return np.append(self.of(item), self.vocabulary.end)

    def _tokens(self, text: str) -> list[int]:
        return self.vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]


def _asked(mark: np.ndarray, prompt: np.ndarray, answer: np.ndarray, vocabulary: Vocabulary) -> Example:
    tokens = np.concatenate([mark, prompt, [vocabulary.answer], answer]).astype(np.int64)
    return Example(tokens, len(tokens) - len(answer), np.zeros(0, np.int64))


def _about_interests(
    mark: np.ndarray,
    items: ItemTokens,
    interests: pa.Table | None,
    item_ids: pa.Array,
    vocabulary: Vocabulary,
    share: float,
    rng: np.random.Generator,
) -> list[Example]:
    if interests is None:
        raise ConfigError("mixture.shares", Task.INTERESTS_TO_SID.value, "no item_interest stands in the workspace; mine interests first")
    texts = interest_texts(interests, 0.0)
    rows = {item: row for row, item in enumerate(item_ids.to_pylist())}
    known = [(rows[row["item_id"]], row["text"]) for row in texts.to_pylist() if row["item_id"] in rows]
    made = []
    for place in _drawn(len(known), share, rng):
        row, words = known[place]
        prompt = np.array(vocabulary.tokenizer(words, add_special_tokens=False)["input_ids"], np.int64)
        made.append(_asked(mark, prompt, items.write(np.array([row]))[0], vocabulary))
    return made


def _drawn(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Numbers below count, share · count of them: each at least ⌊share⌋ times."""
    whole, rest = divmod(share, 1.0)
    return np.concatenate([np.tile(np.arange(count), int(whole)), np.sort(rng.permutation(count)[: round(rest * count)])])


def _rows(count: int, share: float, rng: np.random.Generator) -> list[np.ndarray]:
    return list(_drawn(count, share, rng)[:, None])


def _pieces(sequence: np.ndarray, most: int) -> list[np.ndarray]:
    """A long life in pieces, the last one full; a single item teaches how lives begin."""
    first = len(sequence) % most
    cuts = range(first, len(sequence), most)
    return [piece for piece in np.split(sequence, list(cuts)) if len(piece)]
