"""A group of training workers, each of which holds the histories of its own users.

What all of them must know (how often items occur, which users have examples, the targets of a step) is gathered; pasts stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed


@dataclass(frozen=True)
class Group:
    """One worker's place among W; a worker that is alone sends nothing.

    Attributes:
        rank: its number.
        world_size: W. Beyond one, torch.distributed must have been set up.
    """

    rank: int = 0
    world_size: int = 1

    def share(self, parts: Sequence[str]) -> list[str]:
        """The parts of a table that this worker reads."""
        return list(parts[self.rank :: self.world_size])

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Everybody's values, worker by worker; lengths may differ."""
        if self.world_size == 1:
            return [values]
        found: list[np.ndarray] = [np.empty(0)] * self.world_size
        torch.distributed.all_gather_object(found, values)
        return found

    def add(self, *tensors: torch.Tensor) -> None:
        """Put the sum over all workers into each tensor, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)


ALONE = Group()
