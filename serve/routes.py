"""The endpoints. Handlers are async and short: everything but the disk sync of events is memory access within a millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Discriminator, Field, Tag

from serve.events import Record
from serve.models import (
    EventIn,
    EventReceipt,
    EventReceipts,
    Explanation,
    Explanations,
    Health,
    History,
    Interests,
    Problem,
    RecommendationRequest,
    Recommendations,
    Reload,
    ReloadOutcome,
    Strategy,
    Tags,
    Users,
)
from serve.problems import refuse, response_object
from serve.recommend import Asked
from serve.service import Service

TABLES_HEADER = "X-Tables"
"""Response header: which set of tables answered, see reload.name_of."""

UserId = Annotated[str, Path(description="User.user_id")]
NumItems = Annotated[int, Query(ge=1, le=100, description="most items in the answer")]
Beta = Annotated[
    float | None,
    Query(ge=0, le=1, allow_inf_nan=False, description="weight of the user vector against the tag vector; the swept one if left out"),
]
FilterSeen = Annotated[bool, Query(description="leave out what the user has taken, and what they touched since the training")]


def _form(body: Any) -> str:
    return "many" if isinstance(body, list) else "one"


Events = Annotated[
    Annotated[EventIn, Tag("one")] | Annotated[list[EventIn], Field(min_length=1), Tag("many")],
    Discriminator(_form),
    Body(description="one event or a list of events"),
]


class StrictRoute(APIRoute):
    """A route that refuses query parameters that it does not have, so that a misspelt one is not passed over in silence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the check."""
        known = {parameter.alias for parameter in self.dependant.query_params}
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            unknown = [name for name in request.query_params if name not in known]
            if unknown:
                raise refuse(422, "invalid-request", unknown[0], request.query_params[unknown[0]], "unknown parameter")
            return await handle(request)

        return checked


def user_routes(service: Service) -> APIRouter:
    """What is known of a user, and what they are recommended."""
    router = APIRouter(route_class=StrictRoute, prefix="/v1/users", tags=["users"], responses=_problems(422, 503))

    def known(user_id: str) -> str:
        if user_id not in service.state.histories and user_id not in service.sessions:
            raise refuse(404, "unknown-user", "user_id", user_id, "no such user")
        return user_id

    @router.get("")
    async def users(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Users:
        """Some users, those with mined interests first."""
        return service.state.some_users(limit)

    @router.get("/{user_id}/recommendations", response_model=Recommendations, responses=_problems(404))
    async def recommendations(
        request: Request,
        user_id: UserId,
        k: NumItems = 20,
        beta: Beta = None,
        strategy: Strategy = Strategy.TOWERS,
        filter_seen: FilterSeen = True,
    ) -> Response:
        """Items for a user, best first, each with its reason."""
        _built(strategy, service)
        asked = Asked(k, beta, filter_seen, strategy)
        recommender, tables = service.recommender, service.tables
        items = await recommender.for_user(known(user_id), asked, service.sessions.of(user_id))
        answer = Recommendations(
            request_id=request.headers["x-request-id"],
            user_id=user_id,
            strategy=strategy,
            beta=recommender.beta(asked),
            filter_seen=filter_seen,
            items=items,
        )
        return _as_json(answer, service, tables)

    @router.get("/{user_id}/explanations", responses=_problems(404))
    async def explanations(user_id: UserId, k: NumItems = 20, beta: Beta = None) -> Explanations:
        """The reasons for the items that the user is recommended."""
        asked = Asked(k, beta, filter_seen=True)
        recommender = service.recommender
        found = await recommender.for_user(known(user_id), asked, service.sessions.of(user_id))
        reasons = [Explanation(rank=one.rank, item_id=one.item.item_id, title=one.item.title, reason=one.reason) for one in found]
        return Explanations(user_id=user_id, beta=recommender.beta(asked), explanations=reasons)

    @router.get("/{user_id}/interests", responses=_problems(404))
    async def interests(user_id: UserId) -> Interests:
        """What the user wants and how it changed, oldest stretch of the history first."""
        return service.state.interests_of(known(user_id))

    @router.get("/{user_id}/tags", responses=_problems(404))
    async def tags(user_id: UserId) -> Tags:
        """The item tags predicted for the user."""
        return service.state.tags_of(known(user_id))

    @router.get("/{user_id}/history", responses=_problems(404))
    async def history(
        user_id: UserId,
        offset: Annotated[int, Query(ge=0, description="events to skip, from the newest")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> History:
        """What the user did, newest first; what came in after the tables were made stands before the rest."""
        state = service.state
        return state.histories.page(known(user_id), offset, limit, state.catalogue, service.sessions.of(user_id))

    return router


def item_routes(service: Service) -> APIRouter:
    """Pictures of items, and recommendations for a history that comes with the request."""
    router = APIRouter(route_class=StrictRoute, prefix="/v1")

    @router.get("/items/{item_id}/image", tags=["items"], response_class=Response, responses=_problems(404) | _IMAGE)
    async def image(item_id: str) -> Response:
        """An item's picture."""
        catalogue = service.state.catalogue
        if item_id not in catalogue:
            raise refuse(404, "unknown-item", "item_id", item_id, "no such item")
        picture = catalogue.image(item_id)
        if picture is None:
            raise refuse(404, "no-image", "item_id", item_id, "the item has no picture")
        media_type = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
        return Response(picture, media_type=media_type, headers={"Cache-Control": "public, max-age=3600"})

    @router.post("/recommendations", tags=["users"], response_model=Recommendations, responses=_problems(400, 413, 422, 503))
    async def recommendations(request: Request, body: RecommendationRequest) -> Response:
        """Items for someone whom the service does not know, by what they did. Items of the history are left out."""
        _built(body.strategy, service)
        asked = Asked(body.k, body.beta, filter_seen=True, strategy=body.strategy)
        item_ids, behaviours = [event.item_id for event in body.history], [event.behaviour.value for event in body.history]
        recommender, tables = service.recommender, service.tables
        answer = Recommendations(
            request_id=request.headers["x-request-id"],
            user_id=None,
            strategy=body.strategy,
            beta=recommender.beta(asked),
            filter_seen=True,
            items=await recommender.for_history(item_ids, behaviours, body.tags, asked),
        )
        return _as_json(answer, service, tables)

    return router


