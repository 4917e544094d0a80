"""Tables that benchmarks make themselves, in their own process."""

from __future__ import annotations

import pyarrow as pa
from intently.core.config import Config
from intently.core.schema import HISTORY, ITEM, USER, Table
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, spill_source
from intently.data.sources import SourceConfig, open_source
from intently.data.splits import SplitConfig, split_histories


class Made(Config):
    """Settings of such a stage: what tells its version from others."""

    made: str


def put(workspace: Workspace, name: str, table: Table, rows: pa.Table, made: str = "") -> Artifact:
    """Write a whole artifact."""
    stage = open_stage(workspace, name, table, {}, Made(made=made or name))
    stage.write("part-00000", rows)
    return stage.finish()


def put_log(workspace: Workspace, source: SourceConfig) -> tuple[pa.Table, pa.Table]:
    """Write history, user and item of a log; histories and items."""
    log, config = open_source(source), HistoryConfig(num_buckets=1)
    history, user = (open_stage(workspace, table.name, table, {}, Made(made="log")) for table in (HISTORY, USER))
    spill = Spill.of(history, 1)
    spill_source(log, spill, config)
    HistoryBuilder(history, user, spill)(config.parts[0])
    spill.remove()
    put(workspace, "item", ITEM, log.items)
    return history.finish().read(), log.items


def put_splits(workspace: Workspace, histories: pa.Table) -> pa.Table:
    """Write the splits, leave-last-out; the histories of train."""
    split = split_histories(histories, SplitConfig())
    for name in ("train", "validation", "test"):
        put(workspace, f"history_{name}", HISTORY, getattr(split, name))
    return split.train
