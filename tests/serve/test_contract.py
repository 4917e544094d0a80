"""The service against its own OpenAPI document, and against payloads that nobody would think of."""

from __future__ import annotations

import asyncio
import json
import string
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pyarrow as pa
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intently.core.schema import Behaviour
from intently.core.workspace import Workspace
from intently.data.event_log import EventLogConfig
from intently.data.sources import open_source
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serve.app import create_app
from serve.auth import make_key
from serve.service import Service
from tests.serve.calling import calling, config

KEY, ENTRY = make_key("everything", ("read", "events", "admin"), 1e6, 1_000_000)
QUIET = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.fixture(scope="module")
def app(served: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The application with keys, as a shop would run it."""
    folder = tmp_path_factory.mktemp("contract")
    (folder / "keys.json").write_text(json.dumps({"keys": [json.loads(ENTRY.model_dump_json())]}))
    access = {"keys_file": str(folder / "keys.json")}
    # Every call of the test client starts the application anew and ends it; what follows the log and the tables would end with the first.
    application = create_app(Service.open(config(served, folder / "log", access=access), "contract"))
    application.router.lifespan_context = lambda _: nullcontext()
    yield application


@pytest.fixture(scope="module")
def document(app: FastAPI) -> schemathesis.BaseSchema:
    """What the service says of itself."""
    return schemathesis.openapi.from_asgi("/openapi.json", app)


# One check is left out: it asks that whatever fits the document is accepted, and OpenAPI cannot say that a rating needs a value, that a
# time may not lie in the future, or that a history must hold an item of this catalogue. Those are 422 with the field and the reason.


def examine(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode, path: dict[str, str] | None) -> Counter[int]:
    """Call an operation with generated requests and check every answer; how often each status came."""
    statuses: Counter[int] = Counter()
    fixed = {"path_parameters": path} if path else {}

    @given(case=operation.as_strategy(mode, **fixed))
    @QUIET
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, excluded_checks=[positive_data_acceptance])
        statuses[response.status_code] += 1

    check()
    return statuses


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_contract_every_answer_is_one_that_the_document_describes(
    document: schemathesis.BaseSchema, mode: schemathesis.GenerationMode
) -> None:
    known = {"user_id": "ada", "item_id": "i00"}
    statuses: Counter[int] = Counter()
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:
        names = {parameter.name for parameter in operation.path_parameters}
        positive = mode is schemathesis.GenerationMode.POSITIVE
        if not positive and not (len(operation.query) or len(operation.body)):
            continue  # any identifier is a sound one, so that nothing can be wrong with such a request
        statuses += examine(operation, mode, None)
        if names and positive:
            statuses += examine(operation, mode, {name: known[name] for name in names})
    expected = {200, 404} if mode is schemathesis.GenerationMode.POSITIVE else {422}
    assert expected <= set(statuses) and max(statuses) < 500


# --- event payloads ----------------------------------------------------------------------------------------------------------------

IDENTIFIERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.text(
    string.ascii_letters, min_size=1, max_size=5
)
BEHAVIOURS = st.sampled_from([behaviour.value for behaviour in Behaviour])
MOMENTS = st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
NUMBERS = st.floats(0, 100, allow_nan=False)
SOUND = st.fixed_dictionaries(
    {"event_id": IDENTIFIERS, "user_id": IDENTIFIERS, "item_id": IDENTIFIERS, "behaviour": BEHAVIOURS, "value": NUMBERS},
    optional={"query": IDENTIFIERS, "dwell_s": NUMBERS, "timestamp": MOMENTS, "request_id": IDENTIFIERS},
).map(lambda event: {"query": "q"} | event)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
SPOILT = st.tuples(SOUND, st.sampled_from(["event_id", "user_id", "item_id", "behaviour", "timestamp", "value", "extra"]), JSON).map(
    lambda parts: parts[0] | {parts[1]: parts[2]}
)
BODIES = st.one_of(SOUND, st.lists(SOUND, max_size=5), st.lists(SOUND | SPOILT, max_size=5), SPOILT, JSON)


@given(bodies=st.lists(st.one_of(BODIES.map(lambda body: json.dumps(body).encode()), st.binary(max_size=50)), min_size=1, max_size=20))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_fuzzed_events_are_kept_or_refused_and_never_lost(served: Workspace, bodies: list[bytes]) -> None:
    async def send(log: Path) -> tuple[set[str], Counter[int]]:
        acknowledged: set[str] = set()
        statuses: Counter[int] = Counter()
        async with calling(Service.open(config(served, log), "fuzzed")) as client:
            for body in bodies:
                answer = await client.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
                statuses[answer.status_code] += 1
                acknowledged |= told(answer)
        return acknowledged, statuses

    with TemporaryDirectory() as folder:
        acknowledged, statuses = asyncio.run(send(Path(folder)))
        assert set(statuses) <= {200, 400, 422}
        blocks = list(open_source(EventLogConfig(folder=folder)).events())
        rows = pa.concat_tables(blocks).to_pylist() if blocks else []
        assert {row["event_id"] for row in rows} == acknowledged and len(rows) == len(acknowledged)
        assert all(row["refused"] is None and row["timestamp"] is not None for row in rows)


def told(answer: httpx.Response) -> set[str]:
    return {event["event_id"] for event in answer.json()["events"]} if answer.status_code == 200 else set()
