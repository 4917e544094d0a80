"""Any log in Parquet or CSV, by a mapping from our columns to the file's.

Event columns that can be mapped: event_id, user_id, item_id, behaviour, timestamp, value, query, dwell_s. Without event_id
every row is its own event, known by its file's name, a digest of the file's content, and its row: the same file read again gives the
same ids, another day's file of the same name gives others. Then repeats within a file, and what a file that grew holds of before, cannot
be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import SourceError
from intently.core.schema import ITEM, REJECT, USER, Behaviour
from intently.data.raw import DETAIL_CHARACTERS, UNREADABLE, Source, as_timestamp, missing_or_repeated, raw_block, without_refused

EVENT_FIELDS = ("event_id", "user_id", "item_id", "behaviour", "timestamp", "value", "query", "dwell_s")
ITEM_FIELDS = ("item_id", "title", "description", "category", "categories", "brand", "price")


class FilesConfig(Config):
    """Parquet or CSV files and what their columns mean."""

    kind: Literal["files"] = Field("files", description="which adapter")
    events: str = Field(description="file or folder of .parquet or .csv files with the log")
    columns: dict[str, str] = Field(
        {name: name for name in EVENT_FIELDS[1:5]}, description="our event column → the file's; user_id, item_id and timestamp are needed"
    )
    behaviour: Behaviour | None = Field(None, description="behaviour of every row, where the files have no column for it")
    behaviours: dict[str, Behaviour] = Field(
        default_factory=dict, description="value in the file → behaviour; empty: values are as they are"
    )
    timestamp_unit: Literal["s", "ms", "us", "iso"] = Field("s", description="unit of numbers, or ISO 8601 text; not used for dates")
    items: str = Field(description="file with the items")
    item_columns: dict[str, str] = Field(
        {"item_id": "item_id", "title": "title", "category": "category"},
        description="our item column → the file's; item_id and title needed",
    )
    category_separator: str = Field("|", description="parts the names in the column mapped to categories")
    attributes: tuple[str, ...] = Field((), description="further columns of the item file to keep as attributes")
    users: str | None = Field(None, description="file with the users; none takes those of the log")
    user_id: str = Field("user_id", description="the user file's column with the identifier; every other becomes an attribute")
    rows_per_block: int = operational(500_000, ge=1, description="rows read at a time")


def source_files(config: FilesConfig) -> list[Path]:
    """The files that are read. Raises SourceError when one is missing."""
    named = [_expand(config.events), _expand(config.items), _expand(config.users) if config.users else []]
    return [file for files in named for file in files]


def item_files(config: FilesConfig) -> list[Path]:
    """The file that is read for the items alone. Raises SourceError when it is missing."""
    return [_single(config.items)]


def open_items(config: FilesConfig) -> Source:
    """The items alone → Source without users and events, whose files need not be there.

    Raises:
        SourceError: the file is missing, cannot be read or is neither .parquet nor .csv, or a mapped column is not in it.
    """
    _require_mapping("item_columns", config.item_columns, {"item_id", "title"}, ITEM_FIELDS)
    items, rejects = _items(config)
    return Source(items, USER.empty(), lambda: iter(()), rejects)


def open_files(config: FilesConfig) -> Source:
    """Files and a mapping → Source.

    Raises:
        SourceError: a file is missing, cannot be read or is neither .parquet nor .csv, or a mapped column is not in it.
    """
    files = _expand(config.events)
    wanted = {"user_id", "item_id", "timestamp"} | ({"behaviour"} if config.behaviour is None else set())
    _require_mapping("columns", config.columns, wanted, EVENT_FIELDS)
    _require_mapping("item_columns", config.item_columns, {"item_id", "title"}, ITEM_FIELDS)
    mapped = {name: column for name, column in config.columns.items() if name != "behaviour" or config.behaviour is None}
    for file in files:
        _require_columns(file, mapped.values())
    items, bad_items = _items(config)
    users, bad_users = _users(config)
    return Source(items, users, lambda: _events(files, mapped, config), pa.concat_tables([bad_items, bad_users]))


def _events(files: list[Path], mapped: Mapping[str, str], config: FilesConfig) -> Iterator[pa.Table]:
    position = 0
    for file in files:
        row = 0
        own_id = f"{file.name}:{_digest(file)}:" if "event_id" not in mapped else ""
        for block, broken in _blocks(file, list(mapped.values()), config.rows_per_block):
            rows = pl.int_range(row, row + pl.len())
            columns = block.select(
                *_mapped(mapped, config, pl.concat_str(pl.lit(own_id), rows)),
                place=pl.concat_str(pl.lit(f"{file.name}:"), rows),
                position=pl.int_range(position, position + pl.len(), dtype=pl.Int64),
            )
            row, position = row + block.height, position + block.height
            yield raw_block(columns)
            if broken:
                lost = pl.DataFrame({"place": [f"{file.name}: a row"] * len(broken), "original": broken})
                yield raw_block(lost.with_columns(refused=pl.lit(UNREADABLE)))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def _mapped(mapped: Mapping[str, str], config: FilesConfig, own_id: pl.Expr) -> list[pl.Expr]:
    """Our columns from the file's; what cannot be cast becomes null and is judged later."""
    text = {name: pl.col(column).cast(pl.String) for name, column in mapped.items()}
    behaviour = pl.lit(str(config.behaviour)) if config.behaviour is not None else text["behaviour"]
    if config.behaviours and config.behaviour is None:
        behaviour = behaviour.replace({value: str(name) for value, name in config.behaviours.items()})
    expressions = {
        "event_id": text.get("event_id", own_id),
        "user_id": text["user_id"],
        "item_id": text["item_id"],
        "behaviour": behaviour,
        "timestamp": _timestamp(pl.col(mapped["timestamp"]), config.timestamp_unit),
    }
    expressions |= {name: text[name].cast(pl.Float32, strict=False) for name in ("value", "dwell_s") if name in text}
    expressions |= {"query": text["query"]} if "query" in text else {}
    return [expression.alias(name) for name, expression in expressions.items()]


