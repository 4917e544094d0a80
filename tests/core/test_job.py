"""The one command line of all jobs, and what a job plans."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from intently.core.config import Config, operational
from intently.core.errors import MissingArtifactError
from intently.core.job import Job, Planned, describe, launch
from intently.core.schema import USER
from intently.core.workspace import Artifact, Workspace, open_stage
from pydantic import Field

PLATFORM = Path(__file__).parents[2] / "platform"


class Settings(Config):
    """Settings of the job below."""

    names: tuple[str, ...] = Field(("ann", "bob"), description="who is copied")
    batch_size: int = operational(8, description="rows at once", ge=1)


def run(config: Settings, workspace: Workspace) -> Artifact:
    stage = JOB.stage(workspace, "user", config)
    if stage.finished:
        return stage.reuse()
    stage.write("part-00000", USER.from_rows([{"user_id": name, "attributes": []} for name in config.names]))
    return stage.finish()


def version_of_source(config: Settings) -> str:
    return str(len(config.names))


JOB = Job("copy_users", Settings, ("source",), {"user": USER}, run, version_of_source)


def put_source(workspace: Workspace, seed: str = "a") -> Artifact:
    return open_stage(workspace, "source", USER, {"seed": seed}, Config()).finish()


def test_launch_runs_the_job_and_prints_what_it_wrote(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    put_source(workspace)
    launch(JOB, "Copy users.", ["--workspace", workspace.root, "--set", "names=[zoe]"])
    artifact = workspace.artifact("user")
    assert artifact.read()["user_id"].to_pylist() == ["zoe"]
    assert f"copy_users: user@{artifact.version}, 1 rows, 0 rejects" in capsys.readouterr().out


def test_launch_help_shows_the_docstring_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(JOB, "Copy users.\n\n    ray job submit -- python jobs/copy_users.py", ["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "    ray job submit -- python jobs/copy_users.py" in out
    for flag in ("--config", "--workspace", "--set", "--dry-run"):
        assert flag in out


def test_launch_dry_run_prints_config_inputs_and_outputs_and_writes_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put_source(workspace)
    before = sorted(Path(workspace.base).rglob("*"))
    launch(JOB, "Copy users.", ["--workspace", workspace.root, "--dry-run", "--set", "batch_size=3"])
    out = capsys.readouterr().out
    assert "batch_size: 3" in out
    assert "- ann" in out
    assert f"source@{source.version}" in out
    assert f"user@{JOB.stage(workspace, 'user', Settings()).version}: to be written" in out
    assert sorted(Path(workspace.base).rglob("*")) == before


def test_launch_dry_run_of_an_empty_workspace_says_that_the_input_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(JOB, "Copy users.", ["--workspace", str(tmp_path / "none"), "--dry-run"])
    out = capsys.readouterr().out
    assert "source: missing" in out
    assert "user: version follows from the missing inputs" in out
    assert not (tmp_path / "none").exists()


def test_launch_missing_input_ends_with_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(JOB, "Copy users.", ["--workspace", str(tmp_path)])
    assert str(caught.value.code).startswith("copy_users: MissingArtifactError: ")
    assert "no finished artifact 'source'; run its job first" in str(caught.value.code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nams=[a]"], "copy_users: ConfigError: nams = ['a']: unknown key"),
        (["--set", "batch_size=0"], "copy_users: ConfigError: batch_size = 0: Input should be greater than or equal to 1"),
        (["--workspace", "nonsense://x"], "copy_users: WorkspaceError: workspace 'nonsense://x' cannot be opened"),
    ],
)
def test_launch_bad_input_ends_with_one_line_that_names_field_and_value(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(JOB, "Copy users.", arguments)
    assert str(caught.value.code).startswith(message)
    assert "\n" not in str(caught.value.code)


def test_launch_as_a_process_fails_with_code_one_and_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "sample.py"
    script.write_text(
        textwrap.dedent(
            """
            from intently.core.config import Config
            from intently.core.job import Job, launch

            launch(Job("sample", Config, (), {"user": None}, lambda config, workspace: None), None)
            """
        )
    )
    command = [sys.executable, str(script), "--set", "depth=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PLATFORM)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "sample: ConfigError: depth = 3: unknown key"


def test_launch_unknown_flag_ends_with_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(JOB, "Copy users.", ["--force"])
    assert caught.value.code == 2
    assert "--force" in capsys.readouterr().err


def test_launch_unwritable_workspace_ends_with_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    sourceless = Job("copy_users", Settings, (), {"user": USER}, lambda config, workspace: _write(workspace, config))
    with pytest.raises(SystemExit) as caught:
        launch(sourceless, None, ["--workspace", str(tmp_path / "taken")])
    assert "WorkspaceError" in str(caught.value.code)
    assert str(tmp_path / "taken") in str(caught.value.code)


def test_stage_version_follows_the_inputs_and_the_fingerprint(workspace: Workspace) -> None:
    put_source(workspace, "a")
    first = JOB.stage(workspace, "user", Settings())
    more = JOB.stage(workspace, "user", Settings(names=("a", "b", "c")))
    put_source(workspace, "b")
    assert len({first.version, more.version, JOB.stage(workspace, "user", Settings()).version}) == 3
    assert first.inputs["(source)"] == "2"


def test_stage_without_its_input_is_a_missing_artifact(workspace: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="'source'"):
        JOB.stage(workspace, "user", Settings())


def test_plan_agrees_with_what_a_run_then_writes(workspace: Workspace) -> None:
    versions = {"source": put_source(workspace).version}
    planned = JOB.plan(workspace, Settings(), versions)
    written = run(Settings(), workspace)
    assert planned == [Planned("user", written.version, stands=False)]
    assert JOB.plan(workspace, Settings(batch_size=99), versions) == [Planned("user", written.version, stands=True)]
    assert f"user@{written.version}: stands" in describe(JOB, Settings(), workspace)


def test_execute_reuses_what_stands_and_points_later_stages_at_it(workspace: Workspace) -> None:
    put_source(workspace)
    first = JOB.execute(Settings(), workspace)
    written = first.manifest.ended
    JOB.execute(Settings(names=("zoe",)), workspace)
    again = JOB.execute(Settings(batch_size=99), workspace)
    assert (again.version, again.manifest.ended) == (first.version, written)
    assert workspace.artifact("user").version == first.version


def test_execute_of_a_job_with_one_of_two_artifacts_standing_runs_it(workspace: Workspace) -> None:
    both = Job("split_users", Settings, (), {"user": USER, "other": USER}, lambda config, workspace: _write_both(both, workspace, config))
    both.stage(workspace, "user", Settings()).finish()
    assert both.execute(Settings(), workspace).name == "user"
    assert workspace.artifact("other").manifest.rows == 0


def test_artifact_that_its_job_also_reads_grows_and_the_others_do_not_depend_on_it(workspace: Workspace) -> None:
    job = Job(
        "grow", Settings, (), {"user": USER, "other": USER}, lambda config, workspace: _write_both(job, workspace, config), None, ("user",)
    )
    first, other = (job.stage(workspace, name, Settings()) for name in job.writes)
    standing = first.finish()
    grown = job.stage(workspace, "user", Settings())
    assert (first.inputs, grown.inputs) == ({}, {"user": first.version})
    assert job.stage(workspace, "other", Settings()).version == other.version
    assert [planned.version for planned in job.plan(workspace, Settings(), {})] == [grown.version, other.version]
    assert grown.repeats(standing)
    assert not job.stage(workspace, "user", Settings(names=("zoe",))).repeats(standing)


def _write_both(job: Job, workspace: Workspace, config: Settings) -> Artifact:
    artifacts = [job.stage(workspace, name, config).finish() for name in job.writes]
    return artifacts[0]


def _write(workspace: Workspace, config: Settings) -> Artifact:
    stage = open_stage(workspace, "user", USER, {}, config)
    stage.write("part-00000", USER.empty())
    return stage.finish()
