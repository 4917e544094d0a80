"""Answers that leave a replica in one write, so that a kill cuts none off.

uvicorn writes the head of an answer and its body apart. A replica that is killed in between has sent a head without a body, and no proxy
can take that back or ask for it again. After one write the operating system has all of an answer, and delivers it even when the process
is gone; before it, it has nothing, and HAProxy asks another replica (`serve.haproxy`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

INTERIM = b"HTTP/1.1 1"
"""How an answer begins that is none yet, as 100 Continue."""


class Joining:
    """A transport that keeps the head of an answer back until what follows it comes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, with the head that waits; a head waits."""
        if not self._head and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(INTERIM):
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        """Write the head of an answer that has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close, after everything is written."""
        self.flush()
        self._transport.close()


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's protocol over such a transport."""

    transport: Joining  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(Joining(transport))  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        """The application has sent all of an answer."""
        self.transport.flush()
        super().on_response_complete()


def install() -> None:
    """Let the uvicorn servers that this process starts from now on write so, if they name no protocol: Ray Serve names none."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{OneWriteProtocol.__name__}"
