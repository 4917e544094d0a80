"""What the service tells of itself: log lines, spans at a real OTLP receiver, and a dashboard that asks only for what is exported."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from intently.core.workspace import Workspace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serve.app import create_app
from serve.logs import LOGGER, LogConfig
from serve.service import Service
from tests.serve.calling import calling, config

DASHBOARD = Path(__file__).parents[2] / "serve" / "grafana" / "intently.json"
CART = {"event_id": "secret-event", "user_id": "ada", "item_id": "i03", "behaviour": "cart"}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests' coroutines."""
    return "asyncio"


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    """A service takes the log over; other tests want theirs back."""
    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield
    for handler in LOGGER.handlers:
        handler.close()
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


class Collector:
    """An OTLP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.app = FastAPI()
        self.app.post("/v1/traces")(self.receive)
        self.endpoint = ""

    async def receive(self, request: Request) -> Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.body()))
        return Response(media_type="application/x-protobuf")

    def spans(self) -> list[Span]:
        return [
            span for sent in self.requests for resource in sent.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    receiver = Collector()
    listening = socket.create_server(("127.0.0.1", 0))
    runner = uvicorn.Server(uvicorn.Config(receiver.app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces"
    yield receiver
    runner.should_exit = True
    runner.force_exit = True
    thread.join()
    listening.close()


async def test_log_has_a_line_a_request_with_its_id_and_nobody_in_it(served: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "service.log"
    settings = config(served, tmp_path / "events").model_copy(update={"log": LogConfig(requests="all", file=str(file))})
    service = Service.open(settings, "replica-1")
    async with calling(service) as client:
        headers = {"X-Request-ID": "mine-1", "Authorization": "Bearer s3cret"}
        await client.get("/v1/users/ada/recommendations?k=3", headers=headers)
        await client.get("/v1/users/nobody/tags", headers={"X-Request-ID": "mine-2"})
        await client.post("/v1/events", json=CART)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/v1/users/{user_id}/recommendations", 200),
        ("GET", "/v1/users/{user_id}/tags", 404),
        ("POST", "/v1/events", 200),
    ]
    assert [line["request_id"] for line in lines[:2]] == ["mine-1", "mine-2"] and len(lines[2]["request_id"]) >= 16
    assert {(line["replica"], line["level"], line["message"]) for line in lines} == {("replica-1", "info", "request")}
    assert all(line["ms"] > 0 and line["time"].endswith("+00:00") for line in lines)
    assert not re.search("ada|nobody|s3cret|i03|secret-event", file.read_text())


async def test_log_of_a_failure_says_where_and_not_with_what(served: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "service.log"
    settings = config(served, tmp_path / "events").model_copy(update={"log": LogConfig(file=str(file))})
    service = Service.open(settings, "replica-1")
    app = create_app(service)

    @app.get("/broken/{user_id}")
    async def broken(user_id: str) -> None:
        logging.getLogger("serve.somewhere").warning("about to break")
        raise KeyError(user_id)

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/broken/ada", headers={"X-Request-ID": "mine-3"})
    assert answer.status_code == 500 and "ada" not in answer.json()["detail"]
    warned, failed = [json.loads(line) for line in file.read_text().splitlines()]
    assert (warned["level"], warned["message"], warned["request_id"]) == ("warning", "about to break", "mine-3")
    assert (failed["level"], failed["error"], failed["route"], failed["request_id"]) == ("error", "KeyError", "/broken/{user_id}", "mine-3")
    assert failed["at"][-1].endswith(" broken") and "test_observability.py" in failed["at"][-1]
    assert "ada" not in file.read_text()


async def test_tracing_sends_a_span_a_request_with_its_stages_inside(served: Workspace, tmp_path: Path, collector: Collector) -> None:
    service = Service.open(config(served, tmp_path / "events", tracing={"endpoint": collector.endpoint, "share": 1.0}), "replica-1")
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with calling(service) as client:
        await client.get("/v1/users/ada/recommendations", headers={"traceparent": f"00-{trace}-{caller}-01"})
        await client.post("/v1/events", json=CART)
        await client.get("/v1/users/nobody/tags")
    spans = {span.name: span for span in collector.spans()}
    request = spans["GET /v1/users/{user_id}/recommendations"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (trace, caller)
    for stage in ("retrieve", "explain"):
        assert (spans[stage].trace_id, spans[stage].parent_span_id) == (request.trace_id, request.span_id)
        assert request.start_time_unix_nano <= spans[stage].start_time_unix_nano <= spans[stage].end_time_unix_nano
    assert spans["store_events"].parent_span_id == spans["POST /v1/events"].span_id
    told = {one.key: one.value.string_value or one.value.int_value for one in spans["GET /v1/users/{user_id}/tags"].attributes}
    assert told == {"http.request.method": "GET", "http.route": "/v1/users/{user_id}/tags", "http.response.status_code": 404}
    resource = {one.key: one.value.string_value for one in collector.requests[0].resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.instance.id"]) == ("intently", "replica-1")
    assert not any(re.search(b"ada|nobody|i03", sent.SerializeToString()) for sent in collector.requests)


async def test_tracing_is_off_unless_an_endpoint_is_set_and_leaves_callers_decisions_alone(
    served: Workspace, tmp_path: Path, collector: Collector
) -> None:
    async with calling(Service.open(config(served, tmp_path / "off"), "r")) as client:
        await client.get("/healthz")
    rare = config(served, tmp_path / "rare", tracing={"endpoint": collector.endpoint, "share": 0.0})
    async with calling(Service.open(rare, "r")) as client:
        await client.get("/healthz")
        await client.get("/readyz", headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    assert [span.name for span in collector.spans()] == ["GET /readyz"]


async def test_metrics_count_what_was_remembered_of_the_reasons(served: Workspace, tmp_path: Path) -> None:
    async with calling(Service.open(config(served, tmp_path / "events"), "r")) as client:
        for _ in range(2):
            await client.get("/v1/users/ada/recommendations?k=100&filter_seen=false")
        text = (await client.get("/metrics")).text
    assert 'intently_reason_lookups_total{replica="r",result="miss"} 12.0' in text
    assert 'intently_reason_lookups_total{replica="r",result="hit"} 12.0' in text
    # The knife's, asked for twice; the mountain guide has one for Ada's hiking as well.
    assert re.search(r'intently_reasons_total\{kind="fallback",replica="r"\} 2\.0', text)
    assert "intently_fallback_share" in text


async def test_dashboard_asks_only_for_what_the_service_exports(served: Workspace, tmp_path: Path) -> None:
    async with calling(Service.open(config(served, tmp_path / "events"), "r")) as client:
        text = (await client.get("/metrics")).text
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    exported = families | {f"{family}_{part}" for family in families for part in ("bucket", "sum", "count")}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"intently_\w+", query)}
    assert len(asked) > 10 and asked <= exported, asked - exported
    assert all(panel["title"] and panel["targets"] for panel in dashboard["panels"])
    unseen = {family.removesuffix("_created") for family in families if family.startswith("intently_")} - {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked
    }
    assert not unseen, f"exported, and on no panel: {unseen}"
