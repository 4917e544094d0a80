"""A real Redis on a port of its own, which a measurement or a test may stop, kill and start again."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry


class RedisServer:
    """Runs until `stop` or `kill`; what it was told stays in its folder.

    Args:
        folder: where its append-only file lies.
        port: where it listens, on the loopback interface.
        appendfsync: when it syncs that file: always, everysec or no.
    """

    def __init__(self, folder: Path, port: int, appendfsync: str = "always") -> None:
        self.port, self._folder, self._appendfsync = port, folder, appendfsync
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", self._appendfsync]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port, retry=Retry(ConstantBackoff(0.05), 400)) as waiting:
            waiting.ping()

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait(30)

    def kill(self) -> None:
        """End it at once, as a machine that loses power would."""
        self._process.kill()
        self._process.wait(30)

    def hang(self) -> None:
        """Let it answer nothing, with its connections open, until `kill`."""
        self._process.send_signal(signal.SIGSTOP)

    @property
    def url(self) -> str:
        """What a client is told."""
        return f"redis://127.0.0.1:{self.port}/0"