def _timestamp(column: pl.Expr, unit: str) -> pl.Expr:
    return column.map_batches(lambda values: _read_time(values, unit), return_dtype=pl.Datetime("us", "UTC"))


def _read_time(values: pl.Series, unit: str) -> pl.Series:
    if values.dtype.is_temporal():
        moments = values.cast(pl.Datetime("us")) if values.dtype == pl.Date else values.dt.cast_time_unit("us")
        zoned = moments.dtype == pl.Datetime("us") and getattr(moments.dtype, "time_zone", None)
        return moments.dt.convert_time_zone("UTC") if zoned else moments.dt.replace_time_zone("UTC")
    return values.to_frame("time").select(as_timestamp(pl.col("time"), unit))["time"]


def _blocks(file: Path, columns: Iterable[str], size: int) -> Iterator[tuple[pl.DataFrame, list[str]]]:
    """Blocks of a file, with the CSV rows that have the wrong number of fields or bytes that are no UTF-8. Raises SourceError."""
    names = list(dict.fromkeys(columns))
    with _named(file):
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(size, columns=names):
                yield _frame(pa.Table.from_batches([batch])), []
            return
        if not _has_rows(file):
            return
        broken: list[str] = []
        for batch in _csv_reader(file, names, broken.append):
            rows, undecoded = _as_text(batch)
            lost, broken[:] = broken + undecoded, []
            yield _frame(rows), lost
        if broken:
            yield pl.DataFrame(schema=dict.fromkeys(names, pl.String)), broken


def _csv_reader(file: Path, names: list[str], refuse: Callable[[str], None]) -> pc.CSVStreamingReader:
    def skip(row: pc.InvalidRow) -> str:
        refuse(row.text or f"{row.actual_columns} fields instead of {row.expected_columns}")
        return "skip"

    # Everything is read as bytes: one odd value must not decide the type of a column, or stop the file.
    types = dict.fromkeys(names, pa.binary())
    convert = pc.ConvertOptions(column_types=types, include_columns=names, strings_can_be_null=True, null_values=[""])
    read = pc.ReadOptions(use_threads=False, block_size=8 * 2**20)
    return pc.open_csv(file, read, pc.ParseOptions(newlines_in_values=True, invalid_row_handler=skip), convert)


def _as_text(batch: pa.RecordBatch) -> tuple[pa.Table, list[str]]:
    """Columns of bytes → (columns of text, the rows with bytes that are no UTF-8)."""
    rows = pa.Table.from_batches([batch])
    schema = pa.schema([(name, pa.string()) for name in rows.column_names])
    try:
        return rows.cast(schema), []
    except pa.ArrowInvalid:
        lines = [b",".join(value or b"" for value in row.values()) for row in rows.to_pylist()]
        texts = [line.decode(errors="replace") for line in lines]
        good = [text.encode() == line for text, line in zip(texts, lines, strict=True)]
        lost = [text for text, is_good in zip(texts, good, strict=True) if not is_good]
        return rows.filter(pa.array(good)).cast(schema), lost


def _has_rows(file: Path) -> bool:
    """Whether a CSV file goes on behind its header."""
    with file.open("rb") as content:
        content.readline()
        return bool(content.read(1))


def _whole(file: Path, columns: Iterable[str], stage: str, size: int) -> tuple[pl.DataFrame, pa.Table]:
    """A file of items or users at once: its rows, and those that cannot be read as REJECT."""
    names = list(dict.fromkeys(columns))
    blocks = list(_blocks(file, names, size))
    rows = pl.concat([block for block, _ in blocks]) if blocks else pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    lost = [row[:DETAIL_CHARACTERS] for _, broken in blocks for row in broken]
    rejects = [{"stage": stage, "row": f"{file.name}: a row", "reason": UNREADABLE, "detail": row} for row in lost]
    return rows, REJECT.from_rows(rejects)


