"""Every YAML under jobs/configs loads with its job's config class and says how it is run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "jobs" / "configs"
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
YAMLS = sorted(CONFIGS.rglob("*.yaml"))


def job(name: str) -> Job:
    found = importlib.import_module(name).JOB
    assert isinstance(found, Job)
    return found


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_loads_with_its_jobs_class_and_begins_with_its_command(path: Path) -> None:
    name = path.parent.name
    relative = path.relative_to(ROOT)
    assert name in JOBS, f"{relative}:1: there is no job {name}"
    job(name).config.load(path)
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("#"), f"{relative}:1: begin with a comment that holds the command"
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#"))
    assert f"jobs/{name}.py" in head, f"{relative}:1: the comment does not name python jobs/{name}.py"
    assert f"--config {relative}" in head, f"{relative}:1: the comment does not show --config {relative}"


@pytest.mark.parametrize("name", JOBS)
def test_job_has_at_most_three_yamls_and_a_demo_among_them(name: str) -> None:
    names = sorted(path.name for path in (CONFIGS / name).glob("*.yaml"))
    assert 1 <= len(names) <= 3, f"jobs/configs/{name}: {names}"


@pytest.mark.parametrize("name", JOBS)
def test_job_config_has_defaults_a_line_per_field_and_refuses_what_it_does_not_know(name: str) -> None:
    config = job(name).config
    undocumented = sorted({f"{owner.__name__}.{field}" for owner, field, info in fields_of(config) if not documented(field, info)})
    assert not undocumented, f"fields without a description: {undocumented}"
    with pytest.raises(ConfigError, match="no_such_setting = 1: unknown key"):
        config.load(None, ["no_such_setting=1"])


@pytest.mark.parametrize("name", JOBS)
def test_job_identity_is_the_same_after_a_round_through_yaml_values(name: str) -> None:
    config = job(name).config.load(next(iter(sorted((CONFIGS / name).glob("*.yaml")))))
    assert type(config).parse(config.model_dump(mode="json")).identity() == config.identity()


def documented(field: str, info: FieldInfo) -> bool:
    """A description, or the name of a kind in a closed set (`kind: Literal["simulator"]`)."""
    return bool(info.description) or field == "kind"


def fields_of(config: type[Config]) -> Iterator[tuple[type[Config], str, FieldInfo]]:
    """(owner, field, info) of a config class and of every config class inside it."""
    for field, info in config.model_fields.items():
        yield config, field, info
        for inner in _configs_in(info.annotation):
            yield from fields_of(inner)


def _configs_in(annotation: object) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _configs_in(part)
