"""The README's commands on a small marketplace: from nothing to a report and a service; again; killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pyarrow.compute as pc
import pytest
import run_pipeline
import yaml
from intently.core.job import launch
from intently.core.workspace import Workspace
from intently.interests.faithfulness import asked_chunks, measure_faithfulness

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALL = {
    "ingest_events": {"source": {"num_users": 48, "num_items": 120, "events_per_user": 120}, "histories": {"num_buckets": 4}},
    "mine_user_interests": {"mining": {"max_chunks": 2}},
    "predict_tags": {"tags": {"num_tags": 6, "min_tags": 3}},
    "build_explanations": {"explanations": {"max_attempts": 1}},
}
"""Settings that make the demo small; they do not change what it does."""


@dataclass(frozen=True)
class Line:
    """A small pipeline that has run once, by the README's command."""

    config: Path
    workspace: Workspace
    output: str


def _run(command: list[str], **variables: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def _pipeline(config: Path, workspace: Path | str) -> list[str]:
    return [sys.executable, "jobs/run_pipeline.py", "--config", str(config), "--workspace", str(workspace)]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("line")
    demo = yaml.safe_load((ROOT / "jobs/configs/run_pipeline/demo.yaml").read_text())
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({"stages": {name: stage | SMALL.get(name, {}) for name, stage in demo["stages"].items()}}))
    assert "`make demo SERVE=0`" in README
    output = _run(["make", "demo", "SERVE=0"], CONFIG=str(config), WORKSPACE=str(folder / "workspace"))
    return Line(config, Workspace.open(folder / "workspace"), output)


def _artifacts(workspace: Workspace) -> dict[str, str]:
    return {name: str(workspace.artifact(name)) for job in run_pipeline.JOBS for name in job.writes}


def test_make_demo_without_serving_ends_with_a_report_on_named_people(line: Line) -> None:
    page = line.workspace.artifact("report").fetch("index.html").read_text()
    users = line.workspace.artifact("user").read()["user_id"].to_pylist()
    named = [user for user in users if user in page]
    assert named
    assert re.search(r"demo: pipeline ran in \d+ s", line.output)
    interests = (
        line.workspace.artifact("user_interest")
        .read()
        .filter([user == named[0] for user in line.workspace.artifact("user_interest").read()["user_id"].to_pylist()])
    )
    assert any(interest in page for interest in interests["interest"].to_pylist())


def test_second_run_reuses_everything_within_a_minute(line: Line) -> None:
    ended = {name: line.workspace.artifact(name).manifest.ended for name in _artifacts(line.workspace)}
    start = time.monotonic()
    _run(_pipeline(line.config, line.workspace.root))
    assert time.monotonic() - start < 60
    assert {name: line.workspace.artifact(name).manifest.ended for name in ended} == ended


def test_interests_are_true_tags_fit_and_reasons_are_valid(line: Line) -> None:
    """What the shipped student wrote, beside the truth of a world that it was not trained on."""
    mined, predicted, explained = (line.workspace.artifact(name) for name in ("user_interest", "tag", "explanation"))
    chunks, items, truth = (line.workspace.artifact(name).read() for name in ("chunk", "item", "true_interest"))
    interests, tags, texts = mined.read(), predicted.read(), explained.read()
    assert pc.unique(interests["model"]).to_pylist() == ["vllm:student"]
    shares = [artifact.manifest.metrics["valid_share"] for artifact in (mined, predicted, explained)]
    assert min(shares) >= 0.9, shares
    measured = measure_faithfulness(interests, asked_chunks(chunks, interests, mined.rejects()), truth, items)
    assert measured.precision > 0.5 and measured.recall > 0.25
    wanted = set(zip(interests["user_id"].to_pylist(), interests["interest"].to_pylist(), strict=True))
    assert set(zip(tags["user_id"].to_pylist(), tags["interest"].to_pylist(), strict=True)) <= wanted
    assert tags.num_rows and tags["category"].null_count == 0
    for_anybody = pc.sum(pc.equal(texts["interest"], "")).as_py()
    assert for_anybody > 0.8 * items.num_rows and texts.num_rows > for_anybody


