"""The service as its callers meet it: real HTTP to a real Ray Serve, over the hand-made tables and real towers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from intently.core.workspace import Workspace

from serve.client import Client, ServiceError
from serve.events import read_events

TAKEN_BY_ADA = {"i00", "i02", "i04", "i05", "i09"}
ADAS_INTERESTS = ["baking sourdough at home", "hiking in wet weather", "running on trails"]
"""Newest stretch first; within it the fading one last."""


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=120) as client:
        yield client


def cart(event_id: str, **changes: object) -> dict:
    return {"event_id": event_id, "user_id": "guest", "item_id": "i03", "behaviour": "cart"} | changes


def logged(folder: Path, event_id: str) -> list[dict]:
    return [event for event in read_events(folder) if event["event_id"] == event_id]


def problem(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    return body


# --- recommendations ---------------------------------------------------------------------------------------------------------


def test_recommendations_of_known_user_are_unseen_items_best_first(http: httpx.Client) -> None:
    body = http.get("v1/users/ada/recommendations", params={"k": 4}).raise_for_status().json()
    assert [one["rank"] for one in body["items"]] == [0, 1, 2, 3]
    scores = [one["score"] for one in body["items"]]
    assert scores == sorted(scores, reverse=True)
    items = [one["item"]["item_id"] for one in body["items"]]
    assert len(set(items)) == 4 and not set(items) & TAKEN_BY_ADA
    assert (body["user_id"], body["strategy"], body["filter_seen"]) == ("ada", "towers", True)


def test_recommendations_with_seen_items_are_the_whole_catalogue(http: httpx.Client) -> None:
    body = http.get("v1/users/ada/recommendations", params={"k": 100, "filter_seen": False}).json()
    assert {one["item"]["item_id"] for one in body["items"]} == {f"i{place:02d}" for place in range(12)}


def test_recommendations_reason_is_that_of_the_users_interest_else_for_anybody_else_none(served: Workspace, http: httpx.Client) -> None:
    table = served.artifact("explanation").read().to_pylist()
    texts = {(row["item_id"], row["interest"]): row["text"] for row in table}
    items = http.get("v1/users/ada/recommendations", params={"k": 100, "filter_seen": False}).json()["items"]
    kinds = set()
    for one in items:
        item_id = one["item"]["item_id"]
        interest = next((interest for interest in ADAS_INTERESTS if (item_id, interest) in texts), None)
        if interest is not None:
            assert one["reason"] == {"text": texts[item_id, interest], "interest": interest, "fallback": False}
            assert one["interest"] == interest
        elif (item_id, "") in texts:
            assert one["reason"] == {"text": texts[item_id, ""], "interest": None, "fallback": True}
        else:
            assert one["reason"] is None
        kinds.add(None if one["reason"] is None else one["reason"]["fallback"])
    assert kinds == {True, False, None}


def test_recommendations_card_is_the_items_row(http: httpx.Client) -> None:
    items = http.get("v1/users/ada/recommendations", params={"k": 100, "filter_seen": False}).json()["items"]
    cards = {one["item"]["item_id"]: one["item"] for one in items}
    assert cards["i02"] == {
        "item_id": "i02", "title": "trail running vest", "category": "outdoor", "brand": "Fernweh", "price": 89.5,
        "image": "v1/items/i02/image",
    }  # fmt: skip
    assert cards["i11"]["image"] is None and cards["i11"]["brand"] is None
    assert cards["i05"]["price"] == 18.9


def test_recommendations_beta_changes_the_scores(http: httpx.Client) -> None:
    by_beta = [http.get("v1/users/ada/recommendations", params={"beta": beta}).json() for beta in (0, 1)]
    assert [body["beta"] for body in by_beta] == [0, 1]
    tag_only, user_only = ({one["item"]["item_id"]: one["score"] for one in body["items"]} for body in by_beta)
    assert tag_only.keys() == user_only.keys() and tag_only != user_only


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", "0"),
        ("k", "101"),
        ("k", "many"),
        ("beta", "1.5"),
        ("beta", "-0.1"),
        ("beta", "nan"),
        ("strategy", "magic"),
        ("filter_seen", "x"),
    ],
)
def test_recommendations_parameter_out_of_range_is_422_naming_field_and_value(http: httpx.Client, name: str, value: str) -> None:
    body = problem(http.get("v1/users/ada/recommendations", params={name: value}), 422)
    assert [(error["field"], error["value"]) for error in body["errors"]] == [(name, value)]
    assert name in body["detail"] and value in body["detail"]


@pytest.mark.parametrize("strategy", ["generative", "agent"])
def test_recommendations_strategy_that_is_not_built_is_422_and_says_so(http: httpx.Client, strategy: str) -> None:
    body = problem(http.get("v1/users/ada/recommendations", params={"strategy": strategy}), 422)
    assert body["errors"] == [{"field": "strategy", "value": strategy, "reason": "not built yet; towers is"}]
    problem(http.post("v1/recommendations", json={"history": [{"item_id": "i00"}], "strategy": strategy}), 422)


@pytest.mark.parametrize("what", ["recommendations", "interests", "explanations", "tags", "history"])
def test_unknown_user_is_404_naming_it(http: httpx.Client, what: str) -> None:
    body = problem(http.get(f"v1/users/nobody/{what}"), 404)
    assert body["errors"] == [{"field": "user_id", "value": "nobody", "reason": "no such user"}]


def test_recommendations_for_a_history_in_the_body_leave_its_items_out(http: httpx.Client) -> None:
    history = [{"item_id": "i00", "behaviour": "purchase"}, {"item_id": "gone", "behaviour": "click"}, {"item_id": "i01"}]
    body = http.post("v1/recommendations", json={"history": history, "k": 5, "tags": ["light tent"]}).raise_for_status().json()
    items = {one["item"]["item_id"] for one in body["items"]}
    assert len(items) == 5 and not items & {"i00", "i01"}
    assert body["user_id"] is None
    assert all(one["reason"] is None or one["reason"]["fallback"] for one in body["items"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"history": [{"item_id": "gone"}]}, "history"),
        ({"history": []}, "history"),
        ({"history": [{"item_id": "i00"}], "k": 101}, "k"),
        ({"history": [{"item_id": "i00", "behaviour": "stare"}]}, "history.0.behaviour"),
        ({"history": [{"item_id": "i00"}], "colour": "red"}, "colour"),
        ({}, "history"),
    ],
)
def test_recommendations_for_a_wrong_body_are_422_naming_the_field(http: httpx.Client, body: dict, field: str) -> None:
    assert problem(http.post("v1/recommendations", json=body), 422)["errors"][0]["field"] == field


# --- what is known of a user -----------------------------------------------------------------------------------------------------


def test_interests_come_by_stretch_with_shift_stage_and_evidence(http: httpx.Client) -> None:
    periods = http.get("v1/users/ada/interests").json()["periods"]
    assert [period["chunk"] for period in periods] == [0, 1]
    assert periods[0]["start"] == "2025-01-10T09:00:00Z"
    found = [[(one["interest"], one["stage"], one["shift"]) for one in period["interests"]] for period in periods]
    assert found == [
        [("hiking in wet weather", "active", "new"), ("running on trails", "emerging", "new")],
        [("hiking in wet weather", "fading", "continued"), ("baking sourdough at home", "active", "new")],
    ]
    assert periods[0]["interests"][0]["evidence"][0] == {"item_id": "i00", "title": "waterproof hiking boots"}
    assert http.get("v1/users/cyd/interests").json()["periods"] == []


def test_explanations_are_those_of_the_recommended_items(http: httpx.Client) -> None:
    recommended = http.get("v1/users/ada/recommendations", params={"k": 6}).json()["items"]
    explained = http.get("v1/users/ada/explanations", params={"k": 6}).json()["explanations"]
    assert [(one["item_id"], one["reason"]) for one in explained] == [(one["item"]["item_id"], one["reason"]) for one in recommended]


def test_history_pages_go_from_newest_to_oldest_without_gap(http: httpx.Client) -> None:
    pages, offset = [], 0
    while offset is not None:
        page = http.get("v1/users/ada/history", params={"limit": 4, "offset": offset}).json()
        pages.append([event["event_id"] for event in page["events"]])
        offset = page["next_offset"]
    assert pages == [["ada-9", "ada-8", "ada-7", "ada-6"], ["ada-5", "ada-4", "ada-3", "ada-2"], ["ada-1", "ada-0"]]
    assert page["total"] == 10
    months = {"2025-01-01": 4, "2025-02-01": 1, "2025-03-01": 4, "2025-04-01": 1}
    assert {one["month"]: one["events"] for one in page["months"]} == months


def test_history_search_has_its_query_and_no_item(http: httpx.Client) -> None:
    events = http.get("v1/users/ada/history").json()["events"]
    (search,) = [event for event in events if event["behaviour"] == "search"]
    assert (search["item"], search["item_id"], search["query"]) == (None, None, "rain jacket")


def test_tags_and_users_come_as_the_tables_have_them(http: httpx.Client) -> None:
    tags = http.get("v1/users/ada/tags").json()["tags"]
    assert [(tag["tag"], tag["category"]) for tag in tags] == [("round proofing basket", "kitchen"), ("light waterproof tent", "outdoor")]
    users = http.get("v1/users", params={"limit": 2}).json()
    assert users["total"] == 3
    assert users["users"][0] == {"user_id": "ada", "attributes": ["climate: rainy"], "num_events": 10, "num_interests": 3}


def test_image_is_the_stored_picture_and_404_without_one(served: Workspace, http: httpx.Client) -> None:
    items = served.artifact("item").read().to_pylist()
    response = http.get("v1/items/i00/image")
    assert (response.headers["content-type"], response.content) == ("image/png", items[0]["image"])
    assert problem(http.get("v1/items/i11/image"), 404)["type"] == "urn:intently:problem:no-image"
    assert problem(http.get("v1/items/i99/image"), 404)["type"] == "urn:intently:problem:unknown-item"


# --- events ------------------------------------------------------------------------------------------------------------------------


def test_event_is_in_the_log_when_the_answer_comes(event_log: Path, http: httpx.Client) -> None:
    sent = cart("one", timestamp="2025-05-01T10:00:00+02:00", request_id="r-1", dwell_s=3.5)
    answer = http.post("v1/events", json=sent).raise_for_status().json()
    assert answer == {"written": 1, "duplicates": 0, "events": [{"event_id": "one", "status": "written"}]}
    (event,) = logged(event_log, "one")
    received = event.pop("received")
    assert received.endswith("Z")
    assert event == sent | {"timestamp": "2025-05-01T08:00:00Z", "value": None, "query": None}


def test_events_many_with_a_duplicate_are_written_once(event_log: Path, http: httpx.Client) -> None:
    many = [cart("m1"), {"event_id": "m2", "user_id": "new", "behaviour": "search", "query": "rain"}, cart("m1")]
    answer = http.post("v1/events", json=many).raise_for_status().json()
    assert [one["status"] for one in answer["events"]] == ["written", "written", "duplicate"]
    again = http.post("v1/events", json=many[0]).raise_for_status().json()
    assert (again["written"], again["duplicates"]) == (0, 1)
    assert [len(logged(event_log, event_id)) for event_id in ("m1", "m2")] == [1, 1]


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (cart("bad", behaviour="stare"), "behaviour"),
        (cart("bad", user_id=""), "user_id"),
        (cart(""), "event_id"),
        (cart("bad", item_id=None), "body"),
        (cart("bad", behaviour="search"), "body"),
        (cart("bad", behaviour="rating"), "body"),
        (cart("bad", value=float("nan")), "value"),
        (cart("bad", timestamp="2025-05-01T10:00:00"), "timestamp"),
        (cart("bad", timestamp="0001-01-01T00:00:00+14:00"), "timestamp"),
        (cart("bad", timestamp="2999-01-01T00:00:00Z"), "timestamp"),
        (cart("bad", colour="red"), "colour"),
        (cart("bad", query="\ud800"), "body"),
        ([cart("good"), cart("bad", behaviour="stare")], "1.behaviour"),
        ([], "body"),
        (None, "body"),
        ("text", "body"),
    ],
)
def test_event_that_is_wrong_is_422_and_nothing_is_written(event_log: Path, http: httpx.Client, event: object, field: str) -> None:
    response = http.post("v1/events", content=json.dumps(event), headers={"Content-Type": "application/json"})
    assert problem(response, 422)["errors"][0]["field"] == field
    assert logged(event_log, "bad") == logged(event_log, "good") == []


def test_events_body_too_large_is_413(http: httpx.Client) -> None:
    body = problem(http.post("v1/events", content=b" " * (5 << 20), headers={"Content-Type": "application/json"}), 413)
    assert "4194304 bytes" in body["detail"]


def test_event_outlives_the_replica_that_took_it(address: str, event_log: Path, http: httpx.Client) -> None:
    assert http.post("v1/events", json=cart("survivor")).raise_for_status().json()["written"] == 1
    (replica,) = [
        process for process in psutil.Process().children(recursive=True) if "ServeReplica:intently" in " ".join(process.cmdline())
    ]
    os.kill(replica.pid, signal.SIGKILL)
    assert len(logged(event_log, "survivor")) == 1
    # Ray starts another replica; it must know the event from the log.
    with httpx.Client(base_url=address, timeout=120) as fresh:
        answer = fresh.post("v1/events", json=cart("survivor"))
        while answer.status_code in (500, 503):
            answer = fresh.post("v1/events", json=cart("survivor"))
    assert answer.json()["events"] == [{"event_id": "survivor", "status": "duplicate"}]
    assert len(logged(event_log, "survivor")) == 1


# --- operations --------------------------------------------------------------------------------------------------------------------


def test_request_id_is_echoed_once_or_made(http: httpx.Client) -> None:
    response = http.get("v1/users/ada/recommendations", headers={"X-Request-ID": "mine-7"})
    assert response.headers.get_list("x-request-id") == ["mine-7"]
    assert response.json()["request_id"] == "mine-7"
    assert len(http.get("healthz").headers["x-request-id"]) >= 16


def test_health_and_readiness_answer_with_versions(served: Workspace, http: httpx.Client) -> None:
    assert http.get("healthz").json()["status"] == "ok"
    versions = http.get("readyz").json()["versions"]
    assert versions["item"] == served.artifact("item").version
    assert versions["towers"] == served.artifact("towers").version


def test_metrics_count_requests_stages_and_reasons(http: httpx.Client) -> None:
    http.get("v1/users/ada/recommendations")
    http.get("v1/users/nobody/tags")
    response = http.get("metrics")
    assert response.headers["content-type"].startswith("text/plain")
    series = {line.split(" ")[0].split("{")[0] for line in response.text.splitlines() if not line.startswith("#")}
    wanted = {"intently_request_seconds_bucket", "intently_stage_seconds_sum", "intently_fallback_share", "intently_artifact_info"}
    assert wanted <= series
    assert 'route="/v1/users/{user_id}/recommendations",status="200"' in response.text
    assert 'route="/v1/users/{user_id}/tags",status="404"' in response.text


def test_openapi_describes_replies_and_problems(http: httpx.Client) -> None:
    assert http.get("docs").status_code == 200
    document = http.get("openapi.json").json()
    operation = document["paths"]["/v1/users/{user_id}/recommendations"]["get"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Recommendations"}
    for status in ("404", "422", "503"):
        assert operation["responses"][status]["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_unknown_path_is_a_problem_too(http: httpx.Client) -> None:
    assert problem(http.get("v1/nothing"), 404)["instance"] == "/v1/nothing"


def test_client_answers_and_raises_what_the_service_says(address: str) -> None:
    with Client(address) as client:
        assert len(client.recommend("ada", k=3, beta=0.5)["items"]) == 3
        assert len(client.recommend_for([{"item_id": "i00", "behaviour": "purchase"}], k=2)["items"]) == 2
        assert client.interests("bob")["periods"][0]["interests"][0]["interest"] == "watching birds"
        assert client.send([cart("from client")])["written"] == 1
        assert len(client.explanations("ada", k=2)["explanations"]) == 2
        with pytest.raises(ServiceError, match=r"404.*'nobody'"):
            client.recommend("nobody")
