"""Requests and replies of the HTTP interface; OpenAPI is made from these."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from intently.core.schema import Behaviour
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Identifier = Annotated[str, Field(min_length=1, max_length=200)]


def _utc(moment: datetime) -> datetime:
    if moment < EPOCH:
        raise ValueError("lies before 1970")
    return moment.astimezone(UTC)


class Strategy(StrEnum):
    """Who proposes the items."""

    TOWERS = "towers"
    """User, item and tag towers with one nearest-neighbour search."""
    GENERATIVE = "generative"
    """Semantic IDs written by a language model; not built yet."""
    AGENT = "agent"
    """A language model that searches over several turns; not built yet."""


class Message(BaseModel):
    """Base of what goes over the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldError(Message):
    """One thing that is wrong with a request."""

    field: str = Field(description="where: a parameter's name or a path into the body, as 'events.3.behaviour'")
    value: JsonValue = Field(description="what was sent, shortened")
    reason: str = Field(description="why it is refused")


class Problem(Message):
    """An error (RFC 9457), sent as application/problem+json."""

    type: str = Field(description="a name for the kind of problem")
    title: str = Field(description="the kind of problem in words")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="this problem in words, with the field and the value")
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="X-Request-ID of the request")
    errors: list[FieldError] = Field(default_factory=list, description="each field that is wrong")


class ItemCard(Message):
    """An item, as short as a card needs it."""

    item_id: str
    title: str
    category: str
    brand: str | None
    price: float | None = Field(description="in the catalogue's currency")
    image: str | None = Field(description="where its picture is, relative to the service's root; null if it has none")


class Reason(Message):
    """Why an item was put forward, written ahead of time."""

    text: str
    interest: str | None = Field(description="the user's interest that it speaks to; null for a reason that fits anybody")
    fallback: bool = Field(description="true for a reason that fits anybody, used when none of the user's interests has one")


class Recommendation(Message):
    """One recommended item."""

    rank: int = Field(description="0 is the best")
    score: float = Field(description="higher is better, comparable within one answer")
    item: ItemCard
    interest: str | None = Field(description="the user's interest that the item serves, if one is known")
    reason: Reason | None


class Recommendations(Message):
    """Answer to a request for recommendations."""

    request_id: str = Field(description="X-Request-ID; send it back with events that follow from this answer")
    user_id: str | None = Field(description="null for a history sent in the body")
    strategy: Strategy
    beta: float = Field(description="weight of the user vector against the tag vector, 0 to 1")
    filter_seen: bool
    items: list[Recommendation]


class Explanation(Message):
    """The reason for one recommended item."""

    rank: int
    item_id: str
    title: str
    reason: Reason | None


class Explanations(Message):
    """The reasons for the items that a user is recommended."""

    user_id: str
    beta: float
    explanations: list[Explanation]


class Evidence(Message):
    """An item that supports an interest."""

    item_id: str
    title: str | None = Field(description="null when the catalogue no longer has the item")


class Interest(Message):
    """One interest of one stretch of a history."""

    rank: int = Field(description="0 was named first")
    interest: str
    stage: str = Field(description="emerging, active or fading")
    shift: str = Field(description="against the stretch before: new, continued or returned")
    reason: str
    evidence: list[Evidence]
    score: float | None = Field(description="S_final of the search tree, if it was used")


class Branch(Message):
    """One of the readings of a stretch that tree search chose from."""

    path: str = Field(description="readings chosen from the oldest stretch down to this one, as '0/3/1'")
    interests: list[str]
    s_continuity: float | None = Field(description="how probably it goes on from the stretch before with a gain; null for the first")
    s_effectiveness: float | None = Field(description="how probably it foretells better than the raw behaviours")
    s_final: float | None = Field(description="what the choice went by")
    chosen: bool = Field(description="whether the path goes through it")


class InterestPeriod(Message):
    """A stretch of a history and the interests read from it."""

    chunk: int = Field(description="0 is the oldest stretch")
    start: datetime | None = Field(description="time of its first event")
    end: datetime | None = Field(description="time of its last event")
    interests: list[Interest]
    branches: list[Branch] = Field(description="all readings of this stretch; empty where interests were not found by tree search")


class Interests(Message):
    """What a user wants and how it changed, oldest stretch first."""

    user_id: str
    periods: list[InterestPeriod]