def _plan(line: Line, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What --dry-run prints; the README's command of it is run as a process below."""
    arguments = ["--config", str(line.config), "--workspace", line.workspace.root, "--dry-run", *flags]
    launch(run_pipeline.JOB, None, arguments, describe=run_pipeline.describe_plan)
    return capsys.readouterr().out


def test_dry_run_after_a_run_says_that_all_stands_and_what_is_read(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(line, capsys)
    for artifact in _artifacts(line.workspace).values():
        assert f"writes: {artifact} (stands)" in plan
    assert "to be written" not in plan
    assert "reads:  history_train, item" in plan


def test_dry_run_after_a_changed_setting_plans_only_what_follows_from_it(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(line, capsys, "--set", "stages.build_explanations.explanations.items_per_interest=7")
    changed = {row.split("@")[0].split()[-1] for row in plan.splitlines() if "to be written" in row}
    assert changed == {"explanation", "explanation_verdict", "explanation_store", "report"}


def test_run_killed_in_the_middle_resumes_and_gives_the_same_tables(line: Line, tmp_path: Path) -> None:
    root = tmp_path / "killed"
    with subprocess.Popen(_pipeline(line.config, root), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for row in process.stdout:
            if row.startswith("mine_user_interests: 1/"):
                family = psutil.Process(process.pid).children(recursive=True)
                workers = [one for one in family if one.name().startswith("ray::MapWorker")]
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("the run ended before it could be killed")
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "its workers end with it, and write no bucket after it was looked at"
    killed = Workspace.open(root)
    written = sorted(root.glob("user_interest/*/bucket-*.parquet"))
    assert 0 < len(written) < 4
    assert killed.latest_version("user_interest") is None
    before = {path: path.stat().st_mtime_ns for path in written}

    output = _run(_pipeline(line.config, root))
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert f"mine_user_interests: 1/{4 - len(written)}" in output
    assert _artifacts(killed) == _artifacts(line.workspace)
    for job in run_pipeline.JOBS:
        for name, table in job.writes.items():
            if table is not None:
                assert killed.artifact(name).read().equals(line.workspace.artifact(name).read()), name


@pytest.fixture(scope="module")
def address(line: Line) -> Iterator[str]:
    """`make demo` on the finished line, until it is interrupted as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"CONFIG": str(line.config), "WORKSPACE": line.workspace.root, "PORT": str(port)}
    process = subprocess.Popen(
        ["make", "demo"], cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pages = (re.search(r"page: (http://\S+)/", row) for row in process.stdout)
    found = next((page for page in pages if page), None)
    assert found, "the service ended before it said where its page is"
    yield found[1]
    family = psutil.Process(process.pid).children(recursive=True)
    # A terminal sends Ctrl-C to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "it leaves nothing behind"


def test_make_demo_answers_the_readmes_requests(line: Line, address: str) -> None:
    requests = re.findall(r"curl '?localhost:8000(/[^'\s]*)", README)
    assert requests
    for path in requests:
        reply = httpx.get(f"{address}{path}", timeout=30)
        assert reply.status_code == 200, (path, reply.text)
    assert httpx.get(f"{address}/", timeout=30).status_code == 200


@pytest.mark.parametrize("block", re.findall(r"```bash\n(.*?)```", README, re.S))
def test_readme_block_works_in_a_new_shell(block: str) -> None:
    # What make does is tested above; running the tests inside a test would never end.
    commands = re.sub(r"^make ", "make --dry-run ", block, flags=re.MULTILINE)
    # This checkout's package, also where .venv belongs to another one.
    assert _run(["bash", "-euc", commands], PATH="/usr/local/bin:/usr/bin:/bin", PYTHONPATH="platform")
