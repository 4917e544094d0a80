from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from intently.core.errors import SourceError
from intently.data.amazon import AmazonConfig
from intently.data.sources import open_source

from tests.data.reading import read_all

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1252800000, "reviewText": "Füße"},
    {"reviewerID": "A1", "asin": "B2", "overall": 3.0, "unixReviewTime": 1252900000},
    {"reviewerID": "A2", "asin": "B9", "overall": 3.0, "unixReviewTime": 1252900000},
    {"asin": "B2", "overall": 3.0, "unixReviewTime": 1252900000},
    {"reviewerID": "A3", "asin": "B2", "overall": None, "unixReviewTime": 1252900000},
]
# The 2014 metadata is written as Python literals, not as JSON.
METADATA_2014 = """{'asin': 'B1', 'title': "Nail 'n Polish", 'price': 4.99, 'brand': 'OPI', 'categories': [['Beauty', 'Makeup', 'Nails']]}
{'asin': 'B2', 'categories': [['Beauty', 'Skin Care']], 'brand': 'Acme'}
{'title': 'no asin'}
{broken
"""


def write_gz(path: Path, text: str) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> AmazonConfig:
    lines = [json.dumps(review, ensure_ascii=False) for review in REVIEWS_2014]
    reviews = write_gz(tmp_path / "reviews.json.gz", "\n".join([*lines, '{"reviewerID": "A4", "asin', "[]"]) + "\n")
    return AmazonConfig(year="2014", reviews=reviews, metadata=write_gz(tmp_path / "meta.json.gz", METADATA_2014), block_bytes=100)


def test_amazon_2014_reviews_become_ratings_and_broken_lines_rejects(config: AmazonConfig) -> None:
    events, rejects = read_all(open_source(config))
    assert events["event_id"].to_pylist() == ["A1-B1-1252800000", "A1-B2-1252900000"]
    assert events["timestamp"].to_pylist() == [datetime(2009, 9, 13, tzinfo=UTC), datetime(2009, 9, 14, 3, 46, 40, tzinfo=UTC)]
    assert events["value"].to_pylist() == [5.0, 3.0]
    assert set(events["behaviour"].to_pylist()) == {"rating"}
    assert [(row["row"], row["reason"]) for row in rejects.to_pylist()] == [
        ("reviews.json.gz:3", "unknown item"),
        ("reviews.json.gz:4", "missing user_id"),
        ("reviews.json.gz:5", "rating without a value"),
        ("reviews.json.gz:6", "unreadable row"),
        ("reviews.json.gz:7", "unreadable row"),
    ]


def test_amazon_2014_metadata_becomes_items(config: AmazonConfig) -> None:
    source = open_source(config)
    first, second = source.items.to_pylist()
    assert (first["title"], first["category"], first["brand"]) == ("Nail 'n Polish", "Nails", "OPI")
    assert first["categories"] == ["Beauty", "Makeup", "Nails"]
    assert first["price"] == pytest.approx(4.99)
    assert second["title"] == "Acme Skin Care", "made of brand and category, since there is none"
    assert [(row["row"], row["reason"]) for row in source.rejects.to_pylist()] == [
        ("meta.json.gz:3", "missing item_id"),
        ("meta.json.gz:4", "unreadable row"),
    ]


def test_amazon_metadata_line_of_an_item_that_stands_is_refused(config: AmazonConfig) -> None:
    Path(config.metadata).unlink()
    write_gz(Path(config.metadata), "{'asin': 'B1', 'title': 'Polish'}\n{'asin': 'B1', 'title': 'Again'}\n")
    source = open_source(config)
    assert source.items["title"].to_pylist() == ["Polish"]
    assert source.rejects.to_pylist() == [
        {"stage": "item", "row": "meta.json.gz:2", "reason": "duplicate item_id", "detail": "{'asin': 'B1', 'title': 'Again'}"}
    ]


def test_amazon_2018_and_2023_fields_are_read(tmp_path: Path) -> None:
    reviews = tmp_path / "reviews.jsonl"
    metadata = tmp_path / "meta.jsonl"
    reviews.write_text(json.dumps({"user_id": "U", "parent_asin": "P", "asin": "V", "rating": 4.0, "timestamp": 1588687728923}) + "\n")
    about = {"parent_asin": "P", "title": "Tripod", "main_category": "Cameras", "categories": [], "price": "None", "store": "Acme"}
    metadata.write_text(json.dumps(about | {"description": ["Firm.", "Light."], "details": {"Colour": "Black", "Ranks": {"a": 1}}}) + "\n")
    source = open_source(AmazonConfig(year="2023", reviews=str(reviews), metadata=str(metadata)))
    events, _ = read_all(source)
    assert (events["item_id"][0].as_py(), events["timestamp"][0].as_py()) == ("P", datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC))
    (item,) = source.items.to_pylist()
    assert (item["category"], item["brand"], item["price"], item["description"]) == ("Cameras", "Acme", None, "Firm. Light.")
    assert item["attributes"] == ["Colour: Black"]

    reviews.write_text(json.dumps({"reviewerID": "U", "asin": "P", "overall": 4.0, "unixReviewTime": 1588687728}) + "\n")
    metadata.write_text(json.dumps({"asin": "P", "title": "Tripod", "category": ["Cameras", "Tripods"], "price": "$1,012.50"}) + "\n")
    source = open_source(AmazonConfig(year="2018", reviews=str(reviews), metadata=str(metadata)))
    assert read_all(source)[0].num_rows == 1
    assert source.items.select(["category", "price"]).to_pylist() == [{"category": "Tripods", "price": 1012.5}]


def test_amazon_reviews_of_another_year_are_refused_with_the_missing_columns(config: AmazonConfig) -> None:
    with pytest.raises(SourceError, match=r"missing column\(s\) \['parent_asin', 'rating', 'timestamp', 'user_id'\] of the 2023 reviews"):
        open_source(config.model_copy(update={"year": "2023"}))


def test_amazon_without_its_metadata_names_the_file(config: AmazonConfig) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.json: no such file"):
        open_source(config.model_copy(update={"metadata": "nowhere.json"}))


def test_amazon_source_can_be_read_twice(config: AmazonConfig) -> None:
    source = open_source(config)
    first, second = read_all(source)[0], read_all(source)[0]
    assert isinstance(first, pa.Table) and first.equals(second)