def _items(config: FilesConfig) -> tuple[pa.Table, pa.Table]:
    file = _single(config.items)
    columns = config.item_columns
    _require_columns(file, [*columns.values(), *config.attributes])
    frame, unreadable = _whole(file, [*columns.values(), *config.attributes], "item", config.rows_per_block)
    text = {name: pl.col(column).cast(pl.String) for name, column in columns.items()}
    names = text["categories"].str.split(config.category_separator) if "categories" in text else pl.lit([], pl.List(pl.String))
    category = text.get("category", names.list.last())
    nothing = pl.lit(None, pl.String)
    facts = [pl.format(f"{name}: {{}}", pl.col(name).cast(pl.String)) for name in config.attributes]
    rows = frame.select(
        place=_places(file),
        item_id=text["item_id"],
        title=text["title"],
        description=text.get("description", nothing),
        category=pl.coalesce(category.replace("", None), pl.lit("unknown")),
        categories=names.fill_null([]),
        brand=text.get("brand", nothing),
        price=text["price"].cast(pl.Float32, strict=False) if "price" in text else pl.lit(None, pl.Float32),
        attributes=pl.concat_list(facts).list.drop_nulls() if facts else pl.lit([], pl.List(pl.String)),
        image=pl.lit(None, pl.Binary),
    )
    untitled = pl.when(pl.col("title").replace("", None).is_null()).then(pl.lit("missing title"))
    judged = rows.with_columns(
        reason=pl.coalesce(missing_or_repeated("item_id"), untitled),
        detail=pl.concat_str("item_id", "title", separator=" ", ignore_nulls=True),
    )
    good, bad = without_refused(judged, "item")
    return ITEM.check(good.to_arrow()), pa.concat_tables([bad, unreadable])


def _users(config: FilesConfig) -> tuple[pa.Table, pa.Table]:
    if config.users is None:
        return USER.empty(), REJECT.empty()
    file = _single(config.users)
    _require_columns(file, [config.user_id])
    columns = _columns(file)
    frame, unreadable = _whole(file, columns, "user", config.rows_per_block)
    facts = [pl.format(f"{name}: {{}}", pl.col(name).cast(pl.String)) for name in columns if name != config.user_id]
    users = frame.select(
        place=_places(file),
        user_id=pl.col(config.user_id).cast(pl.String),
        attributes=pl.concat_list(facts).list.drop_nulls() if facts else pl.lit([], pl.List(pl.String)),
    )
    told = pl.concat_list("user_id", "attributes").list.drop_nulls().list.join(", ")
    judged = users.with_columns(reason=missing_or_repeated("user_id"), detail=told)
    good, bad = without_refused(judged, "user")
    return USER.check(good.to_arrow()), pa.concat_tables([bad, unreadable])


def _places(file: Path) -> pl.Expr:
    return pl.concat_str(pl.lit(f"{file.name}:"), pl.int_range(pl.len()))


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _expand(path: str) -> list[Path]:
    given = Path(path)
    files = sorted(file for file in given.iterdir() if file.suffix in (".parquet", ".csv")) if given.is_dir() else [given]
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file}: no such file")
        if file.suffix not in (".parquet", ".csv"):
            raise SourceError(f"{file}: the files adapter reads .parquet and .csv")
    if not files:
        raise SourceError(f"{given}: no .parquet or .csv file in it")
    return files


def _single(path: str) -> Path:
    files = _expand(path)
    if len(files) > 1:
        raise SourceError(f"{path}: one file is wanted here, it holds {len(files)}")
    return files[0]


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Tells the file with what goes wrong while it is read. Raises SourceError."""
    try:
        yield
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: cannot be read: {error}") from error


def _columns(file: Path) -> list[str]:
    with _named(file):
        if file.suffix == ".parquet":
            return list(pq.read_schema(file).names)
        with file.open("rb") as content:
            header = content.readline().rstrip(b"\r\n")
        return list(pc.read_csv(pa.BufferReader(header + b"\n")).column_names)


def _require_columns(file: Path, columns: Iterable[str]) -> None:
    found = _columns(file)
    missing = sorted(set(columns) - set(found))
    if missing:
        raise SourceError(f"{file}: missing column(s) {missing}; it has {found}")


def _require_mapping(field: str, mapping: Mapping[str, str], wanted: set[str], known: tuple[str, ...]) -> None:
    missing, unknown = sorted(wanted - set(mapping)), sorted(set(mapping) - set(known))
    if missing or unknown:
        raise SourceError(f"{field}: missing {missing}, unknown {unknown}; it maps {list(known)} to columns of the file")
