"""A client of the service in a few lines.

with Client("http://127.0.0.1:8000") as client:
    for item in client.recommend("u00017", k=5)["items"]:
        print(item["item"]["title"], item["reason"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx


class ServiceError(Exception):
    """The service refused a request; `problem` is what it said (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {problem['detail']}")
        self.status, self.problem = status, problem


class Client:
    """Talks to one service; use as a context manager, or call `close`."""

    def __init__(self, address: str, timeout_s: float = 5.0) -> None:
        self._http = httpx.Client(base_url=address, timeout=timeout_s)

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

    def send(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Store events; after an error send the same ones again, none is stored twice. Raises ServiceError."""
        return self._post("/v1/events", [dict(event) for event in events])

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _get(self, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return _answer(self._http.get(path, params=query))

    def _post(self, path: str, body: object) -> dict[str, Any]:
        return _answer(self._http.post(path, json=body))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        return response.json()
    if "json" in response.headers.get("content-type", ""):
        raise ServiceError(response.status_code, response.json())
    # Ray's proxy answers in plain text when it sheds load or gives up waiting.
    raise ServiceError(response.status_code, {"detail": response.text})
