from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from intently.core.errors import SourceError
from intently.data.movielens import MovieLensConfig
from intently.data.sources import fingerprint, open_source

from tests.data.reading import read_all

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::661::x::978302109\n2::1193::4\n3::661::4::soon\r\n2::99::4::978302110\n"
MOVIES = (
    "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n661::Les Misérables, L'été (1996)::Animation|Children's|Musical\nbroken line\n"
)
USERS = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n"


@pytest.fixture
def config(tmp_path: Path) -> MovieLensConfig:
    for name, text in (("ratings", RATINGS), ("movies", MOVIES), ("users", USERS)):
        (tmp_path / f"{name}.dat").write_bytes(text.encode("latin-1"))
    return MovieLensConfig(path=str(tmp_path), block_bytes=30)


def test_movielens_files_become_events_items_and_users(config: MovieLensConfig) -> None:
    source = open_source(config)
    events, _ = read_all(source)
    assert events.select(["event_id", "user_id", "item_id", "behaviour", "timestamp", "position", "value"]).to_pylist() == [
        {
            "event_id": f"1-{item}-{seconds}",
            "user_id": "1",
            "item_id": item,
            "behaviour": "rating",
            "timestamp": datetime.fromtimestamp(seconds, UTC),
            "position": line,
            "value": stars,
        }
        for item, seconds, line, stars in (("1193", 978300760, 1, 5.0), ("661", 978302109, 2, 3.0))
    ]
    film = source.items.to_pylist()[1]
    assert (film["title"], film["category"]) == ("Les Misérables, L'été (1996)", "Animation")
    assert film["categories"] == ["Animation", "Children's", "Musical"]
    assert film["attributes"] == ["year: 1996"]
    assert source.users.to_pylist()[0] == {"user_id": "1", "attributes": ["gender: F", "age: under 18", "occupation: school student"]}


def test_movielens_broken_lines_are_refused_with_their_reason(config: MovieLensConfig) -> None:
    source = open_source(config)
    _, rejects = read_all(source)
    assert [(row["row"], row["reason"]) for row in rejects.to_pylist()] == [
        ("ratings.dat:3", "rating without a value"),
        ("ratings.dat:4", "unreadable row"),
        ("ratings.dat:5", "bad timestamp"),
        ("ratings.dat:6", "unknown item"),
    ]
    assert rejects["detail"][1].as_py() == "2::1193::4"
    assert source.rejects.to_pylist() == [{"stage": "item", "row": "movies.dat:3", "reason": "unreadable row", "detail": "broken line"}]


def test_movielens_items_and_users_without_an_id_or_with_one_that_stands_are_refused(config: MovieLensConfig) -> None:
    for name, text in (
        ("movies", MOVIES + "661::Another (1999)::Drama\n::No id::Drama\n"),
        ("users", "1::F::1::10::48067\n1::M::25::0::1\n"),
    ):
        (Path(config.path) / f"{name}.dat").write_bytes(text.encode("latin-1"))
    source = open_source(config)
    assert source.items["item_id"].to_pylist() == ["1193", "661"]
    assert source.users["user_id"].to_pylist() == ["1"]
    assert [tuple(row.values()) for row in source.rejects.to_pylist()] == [
        ("item", "movies.dat:3", "unreadable row", "broken line"),
        ("item", "movies.dat:4", "duplicate item_id", "661::Another (1999)::Drama"),
        ("item", "movies.dat:5", "missing item_id", "::No id::Drama"),
        ("user", "users.dat:2", "duplicate user_id", "1::M::25::0::1"),
    ]


def test_movielens_without_a_file_names_it(config: MovieLensConfig) -> None:
    (Path(config.path) / "users.dat").unlink()
    with pytest.raises(SourceError, match=r"users\.dat: no such file"):
        open_source(config)


def test_fingerprint_changes_with_the_files_and_not_without(config: MovieLensConfig) -> None:
    before = fingerprint(config)
    assert fingerprint(config) == before
    with (Path(config.path) / "ratings.dat").open("a") as file:
        file.write("3::661::4::978302111\n")
    assert fingerprint(config) != before
