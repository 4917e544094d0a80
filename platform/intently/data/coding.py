"""Events as integer codes: strings are looked up once, at the door, and written once, at the end.

A name, a label and a day are small integers in between, so cutting, trimming and compressing are a few passes over numpy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.schema import Behaviour
from intently.data.flat import as_arrow, flat_columns

NO_ITEM = -1
MICROSECONDS_A_DAY = 86_400_000_000
LISTS = ("item_ids", "behaviours", "timestamps", "values", "queries", "dwell_s")


@dataclass(frozen=True)
class FlatEvents:
    """E events of U users, users in the table's order, events oldest first.

    Attributes:
        row: [E] which history row an event belongs to.
        behaviour: [E] index into `behaviours`.
        behaviours: distinct behaviours.
        columns: item_id, timestamp, value, query and dwell_s, [E] each.
        num_rows: U.
    """

    row: np.ndarray
    behaviour: np.ndarray
    behaviours: list[str]
    columns: dict[str, pa.Array]
    num_rows: int

    @classmethod
    def of(cls, history: pa.Table) -> FlatEvents:
        """HISTORY rows, flat. Raises SchemaError where the lists of a row are not of one length."""
        row, columns = flat_columns(history, LISTS)
        behaviour = columns.pop("behaviour").dictionary_encode()
        return cls(row, behaviour.indices.to_numpy(), behaviour.dictionary.to_pylist(), columns, history.num_rows)

    def take(self, index: np.ndarray) -> FlatEvents:
        """Some of the events; `index` ascends."""
        chosen = pa.array(index)
        columns = {name: values.take(chosen) for name, values in self.columns.items()}
        return FlatEvents(self.row[index], self.behaviour[index], self.behaviours, columns, self.num_rows)

    def is_behaviour(self, behaviour: Behaviour) -> np.ndarray:
        """[E] bool."""
        if behaviour not in self.behaviours:
            return np.zeros(len(self.row), bool)
        return self.behaviour == self.behaviours.index(behaviour)

    def number(self, name: str) -> np.ndarray:
        """[E] a float column, not-a-number where it is null."""
        return self.columns[name].to_numpy(zero_copy_only=False)

    @property
    def day(self) -> np.ndarray:
        """[E] int64 days since 1970."""
        return self.columns["timestamp"].view(pa.int64()).to_numpy() // MICROSECONDS_A_DAY


class NameTable:
    """Short names of a catalogue as codes, ready to be written.

    Args:
        names: item_id and name; the first row of an item counts.
    """

    def __init__(self, names: pl.DataFrame) -> None:
        self._item_ids = as_arrow(names["item_id"])
        coded = as_arrow(names["name"]).dictionary_encode()
        self._code_of_item = np.append(coded.indices.to_numpy(), NO_ITEM).astype(np.int64)
        self.texts: pa.Array = coded.dictionary

    def encode(self, item_ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
        """[E] item ids → ([E] int64 codes, NO_ITEM for null; what the codes from len(self.texts) on mean: items without a name)."""
        found = pc.index_in(item_ids, value_set=self._item_ids)
        code = self._code_of_item[pc.fill_null(found, NO_ITEM).to_numpy()]
        unnamed = np.flatnonzero(pc.and_(pc.is_null(found), pc.is_valid(item_ids)).to_numpy(zero_copy_only=False))
        if not len(unnamed):
            return code, pa.array([], pa.string())
        # They go by their identifier, which may happen to be another item's name.
        ids = item_ids.take(pa.array(unnamed)).dictionary_encode()
        named = pc.index_in(ids.dictionary, value_set=self.texts)
        is_new = named.is_null().to_numpy(zero_copy_only=False)
        numbers = np.where(is_new, len(self.texts) + np.cumsum(is_new) - 1, pc.fill_null(named, 0).to_numpy())
        code[unnamed] = numbers[ids.indices.to_numpy()]
        return code, ids.dictionary.filter(pa.array(is_new))


@dataclass(frozen=True)
class CodedEvents:
    """Events ready to be cut and written.

    Attributes:
        index: [E] where an event stands in its history's flat columns.
        row: [E] which history row it belongs to, non-decreasing.
        name: [E] code of NameTable, NO_ITEM where there is no item.
        label: [E] index into `labels`.
        day: [E] days since 1970.
        strength: [E] how much its behaviour weighs when a text is trimmed.
        labels: distinct behaviours as they are written, see `behaviour_labels`.
        unnamed: names beyond those of NameTable, see `NameTable.encode`.
    """

    index: np.ndarray
    row: np.ndarray
    name: np.ndarray
    label: np.ndarray
    day: np.ndarray
    strength: np.ndarray
    labels: pa.Array
    unnamed: pa.Array

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: np.ndarray) -> CodedEvents:
        """Some of the events: a mask, or places that ascend."""
        return CodedEvents(
            self.index[index],
            self.row[index],
            self.name[index],
            self.label[index],
            self.day[index],
            self.strength[index],
            self.labels,
            self.unnamed,
        )


def encode_events(events: FlatEvents, index: np.ndarray, names: NameTable, strength: dict[str, float]) -> CodedEvents:
    """Flat events → codes.

    Args:
        events: E events.
        index: [E] where they stand in their history's flat columns.
        names: how items are called.
        strength: behaviour → how much it weighs when a text is trimmed; 0 for one that is not in it.
    """
    name, unnamed = names.encode(events.columns["item_id"])
    label, labels = _labels(events)
    weights = np.array([strength.get(behaviour, 0.0) for behaviour in events.behaviours] or [0.0])
    return CodedEvents(index, events.row, name, label, events.day, weights[events.behaviour], labels, unnamed)


def _labels(events: FlatEvents) -> tuple[np.ndarray, pa.Array]:
    """([E] int64 codes, distinct labels): every distinct (behaviour, stars) and (behaviour, query) is written once."""
    num = len(events.behaviours)
    code = events.behaviour.astype(np.int64)
    plain = pl.DataFrame({"behaviour": events.behaviours}, schema={"behaviour": pl.String})
    parts = [plain.with_columns(value=pl.lit(None, pl.Float32), query=pl.lit(None, pl.String))]
    rated = np.flatnonzero(events.is_behaviour(Behaviour.RATING) & events.columns["value"].is_valid().to_numpy(zero_copy_only=False))
    if len(rated):
        stars, which = np.unique(events.number("value")[rated], return_inverse=True)
        code[rated] = num + which
        num += len(stars)
        frame = pl.DataFrame({"value": stars.astype(np.float32)})
        parts.append(frame.select(behaviour=pl.lit(str(Behaviour.RATING)), value="value", query=pl.lit(None, pl.String)))
    asked = np.flatnonzero(events.is_behaviour(Behaviour.SEARCH) & events.columns["query"].is_valid().to_numpy(zero_copy_only=False))
    if len(asked):
        queries = events.columns["query"].take(pa.array(asked)).dictionary_encode()
        code[asked] = num + queries.indices.to_numpy()
        frame = pl.DataFrame({"query": pl.Series(queries.dictionary.to_pylist(), dtype=pl.String)})
        parts.append(frame.select(behaviour=pl.lit(str(Behaviour.SEARCH)), value=pl.lit(None, pl.Float32), query="query"))
    # Two values may be written alike (4.121 and 4.123 stars), and are one then.
    written = as_arrow(pl.concat(parts).select(behaviour_labels())["label"]).dictionary_encode()
    return written.indices.to_numpy().astype(np.int64)[code], written.dictionary


def behaviour_labels() -> pl.Expr:
    """How a behaviour is written: its name, with the stars of a rating and the query of a search."""
    behaviour, value, query = pl.col("behaviour"), pl.col("value"), pl.col("query")
    stars = value.cast(pl.Float64).round(2).cast(pl.String).str.replace(r"\.0$", "")
    quoted = (
        query.str.replace_all("\\", "\\\\", literal=True)
        .str.replace_all('"', '\\"', literal=True)
        .str.replace_all("\n", "\\n", literal=True)
    )
    return (
        pl.when((behaviour == Behaviour.RATING) & value.is_not_null())
        .then(pl.concat_str(behaviour, pl.lit(" "), stars))
        .when((behaviour == Behaviour.SEARCH) & query.is_not_null())
        .then(pl.concat_str(behaviour, pl.lit(' "'), quoted, pl.lit('"')))
        .otherwise(behaviour)
        .alias("label")
    )


def escape_names(names: pa.Array) -> pa.Array:
    """Names so that commas and line ends within them are not taken for those between them."""
    escaped = pc.replace_substring(pc.replace_substring(names, "\\", "\\\\"), "\n", "\\n")
    return pc.replace_substring(escaped, ", ", "\\, ")
