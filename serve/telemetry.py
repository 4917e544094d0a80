"""What is measured of every request: figures for Prometheus, spans, a log line, and the ASGI layer that makes them."""

from __future__ import annotations

import sys
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.logs import REQUEST, LogConfig, log_request
from serve.problems import ProblemError
from serve.tracing import Tracing, TracingConfig, describe

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0)
REQUEST_ID = "x-request-id"


class Telemetry:
    """The counters of one replica; its name is a label, so that replicas do not overwrite each other."""

    def __init__(
        self, replica: str, versions: Mapping[str, str], log: LogConfig | None = None, tracing: TracingConfig | None = None
    ) -> None:
        """
        Args:
            replica: its name.
            versions: artifact → version of the tables in use.
            log: which requests are logged; None logs the failed ones.
            tracing: where spans go; None makes none.
        """
        self.registry = CollectorRegistry()
        self.replica = replica
        self.log = log or LogConfig()
        self.tracing = Tracing(tracing or TracingConfig(), replica)
        self._kinds: Tally[str] = Tally()
        self._requests = self._histogram("intently_request_seconds", "Time to answer.", "route", "status")
        self._stages = self._histogram("intently_stage_seconds", "Time within a request, by stage.", "stage")
        self._reasons = self._counter("intently_reasons_total", "Recommended items by the kind of their reason.", "kind")
        self._answers = self._counter("intently_answers_total", "Answers with recommendations, by who proposed the items.", "source")
        self._empty = self._counter("intently_empty_answers_total", "Answers without a single item.")
        self._unknown = self._counter("intently_unknown_candidates_total", "Candidates that the catalogue does not have.")
        self._lookups = self._counter("intently_reason_lookups_total", "Items by whether their reasons were remembered.", "result")
        self._failures = self._counter("intently_reason_failures_total", "Answers whose reasons could not be looked up.")
        self._events = self._counter("intently_events_total", "Events received, by what became of them.", "status")
        fallback = Gauge(
            "intently_fallback_share", "Share of recommended items whose reason fits anybody.", ["replica"], registry=self.registry
        )
        fallback.labels(replica).set_function(self._fallback_share)
        self._artifacts = Gauge("intently_artifact_info", "Versions in use.", ["replica", "artifact", "version"], registry=self.registry)
        self.use_versions(versions)

    def use_versions(self, versions: Mapping[str, str]) -> None:
        """Other tables are in use from now on."""
        self._artifacts.clear()
        for artifact, version in versions.items():
            self._artifacts.labels(self.replica, artifact, version).set(1)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of a request."""
        start = time.perf_counter()
        try:
            with self.tracing.stage(name):
                yield
        finally:
            self._stages.labels(self.replica, name).observe(time.perf_counter() - start)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(self.replica, route, str(status)).observe(seconds)

    def count_answer(self, source: str, reasons: Mapping[str, int], unknown_candidates: int) -> None:
        """Recommendations were answered, with so many reasons of each kind (interest, fallback, none)."""
        self._answers.labels(self.replica, source).inc()
        self._kinds.update(reasons)
        for kind, number in reasons.items():
            self._reasons.labels(self.replica, kind).inc(number)
        if not sum(reasons.values()):
            self._empty.labels(self.replica).inc()
        if unknown_candidates:
            self._unknown.labels(self.replica).inc(unknown_candidates)

    def count_lookups(self, hits: int, misses: int, failed: bool) -> None:
        """Reasons were looked up for an answer: so many items were remembered, for so many the store was asked."""
        self._lookups.labels(self.replica, "hit").inc(hits)
        self._lookups.labels(self.replica, "miss").inc(misses)
        if failed:
            self._failures.labels(self.replica).inc()

    def count_events(self, written: int, duplicates: int) -> None:
        """Events were stored."""
        self._events.labels(self.replica, "written").inc(written)
        self._events.labels(self.replica, "duplicate").inc(duplicates)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _fallback_share(self) -> float:
        return self._kinds["fallback"] / self._kinds.total() if self._kinds.total() else 0.0

    def _histogram(self, name: str, doc: str, *labels: str) -> Histogram:
        return Histogram(name, doc, ["replica", *labels], registry=self.registry, buckets=SECONDS)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(name, doc, ["replica", *labels], registry=self.registry)


class Measured:
    """ASGI layer: times each request under its route, gives it an id if it has none, and refuses bodies that are too large.

    The answer's X-Request-ID header is added by Ray's own proxy.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, max_body_bytes: int) -> None:
        self._app, self._telemetry, self._max_body_bytes = app, telemetry, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        if REQUEST_ID not in headers:
            headers[REQUEST_ID] = uuid4().hex
        start, status, received = time.perf_counter(), 500, 0
        told = REQUEST.set(headers[REQUEST_ID])

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise ProblemError(413, "body-too-large", f"the body is larger than {self._max_body_bytes} bytes")
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"]
        with self._telemetry.tracing.request(method, headers) as span:
            try:
                await self._app(scope, limited_receive, noting_send)
            finally:
                route = scope.get("route")
                path, seconds = route.path if route is not None else "(none)", time.perf_counter() - start
                self._telemetry.count_request(path, status, seconds)
                describe(span, method, path, status)
                log_request(self._telemetry.log, method, path, status, seconds, sys.exception())
                REQUEST.reset(told)
