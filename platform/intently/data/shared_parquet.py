"""The prepared Parquet sets (MovieLens-1M, Amazon Beauty and Cell Phones 2014): interactions, items and sometimes users.

Order within a user is `pos`. Time: `timestamp_ub` where there is one (MovieLens: an upper bound, tight for most), else
`timestamp`; a row without either takes the user's next known time, which bounds it from above, else the one before, else it is
refused as a bad timestamp. A row whose `order_known` is false is refused as 'order unknown'.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import SourceError
from intently.core.schema import ITEM, USER, Behaviour
from intently.data.raw import Source, as_timestamp, raw_block

TITLELESS = "items without a title go by brand and category, else by their identifier"


class SharedParquetConfig(Config):
    """A folder with interactions.parquet, items.parquet and perhaps users.parquet."""

    kind: Literal["shared_parquet"] = Field("shared_parquet", description="which adapter")
    path: str = Field(description="the folder")
    null_timestamps: Literal["bound", "reject"] = Field(
        "bound", description="rows without a time: take the user's next known one, or refuse"
    )
    rows_per_block: int = operational(500_000, ge=1, description="interactions handed on at a time")


def source_files(config: SharedParquetConfig) -> list[Path]:
    """The files that are read. Raises SourceError when one is missing."""
    folder = Path(config.path)
    for name in ("interactions.parquet", "items.parquet"):
        if not (folder / name).is_file():
            raise SourceError(f"{folder / name}: no such file")
    users = folder / "users.parquet"
    return [folder / "interactions.parquet", folder / "items.parquet", *([users] if users.is_file() else [])]


def open_shared_parquet(config: SharedParquetConfig) -> Source:
    """A folder → Source.

    Raises:
        SourceError: a file or a column is missing.
    """
    interactions, items, *users = source_files(config)
    _require(interactions, ("user_id", "item_id", "pos"))
    _require(items, ("item_id", "title", "categories"))
    notes = {"titles": TITLELESS}
    if "timestamp_ub" in pq.read_schema(interactions).names:
        notes["timestamps"] = "upper bounds of the true times; order within a user is exact"
    return Source(
        items=_items(items),
        users=_users(users[0]) if users else USER.empty(),
        events=lambda: _events(interactions, config),
        notes=notes,
    )


def _require(path: Path, columns: tuple[str, ...]) -> None:
    missing = sorted(set(columns) - set(pq.read_schema(path).names))
    if missing:
        raise SourceError(f"{path}: missing column(s) {missing}")


def _items(path: Path) -> pa.Table:
    frame = pl.read_parquet(path)
    given = frame.with_columns(
        pl.lit(None, pl.String).alias(name) for name in ("brand", "description", "year", "director", "actors") if name not in frame.columns
    )
    films = "image_url" in frame.columns
    separator = "|" if films else " > "
    categories = pl.col("categories").fill_null("").str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    # A film has several genres of one level, the first is the main one; a product has a path, the last is the narrowest.
    category = (categories.list.first() if films else categories.list.last()).fill_null("unknown")
    stars = pl.col("actors").str.split(", ").list.head(3).list.join(", ")
    facts = [
        pl.format(f"{name}: {{}}", value) for name, value in (("year", pl.col("year")), ("director", pl.col("director")), ("actors", stars))
    ]
    made_up = pl.concat_str(pl.col("brand"), category.replace("unknown", None), separator=" ", ignore_nulls=True)
    identifier = pl.col("item_id").cast(pl.String)
    items = given.select(
        item_id=identifier,
        title=pl.coalesce(pl.col("title").replace("", None), made_up.replace("", None), pl.format("item {}", identifier)),
        description=pl.col("description"),
        category=category,
        categories=categories,
        brand=pl.col("brand"),
        price=pl.lit(None, pl.Float32),
        attributes=pl.concat_list(facts).list.drop_nulls(),
        image=pl.lit(None, pl.Binary),
    )
    return ITEM.check(items.to_arrow())


def _users(path: Path) -> pa.Table:
    frame = pl.read_parquet(path)
    labels = {"gender": "gender", "age": "age_label", "occupation": "occupation_label"}
    facts = [pl.format(f"{name}: {{}}", pl.col(column).cast(pl.String)) for name, column in labels.items() if column in frame.columns]
    users = frame.select(user_id=pl.col("user_id").cast(pl.String), attributes=pl.concat_list(facts).list.drop_nulls())
    return USER.check(users.to_arrow())


def _events(path: Path, config: SharedParquetConfig) -> Iterator[pa.Table]:
    """Blocks of whole users, as the files are sorted by user; a bound needs the user's later rows."""
    rest: pl.DataFrame | None = None
    place = 0
    for batch in pq.ParquetFile(path).iter_batches(config.rows_per_block):
        read = pl.from_arrow(pa.Table.from_batches([batch]))
        assert isinstance(read, pl.DataFrame)
        read = read.with_columns(place=pl.int_range(place, place + pl.len()))
        place += read.height
        rows = read if rest is None else pl.concat([rest, read])
        last_user = pl.col("user_id") == rows["user_id"][-1]
        rest = rows.filter(last_user)
        if rest.height < rows.height:
            yield _raw(rows.filter(~last_user), path.name, config)
    if rest is not None:
        yield _raw(rest, path.name, config)


def _raw(rows: pl.DataFrame, filename: str, config: SharedParquetConfig) -> pa.Table:
    seconds = pl.col("timestamp_ub" if "timestamp_ub" in rows.columns else "timestamp").cast(pl.Int64)
    rows = rows.sort("user_id", "pos", maintain_order=True)
    if config.null_timestamps == "bound":
        rows = rows.with_columns(seconds=seconds.fill_null(strategy="backward").fill_null(strategy="forward").over("user_id"))
    else:
        rows = rows.with_columns(seconds=seconds)
    known = pl.col("order_known") if "order_known" in rows.columns else pl.lit(True)
    rated = "rating" in rows.columns
    user, item = pl.col("user_id").cast(pl.String), pl.col("item_id").cast(pl.String)
    return raw_block(
        rows.select(
            refused=pl.when(~known).then(pl.lit("order unknown")),
            place=pl.format(filename + ":{}", "place"),
            event_id=pl.concat_str(user, pl.col("pos").cast(pl.String), separator="-"),
            user_id=user,
            item_id=item,
            behaviour=pl.lit(str(Behaviour.RATING if rated else Behaviour.PURCHASE)),
            timestamp=as_timestamp(pl.col("seconds"), "s"),
            position=pl.col("pos").cast(pl.Int64),
            value=pl.col("rating").cast(pl.Float32) if rated else pl.lit(None, pl.Float32),
        )
    )
