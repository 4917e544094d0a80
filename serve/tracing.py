"""OpenTelemetry spans, if a collector is configured: one a request, and one inside it for each of its stages. Off by default."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from intently.core.config import Config
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import Field

FIRST_FAILURE = 500
# An exception's own words may quote data.
_NO_WORDS = {"record_exception": False, "set_status_on_exception": False}


class TracingConfig(Config):
    """Where spans go. Headers that a collector asks for are in OTEL_EXPORTER_OTLP_HEADERS, because they may be secret."""

    endpoint: str = Field("", description="OTLP over HTTP, as http://collector:4318/v1/traces; empty: no spans are made")
    share: float = Field(0.01, ge=0, le=1, description="share of requests that are traced; one that comes with a trace follows its caller")
    timeout_s: float = Field(5.0, gt=0, description="longest wait for the collector, off the path of requests")


class Tracing:
    """Makes spans. Names and numbers go into them, nothing that names a person."""

    def __init__(self, config: TracingConfig, replica: str) -> None:
        self._provider: TracerProvider | None = None
        if config.endpoint:
            resource = Resource.create({"service.name": "intently", "service.instance.id": replica})
            self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(config.share)))
            exporter = OTLPSpanExporter(endpoint=config.endpoint, timeout=config.timeout_s)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._tracer = self._provider.get_tracer("intently.serve")

    def request(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[Span | None]:
        """The span of a request, a child of its caller's if the headers name one."""
        if self._provider is None:
            return nullcontext()
        context = TraceContextTextMapPropagator().extract(headers)
        told = {"http.request.method": method}
        return self._tracer.start_as_current_span(method, context, SpanKind.SERVER, told, **_NO_WORDS)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """The span of a stage of the request that is worked on."""
        return nullcontext() if self._provider is None else self._tracer.start_as_current_span(name, **_NO_WORDS)

    def close(self) -> None:
        """Send what is left, and stop."""
        if self._provider is not None:
            self._provider.shutdown()


def describe(span: Span | None, method: str, route: str, status: int) -> None:
    """Say what came of the request that a span stands for."""
    if span is not None:
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= FIRST_FAILURE:
            span.set_status(Status(StatusCode.ERROR))
