"""How Ray Serve's HAProxy is set up, so that a replica that dies costs nobody an answer.

    eval "$(python -m serve.haproxy)"        before `ray start`, on the head and on every worker

Ray writes HAProxy's configuration itself and takes settings from the environment. A request is repeated on another replica when the first
one ended before it began to answer: a read changes nothing, and an event is stored once however often it is sent. HAProxy can only repeat
what it has whole, so it waits for the body. What it has to refuse itself is a problem like the service's own: 503, try again.
"""

from __future__ import annotations

import shlex
from pathlib import Path

UNAVAILABLE = Path(__file__).with_name("unavailable.http")
BUFFER_BYTES = 65_536


def environment() -> dict[str, str]:
    """Variables for `ray start`, and for a process that starts Ray itself."""
    # Ray has no parameter for further lines. The balance is the last of HAProxy's defaults; what follows replaces what Ray wrote above it.
    lines = ["leastconn", "option http-buffer-request", *(f"errorfile {status} {UNAVAILABLE}" for status in (502, 503, 504))]
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Handlers run on the replica's own loop.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(lines),
    }


if __name__ == "__main__":
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment().items()))
