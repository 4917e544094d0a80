"""A client of the service in a few lines.

with Client("http://127.0.0.1:8000", key=os.environ["INTENTLY_KEY"]) as client:
    for item in client.recommend("u00017", k=5)["items"]:
        print(item["item"]["title"], item["reason"])
    client.send([{"user_id": "u00017", "item_id": "i00042", "behaviour": "cart"}])

A request that the service sheds (503) or that is lost on the way is sent again. That is safe: reads change nothing, and an event that has
its id is stored once, however often it comes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx

LONGEST_WAIT_S = 10.0


class ServiceError(Exception):
    """The service refused a request; `problem` is what it said (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {problem['detail']}")
        self.status, self.problem = status, problem


class Client:
    """Talks to one service; use as a context manager, or call `close`."""

    def __init__(self, address: str, key: str | None = None, timeout_s: float = 5.0, retries: int = 3) -> None:
        """
        Args:
            address: root of the service.
            key: API key; None for a service without keys.
            timeout_s: longest wait for one answer.
            retries: further attempts after a 503 (once its Retry-After has passed), a lost connection or no answer in time.
        """
        self._retries = retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=address, timeout=timeout_s, headers=headers)

    def recommend(self, user_id: str, k: int = 20, beta: float | None = None, filter_seen: bool = True) -> dict[str, Any]:
        """Items for a user, best first, each with its reason. Raises ServiceError."""
        wanted = {"k": k, "filter_seen": filter_seen} | ({} if beta is None else {"beta": beta})
        return self._get(f"/v1/users/{quote(user_id, safe='')}/recommendations", wanted)

    def recommend_for(self, history: Sequence[Mapping[str, str]], k: int = 20, tags: Sequence[str] = ()) -> dict[str, Any]:
        """Items for someone unknown, by a history of `{"item_id": …, "behaviour": …}`, oldest first. Raises ServiceError."""
        return self._post("/v1/recommendations", {"history": [dict(act) for act in history], "k": k, "tags": list(tags)})

    def interests(self, user_id: str) -> dict[str, Any]:
        """What a user wants and how it changed. Raises ServiceError."""
        return self._get(f"/v1/users/{quote(user_id, safe='')}/interests", {})

    def explanations(self, user_id: str, k: int = 20) -> dict[str, Any]:
        """The reasons for a user's recommended items. Raises ServiceError."""
        return self._get(f"/v1/users/{quote(user_id, safe='')}/explanations", {"k": k})

    def send(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Store events.

        Args:
            events: an `event_id` is put into each that has none, so that after an error the same list can be sent again: whatever of it
                was stored the first time is not stored twice.
        Raises:
            ServiceError: the service refused them.
            httpx.TransportError: no answer came; they may be stored.
        """
        for event in events:
            event.setdefault("event_id", uuid4().hex)
        return self._post("/v1/events", events)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _get(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask(self._http.build_request("GET", path, params=query))

    def _post(self, path: str, body: object) -> dict[str, Any]:
        return self._ask(self._http.build_request("POST", path, json=body))

    def _ask(self, request: httpx.Request) -> dict[str, Any]:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response = self._http.send(request)
            except httpx.TransportError:
                if last:
                    raise
                time.sleep(min(LONGEST_WAIT_S, 0.1 * 2**attempt))
                continue
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or last:
                return _answer(response)
            time.sleep(_wait_s(response))
        raise AssertionError("the last attempt answers or raises")


def _wait_s(response: httpx.Response) -> float:
    wait = response.headers.get("retry-after", "1")
    return min(LONGEST_WAIT_S, float(wait)) if wait.isdigit() else 1.0


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        return response.json()
    if "json" in response.headers.get("content-type", ""):
        raise ServiceError(response.status_code, response.json())
    # Ray's proxy answers in plain text when it sheds load or gives up waiting.
    raise ServiceError(response.status_code, {"detail": response.text})
