"""Every answer that an engine gave, kept in the workspace: a run that was killed, or a later one, never pays for the same request twice.

A request is known by its content: the engine's model identity, the rendered messages with their pictures, the sampling and the schema.
Answers lie in `{root}/request_cache/{model}/{writer}.jsonl`. Every writer (one engine in one process) appends to a file of its own, line
by line, so that any number of actors on any number of machines write side by side without a lock; a line that was cut by a kill
has no end and is passed over. A memory-mapped store (LMDB) would be one a machine, and a run that is taken up elsewhere would not find
it. On an object store, which cannot append, a writer puts a numbered file every few seconds, and at the end of every call, instead.

Cost is counted once: a line names the part of the artifact that paid. The same part, run again, counts its tokens again, because its
first count was lost with it; everybody else who finds the answer counts none, and says that it was reused.

A request that kills the engine would kill it again in every run. An engine is therefore marked as begun before a part asks it, and
the mark is taken back when the call has come to an end, whatever it brought. A part of whose beginnings BEGINS came to no end and to no
new answer is asked request by request, each marked in the same way; one that was tried TRIES times so fails, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyarrow import fs

from intently.core.config import Config
from intently.core.errors import EngineError, WorkspaceError
from intently.core.workspace import Stage, Workspace
from intently.llm.contract import Engine, OnReply, Reply, Request
from intently.llm.engines.pace import BudgetSpentError

FOLDER = "request_cache"
BEGINS, TRIES = 3, 2
BEGIN, STOP, TRY, UNTRY = "begin", "stop", "try", "untry"
"""First words of lines that are no answers; the second takes back the first, the fourth the third."""
SECONDS_A_FILE = 5.0
"""Seconds of answers that a kill may cost on an object store; nothing is lost on a local folder."""


def model_identity(config: Config) -> str:
    """12 hex digits of everything about an engine that decides what it answers."""
    return hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()[:12]


def request_key(model: str, request: Request) -> str:
    """32 hex digits of a request's content; its id is none of it."""
    pictures = [hashlib.sha256(image).hexdigest() for image in request.images]
    content: list[Any] = [model, request.messages, request.sampling.model_dump(mode="json"), request.json_schema, pictures]
    content += [request.choices] if request.choices else []
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """An answer of the cache: the reply as it was paid for, and the parts that paid (several, if two asked at the same moment)."""

    reply: Reply
    payers: frozenset[str]


