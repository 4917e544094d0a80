"""What the policy is asked in training: places in train histories, each with the item that came next.

Targets come from history_train alone. `last` asks for the last item of each train history only, `any` for one at a random place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.generative.sequences import Sequences


class PromptConfig(Config):
    """Which places of train histories are asked about."""

    places: Literal["last", "any"] = Field("any", description="last: the last item of a history; any: one at random, another each time")
    min_history: int = Field(1, ge=1, description="items that have to stand before the place")
    seed: int = Field(0, description="of users and places")


@dataclass(frozen=True)
class Prompts:
    """Questions in the order in which they are asked.

    Attributes:
        users: [Q] user rows.
        places: [Q] which item of the user's history is asked for.
    """

    users: np.ndarray
    places: np.ndarray


def draw_prompts(past: Sequences, count: int, config: PromptConfig) -> Prompts:
    """`count` questions: every user once before any is asked again.

    Args:
        past: of history_train.
        count: how many.
        config: which places.
    Raises:
        ConfigError: no history is long enough.
    """
    lengths = np.diff(past.offsets)
    known = np.flatnonzero(lengths > config.min_history)
    if not len(known):
        raise ConfigError("prompts.min_history", config.min_history, "no history of history_train is longer")
    rng = np.random.default_rng([config.seed, 29])
    users = np.concatenate([rng.permutation(known) for _ in range(-(-count // len(known)))])[:count]
    match config.places:
        case "last":
            places = lengths[users] - 1
        case "any":
            places = rng.integers(config.min_history, lengths[users])
    return Prompts(users, places)
