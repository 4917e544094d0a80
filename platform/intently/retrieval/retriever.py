"""Answers requests from the tables that training, sweep and index left: what serving and the agent call.

Everything is in memory and a request touches numpy and FAISS only; `retrieve_history` alone runs the user tower, on one thread.
A user's vector, and what counts as seen, come from history_train, the past that training was allowed to see; validation and test events
are not in it, so that what is served can be compared with what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from intently.core.errors import ConfigError, IntentlyError, SchemaError
from intently.core.schema import CANDIDATE
from intently.core.workspace import Workspace
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.fusion import FusedVectors, fuse, pool_tags
from intently.retrieval.index import INDEX, INDEX_SETTINGS, VectorIndex, load_index
from intently.retrieval.interactions import BehaviourConfig, Seen, read_interactions, rows_of, seen_items
from intently.retrieval.trained import TrainedTowers, load_towers

STRANGER = ""
"""Candidate.user_id of an answer to `retrieve_history`."""
READS = ("towers", "user_vector", "item_vector", "tag_vector", "tag", "fusion", "index", "item", "history_train")


class UnknownUserError(IntentlyError, LookupError):
    """A user of whom there is no vector."""


@dataclass(frozen=True)
class TowerRetriever:
    """Implements core.protocols.Retriever over the three towers.

    Attributes:
        index: over catalogue rows.
        item_ids: [I] object array of strings.
        item_rows: item id → row.
        categories: category → [I] bool, its items.
        user_rows: user id → row.
        vectors: h_u and h_t of U users.
        seen: items that each user has taken.
        towers: user and tag tower, for strangers.
        beta: weight of h_u that the sweep chose.
        versions: artifact → version that was loaded.
    """

    index: VectorIndex
    item_ids: np.ndarray
    item_rows: dict[str, int]
    categories: dict[str, np.ndarray]
    user_rows: dict[str, int]
    vectors: FusedVectors
    seen: Seen
    towers: TrainedTowers
    beta: float
    versions: dict[str, str]

    @classmethod
    def load(cls, workspace: Workspace) -> TowerRetriever:
        """Read what the latest run left.

        Raises:
            MissingArtifactError: a stage has not run yet.
            SchemaError: index, towers and vectors are not of one run.
        """
        # One stranger's window is a few thousand multiplications: a second thread would cost more than it computes.
        torch.set_num_threads(1)
        artifacts = {name: workspace.artifact(name) for name in READS}
        towers = load_towers(artifacts["towers"])
        ids = json.loads(artifacts["index"].fetch(INDEX_SETTINGS).read_bytes())
        if ids["item_ids"] != towers.item_ids.to_pylist():
            raise SchemaError(f"{artifacts['index']} and {artifacts['towers']} hold different items: build the index anew")
        users, tags = artifacts["user_vector"].read(), artifacts["tag_vector"].read()
        user_ids = users["id"].combine_chunks()
        rows = artifacts["tag"].read(columns=["user_id", "tag"])
        tag_rows = rows_of(rows["tag"], tags["id"].combine_chunks())
        owners = rows_of(rows["user_id"], user_ids)
        known = owners >= 0
        tag_vectors = vectors_of(tags) if tags.num_rows else np.zeros((0, towers.config.towers.dim), np.float32)
        item = artifacts["item"].read(columns=["item_id", "category"])
        category = (
            item["category"].take(pa.array(rows_of(towers.item_ids, item["item_id"].combine_chunks()))).to_numpy(zero_copy_only=False)
        )
        return cls(
            index=load_index(artifacts["index"].fetch(INDEX), ids["kind"]),
            item_ids=towers.item_ids.to_numpy(zero_copy_only=False),
            item_rows={item: row for row, item in enumerate(ids["item_ids"])},
            categories={name: category == name for name in sorted(set(category))},
            user_rows={user: row for row, user in enumerate(user_ids.to_pylist())},
            vectors=FusedVectors(vectors_of(users), pool_tags(tag_vectors, owners[known], tag_rows[known], len(user_ids))),
            seen=_seen(workspace, artifacts["history_train"].version, user_ids, towers),
            towers=towers,
            beta=artifacts["fusion"].manifest.metrics["beta"],
            versions={name: artifact.version for name, artifact in artifacts.items()},
        )

    def knows(self, user_id: str) -> bool:
        """Whether `retrieve` can answer for this user."""
        return user_id in self.user_rows

    def retrieve(
        self,
        user_ids: Sequence[str],
        k: int,
        beta: float | None = None,
        filter_seen: bool = True,
        categories: Sequence[str] | None = None,
    ) -> pa.Table:
        """The best items of known users.

        Args:
            user_ids: whom for.
            k: items a user; fewer where fewer are left.
            beta: weight of h_u against the tags, 0 to 1; None takes the swept one.
            filter_seen: leave out items that the user has taken.
            categories: only items of these; None allows all.
        Returns:
            CANDIDATE rows, users in the given order, best first.
        Raises:
            UnknownUserError: a user has no vector.
            ConfigError: beta, k or a category is out of range.
        """
        if not user_ids:
            return CANDIDATE.empty()
        unknown = [user for user in user_ids if user not in self.user_rows]
        if unknown:
            raise UnknownUserError(f"unknown user(s) {unknown}")
        rows = np.array([self.user_rows[user] for user in user_ids], np.int64)
        queries = fuse(self.vectors.users[rows], self.vectors.tags[rows], self._beta(beta))
        among = self._among(categories)
        if filter_seen:
            masks = (self._without(self.seen.of(row), among) for row in rows)
            answers = [self._search(query[None], k, mask) for query, mask in zip(queries, masks, strict=True)]
            scores, items = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        else:
            scores, items = self._search(queries, k, among)
        return self._candidates(user_ids, scores, items)

    def retrieve_history(
        self,
        item_ids: Sequence[str],
        behaviours: Sequence[str],
        k: int,
        beta: float | None = None,
        tags: Sequence[str] = (),
        filter_seen: bool = True,
        categories: Sequence[str] | None = None,
    ) -> pa.Table:
        """The best items for someone unknown, by what they did.

        Args:
            item_ids: [n] what on, oldest first; unknown ones are passed over.
            behaviours: [n] values of core.schema.Behaviour; unreliable ones are passed over.
            k: items wanted.
            beta: weight of the history against the tags; None takes the swept one.
            tags: what they want, in words; without any the history decides alone.
            filter_seen: leave out the items of the history.
            categories: only items of these; None allows all.
        Returns:
            CANDIDATE rows with the user id STRANGER, best first.
        Raises:
            ConfigError: item_ids and behaviours differ in length; beta, k or a category is out of range.
        """
        if len(item_ids) != len(behaviours):
            raise ConfigError("behaviours", len(behaviours), f"as many as item_ids are needed, {len(item_ids)}")
        items = np.array([self.item_rows.get(item, -1) for item in item_ids], np.int64)
        order = {str(behaviour): place for place, behaviour in enumerate(self.towers.config.behaviours.history)}
        kinds = np.array([order.get(behaviour, -1) for behaviour in behaviours], np.int64)
        read = (items >= 0) & (kinds >= 0)
        user = self.towers.user_vector(None, items[read], kinds[read])[None]
        wanted = pa.array([tag for tag in tags if tag.strip()], pa.string())
        num_tags = len(wanted)
        tag = (
            pool_tags(self.towers.tag_vectors(wanted), np.zeros(num_tags, np.int64), np.arange(num_tags), 1)
            if num_tags
            else np.zeros_like(user)
        )
        allowed = self._among(categories)
        if filter_seen:
            allowed = self._without(items[items >= 0], allowed)
        scores, found = self._search(fuse(user, tag, self._beta(beta)), k, allowed)
        return self._candidates([STRANGER], scores, found)

    def _search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if k < 1:
            raise ConfigError("k", k, "must be at least 1")
        return self.index.search(queries, min(k, len(self.item_ids)), allowed)

    def _beta(self, beta: float | None) -> float:
        if beta is not None and not 0 <= beta <= 1:
            raise ConfigError("beta", beta, "must lie between 0 and 1")
        return self.beta if beta is None else beta

    def _among(self, categories: Sequence[str] | None) -> np.ndarray | None:
        if categories is None:
            return None
        unknown = [name for name in categories if name not in self.categories]
        if unknown or not categories:
            raise ConfigError("categories", list(categories), f"unknown; there are {sorted(self.categories)}")
        return np.logical_or.reduce([self.categories[name] for name in categories])

    def _without(self, items: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        allowed = np.ones(len(self.item_ids), bool) if among is None else among.copy()
        allowed[items] = False
        return allowed

    def _candidates(self, user_ids: Sequence[str], scores: np.ndarray, items: np.ndarray) -> pa.Table:
        place, rank = np.nonzero(items >= 0)
        return pa.table(
            [
                pa.array(np.asarray(user_ids, object)[place], pa.string()),
                pa.array(self.item_ids[items[place, rank]], pa.string()),
                pa.array(rank, pa.int32()),
                pa.array(scores[place, rank], pa.float32()),
                pa.repeat(pa.scalar("towers"), len(place)),
            ],
            schema=CANDIDATE.schema,
        )


def _seen(workspace: Workspace, version: str, user_ids: pa.Array, towers: TrainedTowers) -> Seen:
    config: BehaviourConfig = towers.config.behaviours
    history = workspace.artifact("history_train", version).read(columns=["user_id", "item_ids", "behaviours"])
    past = read_interactions(history, towers.item_ids, config.history)
    if not past.user_ids.equals(user_ids):
        raise SchemaError("user_vector and history_train hold different users: train the towers anew")
    return seen_items(past, config)
