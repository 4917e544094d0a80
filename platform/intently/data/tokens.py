"""How long a text is for a language model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from intently.core.errors import ConfigError

WORDS_AND_SIGNS = r"[\pL\pM\pN]+|[^\pL\pM\pN\s]"


class TokenCounter:
    """Counts tokens with a real tokenizer, or words and signs where none is given.

    Args:
        tokenizer: path of a tokenizer.json (Hugging Face tokenizers); None counts runs of letters and digits, and signs.
    Raises:
        ConfigError: the file cannot be read as a tokenizer.
    """

    def __init__(self, tokenizer: str | None) -> None:
        self._tokenizer = _load(tokenizer) if tokenizer is not None else None

    def count(self, texts: pa.Array | Sequence[str]) -> np.ndarray:
        """N texts → [N] int32 token counts, special tokens left out."""
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
        if self._tokenizer is None:
            return pc.count_substring_regex(array, WORDS_AND_SIGNS).to_numpy(zero_copy_only=False).astype(np.int32)
        encodings = self._tokenizer.encode_batch_fast(array.to_pylist(), add_special_tokens=False)
        return np.fromiter((len(encoding) for encoding in encodings), np.int32, len(encodings))


def _load(path: str) -> Tokenizer:
    try:
        text = Path(path).read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError("tokenizer", path, f"cannot be read as a tokenizer.json: {error}") from error
    return Tokenizer.from_str(text)
