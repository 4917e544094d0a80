"""A language model reads mined interests and tags beside what they were made from, where rules had nothing against them (RecGPT §2, §3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.workspace import Artifact, Stage
from intently.data.counts import save_counts
from intently.judge.judging import Judge, JudgeConfig
from intently.judge.rubrics import INTERESTS, NO, TAGS, Rubric

Subjects = dict[str, dict[str, Any]]


class MinedJudgeConfig(JudgeConfig):
    """Who judges what was mined, and how much of it."""

    max_users: int | None = Field(None, ge=1, description="judge only the first so many users of a part; None judges all")


def interest_subjects(interests: pa.Table, chunks: pa.Table) -> Subjects:
    """What the judge is shown of each interest, `user/chunk/rank`.

    Args:
        interests: USER_INTEREST rows.
        chunks: CHUNK rows, all that they name.
    """
    read = {(row["user_id"], row["chunk"]): row["text"] for row in chunks.select(["user_id", "chunk", "text"]).to_pylist()}
    rows = interests.select(["user_id", "chunk", "rank", "interest", "stage", "reason"]).to_pylist()
    return {
        f"{row['user_id']}/{row['chunk']}/{row['rank']}": {
            "behaviours": read[row["user_id"], row["chunk"]],
            **{name: row[name] for name in ("interest", "stage", "reason")},
        }
        for row in rows
    }


def tag_subjects(tags: pa.Table, interests: pa.Table, chunks: pa.Table) -> Subjects:
    """What the judge is shown of each tag, `user/rank`: the person's last chunk and the interests that were read from it.

    Args:
        tags: TAG rows.
        interests: USER_INTEREST rows of their users.
        chunks: CHUNK rows, all that those name.
    """
    text = {(row["user_id"], row["chunk"]): row["text"] for row in chunks.select(["user_id", "chunk", "text"]).to_pylist()}
    last: dict[str, int] = {}
    for row in interests.select(["user_id", "chunk"]).to_pylist():
        last[row["user_id"]] = max(row["chunk"], last.get(row["user_id"], 0))
    current: dict[str, list[str]] = {}
    for row in interests.select(["user_id", "chunk", "interest"]).to_pylist():
        if row["chunk"] == last[row["user_id"]]:
            current.setdefault(row["user_id"], []).append(row["interest"])
    return {
        f"{row['user_id']}/{row['rank']}": {
            "behaviours": text[row["user_id"], last[row["user_id"]]],
            "interests": current[row["user_id"]],
            **{name: row[name] for name in ("tag", "interest", "reason")},
        }
        for row in tags.select(["user_id", "rank", "tag", "interest", "reason"]).to_pylist()
        if row["user_id"] in last
    }


def refused(verdicts: pa.Table, task: str) -> frozenset[str]:
    """Subjects that somebody said no to."""
    no = pc.and_(pc.equal(verdicts["task"], task), pc.equal(verdicts["label"], NO))
    return frozenset(pc.unique(verdicts["subject"].filter(no)).to_pylist())


def passed(verdicts: pa.Table, task: str) -> dict[str, bool]:
    """Subject → whether nobody said no of it."""
    found: dict[str, bool] = {}
    for row in verdicts.filter(pc.equal(verdicts["task"], task)).select(["subject", "label"]).to_pylist():
        found[row["subject"]] = found.get(row["subject"], True) and row["label"] != NO
    return found


class MinedJudge:
    """Worker of `map_parts`: parts of user_interest and tag → parts of verdicts, named `judged-<task>-<part>`.

    What a rule said no to is not asked about: it does not pass, whatever a model thinks of it.

    Args:
        stage: takes the parts.
        config: who judges.
        interests: artifact of USER_INTEREST.
        tags: artifact of TAG; None where there are none.
        chunks: artifact of CHUNK, with the same parts.
        refused: task → subjects that a rule said no to.
    """

    def __init__(
        self,
        stage: Stage,
        config: MinedJudgeConfig,
        interests: Artifact,
        tags: Artifact | None,
        chunks: Artifact,
        refused: Mapping[str, frozenset[str]],
    ) -> None:
        self._stage, self._interests, self._tags, self._chunks = stage, interests, tags, chunks
        self._max_users, self._refused = config.max_users, refused
        self._judge = Judge(config, stage)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Judge one part."""
        self._judge.begin(part)
        task, source = part.removeprefix("judged-").split("-", 1)
        interests, chunks = self._interests.read(source), self._chunks.read(source)
        rubric: Rubric
        if task == INTERESTS.name:
            rubric, subjects = INTERESTS, interest_subjects(self._few(interests), chunks)
        else:
            assert self._tags is not None, "parts of tags come from the artifact of tags"
            rubric, subjects = TAGS, tag_subjects(self._few(self._tags.read(source)), interests, chunks)
        no = self._refused.get(rubric.name, frozenset())
        asked = {subject: fields for subject, fields in subjects.items() if subject not in no}
        verdicts = self._judge.ask(rubric, asked)
        told = list(zip(verdicts["criterion"].to_pylist(), verdicts["label"].to_pylist(), strict=True))
        counts = {"judged": verdicts.num_rows // len(rubric.criteria), "passed": sum(passed(verdicts, rubric.name).values())}
        yes = {f"{name}_yes": sum(label != NO for criterion, label in told if criterion == name) for name in rubric.criteria}
        save_counts(self._stage, part, {f"{task}/{name}": number for name, number in (counts | {"asked": len(asked)} | yes).items()})
        self._stage.write(part, verdicts)
        return dict(counts)

    def _few(self, rows: pa.Table) -> pa.Table:
        if self._max_users is None:
            return rows
        users = sorted(set(rows["user_id"].to_pylist()))[: self._max_users]
        return rows.filter(pc.is_in(rows["user_id"], pa.array(users, pa.string())))
