"""Splits histories into train, validation and test. Reads history, and the days appended to it; writes
history_train, history_validation, history_test.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_splits.py \\
    --config jobs/configs/build_splits/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import HISTORY
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.data.days import Histories, open_histories
from intently.data.splits import Cut, SplitConfig, Splitter, count_target_days, find_cut
from intently.runtime.mapping import map_parts
from pydantic import Field


class BuildSplitsConfig(Config):
    """How histories are split, and with what."""

    split: SplitConfig = Field(SplitConfig(), description="which events are asked for, and what may be learnt from")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many split buckets")


def run(config: BuildSplitsConfig, workspace: Workspace) -> Artifact:
    """Split the buckets that are not split yet."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    train = stages["history_train"]
    history = open_histories(workspace)
    cut = _find_cut(history, config.split)
    arguments = {
        "history": history,
        "train": train,
        "validation": stages["history_validation"],
        "test": stages["history_test"],
        "config": config.split,
        "cut": cut,
    }
    parts = history.parts()
    map_parts(Splitter, arguments, train.pending(parts), config.resources, JOB.name)
    notes = {"split": _describe(cut), **history.notes}
    for name in ("history_validation", "history_test"):
        stages[name].finish(notes=notes)
    return train.finish(total_counts(train, parts), notes)


def _find_cut(history: Histories, config: SplitConfig) -> Cut | None:
    if config.kind == "leave_last_out":
        return None
    return find_cut((count_target_days(rows, config) for _, rows in history.iter_parts()), config)


def _describe(cut: Cut | None) -> str:
    if cut is None:
        return "leave-last-out: each user's last two first-time positive events"
    return f"global time: validation from {cut.validation:%Y-%m-%d}, test from {cut.test:%Y-%m-%d}"


JOB = Job(
    name="build_splits",
    config=BuildSplitsConfig,
    reads=("history",),
    writes={"history_train": HISTORY, "history_validation": HISTORY, "history_test": HISTORY},
    run=run,
    optional=("history_day",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
