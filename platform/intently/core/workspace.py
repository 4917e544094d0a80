"""Where tables live: `{root}/{artifact}/{version}/*.parquet` with a `manifest.json` that is written last.

A version is a hash of what decides the content (name, columns, the versions of the inputs, the settings), so a stage
that runs again with nothing changed finds its artifact standing, and one that was killed finds its finished parts. A part
is one Parquet file, written under another name and then moved: it is there whole or not at all. `{root}/{artifact}/LATEST`
names the version that later stages read. Root is a local folder or a URI of an object store (`s3://…`, `gs://…`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, ValidationError

from intently.core.config import Config
from intently.core.errors import MissingArtifactError, SchemaError, WorkspaceError
from intently.core.schema import REJECT, TABLES, Table

MANIFEST = "manifest.json"
LATEST = "LATEST"
COPIED_AT_ONCE = 1 << 24


class Manifest(BaseModel):
    """The record beside an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    table: str | None
    schema_hash: str | None
    inputs: dict[str, str]
    config: dict[str, Any]
    rows: int
    rejects: int
    reject_reasons: dict[str, int]
    metrics: dict[str, float]
    notes: dict[str, str]
    files: list[str]
    git_commit: str
    started: datetime
    ended: datetime


@dataclass(frozen=True)
class Workspace:
    """A root folder or object-store prefix that holds artifacts. Picklable: workers open the same one."""

    root: str
    filesystem: fs.FileSystem = field(repr=False, compare=False)
    base: str = field(repr=False)

    @classmethod
    def open(cls, root: str | Path) -> Workspace:
        """A workspace at a local path or URI; the folder is made when something is first written.

        Raises:
            WorkspaceError: the URI cannot be understood.
        """
        text = str(root)
        try:
            if "://" in text:
                filesystem, base = fs.FileSystem.from_uri(text)
            else:
                filesystem, base = fs.LocalFileSystem(), str(Path(text).absolute())
        except (pa.ArrowInvalid, OSError) as error:
            raise WorkspaceError(f"workspace {text!r} cannot be opened: {error}") from error
        return cls(text, filesystem, base.rstrip("/"))

    def path(self, *parts: str) -> str:
        """The path of something inside, in the filesystem's own notation."""
        return "/".join((self.base, *parts))

    def artifact(self, name: str, version: str | None = None) -> Artifact:
        """A finished artifact: the given version, else the one that LATEST names.

        Raises:
            MissingArtifactError: nobody has written it yet.
        """
        found = version or self.latest_version(name)
        if found is None or not self.stands(name, found):
            wanted = f"{name}@{found}" if found else name
            raise MissingArtifactError(f"workspace {self.root!r} holds no finished artifact {wanted!r}; run its job first")
        return Artifact(self, name, found)

    def latest_version(self, name: str) -> str | None:
        """The version that LATEST names, or None."""
        path = self.path(name, LATEST)
        return self.read_bytes(path).decode() if self.exists(path) else None

    def stands(self, name: str, version: str) -> bool:
        """Whether this version is finished."""
        return self.exists(self.path(name, version, MANIFEST))

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        try:
            return self.filesystem.get_file_info(path).type == fs.FileType.File
        except OSError as error:
            raise WorkspaceError(f"{path}: cannot be read: {error}") from error

    def list_files(self, folder: str) -> list[str]:
        """Names of the files directly inside a folder, sorted; none if it is not there."""
        selector = fs.FileSelector(folder, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise WorkspaceError(f"{folder}: cannot be listed: {error}") from error
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def read_bytes(self, path: str) -> bytes:
        """The content of a file. Raises WorkspaceError."""
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return stream.read()
        except OSError as error:
            raise WorkspaceError(f"{path}: cannot be read: {error}") from error

    def fetch(self, path: str, made: datetime) -> Path:
        """A file as a local path: in place on a local workspace, else a copy that is downloaded once.

        A version says what a file was made from, not what came out: copies are kept apart by workspace and by `made`, too.
        """
        if isinstance(self.filesystem, fs.LocalFileSystem):
            return Path(path)
        whose = hashlib.sha256(f"{self.root} {made.isoformat()}".encode()).hexdigest()[:12]
        local = Path(tempfile.gettempdir()) / "intently" / whose / path.lstrip("/")
        if not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            unfinished = local.with_name(f".{local.name}.{uuid4().hex}")
            unfinished.write_bytes(self.read_bytes(path))
            unfinished.rename(local)
        return local

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all. Raises WorkspaceError."""
        self._write(path, lambda stream: stream.write(content))

    def write_file(self, path: str, source: Path) -> None:
        """Copy a local file, whole or not at all, a few MiB at a time. Raises WorkspaceError."""
        with source.open("rb") as content:
            self._write(path, lambda stream: shutil.copyfileobj(content, stream, COPIED_AT_ONCE))

    def write_parquet(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file whole or not at all. Raises WorkspaceError."""
        self._write(path, lambda stream: pq.write_table(table, stream, compression="zstd"))

    def _write(self, path: str, write: Any) -> None:
        folder, _, name = path.rpartition("/")
        unfinished = f"{folder}/.{name}.{uuid4().hex}"
        try:
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(unfinished) as stream:
                write(stream)
            self.filesystem.move(unfinished, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # the half-written file only takes room; the error that matters is the first
                self.filesystem.delete_file(unfinished)
            raise WorkspaceError(f"{path}: cannot be written: {error}") from error


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only version of something a stage wrote."""

    workspace: Workspace
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @cached_property
    def manifest(self) -> Manifest:
        """The record that was written last; read once. Raises WorkspaceError."""
        path = self._path(MANIFEST)
        try:
            return Manifest.model_validate_json(self.workspace.read_bytes(path))
        except ValidationError as error:
            raise WorkspaceError(f"{path}: is not a manifest: {error.errors()[0]['msg']}") from error

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return [name.removesuffix(".parquet") for name in self.workspace.list_files(self._path()) if name.endswith(".parquet")]

    def read(self, part: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """One part or all of them, checked against the table's contract (unless only some columns are read).

        Raises:
            SchemaError: the file does not have the contract's columns.
            WorkspaceError: it cannot be read.
        """
        tables = [self._read_part(name, columns) for name in ([part] if part is not None else self.parts())]
        table = TABLES[self.manifest.table or ""]
        if not tables:
            return table.empty().select(list(columns)) if columns else table.empty()
        return pa.concat_tables(tables)

    def iter_parts(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """(part name, rows) one part at a time."""
        for part in self.parts():
            yield part, self.read(part, columns)

    def rejects(self) -> pa.Table:
        """The Reject rows of this stage."""
        folder = self._path("rejects")
        tables = [self._read_file(f"{folder}/{name}", None) for name in self.workspace.list_files(folder)]
        return pa.concat_tables(tables) if tables else REJECT.empty()

    def require_input(self, name: str, version: str) -> None:
        """Make sure that it was made from this version of another artifact, where its manifest names any.

        Raises:
            SchemaError: it was made from another one.
        """
        found = self.manifest.inputs.get(name, version)
        if found != version:
            raise SchemaError(f"artifact {self.name}: version {self.version} was made from {name}@{found}, {name}@{version} is asked for")

    def fetch(self, filename: str) -> Path:
        """A file of the artifact as a local path. Raises WorkspaceError."""
        return self.workspace.fetch(self._path(filename), self.manifest.ended)

    def _path(self, *parts: str) -> str:
        return self.workspace.path(self.name, self.version, *parts)

    def _read_part(self, part: str, columns: Sequence[str] | None) -> pa.Table:
        rows = self._read_file(self._path(f"{part}.parquet"), columns)
        return rows if columns else TABLES[self.manifest.table or ""].check(rows)

    def _read_file(self, path: str, columns: Sequence[str] | None) -> pa.Table:
        try:
            return pq.read_table(path, columns=list(columns) if columns else None, filesystem=self.workspace.filesystem)
        except (OSError, pa.ArrowInvalid) as error:
            raise WorkspaceError(f"{path}: cannot be read: {error}") from error


@dataclass(frozen=True)
class Stage:
    """An artifact in the making. Picklable: workers write their parts themselves."""

    workspace: Workspace
    name: str
    version: str
    table: Table | None
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    started: datetime

    @property
    def finished(self) -> bool:
        """Whether this very version stands already."""
        return self.workspace.stands(self.name, self.version)

    def repeats(self, standing: Artifact) -> bool:
        """Whether a version of the same artifact has this stage's inputs and settings, whatever earlier version either grew from."""
        manifest, itself = standing.manifest, {self.name: ""}
        return (manifest.inputs | itself, manifest.config) == (dict(self.inputs) | itself, self.config)

    def pending(self, parts: Iterable[str]) -> list[str]:
        """Those of the parts that are not written yet, in the given order."""
        written = set(self.workspace.list_files(self._path()))
        return [part for part in parts if f"{part}.parquet" not in written]

    def write(self, part: str, rows: pa.Table, rejects: pa.Table | None = None) -> None:
        """Write one part and what was refused while making it.

        Raises:
            SchemaError: rows break the table's contract.
            WorkspaceError: the part cannot be written.
        """
        assert self.table is not None, f"{self.name} holds files, not a table"
        checked = self.table.check(rows)
        if rejects is not None and rejects.num_rows:
            self.workspace.write_parquet(self._path("rejects", f"{part}.parquet"), REJECT.check(rejects))
        self.workspace.write_parquet(self._path(f"{part}.parquet"), checked)

    def put(self, filename: str, content: bytes | Path) -> None:
        """Put a file (a model, an index, a page) into the artifact."""
        if isinstance(content, bytes):
            self.workspace.write_bytes(self._path(filename), content)
        else:
            self.workspace.write_file(self._path(filename), content)

    def clear(self) -> None:
        """Delete what a killed run left, where the parts of this one may be others. Raises WorkspaceError."""
        assert not self.finished, f"{self.name}@{self.version} is finished"
        try:
            self.workspace.filesystem.delete_dir_contents(self._path(), missing_dir_ok=True)
        except OSError as error:
            raise WorkspaceError(f"{self._path()}: cannot be cleared: {error}") from error

    def fetch(self, filename: str) -> Path:
        """A file that was put, as a local path; another run, which may put another one, does not see this run's copy."""
        return self.workspace.fetch(self._path(filename), self.started)

    def finish(self, metrics: Mapping[str, float] | None = None, notes: Mapping[str, str] | None = None) -> Artifact:
        """Write the manifest and let LATEST name this version."""
        files = [name for name in self.workspace.list_files(self._path()) if not name.startswith(".") and name != MANIFEST]
        refused = Artifact(self.workspace, self.name, self.version).rejects()
        reasons = {row["values"]: row["counts"] for row in pc.value_counts(refused["reason"]).to_pylist()}
        manifest = Manifest(
            name=self.name,
            version=self.version,
            table=self.table.name if self.table else None,
            schema_hash=self.table.hash if self.table else None,
            inputs=dict(self.inputs),
            config=dict(self.config),
            rows=sum(self._num_rows(name) for name in files if name.endswith(".parquet")),
            rejects=refused.num_rows,
            reject_reasons=reasons,
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            notes=dict(notes or {}),
            files=files,
            git_commit=_git_commit(),
            started=self.started,
            ended=datetime.now(UTC),
        )
        self.workspace.write_bytes(self._path(MANIFEST), manifest.model_dump_json(indent=2).encode())
        return self.reuse()

    def reuse(self) -> Artifact:
        """The standing artifact of this version; LATEST names it from now on."""
        artifact = self.workspace.artifact(self.name, self.version)
        self.workspace.write_bytes(self.workspace.path(self.name, LATEST), self.version.encode())
        return artifact

    def _path(self, *parts: str) -> str:
        return self.workspace.path(self.name, self.version, *parts)

    def _num_rows(self, filename: str) -> int:
        return pq.read_metadata(self._path(filename), filesystem=self.workspace.filesystem).num_rows


def version_of(name: str, table: Table | None, inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The 12 hex digits that stand for everything that decides an artifact's content."""
    decided = [name, table.hash if table else None, sorted(inputs.items()), config]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]


def open_stage(workspace: Workspace, name: str, table: Table | None, inputs: Mapping[str, str], config: Config) -> Stage:
    """A stage that writes artifact `name` from `inputs` (name → version) under `config`."""
    identity = config.identity()
    version = version_of(name, table, inputs, identity)
    return Stage(workspace, name, version, table, inputs, identity, datetime.now(UTC))


def _git_commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
