"""A worker that is killed once; in a file of its own, since Ray's processes import it and have no jobs on their path."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from intently.data.chunking import HistoryCompressor


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
