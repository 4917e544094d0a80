"""What a replica remembers of new events, and how answers follow it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from intently.core.workspace import Workspace

from serve.service import Service
from serve.session import Sessions
from serve.settings import SessionConfig
from tests.serve.calling import calling, config

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


def line(event_id: object, user_id: object = "ada", minutes_ago: float = 0, **changes: object) -> dict:
    moment = (NOW - timedelta(minutes=minutes_ago)).isoformat()
    event = {"event_id": event_id, "user_id": user_id, "item_id": "i03", "behaviour": "cart", "timestamp": moment, "received": moment}
    return event | {"query": None, "value": None, "dwell_s": None, "request_id": None} | changes


def sessions(**settings: float) -> Sessions:
    return Sessions(SessionConfig.parse(settings), lambda: NOW)


def ids(remembered: Sessions, user_id: str = "ada") -> list[str]:
    return [event.event_id for event in remembered.of(user_id)]


def cart(event_id: str, item_id: str, user_id: str = "ada", **changes: object) -> dict:
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "behaviour": "cart"} | changes


async def items(client: httpx.AsyncClient, user_id: str = "ada", **query: object) -> list[str]:
    answer = await client.get(f"/v1/users/{user_id}/recommendations", params={"k": 100} | query)
    return [one["item"]["item_id"] for one in answer.raise_for_status().json()["items"]]


def test_sessions_keep_each_event_once_in_the_order_of_time() -> None:
    remembered = sessions()
    remembered.add([line("b", minutes_ago=1), line("a", minutes_ago=2)])
    remembered.add([line("c"), line("a", minutes_ago=2)])
    assert ids(remembered) == ["a", "b", "c"]
    assert "ada" in remembered and "bob" not in remembered


def test_sessions_keep_the_newest_events_and_the_latest_users() -> None:
    remembered = sessions(max_events=2, max_users=2)
    remembered.add([line(name, minutes_ago=minutes) for minutes, name in ((3, "a"), (2, "b"), (1, "c"))])
    assert ids(remembered) == ["b", "c"]
    remembered.add([line("d", "bob"), line("e", "ada"), line("f", "cyd")])
    assert [user for user in ("ada", "bob", "cyd") if user in remembered] == ["ada", "cyd"]


def test_sessions_keep_impressions_beside_what_was_done_not_in_its_place() -> None:
    remembered = sessions(max_events=2)
    remembered.add([line("bought", minutes_ago=9), *(line(f"shown {n}", minutes_ago=8 - n, behaviour="impression") for n in range(4))])
    assert ids(remembered) == ["bought", "shown 2", "shown 3"]
    remembered.add([line("cart"), line("favourite")])
    assert ids(remembered) == ["shown 2", "shown 3", "cart", "favourite"]


def test_sessions_forget_what_came_in_too_long_ago() -> None:
    remembered = sessions(hours=1)
    remembered.add([line("old", minutes_ago=61), line("new", minutes_ago=59)])
    assert ids(remembered) == ["new"]
    later = Sessions(SessionConfig(hours=1), lambda: NOW + timedelta(minutes=2))
    later._of.update(remembered._of)
    assert "ada" not in later
    later.forget_old()
    assert len(later) == 0


def test_sessions_pass_over_lines_that_the_service_did_not_write() -> None:
    remembered = sessions()
    odd = [line("naive", timestamp="2026-01-10T12:00:00"), line("odd", behaviour="stare"), line("when", timestamp=3), line("who", ["ada"])]
    odd += [line("stars", behaviour="rating", value="1"), line("item", item_id=3), line(7), line("asked", query=["tent"])]
    remembered.add([{}, {"event_id": "x"}, *odd, line("good")])
    assert ids(remembered) == ["good"] and len(remembered) == 1


def test_recommendations_follow_an_event_at_once_and_leave_its_item_out(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            before = await items(client)
            assert "i03" in before
            await client.post("/v1/events", json=cart("s1", "i03"))
            after = await items(client)
            assert set(after) == set(before) - {"i03"}
            scores = [
                {one["item"]["item_id"]: one["score"] for one in (await client.get(path, params={"k": 100})).json()["items"]}
                for path in ("/v1/users/ada/recommendations", "/v1/users/bob/recommendations")
            ]
            await client.post("/v1/events", json=cart("s2", "i07", behaviour="purchase"))
            again = (await client.get("/v1/users/ada/recommendations", params={"k": 100})).json()["items"]
            assert any(one["score"] != scores[0][one["item"]["item_id"]] for one in again)
            bob = (await client.get("/v1/users/bob/recommendations", params={"k": 100})).json()["items"]
            assert {one["item"]["item_id"]: one["score"] for one in bob} == scores[1]
            assert set(await items(client, filter_seen=False)) == {f"i{place:02d}" for place in range(12)}

    asyncio.run(run())


def test_interests_that_a_session_touches_come_first_in_reasons(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(config(served, tmp_path / "log"), "r")
        about = service.state.about("ada")
        assert about.interests[0] == "baking sourdough at home"
        assert about.interests_after(["i00"], service.state.catalogue)[0] == "hiking in wet weather"
        assert about.interests_after(["i00", "i05"], service.state.catalogue)[:2] == ["baking sourdough at home", "hiking in wet weather"]

    asyncio.run(run())


def test_history_shows_the_session_first_and_pages_without_gap(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            await client.post("/v1/events", json=[cart("s1", "i03"), cart("s2", "gone"), cart("s3", "i07")])
            pages, offset = [], 0
            while offset is not None:
                page = (await client.get("/v1/users/ada/history", params={"limit": 4, "offset": offset})).json()
                pages += [(event["event_id"], event["session"]) for event in page["events"]]
                assert page["total"] == 13
                offset = page["next_offset"]
        assert pages[:3] == [("s3", True), ("s2", True), ("s1", True)]
        assert pages[3:] == [(f"ada-{place}", False) for place in range(9, -1, -1)]
        months = {one["month"]: one["events"] for one in page["months"]}
        assert sum(months.values()) == 13 and months[f"{datetime.now(UTC):%Y-%m}-01"] == 3

    asyncio.run(run())


def test_somebody_new_is_known_by_their_first_events(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            assert (await client.get("/v1/users/zoe/recommendations")).status_code == 404
            await client.post("/v1/events", json=cart("z1", "i00", "zoe", behaviour="purchase"))
            found = await items(client, "zoe")
            assert found and "i00" not in found
            history = (await client.get("/v1/users/zoe/history")).json()
            assert [event["event_id"] for event in history["events"]] == ["z1"]
            assert (await client.get("/v1/users/zoe/interests")).json()["periods"] == []

    asyncio.run(run())


def test_event_that_the_tables_have_by_now_is_no_session_event_any_more(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            before = (await client.get("/v1/users/ada/recommendations")).json()["items"]
            # The event ada-9 came in yesterday, and stands in today's history.
            await client.post("/v1/events", json=cart("ada-9", "i09"))
            assert (await client.get("/v1/users/ada/recommendations")).json()["items"] == before
            assert (await client.get("/v1/users/ada/history")).json()["total"] == 10

    asyncio.run(run())


def test_other_replica_follows_within_moments_and_a_new_one_from_its_start(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        settings = config(served, tmp_path / "log")
        first, second = (Service.open(settings, name) for name in ("first", "second"))
        async with calling(first) as one, calling(second) as other:
            before = await items(other)
            await one.post("/v1/events", json=cart("s1", "i03"))
            while "i03" in await items(other):
                await asyncio.sleep(0)  # the follower's turn; a service that does not follow ends in the suite's time limit
            assert set(await items(other)) == set(before) - {"i03"}
        async with calling(Service.open(settings, "third")) as third:
            assert "i03" not in await items(third)

    asyncio.run(run())


def test_items_that_were_merely_shown_change_no_answer_and_stand_in_the_history(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            path = "/v1/users/ada/recommendations"
            before = (await client.get(path)).json()["items"]
            shown = [cart(f"s{place}", f"i{place:02d}", behaviour="impression") for place in range(12)]
            await client.post("/v1/events", json=shown)
            assert (await client.get(path)).json()["items"] == before
            assert (await client.get("/v1/users/ada/history")).json()["events"][0]["behaviour"] == "impression"
            unknown = {"history": [{"item_id": "i00", "behaviour": "purchase"}, {"item_id": "i03", "behaviour": "impression"}], "k": 100}
            found = (await client.post("/v1/recommendations", json=unknown)).json()["items"]
            assert {one["item"]["item_id"] for one in found} == {f"i{place:02d}" for place in range(1, 12)}

    asyncio.run(run())


def test_line_of_another_writer_in_the_log_stops_neither_start_nor_answers(served: Workspace, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    now = datetime.now(UTC)
    lines = [line("z", ["ada"]), line("y", behaviour="rating", value="1")]
    text = "".join(json.dumps(one | {"timestamp": now.isoformat(), "received": now.isoformat()}) + "\n" for one in lines)
    (tmp_path / "log" / f"events-{now.date()}.jsonl").write_text(text)

    async def run() -> None:
        async with calling(Service.open(config(served, tmp_path / "log"), "r")) as client:
            assert await items(client)

    asyncio.run(run())