@dataclass
class RequestCache:
    """The answers of one model. In memory is only where each one lies: about 200 bytes an answer.

    Args:
        workspace: holds the files.
        model: `model_identity`.
    """

    workspace: Workspace
    model: str
    _places: dict[bytes, list[tuple[str, int, int]]] = field(default_factory=dict)  # key → (file, offset, length)
    _read_to: dict[str, int] = field(default_factory=dict)
    _fresh: dict[bytes, Kept] = field(default_factory=dict)  # written by this writer since the last refresh
    _answers: Counter[str] = field(default_factory=Counter)  # part → answers that it paid for
    _begun: Counter[tuple[str, str]] = field(default_factory=Counter)  # (part, answers it had then) → how often it was begun
    _tries: Counter[bytes] = field(default_factory=Counter)
    _tried_by: dict[str, set[bytes]] = field(default_factory=dict)
    _writer: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        self._log = _Log(self.workspace, self.workspace.path(FOLDER, self.model, self._writer))
        self.refresh()

    def refresh(self) -> None:
        """Take in what others, and this writer, have written since."""
        self._log.flush()
        folder = self.workspace.path(FOLDER, self.model)
        for info in self.workspace.filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
            if info.path.endswith(".jsonl") and info.size > self._read_to.get(info.path, 0):
                self._index(info.path, info.size)
        self._fresh.clear()

    def find(self, key: str) -> Kept | None:
        """The answer to a request; its `request_id` is empty."""
        digest = bytes.fromhex(key)
        if digest in self._fresh:
            return self._fresh[digest]
        found = [line for place in self._places.get(digest, ()) if (line := _parse(self._read(*place)))]
        return Kept(found[0][1], frozenset(payer for payer, _ in found)) if found else None

    def add(self, key: str, payer: str, reply: Reply) -> None:
        """Keep an answer. It is in the file when this returns (on an object store within SECONDS_A_FILE)."""
        content = {
            "texts": reply.texts,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cached_tokens": reply.cached_tokens,
            "cost": reply.cost,
            "probabilities": reply.probabilities,
        }
        self._log.write(f"{key}\t{payer}\t{json.dumps(content)}\n".encode())
        self._fresh[bytes.fromhex(key)] = Kept(replace(reply, request_id=""), frozenset({payer}))

    @contextmanager
    def asking(self, payer: str) -> Iterator[bool]:
        """An engine is asked for a part while the block runs; whether request by request, because it seems to die of one of them."""
        self.refresh()
        answers = str(self._answers[payer])
        unsolved = any(self._tries[key] > 0 and key not in self._places for key in self._tried_by.get(payer, ()))
        try:
            with self._marked(BEGIN, STOP, payer, answers):
                yield unsolved or self._begun[payer, answers] + 1 >= BEGINS
        finally:
            self._log.flush()

    @contextmanager
    def trying(self, payer: str, key: str) -> Iterator[None]:
        """A request is asked alone while the block runs."""
        with self._marked(TRY, UNTRY, payer, key):
            yield

    def tries(self, key: str) -> int:
        """How often the engine died, or was killed, while a request was asked alone."""
        return self._tries[bytes.fromhex(key)]

    @contextmanager
    def _marked(self, word: str, back: str, payer: str, about: str) -> Iterator[None]:
        """A line before the block, and one that takes it back behind it, unless the engine died in it; a kill leaves the first, too."""
        died = False
        self._log.write(f"{word}\t{payer}\t{about}\n".encode())
        self._log.flush()
        try:
            yield
        except EngineError as error:
            died = not isinstance(error, BudgetSpentError)
            raise
        finally:
            if not died:
                self._log.write(f"{back}\t{payer}\t{about}\n".encode())

    def close(self) -> None:
        """Write what is not written yet."""
        self._log.flush()

    def _index(self, path: str, size: int) -> None:
        start = self._read_to.get(path, 0)
        content = self._read(path, start, size - start)
        offset = 0
        while (end := content.find(b"\n", offset)) >= 0:
            first, _, others = content[offset:end].partition(b"\t")
            payer, _, about = others.partition(b"\t")
            digest = _digest(first)
            if digest is not None:
                self._places.setdefault(digest, []).append((path, start + offset, end - offset))
                self._answers[payer.decode(errors="replace")] += 1
            else:
                self._heed(first.decode(errors="replace"), payer.decode(errors="replace"), about.decode(errors="replace"))
            offset = end + 1
        self._read_to[path] = start + offset

    def _heed(self, word: str, payer: str, about: str) -> None:
        match word:
            case "begin":
                self._begun[payer, about] += 1
            case "stop":
                self._begun[payer, about] -= 1
            case "try" if digest := _digest(about.encode()):
                self._tries[digest] += 1
                self._tried_by.setdefault(payer, set()).add(digest)
            case "untry" if digest := _digest(about.encode()):
                self._tries[digest] -= 1

    def _read(self, path: str, offset: int, length: int) -> bytes:
        with self.workspace.filesystem.open_input_file(path) as file:
            return file.read_at(length, offset)


