"""Amazon reviews (McAuley lab) of 2014, 2018 and 2023: JSON lines, plain or .gz, with their metadata file.

The three years name their fields differently; `FIELDS` is the whole difference for reviews. A review is a RATING event.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import polars as pl
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import SourceError
from intently.core.schema import ITEM, REJECT, USER, Behaviour
from intently.data.raw import DETAIL_CHARACTERS, UNREADABLE, Source, as_timestamp, raw_block

Year = Literal["2014", "2018", "2023"]

FIELDS: dict[Year, dict[str, str]] = {
    "2014": {"user_id": "reviewerID", "item_id": "asin", "value": "overall", "time": "unixReviewTime"},
    "2018": {"user_id": "reviewerID", "item_id": "asin", "value": "overall", "time": "unixReviewTime"},
    "2023": {"user_id": "user_id", "item_id": "parent_asin", "value": "rating", "time": "timestamp"},
}
TIME_UNIT: dict[Year, str] = {"2014": "s", "2018": "s", "2023": "ms"}


class AmazonConfig(Config):
    """One category of an Amazon review set."""

    kind: Literal["amazon"] = Field("amazon", description="which adapter")
    year: Year = Field(description="which release, it decides the field names")
    reviews: str = Field(description="review file, JSON lines, .gz or plain")
    metadata: str = Field(description="metadata file, JSON lines, .gz or plain")
    block_bytes: int = operational(32 * 2**20, ge=1, description="how much of the review file is read at a time, unpacked")


def source_files(config: AmazonConfig) -> list[Path]:
    """The files that are read. Raises SourceError when one is missing."""
    files = [Path(config.reviews), Path(config.metadata)]
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file}: no such file")
    return files


def open_amazon(config: AmazonConfig) -> Source:
    """A review file and its metadata → Source.

    Raises:
        SourceError: a file is missing, or its first line lacks a field that the year's reviews have.
    """
    reviews, metadata = source_files(config)
    _check_fields(reviews, config.year)
    items, rejects = _read_items(metadata, config.year)
    notes = {"users": "a user is whoever wrote a review; nothing else is known of them"}
    return Source(items, USER.empty(), lambda: _reviews(reviews, config), rejects, notes=notes)


def _check_fields(path: Path, year: Year) -> None:
    with _open(path) as file:
        line = file.readline()
    try:
        first = json.loads(line)
    except json.JSONDecodeError:
        return  # one broken line goes to Reject like any other
    missing = sorted(set(FIELDS[year].values()) - set(first)) if isinstance(first, dict) else []
    if missing:
        raise SourceError(f"{path}: missing column(s) {missing} of the {year} reviews; line 1 has {sorted(first)}")


def _reviews(path: Path, config: AmazonConfig) -> Iterator[pa.Table]:
    fields, first = FIELDS[config.year], 1
    with _open(path) as file:
        while lines := file.readlines(config.block_bytes):
            text = pl.Series("line", [line.decode("utf-8", errors="replace").rstrip("\r\n") for line in lines], pl.String)
            frame = text.to_frame().with_columns(position=pl.int_range(first, first + len(lines), dtype=pl.Int64))
            first += len(lines)
            # A path into JSON that cannot be parsed is null, so one broken line does not spoil the block.
            parsed = frame.with_columns(pl.col("line").str.json_path_match(f"$.{key}").alias(name) for name, key in fields.items())
            broken = pl.all_horizontal(pl.col(name).is_null() for name in fields)
            yield raw_block(
                parsed.select(
                    "user_id",
                    "item_id",
                    "position",
                    place=pl.format(path.name + ":{}", "position"),
                    refused=pl.when(broken).then(pl.lit(UNREADABLE)),
                    original=pl.when(broken).then(pl.col("line").str.slice(0, DETAIL_CHARACTERS)),
                    event_id=pl.concat_str("user_id", "item_id", pl.col("time").fill_null(""), separator="-"),
                    behaviour=pl.lit(str(Behaviour.RATING)),
                    timestamp=as_timestamp(pl.col("time"), TIME_UNIT[config.year]),
                    value=pl.col("value").cast(pl.Float32, strict=False),
                )
            )


def _read_items(path: Path, year: Year) -> tuple[pa.Table, pa.Table]:
    rows: dict[str, dict[str, Any]] = {}
    rejects: list[dict[str, str]] = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            entry = _parse(line.decode("utf-8", errors="replace"))
            item_id = entry.get("parent_asin" if year == "2023" else "asin") if entry else None
            if entry and item_id and str(item_id) not in rows:
                rows[str(item_id)] = _item(str(item_id), entry)
            else:
                reason = UNREADABLE if not entry else "duplicate item_id" if item_id else "missing item_id"
                detail = line[:DETAIL_CHARACTERS].decode("utf-8", errors="replace").strip()
                rejects.append({"stage": "item", "row": f"{path.name}:{number}", "reason": reason, "detail": detail})
    return ITEM.from_rows(list(rows.values())), REJECT.from_rows(rejects)


def _parse(line: str) -> dict[str, Any] | None:
    """One metadata line: JSON, or the Python literals that the 2014 release is written in."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        try:
            entry = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError):
            return None
    return entry if isinstance(entry, dict) else None


def _item(item_id: str, entry: dict[str, Any]) -> dict[str, Any]:
    categories = entry.get("categories") or entry.get("category") or []
    if categories and isinstance(categories[0], list):
        categories = categories[0]
    brand = entry.get("brand") or entry.get("store")
    category = categories[-1] if categories else entry.get("main_category") or "unknown"
    details = entry.get("details")
    if isinstance(details, str):
        details = _parse(details)
    made_up = " ".join(part for part in (brand, category) if part and part != "unknown")
    return {
        "item_id": item_id,
        "title": str(entry.get("title") or made_up or f"item {item_id}").strip(),
        "description": _text(entry.get("description")),
        "category": str(category),
        "categories": [str(name) for name in categories],
        "brand": str(brand) if brand else None,
        "price": _price(entry.get("price")),
        "attributes": [f"{name}: {value}" for name, value in (details or {}).items() if isinstance(value, str | int | float)],
        "image": None,
    }


def _text(value: object) -> str | None:
    joined = " ".join(str(part) for part in value) if isinstance(value, list) else str(value or "")
    return joined.strip() or None


def _price(value: object) -> float | None:
    """'$12.99', 12.99 or '1,299.00'; a range or a word is no price."""
    try:
        return float(str(value).strip().removeprefix("$").replace(",", "")) if value is not None else None
    except ValueError:
        return None


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
