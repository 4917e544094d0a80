"""Answers requests from the tables that training, sweep and index left: what serving and the agent call.

Everything is in memory or mapped into it, and a request touches numpy and FAISS only; `retrieve_history` alone runs the user tower, on
one thread. A user's vector, and what counts as seen, come from history_train, the past that training was allowed to see; validation and
test events are not in it, so that what is served can be compared with what was measured. What happens later comes in with a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from intently.core.errors import ConfigError, IntentlyError, SchemaError
from intently.core.schema import CANDIDATE, Behaviour
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.fusion import FusedVectors, Pooling, fuse, pool_tags
from intently.retrieval.index import VectorIndex
from intently.retrieval.index_files import load_index
from intently.retrieval.interactions import COLUMNS, Interactions, Seen, read_interactions, rows_of, seen_items
from intently.retrieval.trained import TrainedTowers, load_towers

STRANGER = ""
"""Candidate.user_id of an answer to `retrieve_history` about somebody unknown."""
SCHEMA = CANDIDATE.schema
MOST_PAIRS = 2_000
"""Excluded items up to here are left out of a longer list of results; more of them become a filter of the search."""
NO_PAIRS = (np.empty(0, np.int64), np.empty(0, np.int64))
ITEM_COLUMNS = ("item_id", "category", "brand", "price")
"""Of table item: what an item tower reads, and nothing of the rest."""
READS = ("towers", "user_vector", "item_vector", "tag_vector", "tag", "fusion", "index", "item", "item_embedding", "history_train")


class UnknownUserError(IntentlyError, LookupError):
    """A user of whom there is no vector."""


@dataclass(frozen=True)
class TowerRetriever:
    """Implements core.protocols.Retriever over the three towers.

    Attributes:
        index: over catalogue rows: the items of training, then those that came later.
        item_ids: [I] object array of strings.
        item_rows: item id → row.
        category_codes: category → code.
        categories: [I] int64 code of each item; −1 for one that the item table holds no more.
        offered: [I] whether the item table still holds the item; None where it holds all.
        tower_rows: [I] row of each item in the towers; −1 for one that came later and has gone.
        user_rows: user id → row.
        vectors: h_u and h_t of U users.
        past: events of U users.
        seen: items that each user has taken or disliked.
        towers: the towers, for events that came later and for strangers.
        beta: weight of h_u that the sweep chose.
        pooling: how several tags become one vector, as the sweep did it.
        versions: artifact → version that was loaded.
    """

    index: VectorIndex
    item_ids: np.ndarray
    item_rows: dict[str, int]
    category_codes: dict[str, int]
    categories: np.ndarray
    offered: np.ndarray | None
    tower_rows: np.ndarray
    user_rows: dict[str, int]
    vectors: FusedVectors
    past: Interactions
    seen: Seen
    towers: TrainedTowers
    beta: float
    pooling: Pooling
    versions: dict[str, str]

    @classmethod
    def load(cls, workspace: Workspace, versions: Mapping[str, str] | None = None) -> TowerRetriever:
        """Read what a run left.

        Args:
            workspace: where it stands.
            versions: artifact → version for those that shall not be the latest.
        Raises:
            MissingArtifactError: a stage has not run yet.
            SchemaError: index, towers and vectors are not of one run.
        """
        # One user's window is a few thousand multiplications: a second thread would cost more than it computes.
        torch.set_num_threads(1)
        chosen = versions or {}
        artifacts = {name: workspace.artifact(name, chosen.get(name)) for name in READS}
        if "history_train" not in chosen:
            # Users' vectors stand for the histories that they were made from, not for those that were split since.
            made_from = artifacts["user_vector"].manifest.inputs
            artifacts["history_train"] = workspace.artifact("history_train", made_from.get("history_train"))
        index, item_ids = load_index(artifacts["index"])
        item = artifacts["item"].read(columns=ITEM_COLUMNS)
        towers = _with_later_items(load_towers(artifacts["towers"]), item_ids, item, artifacts)
        users, tags = artifacts["user_vector"].read(), artifacts["tag_vector"].read()
        user_ids = users["id"].combine_chunks()
        past = read_interactions(artifacts["history_train"].read(columns=COLUMNS), item_ids, towers.config.behaviours)
        if not past.user_ids.equals(user_ids):
            raise SchemaError(f"{artifacts['user_vector']} and {artifacts['history_train']} hold different users: train the towers anew")
        fusion = artifacts["fusion"].manifest
        pooling: Pooling = "max" if fusion.notes.get("pooling") == "max" else "mean"
        wanted = artifacts["tag"].read(columns=["user_id", "tag"])
        owners, tag_rows = rows_of(wanted["user_id"], user_ids), rows_of(wanted["tag"], tags["id"].combine_chunks())
        tag_vectors = vectors_of(tags) if tags.num_rows else np.zeros((0, towers.config.towers.dim), np.float32)
        category = item["category"].combine_chunks().dictionary_encode()
        rows = rows_of(item_ids, item["item_id"].combine_chunks())
        codes = np.append(category.indices.to_numpy(zero_copy_only=False).astype(np.int64), -1)  # row −1 is the last one
        return cls(
            index=index,
            item_ids=item_ids.to_numpy(zero_copy_only=False),
            item_rows={item_id: row for row, item_id in enumerate(item_ids.to_pylist())},
            category_codes={name: code for code, name in enumerate(category.dictionary.to_pylist())},
            categories=codes[rows],
            offered=rows >= 0 if (rows < 0).any() else None,
            tower_rows=rows_of(item_ids, towers.item_ids),
            user_rows={user: row for row, user in enumerate(user_ids.to_pylist())},
            vectors=FusedVectors(
                vectors_of(users), pool_tags(tag_vectors, owners[owners >= 0], tag_rows[owners >= 0], len(user_ids), pooling)
            ),
            past=past,
            seen=seen_items(past, towers.config.behaviours),
            towers=towers,
            beta=fusion.metrics["beta"],
            pooling=pooling,
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
        exclude: Sequence[str] = (),
    ) -> pa.Table:
        """The best items of known users.

        Args:
            user_ids: whom for.
            k: items a user; fewer where fewer are left.
            beta: weight of h_u against the tags, 0 to 1; None takes the swept one.
            filter_seen: leave out items that the user has taken or disliked.
            categories: only items of these; None allows all.
            exclude: items that nobody shall get: out of stock, or shown in this session; unknown ones are passed over.
        Returns:
            CANDIDATE rows, users in the given order, best first.
        Raises:
            UnknownUserError: a user has no vector.
            ConfigError: beta, k or a category is out of range.
        """
        if not user_ids:
            return CANDIDATE.empty()
        rows = np.array([self._user_row(user_id) for user_id in user_ids], np.int64)
        queries = fuse(self.vectors.users[rows], self.vectors.tags[rows], self._beta(beta))
        seen = self.seen.pairs(rows) if filter_seen else NO_PAIRS
        return self._search(user_ids, queries, k, categories, exclude, seen)

    def retrieve_history(
        self,
        item_ids: Sequence[str],
        behaviours: Sequence[str],
        k: int,
        beta: float | None = None,
        tags: Sequence[str] = (),
        filter_seen: bool = True,
        categories: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        user_id: str | None = None,
    ) -> pa.Table:
        """The best items after given events, of somebody unknown or of a known user.

        Args:
            item_ids: [n] what on, oldest first; unknown ones are passed over.
            behaviours: [n] values of core.schema.Behaviour; unreliable ones are passed over.
            k: items wanted.
            beta: weight of the history against the tags; None takes the swept one.
            tags: what they want, in words; without any a known user's own count, and else the history alone.
            filter_seen: leave out the items of the events, but for those merely shown, and what the known user has taken.
            categories: only items of these; None allows all.
            exclude: items that shall not come; unknown ones are passed over.
            user_id: a known user, whose own past the events follow; None for somebody unknown.
        Returns:
            CANDIDATE rows of the user, or of STRANGER, best first.
        Raises:
            UnknownUserError: the user has no vector.
            ConfigError: item_ids and behaviours differ in length; beta, k or a category is out of range.
        """
        if len(item_ids) != len(behaviours):
            raise ConfigError("behaviours", len(behaviours), f"as many as item_ids are needed, {len(item_ids)}")
        row = None if user_id is None else self._user_row(user_id)
        items = np.array([self.item_rows.get(item, -1) for item in item_ids], np.int64)
        order = {str(behaviour): place for place, behaviour in enumerate(self.towers.config.behaviours.history)}
        kinds = np.array([order.get(behaviour, -1) for behaviour in behaviours], np.int64)
        tower_rows = np.where(items >= 0, self.tower_rows[items], -1)
        read = (tower_rows >= 0) & (kinds >= 0)
        before = slice(0, 0)
        if row is not None:
            stop = self.past.offsets[row + 1]
            before = slice(max(self.past.offsets[row], stop - self.towers.config.towers.windows[-1]), stop)
        events = np.append(self.tower_rows[self.past.items[before]], tower_rows[read]), np.append(self.past.behaviours[before], kinds[read])
        user = self.towers.user_vector(user_id, *events)[None]
        tag = self._tag_vector(tags, row)
        seen = NO_PAIRS
        if filter_seen:
            acted = np.array([behaviour != Behaviour.IMPRESSION for behaviour in behaviours], bool)
            taken = items[(items >= 0) & acted]
            taken = taken if row is None else np.union1d(taken, self.seen.of(row))
            seen = np.zeros(len(taken), np.int64), taken
        return self._search([user_id or STRANGER], fuse(user, tag, self._beta(beta)), k, categories, exclude, seen)

    def _user_row(self, user_id: str) -> int:
        if user_id not in self.user_rows:
            raise UnknownUserError(f"unknown user {user_id!r}")
        return self.user_rows[user_id]

    def _tag_vector(self, tags: Sequence[str], row: int | None) -> np.ndarray:
        """h_t [1, D] of tags in words, else of the known user, else zero."""
        wanted = pa.array([tag for tag in tags if tag.strip()], pa.string())
        if len(wanted):
            number = len(wanted)
            return pool_tags(self.towers.tag_vectors(wanted), np.zeros(number, np.int64), np.arange(number), 1, self.pooling)
        return np.zeros_like(self.vectors.tags[:1]) if row is None else self.vectors.tags[row : row + 1]

    def _search(
        self,
        user_ids: Sequence[str],
        queries: np.ndarray,
        k: int,
        categories: Sequence[str] | None,
        exclude: Sequence[str],
        seen: tuple[np.ndarray, np.ndarray],
    ) -> pa.Table:
        if k < 1:
            raise ConfigError("k", k, "must be at least 1")
        allowed = self._allowed(categories)
        absent = np.array([self.item_rows[item] for item in exclude if item in self.item_rows], np.int64)
        if len(absent) > MOST_PAIRS:
            allowed = np.ones(len(self.item_ids), bool) if allowed is None else allowed
            allowed[absent] = False
        elif len(absent):
            place = np.repeat(np.arange(len(queries)), len(absent))
            seen = np.append(seen[0], place), np.append(seen[1], np.tile(absent, len(queries)))
        scores, rows = self.index.search(queries, min(k, len(self.item_ids)), allowed, seen)
        place, rank = np.nonzero(rows >= 0)
        return pa.table(
            [
                pa.array(np.asarray(user_ids, object)[place], pa.string()),
                pa.array(self.item_ids[rows[place, rank]], pa.string()),
                pa.array(rank, pa.int32()),
                pa.array(scores[place, rank], pa.float32()),
                pa.repeat(pa.scalar("towers"), len(place)),
            ],
            schema=SCHEMA,
        )

    def _beta(self, beta: float | None) -> float:
        if beta is not None and not 0 <= beta <= 1:
            raise ConfigError("beta", beta, "must lie between 0 and 1")
        return self.beta if beta is None else beta

    def _allowed(self, categories: Sequence[str] | None) -> np.ndarray | None:
        """[I] whether an item may be found, a fresh array; None where all may."""
        if categories is None:
            return None if self.offered is None else self.offered.copy()
        unknown = [name for name in categories if name not in self.category_codes]
        if unknown or not categories:
            raise ConfigError("categories", list(categories), f"unknown; there are {sorted(self.category_codes)}")
        wanted = np.zeros(len(self.category_codes) + 1, bool)  # one more, for −1
        wanted[[self.category_codes[name] for name in categories]] = True
        return wanted[self.categories]


def _with_later_items(towers: TrainedTowers, item_ids: pa.Array, item: pa.Table, artifacts: Mapping[str, Artifact]) -> TrainedTowers:
    """The towers with the items of the index that came after training, so that events on them are read.

    Raises:
        SchemaError: the index does not begin with the items of training.
    """
    known = len(towers.item_ids)
    if not item_ids.slice(0, known).equals(towers.item_ids):
        raise SchemaError(f"{artifacts['index']} and {artifacts['towers']} hold different items: build the index anew")
    if len(item_ids) == known:
        return towers
    rows = rows_of(item_ids.slice(known), item["item_id"].combine_chunks())
    return towers.with_items(item.take(pa.array(rows[rows >= 0])), artifacts["item_embedding"].read())
