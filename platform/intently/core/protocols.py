"""Where rooms of one floor meet at run time: a job hands one in to the other through these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa


class TextEncoder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """What goes into Embedding.model."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → [N, D] float32, each row of length 1."""


class Retriever(Protocol):
    """Finds items for users; the agent searches with it, serving answers with it."""

    def retrieve(self, user_ids: Sequence[str], k: int) -> pa.Table:
        """User ids → Candidate rows, at most k a user, best first."""


class TextScorer(Protocol):
    """Scores texts; a judge as a reward."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → [N] float32 in 0..1."""


class Generator(Protocol):
    """Generates items for histories; serving's strategy `generative`."""

    def generate(self, histories: pa.Table, k: int) -> pa.Table:
        """History rows → Candidate rows, at most k a user, best first."""