class _Log:
    """Lines of one writer: appended to a file on a local disk, put as numbered files elsewhere."""

    def __init__(self, workspace: Workspace, path: str) -> None:
        self._workspace, self._path = workspace, path
        self._local = isinstance(workspace.filesystem, fs.LocalFileSystem)
        self._descriptor: int | None = None
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._number = 0

    def write(self, line: bytes) -> None:
        if self._local:
            self._append(line)
            return
        with self._lock:
            self._waiting.append(line)
            if self._timer is None:
                self._timer = threading.Timer(SECONDS_A_FILE, self._flush_late)
                self._timer.daemon = True
                self._timer.start()

    def _append(self, line: bytes) -> None:
        try:
            if self._descriptor is None:
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(f"{self._path}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(self._descriptor, line)  # with the system when this returns: a killed process loses nothing
        except OSError as error:
            raise WorkspaceError(f"{self._path}.jsonl: cannot be written: {error}") from error

    def flush(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._waiting:
                self._workspace.write_bytes(f"{self._path}-{self._number:06d}.jsonl", b"".join(self._waiting))
                self._number += 1
                self._waiting.clear()

    def _flush_late(self) -> None:
        with suppress(WorkspaceError):  # the lines go on waiting, and the flush at the end of the call says what is wrong
            self.flush()


class CachedEngine:
    """An engine that asks only what the cache cannot answer.

    Args:
        engine: answers the rest.
        cache: of that engine's model.
        artifact: what is being made, as name@version: it pays.
    """

    def __init__(self, engine: Engine, cache: RequestCache, artifact: str) -> None:
        self._engine, self._cache, self._artifact = engine, cache, artifact
        self._payer = artifact
        self._counted: set[str] = set()

    @classmethod
    def of(cls, engine: Engine, config: Config, stage: Stage) -> CachedEngine:
        """The engine that `config` describes, with the cache in the stage's workspace."""
        return cls(engine, RequestCache(stage.workspace, model_identity(config)), f"{stage.name}@{stage.version}")

    @property
    def name(self) -> str:
        """The name of the engine inside."""
        return self._engine.name

    def begin(self, part: str) -> None:
        """From now on this part pays. Answers that others wrote meanwhile are taken in."""
        self._payer = f"{self._artifact}/{part}"
        self._counted.clear()
        self._cache.refresh()

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order. Equal requests are asked once; a failed one is not kept and may be asked again later.

        Raises:
            EngineError: as the engine inside; what it had answered before is kept.
        """
        call = _Call(self._cache, self._payer, self._counted, on_reply)
        asked = call.admit(requests)
        if asked:
            with self._cache.asking(self._payer) as alone:
                if alone:
                    self._ask_alone(asked, call)
                else:
                    self._engine.generate(asked, call.told)
        return call.in_order()

    def _ask_alone(self, requests: list[Request], call: _Call) -> None:
        for request in requests:  # which grows while it is walked
            key = call.key_of(request)
            if self._cache.tries(key) >= TRIES:
                requests += call.told(Reply(request.request_id, (), "the engine died of it", 0, 0))
                continue
            replies: list[Reply] = []
            with self._cache.trying(self._payer, key):
                self._engine.generate([request], replies.append)
            requests += call.told(replies[0])

    def close(self) -> None:
        """Close the engine inside and the file."""
        self._cache.close()
        self._engine.close()


class _Call:
    """One call: what was asked, what the cache knew, and who waits for whom."""

    def __init__(self, cache: RequestCache, payer: str, counted: set[str], on_reply: OnReply | None) -> None:
        self._cache, self._payer, self._counted, self._on_reply = cache, payer, counted, on_reply
        self._requests: list[Request] = []
        self._replies: dict[int, Reply] = {}
        self._waiting: dict[str, list[int]] = {}  # key → places of equal requests, of which the first is asked
        self._keys: dict[str, str] = {}  # id of a request that is asked → its key

    def admit(self, requests: Sequence[Request]) -> list[Request]:
        """What must be asked of the engine; everything else is answered, and so is what follows from it."""
        asked, queue = [], list(requests)
        for request in queue:  # which grows while it is walked
            self._requests.append(request)
            place, key = len(self._requests) - 1, request_key(self._cache.model, request)
            if key in self._waiting:
                self._waiting[key].append(place)
            elif kept := self._cache.find(key):
                queue += self._hand(place, key, kept.reply, self._payer in kept.payers)
            else:
                self._waiting[key] = [place]
                self._keys[request.request_id] = key
                asked.append(request)
        return asked

    def key_of(self, request: Request) -> str:
        """The key of a request that is being asked."""
        return self._keys[request.request_id]

    def told(self, reply: Reply) -> list[Request]:
        """Keep a reply, hand it to everybody who waits for it; what must be asked next."""
        key = self._keys.pop(reply.request_id)
        if reply.error is None:
            self._cache.add(key, self._payer, reply)
        places = self._waiting.pop(key)
        return self.admit([request for place in places for request in self._hand(place, key, reply, True)])

    def in_order(self) -> list[Reply]:
        """The replies to all requests, as they were admitted."""
        return [self._replies[place] for place in range(len(self._requests))]

    def _hand(self, place: int, key: str, reply: Reply, paid_here: bool) -> Sequence[Request]:
        name = self._requests[place].request_id
        if paid_here and key not in self._counted:
            self._replies[place] = replace(reply, request_id=name)
        else:
            told = replace(reply, request_id=name, prompt_tokens=0, completion_tokens=0, cached_tokens=0, cost=0.0)
            self._replies[place] = replace(told, reused=reply.error is None)
        if reply.error is None:
            self._counted.add(key)
        return (self._on_reply(self._replies[place]) or ()) if self._on_reply else ()


def _digest(key: bytes) -> bytes | None:
    """A key as 16 bytes; None for what is no key."""
    try:
        digest = bytes.fromhex(key.decode())
    except (ValueError, UnicodeDecodeError):
        return None
    return digest if len(digest) == 16 else None


def _parse(line: bytes) -> tuple[str, Reply] | None:
    """(payer, reply) of a line; None for a line that a kill has spoilt."""
    try:
        _, payer, content = line.decode().split("\t", 2)
        told: dict[str, Any] = json.loads(content)
        tokens = (told["prompt_tokens"], told["completion_tokens"], told["cached_tokens"])
        return payer, Reply("", tuple(told["texts"]), None, *tokens, cost=told["cost"], probabilities=tuple(told["probabilities"]))
    except (ValueError, KeyError):
        return None
