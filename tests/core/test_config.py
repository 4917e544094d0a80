"""Settings: what is refused and how it is said, overrides, and what counts as identity."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import pytest
from intently.core.config import Config, Resources, operational
from intently.core.errors import ConfigError, IntentlyError
from pydantic import Field, ValidationError


class Simulated(Config):
    """One kind of source."""

    kind: Literal["simulated"] = "simulated"
    num_users: int = Field(10, ge=1, description="how many")


class Files(Config):
    """Another kind of source."""

    kind: Literal["files"] = "files"
    path: str = Field(description="where")
    batch_rows: int = operational(100, description="rows read at once", ge=1)


class Example(Config):
    """A config with every shape that jobs use."""

    seed: int = Field(0, description="seed")
    source: Simulated | Files = Field(default_factory=Simulated, discriminator="kind", description="where from")
    layers: tuple[Simulated, ...] = Field((), description="several")
    names: dict[str, float] = Field(default_factory=dict, description="by name")
    resources: Resources = operational(Resources(), description="what a worker holds")
    batch_size: int = operational(32, description="rows at once", ge=1)


def test_load_without_a_file_gives_the_defaults() -> None:
    assert Example.load() == Example()


def test_load_yaml_and_overrides_are_laid_over_the_defaults_in_that_order(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# command\nseed: 3\nsource:\n  kind: simulated\n  num_users: 7\n")
    config = Example.load(path, ["source.num_users=9", "names={a: 0.5}", "resources.cpus=2"])
    assert (config.seed, config.source.num_users, config.names, config.resources.cpus) == (3, 9, {"a": 0.5}, 2.0)


def test_load_values_are_laid_over_the_file_section_by_section_and_under_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 3\nbatch_size: 5\nsource:\n  kind: files\n  path: /data\n  batch_rows: 7\nnames: {a: 1.0}\nlayers:\n")
    values = {"seed": 4, "source": {"path": "/other"}, "names": {"b.c": 2.0, "d=e": 3.0}, "layers": [{"num_users": 2}]}
    config = Example.load(path, ["batch_size=6"], values)
    assert (config.seed, config.batch_size, config.source) == (4, 6, Files(path="/other", batch_rows=7))
    assert (config.names, config.layers) == ({"a": 1.0, "b.c": 2.0, "d=e": 3.0}, (Simulated(num_users=2),))
    assert values["source"] == {"path": "/other"}, "what was given stays as it was"
    with pytest.raises(ConfigError, match=r"source\.files\.bath = 1: unknown key"):
        Example.load(path, values={"source": {"bath": 1}})


def test_load_file_with_comments_only_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing differs\n")
    assert Example.load(path) == Example()


def test_load_unknown_key_is_refused_with_its_path_and_value(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("source:\n  kind: simulated\n  num_user: 7\n")
    with pytest.raises(ConfigError, match=r"source\.simulated\.num_user = 7: unknown key") as caught:
        Example.load(path)
    assert (caught.value.field, caught.value.value) == ("source.simulated.num_user", 7)


def test_load_bad_value_is_refused_with_field_value_and_reason() -> None:
    with pytest.raises(ConfigError, match=r"seed = 'many': .*integer"):
        Example.load(overrides=["seed=many"])
    with pytest.raises(ConfigError, match=r"source\.simulated\.num_users = 0: .*greater than or equal to 1"):
        Example.load(overrides=["source.kind=simulated", "source.num_users=0"])


def test_load_choice_outside_a_closed_set_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"source.*'simulated', 'files'"):
        Example.load(overrides=["source.kind=kafka"])


@pytest.mark.parametrize("text", ["123456789012", "012345670123", "12e4", "12:30"])
def test_load_text_of_digits_stays_as_it_was_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "digits.yaml").write_text(f"source: {{kind: files, path: {text}}}")
    for config in (Example.load(tmp_path / "digits.yaml"), Example.load(overrides=["source.kind=files", f"source.path={text}"])):
        assert isinstance(config.source, Files) and config.source.path == text


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_load_override_that_is_not_an_assignment_says_how_to_write_it(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set = .*write it as field\.subfield=value"):
        Example.load(overrides=[override])


def test_load_override_below_a_plain_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed\.deep = '1': seed is a value, not a section"):
        Example.load(overrides=["seed=3", "seed.deep=1"])


def test_load_override_whose_value_is_broken_yaml_is_refused_with_the_field() -> None:
    with pytest.raises(ConfigError, match=r"names = '\{a': is not YAML"):
        Example.load(overrides=["names={a"])


@pytest.mark.parametrize(
    ("text", "reason"), [("a: [", "is not YAML"), ("- 1\n- 2\n", "must hold a mapping"), ("just words", "must hold a mapping")]
)
def test_load_file_that_is_no_mapping_is_refused_with_its_path(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        Example.load(path)
    assert str(path) in str(caught.value)


def test_load_file_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml'.*No such file"):
        Example.load(tmp_path / "nowhere.yaml")


def test_load_file_that_is_not_text_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        Example.load(path)


def test_config_is_frozen() -> None:
    config = Example()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 4  # type: ignore[misc]


def test_identity_operational_fields_at_any_depth_stay_out() -> None:
    config = Example(source=Files(path="/data", batch_rows=5), batch_size=7, resources=Resources(num_workers=4))
    assert config.identity() == {"seed": 0, "source": {"kind": "files", "path": "/data"}, "layers": [], "names": {}}


def test_identity_of_nested_configs_in_sequences_is_plain_json() -> None:
    config = Example(layers=(Simulated(num_users=1), Simulated(num_users=2)), names={"a": 1.5})
    assert config.identity()["layers"] == [{"kind": "simulated", "num_users": 1}, {"kind": "simulated", "num_users": 2}]
    assert config.identity()["names"] == {"a": 1.5}


def test_operational_bounds_are_enforced() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 0"):
        Example.load(overrides=["batch_size=0"])


def test_config_error_survives_the_way_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("seed", "many", "no number")))
    assert (str(error), error.field, error.value) == ("seed = 'many': no number", "seed", "many")
    assert isinstance(error, IntentlyError)
    assert isinstance(error, ValueError)
