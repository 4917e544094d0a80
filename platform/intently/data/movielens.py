"""MovieLens-1M as GroupLens publishes it: ratings.dat, movies.dat, users.dat; fields parted by '::', latin-1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import SourceError
from intently.core.schema import ITEM, USER, Behaviour
from intently.data.raw import UNREADABLE, Source, as_timestamp, missing_or_repeated, raw_block, without_refused

AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56 and older"}
OCCUPATIONS = (
    "other", "academic or educator", "artist", "clerical or admin", "college or graduate student", "customer service",
    "doctor or health care", "executive or managerial", "farmer", "homemaker", "school student", "lawyer", "programmer",
    "retired", "sales or marketing", "scientist", "self-employed", "technician or engineer", "tradesman or craftsman",
    "unemployed", "writer",
)  # fmt: skip


class MovieLensConfig(Config):
    """The original files of MovieLens-1M."""

    kind: Literal["movielens"] = Field("movielens", description="which adapter")
    path: str = Field(description="folder that holds ratings.dat, movies.dat and users.dat")
    block_bytes: int = operational(16 * 2**20, ge=1, description="how much of ratings.dat is read at a time")


def source_files(config: MovieLensConfig) -> list[Path]:
    """The files that are read. Raises SourceError when one is missing."""
    files = [Path(config.path) / name for name in ("ratings.dat", "movies.dat", "users.dat")]
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file}: no such file; the movielens adapter reads ratings.dat, movies.dat and users.dat")
    return files


def open_movielens(config: MovieLensConfig) -> Source:
    """A folder of .dat files → Source. A line with another number of fields is refused as unreadable. Raises SourceError."""
    ratings, movies, users = source_files(config)
    item_rows, bad_items = _read(movies, ("item_id", "title", "genres"), "item")
    user_rows, bad_users = _read(users, ("user_id", "gender", "age", "occupation", "zip"), "user")
    genres = pl.col("genres").str.split("|")
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$")
    items = item_rows.select(
        "item_id",
        "title",
        category=genres.list.first().replace("", "unknown"),
        categories=genres,
        attributes=pl.concat_list(pl.format("year: {}", year)).list.drop_nulls(),
        description=pl.lit(None, pl.String),
        brand=pl.lit(None, pl.String),
        price=pl.lit(None, pl.Float32),
        image=pl.lit(None, pl.Binary),
    )
    work = pl.col("occupation").replace_strict({str(number): name for number, name in enumerate(OCCUPATIONS)}, default=None)
    facts = (
        pl.format("gender: {}", pl.col("gender")),
        pl.format("age: {}", pl.col("age").replace_strict(AGES, default=None)),
        pl.format("occupation: {}", work),
    )
    people = user_rows.select("user_id", attributes=pl.concat_list(facts).list.drop_nulls())
    return Source(
        items=ITEM.check(items.to_arrow()),
        users=USER.check(people.to_arrow()),
        events=lambda: _ratings(ratings, config.block_bytes),
        rejects=pa.concat_tables([bad_items, bad_users]),
    )


def _ratings(path: Path, block_bytes: int) -> Iterator[pa.Table]:
    first = 1
    with path.open("rb") as file:
        while lines := file.readlines(block_bytes):
            fields = _split(lines, ("user_id", "item_id", "value", "seconds"), path.name, first)
            first += len(lines)
            yield raw_block(
                fields.with_columns(
                    event_id=pl.concat_str("user_id", "item_id", "seconds", separator="-"),
                    behaviour=pl.lit(str(Behaviour.RATING)),
                    value=pl.col("value").cast(pl.Float32, strict=False),
                    timestamp=as_timestamp(pl.col("seconds"), "s"),
                ).drop("seconds")
            )


def _read(path: Path, names: tuple[str, ...], stage: str) -> tuple[pl.DataFrame, pa.Table]:
    """A small .dat file whole: its good rows, and rejects. The first of the names is the key."""
    with path.open("rb") as file:
        rows = _split(file.readlines(), names, path.name, 1)
    judged = rows.with_columns(
        reason=pl.coalesce("refused", missing_or_repeated(names[0])),
        detail=pl.coalesce("original", pl.concat_str(names, separator="::")),
    )
    return without_refused(judged, stage)


def _split(lines: list[bytes], names: tuple[str, ...], filename: str, first: int) -> pl.DataFrame:
    """Lines → columns `names`, with place, position (line number), refused and original."""
    text = pl.Series("line", b"".join(lines).decode("latin-1").replace("\r\n", "\n").removesuffix("\n").split("\n"), pl.String)
    frame = text.to_frame().with_columns(position=pl.int_range(first, first + pl.len(), dtype=pl.Int64))
    parts = pl.col("line").str.split("::")
    readable = parts.list.len() == len(names)
    columns = {name: pl.when(readable).then(parts.list.get(place, null_on_oob=True)) for place, name in enumerate(names)}
    return frame.select(
        "position",
        place=pl.format(filename + ":{}", "position"),
        refused=pl.when(~readable).then(pl.lit(UNREADABLE)),
        original=pl.when(~readable).then(pl.col("line")),
        **columns,
    )
