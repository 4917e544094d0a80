"""What people did since the tables were made: their newest events, kept until the tables have them.

Every replica is told of every stored event, its own at once and the others' within `SessionConfig.follow_s`. What is here is a cache: a
replica that starts reads it back from the log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from intently.core.schema import Behaviour
from intently.retrieval.interactions import BehaviourConfig

from serve.settings import SessionConfig

MIN_RATING = BehaviourConfig().min_rating
"""A rating of fewer stars is no reason for more of the same, as where the towers are trained."""
LINE = {"event_id": str, "user_id": str, "item_id": str | None, "query": str | None, "value": float | int | None}
"""What a line of the log holds; behaviour and times are checked where they are read."""


@dataclass(frozen=True)
class SessionEvent:
    """One event that came in."""

    event_id: str
    user_id: str
    behaviour: str
    timestamp: datetime
    received: datetime
    item_id: str | None
    query: str | None
    value: float | None

    @property
    def is_impression(self) -> bool:
        """Whether the item was merely shown: nothing that the person did."""
        return self.behaviour == Behaviour.IMPRESSION


def is_dislike(behaviour: str, value: float | None) -> bool:
    """Whether an event says that its item is not wanted."""
    return behaviour == Behaviour.RATING and value is not None and value < MIN_RATING


class Sessions:
    """The newest events by user. For one event loop."""

    def __init__(self, config: SessionConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._config, self._now = config, now
        self._of: OrderedDict[str, tuple[SessionEvent, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, user_id: str) -> bool:
        return bool(self.of(user_id))

    def of(self, user_id: str) -> tuple[SessionEvent, ...]:
        """A user's events of the last hours, in the order of their timestamps."""
        events = self._of.get(user_id)
        if not events:
            return ()
        oldest = self._oldest()
        return tuple(event for event in events if event.received >= oldest)

    def add(self, lines: Iterable[dict]) -> None:
        """Take in events as the log has them; one that is known or too old is passed over."""
        oldest = self._oldest()
        for line in lines:
            event = _event_of(line)
            if event is None or event.received < oldest:
                continue
            known = self._of.get(event.user_id, ())
            if all(event.event_id != other.event_id for other in known):
                recent = sorted((*known, event), key=lambda one: one.timestamp)
                alike = [one for one in recent if one.is_impression == event.is_impression]
                if len(alike) > self._config.max_events:
                    recent.remove(alike[0])
                self._of[event.user_id] = tuple(recent)
                self._of.move_to_end(event.user_id)
        while len(self._of) > self._config.max_users:
            self._of.popitem(last=False)

    def forget_old(self) -> None:
        """Drop users whose last event is too old; call it now and then, so that memory stays flat."""
        oldest = self._oldest()
        while self._of:
            user_id, events = next(iter(self._of.items()))
            if max(event.received for event in events) >= oldest:
                return
            del self._of[user_id]

    def _oldest(self) -> datetime:
        return self._now() - timedelta(hours=self._config.hours)


def _event_of(line: dict) -> SessionEvent | None:
    """None for a line that the service did not write."""
    if not all(isinstance(line.get(name), kinds) for name, kinds in LINE.items()):
        return None
    try:
        times = {name: datetime.fromisoformat(line[name]) for name in ("timestamp", "received")}
        if any(moment.tzinfo is None for moment in times.values()):
            return None
        return SessionEvent(
            event_id=line["event_id"],
            user_id=line["user_id"],
            behaviour=Behaviour(line["behaviour"]).value,
            item_id=line["item_id"],
            query=line["query"],
            value=line["value"],
            **times,
        )
    except (KeyError, TypeError, ValueError):
        return None