class TagCard(Message):
    """A predicted item tag."""

    rank: int
    tag: str
    interest: str
    category: str | None
    reason: str


class Tags(Message):
    """The item tags predicted for a user."""

    user_id: str
    tags: list[TagCard]


class HistoryEvent(Message):
    """One behaviour of a user."""

    event_id: str
    behaviour: str
    timestamp: datetime
    item: ItemCard | None = Field(description="null for a search without a choice, or an item that the catalogue no longer has")
    item_id: str | None
    query: str | None
    value: float | None = Field(description="stars of a rating")
    session: bool = Field(description="true for an event that came in after the tables were made")


class MonthCount(Message):
    """How much a user did in a month."""

    month: date = Field(description="first day of the month")
    events: int


class History(Message):
    """A stretch of a user's behaviour, newest first."""

    user_id: str
    total: int = Field(description="events in the whole history")
    next_offset: int | None = Field(description="offset of the next stretch; null at the end")
    months: list[MonthCount] = Field(description="the whole history by month, oldest first; months without events are left out")
    events: list[HistoryEvent]


class UserCard(Message):
    """A user, as a list shows them."""

    user_id: str
    attributes: list[str]
    num_events: int
    num_interests: int


class Users(Message):
    """Some users, those with mined interests first."""

    total: int
    users: list[UserCard]


class HistoryItem(Message):
    """One behaviour of someone whom the service does not know."""

    item_id: Identifier
    behaviour: Behaviour = Behaviour.CLICK


class RecommendationRequest(Message):
    """A history, oldest first, and how many items are wanted for it."""

    history: list[HistoryItem] = Field(min_length=1, max_length=2000)
    tags: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list, max_length=100, description="item tags that say what is wanted, as 'waterproof hiking boots'"
    )
    k: int = Field(20, ge=1, le=100)
    beta: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    strategy: Strategy = Strategy.TOWERS


class EventIn(Message):
    """One behaviour, reported by the shop. Sending it again with the same event_id changes nothing."""

    event_id: Identifier
    user_id: Identifier
    behaviour: Behaviour
    item_id: Identifier | None = Field(None, description="on what; may be left out for a search only")
    timestamp: Annotated[AwareDatetime, AfterValidator(_utc)] | None = Field(
        None, description="when, with its time zone; the time of arrival if left out"
    )
    value: float | None = Field(None, ge=0, le=100, allow_inf_nan=False, description="stars, for a rating")
    query: str | None = Field(None, min_length=1, max_length=1000, description="what was typed, for a search")
    dwell_s: float | None = Field(None, ge=0, le=86_400, allow_inf_nan=False, description="seconds spent")
    request_id: Identifier | None = Field(None, description="Recommendations.request_id that showed the item")

    @model_validator(mode="after")
    def _has_what_its_behaviour_needs(self) -> Self:
        if self.behaviour is Behaviour.SEARCH:
            if self.query is None:
                raise ValueError("a search needs query")
        elif self.item_id is None:
            raise ValueError(f"behaviour {self.behaviour.value} needs item_id")
        if self.behaviour is Behaviour.RATING and self.value is None:
            raise ValueError("a rating needs value")
        return self


class EventReceipt(Message):
    """What became of one event."""

    event_id: str
    status: Literal["written", "duplicate"]


class EventReceipts(Message):
    """Every event below is on disk."""

    written: int
    duplicates: int
    events: list[EventReceipt]


class ReloadOutcome(StrEnum):
    """What came of a look for newer tables."""

    CURRENT = "current"
    """The newest tables are in use."""
    LOADED = "loaded"
    """Newer tables were found, and are in use now."""
    WAITING = "waiting"
    """Newer tables stand that were not made from each other: a pipeline is under way; the old ones answer."""
    FAILED = "failed"
    """Newer tables cannot be loaded; the old ones answer."""
    LOADING = "loading"
    """The look goes on; /readyz will say what came of it."""


class Reload(Message):
    """The last look for newer tables, and what is in use since."""

    outcome: ReloadOutcome
    detail: str = Field(description="why, in words")
    at: datetime = Field(description="when it ended")
    versions: dict[str, str] = Field(description="artifact → version that answers now")


class Health(Message):
    """Whether the service works, and on which versions of which tables."""

    status: Literal["ok"]
    versions: dict[str, str] = Field(description="artifact → version; empty for the liveness check")
    reload: Reload | None = Field(None, description="what the replica found when it last looked for newer tables")