def event_routes(service: Service) -> APIRouter:
    """Where behaviour comes in."""
    router = APIRouter(route_class=StrictRoute, prefix="/v1/events", tags=["events"], responses=_problems(400, 413, 422, 503))

    @router.post("")
    async def events(body: Events) -> EventReceipts:
        """Store events. When the answer comes they are on disk; an event_id that was sent before is not stored again."""
        many = body if isinstance(body, list) else [body]
        now = datetime.now(UTC)
        _refuse_impossible(many, now, service)
        with service.telemetry.stage("store_events"):
            written = await service.events.append([_record(event, now) for event in many])
        receipts = [
            EventReceipt(event_id=event.event_id, status="written" if new else "duplicate")
            for event, new in zip(many, written, strict=True)
        ]
        service.telemetry.count_events(sum(written), len(many) - sum(written))
        return EventReceipts(written=sum(written), duplicates=len(many) - sum(written), events=receipts)

    return router


def operations_routes(service: Service) -> APIRouter:
    """For whoever runs the service."""
    router = APIRouter(route_class=StrictRoute, tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok", versions={})

    @router.get("/readyz")
    async def readyz() -> Health:
        """Tables and index are loaded; a replica takes no requests before. `reload` says whether newer ones wait or cannot be loaded."""
        return Health(status="ok", versions=service.state.versions, reload=service.reloader.last)

    @router.post("/v1/admin/reload", responses=_problems(503))
    async def reload() -> Reload:
        """Let the replica that answers look for newer tables now, also for a set that it refused; the others look by themselves."""
        look = asyncio.create_task(service.reloader.check(again=True))
        await asyncio.wait({look}, timeout=0.8 * service.config.timeout_s)
        if look.done():
            return look.result()
        return service.reloader.last.model_copy(update={"outcome": ReloadOutcome.LOADING, "detail": "ask /readyz what came of it"})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
    async def metrics() -> Response:
        """Counters of the replica that answers, for Prometheus."""
        return Response(service.telemetry.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def _built(strategy: Strategy, service: Service) -> None:
    generative = strategy is Strategy.GENERATIVE and service.state.generator is not None
    if strategy is not Strategy.TOWERS and not generative:
        raise refuse(422, "strategy-not-built", "strategy", strategy.value, f"not built yet; {Strategy.TOWERS.value} is")


def _refuse_impossible(events: list[EventIn], now: datetime, service: Service) -> None:
    config = service.config.events
    if len(events) > config.max_events:
        raise refuse(422, "invalid-request", "body", len(events), f"at most {config.max_events} events in one request")
    latest = now + timedelta(seconds=config.max_clock_ahead_s)
    for place, event in enumerate(events):
        if event.timestamp is not None and event.timestamp > latest:
            field = "timestamp" if len(events) == 1 else f"{place}.timestamp"
            raise refuse(422, "invalid-request", field, event.timestamp.isoformat(), "lies in the future")


def _record(event: EventIn, now: datetime) -> Record:
    stamped = event if event.timestamp is not None else event.model_copy(update={"timestamp": now})
    return Record(event.event_id, _Line(**stamped.model_dump(), received=now).model_dump_json().encode())


class _Line(BaseModel):
    """A line of the event log: the columns of Event (but for position, which is the place in the log), and where it came from."""

    event_id: str
    user_id: str
    item_id: str | None
    behaviour: str
    timestamp: datetime
    value: float | None
    query: str | None
    dwell_s: float | None
    request_id: str | None
    received: datetime


def _as_json(answer: Recommendations, service: Service, tables: str) -> Response:
    """The answer, written once: FastAPI would check and convert every field again."""
    with service.telemetry.stage("write"):
        body = answer.__pydantic_serializer__.to_json(answer)
    return Response(body, media_type="application/json", headers={TABLES_HEADER: tables})


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, **response_object(status)} for status in statuses}


_IMAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}, "image/jpeg": {}}, "description": "the picture"}}
