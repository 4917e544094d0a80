"""What a CTR model sees of a row: the item, the last h events of its user, and, for SIM, the events most like the item.

Shapes: E events of all users, U users, R rows, I items, B rows of a batch, H events looked back on, K similar events.

Item 0 is "none": items and categories are numbered from 1, so that padding needs no second table. All users' events lie in one flat
tensor; a window is cut out of it when a batch is drawn, oldest event first, padding on the right (which DIEN's packed GRU asks for).
There is no user id among the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from intently.core.errors import SchemaError
from intently.core.schema import Behaviour
from intently.data.flat import flat_columns, whole

STARS = 5
NUM_SIGNALS = 1 + STARS + len(Behaviour)
"""Signals: 0 nothing yet (the target), 1..5 a rating's stars, then one a behaviour without stars."""


@dataclass(frozen=True)
class Catalogue:
    """The items.

    Attributes:
        item_ids: [I] identifiers; item number n + 1 is `item_ids[n]`.
        categories: [I + 1] number of each item's category, from 1; 0 for item 0.
    """

    item_ids: pa.Array
    categories: torch.Tensor

    @property
    def num_categories(self) -> int:
        """Categories, the empty one included."""
        return int(self.categories.max()) + 1


def read_catalogue(items: pa.Table) -> Catalogue:
    """ITEM rows (item_id, category) as numbers."""
    codes = whole(items["category"]).dictionary_encode().indices.to_numpy().astype(np.int64) + 1
    return Catalogue(whole(items["item_id"]), torch.from_numpy(np.concatenate([[0], codes])))


@dataclass(frozen=True)
class Log:
    """Events of all users, each user's together and in order.

    Attributes:
        user_ids: [U].
        items: [E] int64 item numbers; 0 for a search without a choice or an item that the catalogue does not hold.
        signals: [E] int64 what was done, below NUM_SIGNALS.
        starts: [U + 1] int64, user u's events are starts[u] … starts[u + 1] − 1.
    """

    user_ids: pa.Array
    items: torch.Tensor
    signals: torch.Tensor
    starts: torch.Tensor


def read_log(history: pa.Table, catalogue: Catalogue) -> Log:
    """HISTORY rows as flat tensors."""
    row, columns = flat_columns(history, ("event_ids", "item_ids", "behaviours", "values"))
    items = pc.fill_null(pc.index_in(columns["item_id"], value_set=catalogue.item_ids), -1).to_numpy(zero_copy_only=False)
    names = [str(behaviour) for behaviour in Behaviour]
    behaviours = pc.index_in(columns["behaviour"], value_set=pa.array(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    values = columns["value"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    starred = (behaviours == names.index(Behaviour.RATING)) & ~np.isnan(values)
    stars = np.clip(np.round(np.nan_to_num(values)), 1, STARS).astype(np.int64)
    counts = np.bincount(row, minlength=history.num_rows)
    return Log(
        user_ids=whole(history["user_id"]),
        items=torch.from_numpy(items.astype(np.int64) + 1),
        signals=torch.from_numpy(np.where(starred, stars, 1 + STARS + behaviours)),
        starts=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
    )


class Rows(NamedTuple):
    """R labelled rows as tensors."""

    users: torch.Tensor
    """[R] rows of Log."""
    places: torch.Tensor
    """[R] where the asked event would stand in the flat log: the row sees places before it."""
    items: torch.Tensor
    """[R] item numbers."""
    bounds: torch.Tensor
    """[R] interests of chunks below it may be seen."""
    labels: torch.Tensor
    """[R] float32, 0 or 1."""


def read_rows(samples: pa.Table, log: Log, catalogue: Catalogue) -> Rows:
    """CTR_SAMPLE rows as tensors.

    Raises:
        SchemaError: a row names a user or an item that is not there, or may see more events than its user has.
    """
    numbers = {}
    for name, known in (("user_id", log.user_ids), ("item_id", catalogue.item_ids)):
        found = pc.index_in(whole(samples[name]), value_set=known)
        if found.null_count:
            unknown = samples[name][pc.index(found.is_null(), True).as_py()].as_py()
            raise SchemaError(f"table ctr_sample, column {name}: {unknown!r} is unknown")
        numbers[name] = torch.from_numpy(found.to_numpy().astype(np.int64))
    users = numbers["user_id"]
    lengths, bounds, labels = (torch.from_numpy(samples[n].to_numpy().astype(np.int64)) for n in ("history_length", "chunk", "label"))
    if len(users) and bool((lengths > log.starts[users + 1] - log.starts[users]).any()):
        raise SchemaError("table ctr_sample, column history_length: a row may see more events than its user has")
    return Rows(users, log.starts[users] + lengths, numbers["item_id"] + 1, bounds, labels.float())


class Events(NamedTuple):
    """Events that a row looks at."""

    items: torch.Tensor
    """[B, H] item numbers, 0 where there is none."""
    signals: torch.Tensor
    """[B, H], 0 where there is none."""
    valid: torch.Tensor
    """[B, H] bool; in each row the valid ones come first."""


def last_events(log: Log, users: torch.Tensor, places: torch.Tensor, length: int) -> Events:
    """The last `length` events of each user before a place, oldest first.

    Args:
        log: all events.
        users: [B].
        places: [B] places in the flat log.
        length: H.
    """
    first = torch.maximum(log.starts[users], places - length)
    return events_at(log, first[:, None] + torch.arange(length, device=places.device), places)


def events_at(log: Log, seen: torch.Tensor, places: torch.Tensor) -> Events:
    """The events at [B, H] places of the flat log, those from `places` [B] on left out."""
    valid = seen < places[:, None]
    seen = torch.where(valid, seen, 0)
    return Events(log.items[seen] * valid, log.signals[seen] * valid, valid)


def similar_events(log: Log, rows: Rows, item_vectors: torch.Tensor, num_similar: int) -> torch.Tensor:
    """SIM's first stage: of all earlier events of a row's user, the places of those whose items are most like the row's item.

    Args:
        log: all events.
        rows: R rows.
        item_vectors: [I + 1, D] of length 1; likeness is their cosine.
        num_similar: K.
    Returns:
        [R, K] int32 places, in the order of time; a row's own place where it has fewer earlier events.
    """
    found = rows.places[:, None].expand(-1, num_similar).to(torch.int32).clone()
    order = torch.argsort(rows.users, stable=True)
    users, counts = torch.unique_consecutive(rows.users[order], return_counts=True)
    for user, chosen in zip(users.tolist(), order.split(counts.tolist()), strict=True):
        start = int(log.starts[user])
        lengths = rows.places[chosen] - start
        longest = int(lengths.max())
        if not longest:
            continue
        likeness = item_vectors[rows.items[chosen]] @ item_vectors[log.items[start : start + longest]].T
        likeness.masked_fill_(torch.arange(longest) >= lengths[:, None], -torch.inf)
        best = likeness.topk(min(num_similar, longest), dim=1)
        places = torch.where(best.values.isneginf(), lengths[:, None], best.indices)
        found[chosen, : places.shape[1]] = (places.sort(dim=1).values + start).to(torch.int32)
    return found
