"""How fast and for how much an endpoint may be asked: requests and tokens a minute, and a budget."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from intently.core.errors import EngineError

SECONDS_A_MINUTE = 60.0


class BudgetSpentError(EngineError):
    """The budget is spent, and the settings say to stop; nothing is wrong with the engine."""


class Pace:
    """Spaces requests evenly, so that no minute holds more than the limits; a burst would be refused by servers that count seconds.

    Args:
        requests_per_minute: None is no limit.
        tokens_per_minute: read and written together; None is no limit.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._per_request = SECONDS_A_MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._per_token = SECONDS_A_MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_tokens = self._paused_until = 0.0

    async def turn(self, tokens: int) -> None:
        """Wait until a request of so many tokens may go out."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._next_request, self._next_tokens, self._paused_until)
        self._next_request, self._next_tokens = start + self._per_request, start + tokens * self._per_token
        if start > now:
            await asyncio.sleep(start - now)

    def correct(self, tokens: int) -> None:
        """A request took `tokens` more (or, below 0, fewer) than its turn was taken for."""
        self._next_tokens += tokens * self._per_token

    def pause(self, seconds: float) -> None:
        """The server asked for quiet: no request goes out before."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)


@dataclass
class Budget:
    """What may be spent. A request reserves the most it can take before it goes out, and gives back the rest.

    Attributes:
        max_tokens: read and written together; None is no limit.
        max_cost: in the currency of the prices; None is no limit.
        tokens: spent and reserved.
        cost: spent and reserved.
    """

    max_tokens: int | None
    max_cost: float | None
    tokens: int = 0
    cost: float = 0.0

    def reserve(self, tokens: int, cost: float) -> bool:
        """Whether a request of so much still fits; if it does, so much is set aside."""
        if self.max_tokens is not None and self.tokens + tokens > self.max_tokens:
            return False
        if self.max_cost is not None and self.cost + cost > self.max_cost:
            return False
        self.settle(tokens, cost)
        return True

    def settle(self, tokens: int, cost: float) -> None:
        """A request took so much more (or, below 0, less) than was set aside for it."""
        self.tokens += tokens
        self.cost += cost
