"""The curl commands of the documents, run as they stand there, with the example's people and items put in."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from intently.core.workspace import Workspace

from serve.app import create_app
from serve.auth import make_key
from serve.service import Service
from tests.serve.calling import config, listening

ROOT = Path(__file__).parents[2]
NAMES = {"u00000": "ada", "u00001": "ada", "u00017": "bob", "i00001": "i01", "i00042": "i03"}


def commands(document: str) -> list[str]:
    """The curl commands in a document's code blocks, continued lines joined."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("curl ")]


CASES = [(document, command) for document in ("README.md", "serve/README.md") for command in commands(document)]


@pytest.fixture(scope="module")
def place(served: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a service with keys, and a key."""
    folder = tmp_path_factory.mktemp("documents")
    key, entry = make_key("documents", ("read", "events", "admin"), 1000.0, 1000)
    (folder / "keys.json").write_text(json.dumps({"keys": [json.loads(entry.model_dump_json())]}))
    settings = config(served, folder / "log", access={"keys_file": str(folder / "keys.json")})
    with listening(create_app(Service.open(settings, "r"))) as address:
        yield address, key


def test_documents_hold_examples_of_reading_and_writing() -> None:
    assert {document for document, _ in CASES} == {"README.md", "serve/README.md"}
    assert len(CASES) >= 5


@pytest.mark.parametrize(("document", "command"), CASES)
def test_curl_example_of_a_document_works(place: tuple[str, str], document: str, command: str) -> None:
    address, key = place
    for name, known in NAMES.items():
        command = command.replace(name, known)
    command = re.sub(r"(http://)?(127\.0\.0\.1|localhost):8000", address, command)
    header = [] if "$INTENTLY_KEY" in command else ["-H", f"Authorization: Bearer {key}"]
    run = ["bash", "-euc", f'{command} "$@"', "curl", "-sS", "--fail-with-body", *header]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "INTENTLY_KEY": key})
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert json.loads(done.stdout)
