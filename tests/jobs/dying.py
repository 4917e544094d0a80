"""Workers that are killed once; in a file of their own, since Ray's processes import it and have no jobs on their path."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intently.data.chunking import HistoryCompressor
from intently.interests.workers import UserMiner
from intently.llm.contract import Engine, OnReply, Reply, Request


class DiesOnce(HistoryCompressor):
    """The real worker, whose process is killed at its third bucket; the marker file says that it happened."""

    def __init__(self, marker: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._marker, self._done = Path(marker), 0

    def __call__(self, part: str) -> dict[str, int | float]:
        """Compress a bucket, or die."""
        self._done += 1
        if self._done == 3 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(part)


class _KilledWhileAnswering:
    """An engine whose process is killed after a few replies, once; the marker file says that it happened."""

    def __init__(self, engine: Engine, marker: str, after: int) -> None:
        self._engine, self._marker, self._after = engine, Path(marker), after

    @property
    def name(self) -> str:
        return self._engine.name

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """The engine's replies, or death in the middle of them."""

        def told(reply: Reply) -> Sequence[Request] | None:
            following = on_reply(reply) if on_reply else None
            self._after -= 1
            if self._after == 0 and not self._marker.exists():
                self._marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return following

        return self._engine.generate(requests, told)

    def close(self) -> None:
        self._engine.close()


class MinerDiesOnce(UserMiner):
    """The real worker, whose process, and with it the engine, is killed after `after` answers."""

    def __init__(self, marker: str, after: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._engine._engine = _KilledWhileAnswering(self._engine._engine, marker, after)
