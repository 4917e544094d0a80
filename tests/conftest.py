"""Fixtures that tests share: a workspace, and one local Ray for the whole run."""

from __future__ import annotations

import os

# Before ray is imported: its auth mode is fixed at import.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest
from intently.core.workspace import Workspace
from intently.runtime.session import ray_session as session


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace in a folder of its own."""
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of at least four logical CPUs, started once."""
    with session():
        yield
