"""The workspace: what counts as finished, what a version depends on, and how a bad disk is reported."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from intently.core.config import Config, operational
from intently.core.errors import MissingArtifactError, SchemaError, WorkspaceError
from intently.core.schema import EMBEDDING, REJECT, USER, Table
from intently.core.workspace import LATEST, MANIFEST, Artifact, Stage, Workspace, open_stage
from pyarrow._fs import _MockFileSystem
from pydantic import Field

PLATFORM = Path(__file__).parents[2] / "platform"


class Settings(Config):
    """What the stage of these tests is configured by."""

    seed: int = Field(0, description="decides the result")
    batch_size: int = operational(8, description="does not")


def users(*names: str) -> pa.Table:
    return USER.from_rows([{"user_id": name, "attributes": []} for name in names])


def rejects(*reasons: str) -> pa.Table:
    return REJECT.from_rows([{"stage": "user", "row": str(i), "reason": r, "detail": ""} for i, r in enumerate(reasons)])


def user_stage(workspace: Workspace, inputs: dict[str, str] | None = None, seed: int = 0, batch_size: int = 8) -> Stage:
    return open_stage(workspace, "user", USER, inputs or {}, Settings(seed=seed, batch_size=batch_size))


def test_artifact_written_in_parts_reads_back_whole_and_by_part(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("bucket-00001", users("c"))
    stage.write("bucket-00000", users("a", "b"))
    artifact = stage.finish()
    assert artifact.parts() == ["bucket-00000", "bucket-00001"]
    assert artifact.read()["user_id"].to_pylist() == ["a", "b", "c"]
    assert artifact.read("bucket-00001")["user_id"].to_pylist() == ["c"]
    assert artifact.read(columns=["user_id"]).column_names == ["user_id"]
    assert [(part, rows.num_rows) for part, rows in artifact.iter_parts()] == [("bucket-00000", 2), ("bucket-00001", 1)]


def test_artifact_without_parts_reads_as_the_empty_table(workspace: Workspace) -> None:
    artifact = user_stage(workspace).finish()
    assert artifact.read().equals(USER.empty())
    assert artifact.read(columns=["user_id"]).column_names == ["user_id"]


def test_stage_without_a_manifest_is_not_found_and_its_error_says_what_to_do(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users("a"))
    assert not stage.finished
    with pytest.raises(MissingArtifactError, match="no finished artifact 'user'; run its job first"):
        workspace.artifact("user")
    with pytest.raises(MissingArtifactError, match=f"'user@{stage.version}'"):
        workspace.artifact("user", stage.version)


def test_finish_writes_the_manifest_after_every_part_and_file(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users("a"), rejects("bad row"))
    stage.finish()
    folder = Path(workspace.path("user", stage.version))
    times = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert max(times, key=times.__getitem__) == MANIFEST
    assert not [name for name in times if name.startswith(".")], "an unfinished file was left behind"


def test_manifest_records_inputs_config_rows_metrics_and_rejects_by_reason(workspace: Workspace) -> None:
    stage = user_stage(workspace, {"history": "abc"}, seed=5, batch_size=3)
    stage.write("bucket-00000", users("a", "b"), rejects("no id", "no id"))
    stage.write("bucket-00001", users(), rejects("no time"))
    manifest = stage.finish({"share": 0.5}, {"note": "text"}).manifest
    assert (manifest.name, manifest.version, manifest.table) == ("user", stage.version, "user")
    assert manifest.inputs == {"history": "abc"}
    assert manifest.config == {"seed": 5}
    assert (manifest.rows, manifest.rejects) == (2, 3)
    assert manifest.reject_reasons == {"no id": 2, "no time": 1}
    assert (manifest.metrics, manifest.notes) == ({"share": 0.5}, {"note": "text"})
    assert manifest.files == ["bucket-00000.parquet", "bucket-00001.parquet"]
    assert manifest.schema_hash == USER.hash
    assert manifest.started <= manifest.ended


def test_rejects_read_back_with_their_details(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users(), rejects("no id"))
    assert stage.finish().rejects()["reason"].to_pylist() == ["no id"]


def test_pending_after_some_parts_names_the_others_in_their_order(workspace: Workspace) -> None:
    parts = [f"bucket-{i:05d}" for i in range(4)]
    stage = user_stage(workspace)
    assert stage.pending(parts) == parts
    stage.write(parts[2], users())
    stage.write(parts[0], users("a"))
    assert user_stage(workspace).pending(parts) == [parts[1], parts[3]]


def test_pending_ignores_a_part_that_a_killed_writer_left_half_done(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users("a"))
    folder = Path(workspace.path("user", stage.version))
    (folder / ".part-00001.parquet.0123").write_bytes(b"half")
    assert stage.pending(["part-00000", "part-00001"]) == ["part-00001"]
    assert stage.finish().manifest.files == ["part-00000.parquet"]


def test_clear_deletes_what_a_killed_run_left_and_nothing_where_none_ran(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.clear()
    stage.write("part-00001", users("a"), rejects("no id"))
    stage.clear()
    stage.write("part-00000", users("b"))
    artifact = stage.finish()
    assert artifact.read()["user_id"].to_pylist() == ["b"]
    assert (artifact.manifest.files, artifact.manifest.rejects) == (["part-00000.parquet"], 0)


def test_reuse_moves_latest_back_to_a_standing_version(workspace: Workspace) -> None:
    old, new = user_stage(workspace, seed=1), user_stage(workspace, seed=2)
    for stage in (old, new):
        stage.write("part-00000", users(f"of {stage.version}"))
        stage.finish()
    assert workspace.artifact("user").version == new.version
    again = user_stage(workspace, seed=1)
    assert again.finished
    assert again.reuse().version == old.version == workspace.latest_version("user")


def test_reuse_of_an_unfinished_version_leaves_latest_alone(workspace: Workspace) -> None:
    finished = user_stage(workspace, seed=1).finish()
    with pytest.raises(MissingArtifactError):
        user_stage(workspace, seed=2).reuse()
    assert workspace.artifact("user").version == finished.version


def test_version_follows_inputs_settings_schema_and_name_but_not_operational_fields(workspace: Workspace) -> None:
    base = user_stage(workspace, {"history": "a"})
    changed_schema = Table("user", "", ("user_id",), USER.columns[:1])
    others = [
        user_stage(workspace, {"history": "b"}),
        user_stage(workspace, {"history": "a", "item": "c"}),
        user_stage(workspace, {"history": "a"}, seed=1),
        open_stage(workspace, "user", changed_schema, {"history": "a"}, Settings()),
        open_stage(workspace, "user", None, {"history": "a"}, Settings()),
        open_stage(workspace, "other", USER, {"history": "a"}, Settings()),
    ]
    assert len({base.version, *(stage.version for stage in others)}) == 7
    assert user_stage(workspace, {"history": "a"}, batch_size=64).version == base.version


def test_write_rows_that_break_the_contract_write_nothing(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    with pytest.raises(SchemaError, match=r"missing column\(s\) \['attributes'\]"):
        stage.write("part-00000", pa.table({"user_id": ["a"]}), rejects("bad row"))
    assert workspace.list_files(workspace.path("user", stage.version)) == []


def test_read_part_that_breaks_the_contract_is_refused_at_the_door(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users("a"))
    artifact = stage.finish()
    pq.write_table(pa.table({"user_id": ["a"]}), workspace.path("user", stage.version, "part-00000.parquet"))
    with pytest.raises(SchemaError, match="table user: missing column"):
        artifact.read()


def test_read_part_that_is_no_parquet_names_its_path(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    stage.write("part-00000", users("a"))
    artifact = stage.finish()
    Path(workspace.path("user", stage.version, "part-00000.parquet")).write_bytes(b"no parquet")
    with pytest.raises(WorkspaceError, match=r"part-00000\.parquet: cannot be read"):
        artifact.read()


def test_manifest_that_is_no_manifest_names_its_path(workspace: Workspace) -> None:
    artifact = user_stage(workspace).finish()
    Path(workspace.path("user", artifact.version, MANIFEST)).write_text("{")
    with pytest.raises(WorkspaceError, match=r"manifest\.json"):
        _ = artifact.manifest


def test_files_of_an_artifact_without_a_table_are_put_and_fetched(workspace: Workspace, tmp_path: Path) -> None:
    stage = open_stage(workspace, "towers", None, {}, Settings())
    source = tmp_path / "weights.bin"
    source.write_bytes(b"\x01\x02")
    stage.put("weights.bin", source)
    stage.put("page.html", b"<p>")
    artifact = stage.finish()
    assert artifact.manifest.files == ["page.html", "weights.bin"]
    assert artifact.fetch("weights.bin").read_bytes() == b"\x01\x02"
    assert (artifact.manifest.table, artifact.manifest.rows) == (None, 0)


def test_workspace_at_a_uri_holds_the_same_artifacts(tmp_path: Path) -> None:
    there = Workspace.open((tmp_path / "store").as_uri())
    stage = user_stage(there)
    stage.write("part-00000", users("a"))
    stage.finish()
    assert there.artifact("user").read().num_rows == 1
    assert Workspace.open(tmp_path / "store").artifact("user").version == stage.version


def test_workspace_at_an_object_store_downloads_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remote = Workspace("mem://bucket", _MockFileSystem(), "bucket")
    stage = open_stage(remote, "index", None, {}, Settings())
    stage.put("index.bin", b"\x07")
    local = stage.finish().fetch("index.bin")
    assert local.read_bytes() == stage.fetch("index.bin").read_bytes() == b"\x07"


def test_fetched_copies_of_one_version_are_those_of_their_own_workspace_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def build(workspace: Workspace, content: bytes) -> Artifact:
        stage = open_stage(workspace, "towers", None, {}, Settings())
        stage.put("weights.bin", content)
        return stage.finish()

    # Two buckets at two endpoints, and one that was built again: the settings, and with them the version, are the same.
    staging, production = (Workspace(f"s3://bucket?endpoint={name}", _MockFileSystem(), "bucket") for name in ("staging", "production"))
    built = [build(staging, b"1"), build(production, b"2")]
    assert len({artifact.version for artifact in built}) == 1
    first = built[0].fetch("weights.bin")
    assert [artifact.fetch("weights.bin").read_bytes() for artifact in built] == [b"1", b"2"]
    assert build(staging, b"3").fetch("weights.bin").read_bytes() == b"3"
    assert built[0].fetch("weights.bin") == first, "what was downloaded is not downloaded again"


def test_manifest_is_read_once_however_many_parts_are_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = user_stage(workspace)
    for number in range(50):
        stage.write(f"bucket-{number:05d}", users(f"u{number}"))
    stage.finish()
    reads, read_bytes = [], Workspace.read_bytes
    monkeypatch.setattr(Workspace, "read_bytes", lambda self, path: reads.append(path) or read_bytes(self, path))
    artifact = workspace.artifact("user")
    assert artifact.read().num_rows == sum(rows.num_rows for _, rows in artifact.iter_parts()) == 50
    assert artifact.manifest.rows == 50
    assert [path.rpartition("/")[2] for path in reads] == [LATEST, MANIFEST]


@pytest.mark.parametrize("uri", ["nonsense://x", "file://elsewhere/x"])
def test_workspace_uri_that_cannot_be_understood_is_refused_by_name(uri: str) -> None:
    with pytest.raises(WorkspaceError, match=uri):
        Workspace.open(uri)


def test_stage_and_artifact_travel_to_another_process_and_work_there(workspace: Workspace) -> None:
    stage = user_stage(workspace)
    there: Stage = pickle.loads(pickle.dumps(stage))
    there.write("part-00000", users("a"))
    assert stage.pending(["part-00000"]) == []
    artifact = pickle.loads(pickle.dumps(stage.finish()))
    assert artifact.read()["user_id"].to_pylist() == ["a"]


def test_write_where_a_file_is_in_the_way_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    stage = user_stage(Workspace.open(tmp_path / "taken"))
    with pytest.raises(WorkspaceError, match=r"taken/user/.*part-00000\.parquet: cannot be written"):
        stage.write("part-00000", users("a"))


def test_lookups_where_a_file_is_in_the_way_find_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    there = Workspace.open(tmp_path / "taken")
    with pytest.raises(MissingArtifactError, match="taken"):
        there.artifact("user")
    assert user_stage(there).pending(["part-00000"]) == ["part-00000"]


def test_write_on_a_full_disk_names_the_path_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The file-size limit of a process makes a write fail half way, as a full disk does."""
    script = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from intently.core.config import Config
        from intently.core.errors import WorkspaceError
        from intently.core.schema import EMBEDDING
        from intently.core.workspace import Workspace, open_stage

        stage = open_stage(Workspace.open(sys.argv[1]), "item_embedding", EMBEDDING, {}, Config())
        noise = np.random.default_rng(0)
        rows = [{"kind": "item", "id": str(i), "vector": noise.normal(size=256).astype("float32"), "model": "m"} for i in range(200)]
        stage.write("part-00000", EMBEDDING.from_rows(rows[:2]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            stage.write("part-00001", EMBEDDING.from_rows(rows))
        except WorkspaceError as error:
            print(error)
            print("pending:", stage.pending(["part-00000", "part-00001"]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PLATFORM)}
    )
    assert done.returncode == 0, done.stderr
    message, pending = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path}/item_embedding/")
    assert "part-00001.parquet: cannot be written" in message
    assert "File too large" in message
    assert pending == "pending: ['part-00001']"
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["part-00000.parquet"]
    workspace = Workspace.open(tmp_path)
    assert workspace.latest_version("item_embedding") is None
    resumed = open_stage(workspace, "item_embedding", EMBEDDING, {}, Config())
    resumed.write("part-00001", EMBEDDING.empty())
    assert resumed.finish().read().num_rows == 2


def test_latest_that_names_a_version_that_is_gone_is_a_missing_artifact(workspace: Workspace) -> None:
    workspace.write_bytes(workspace.path("user", LATEST), b"0123456789ab")
    with pytest.raises(MissingArtifactError, match="user@0123456789ab"):
        workspace.artifact("user")
