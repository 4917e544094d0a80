"""A real OpenAI-compatible server on a local port, whose answers a test decides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

Respond = Callable[[dict[str, Any]], Awaitable[Response]]
PROMPT_TOKENS, COMPLETION_TOKENS = 7, 2


@contextmanager
def chat_server(respond: Respond) -> Iterator[str]:
    """The server while the block runs; yields its base_url."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        return await respond(await request.json())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        runner = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            runner.should_exit = runner.force_exit = True
            thread.join()


def completion(*texts: str) -> JSONResponse:
    """The answer of a well-behaved server: 7 tokens read, 2 written for each text."""
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS * len(texts)}
    return JSONResponse({"object": "chat.completion", "choices": choices, "usage": usage})
