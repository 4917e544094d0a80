"""What the rating models learn from: does an interest foretell what the person liked next (HiT-LBM §3.3.1)?

For chunk t, items of chunk t + 1 that the person liked and as many that they did not are put to the language model three times: given
the interests kept before, given the candidate's interests, given the raw chunk. The score of an item is P("Yes") over {Yes, No}, from
log-probabilities; each of the three orders the items with an AUC:

    continuity (SRM)    1 where AUC(current) > AUC(previous)
    effectiveness (PRM) 1 where AUC(current) > AUC(raw chunk)

Equal is not better. What was liked: in a log with ratings an event with more than `liked_above` stars, and any other was not; in a log
without, items that were bought, put into the cart or on a list, against items that were shown and nothing of that kind came of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import INTEREST_RATING, REJECT, Behaviour
from intently.interests.asking import choose, refuse
from intently.interests.usage import Usage
from intently.llm.contract import Engine, Reply
from intently.llm.tasks import ITEM_LIKING
from intently.metrics.binary import auc

STAGE = "interest_rating"


class RatingLabelConfig(Config):
    """Which chunks are judged, and by which items."""

    max_users: int | None = Field(300, ge=1, description="users that are judged, chosen by a hash of their ids; None takes all")
    max_chunks: int = Field(3, ge=1, description="chunks of a user that are judged, the newest that can be")
    items_per_class: int = Field(6, ge=1, description="liked items asked about, and as many not liked; fewer where there are fewer")
    liked_above: float = Field(3.0, description="a rating of more stars is liked, any other is not")
    liked: tuple[Behaviour, ...] = Field(
        (Behaviour.FAVOURITE, Behaviour.CART, Behaviour.PURCHASE), description="behaviours by which an item is liked, ratings apart"
    )
    shown: tuple[Behaviour, ...] = Field((Behaviour.IMPRESSION,), description="show an item, which was not liked if nothing came of it")
    # What is after it chooses and measures click models, by default (ranking's SampleConfig).
    share: float = Field(0.8, gt=0, le=1, description="share of a user's events, from the oldest, that items may be drawn from")
    seed: int = Field(0, description="of the draw of items")


@dataclass(frozen=True)
class Labelled:
    """What came of a set of nodes.

    Attributes:
        ratings: INTEREST_RATING rows, by user, chunk and sample.
        rejects: REJECT rows: candidates about which a question failed.
        usage: what the questions cost.
        skipped_chunks: chunks of the judged users that no item set could be drawn for.
    """

    ratings: pa.Table
    rejects: pa.Table
    usage: Usage
    skipped_chunks: int


def evaluation_set(
    chunk: Mapping[str, Any], following: Mapping[str, Any], history: Mapping[str, Any], config: RatingLabelConfig
) -> list[str]:
    """Items of the next chunk, liked ones first and as many not liked; none where a class is empty or the events come too late.

    Args:
        chunk: columns of a CHUNK row.
        following: those of the user's next chunk.
        history: those of the user's HISTORY row, which holds the events of both.
        config: what is liked, and how many items are drawn.
    """
    events = history["event_ids"]
    first, last = (events.index(following["event_ids"][place]) for place in (0, -1))
    # Counted from the end and rounded up, as click models cut off what they are chosen and measured by.
    kept_back = math.ceil(len(events) * round(1 - config.share, 9))
    if len(events) - last <= kept_back:
        return []
    liked, seen = set(), set()
    for place in range(first, last + 1):
        item, behaviour = history["item_ids"][place], history["behaviours"][place]
        if item is None:
            continue
        if behaviour == Behaviour.RATING:
            (liked if (history["values"][place] or 0.0) > config.liked_above else seen).add(item)
        elif behaviour in config.liked:
            liked.add(item)
        elif behaviour in config.shown:
            seen.add(item)
    classes = [sorted(liked), sorted(seen - liked)]
    number = min(config.items_per_class, *map(len, classes))
    digest = hashlib.sha256(f"{config.seed}/{chunk['user_id']}/{chunk['chunk']}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return [items[place] for items in classes for place in rng.permutation(len(items))[:number]]


def label_ratings(
    nodes: pa.Table, chunks: pa.Table, history: pa.Table, names: Mapping[str, str], engine: Engine, config: RatingLabelConfig
) -> Labelled:
    """Judge candidates by what their users liked next.

    Args:
        nodes: INTEREST_NODE rows of any users; whole users only, `max_users` is the caller's to apply.
        chunks: CHUNK rows of the same users.
        history: HISTORY rows of the same users; nothing that is held out.
        names: item id → short name.
        engine: answers the questions.
        config: which chunks and items.
    """
    judged, skipped = _judged_chunks(nodes, chunks, history, config)
    known = {(row["user_id"], row["path"]): row["interests"] for row in nodes.select(["user_id", "path", "interests"]).to_pylist()}
    candidates = [
        _Judged(row, known[row["user_id"], row["parent"]] if row["parent"] is not None else [], *judged[row["user_id"], row["chunk"]])
        for row in nodes.to_pylist()
        if (row["user_id"], row["chunk"]) in judged
    ]
    questions = {
        f"{place}/{item}": fields | {"item": names.get(item, item)}
        for each in candidates
        for place, fields in each.told_by().values()
        for item in each.items
    }
    replies, usage = choose(engine, questions, ITEM_LIKING)
    rows, rejects = [], []
    for each in candidates:
        asked = {kind: [replies[f"{place}/{item}"] for item in each.items] for kind, (place, _) in each.told_by().items()}
        failed = next((reply.error for told in asked.values() for reply in told if reply.error), None)
        if failed:
            rejects.append(refuse(STAGE, each.told_by()["current"][0], failed, ""))
        else:
            rows.append(_row(each, {kind: _auc(told) for kind, told in asked.items()}))
    ratings = INTEREST_RATING.from_rows(rows).sort_by([(name, "ascending") for name in INTEREST_RATING.key])
    return Labelled(ratings, REJECT.from_rows(rejects), usage, skipped)


@dataclass(frozen=True)
class _Judged:
    """A candidate (columns of an INTEREST_NODE row), what its parent says, the text of its chunk, and the items that are asked about."""

    node: dict[str, Any]
    previous: list[str]
    text: str
    items: list[str]

    def told_by(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """What tells of the person → the ids of its questions up to the item, and their fields.

        What was before, and the raw chunk, are the same for all candidates of a chunk, and so are their ids: asked once.
        """
        place = f"{self.node['user_id']}/{self.node['chunk']}"
        told = {
            "previous": (f"{place}/previous", {"interests": self.previous, "behaviours": None}),
            "current": (f"{place}/{self.node['sample']}", {"interests": self.node["interests"], "behaviours": None}),
            "raw": (f"{place}/raw", {"interests": [], "behaviours": self.text}),
        }
        return {kind: fields for kind, fields in told.items() if kind != "previous" or self.previous}


def _judged_chunks(
    nodes: pa.Table, chunks: pa.Table, history: pa.Table, config: RatingLabelConfig
) -> tuple[dict[tuple[str, int], tuple[str, list[str]]], int]:
    """(user, chunk) → its text and the items that are asked about; how many chunks could not be judged."""
    read = set(zip(nodes["user_id"].to_pylist(), nodes["chunk"].to_pylist(), strict=True))
    histories = {row["user_id"]: row for row in history.to_pylist()}
    judged: dict[tuple[str, int], tuple[str, list[str]]] = {}
    skipped = 0
    for user, own in _by_user(chunks).items():
        found = 0
        for chunk, following in zip(reversed(own[:-1]), reversed(own[1:]), strict=True):
            key = (user, chunk["chunk"])
            if found == config.max_chunks or key not in read:
                continue
            items = evaluation_set(chunk, following, histories[user], config)
            if items:
                judged[key] = (chunk["text"], items)
                found += 1
            else:
                skipped += 1
    return judged, skipped


def _by_user(chunks: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Each user's chunks, oldest first."""
    own: dict[str, list[dict[str, Any]]] = {}
    for row in chunks.select(["user_id", "chunk", "event_ids", "text"]).sort_by([("chunk", "ascending")]).to_pylist():
        own.setdefault(row["user_id"], []).append(row)
    return own


def _auc(replies: Sequence[Reply]) -> float:
    """AUC of P("Yes"); the first half of the items was liked."""
    liked = np.arange(len(replies)) < len(replies) / 2
    return auc(np.array([reply.probabilities[0] for reply in replies]), liked)


def _row(judged: _Judged, aucs: Mapping[str, float]) -> dict[str, Any]:
    return {
        **{name: judged.node[name] for name in ("user_id", "bucket", "chunk", "sample", "interests")},
        "previous": judged.previous,
        "num_items": len(judged.items),
        "auc_previous": aucs.get("previous"),
        "auc_current": aucs["current"],
        "auc_raw": aucs["raw"],
        "continuity": int(aucs["current"] > aucs["previous"]) if judged.previous else None,
        "effectiveness": int(aucs["current"] > aucs["raw"]),
    }
