"""What each part counted, kept beside it in its stage, so that the manifest of a resumed run still tells of all parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from intently.core.workspace import Stage


def save_counts(stage: Stage, part: str, counts: Mapping[str, int | float]) -> None:
    """Keep a part's counts; call it before `Stage.write`, so that a part that stands has them."""
    stage.put(_filename(part), json.dumps(dict(counts), sort_keys=True).encode())


def total_counts(stage: Stage, parts: Iterable[str]) -> dict[str, float]:
    """Sums over parts, whichever run made them; a count that a part does not have is 0 there.

    Raises:
        WorkspaceError: a part's counts cannot be read.
    """
    total: Counter[str] = Counter()
    for part in parts:
        total.update(json.loads(stage.workspace.read_bytes(stage.workspace.path(stage.name, stage.version, _filename(part)))))
    return dict(sorted(total.items()))


def _filename(part: str) -> str:
    return f"{part}.counts.json"
