"""The shipped configs are ones that Ray Serve and the application accept; wrong ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from intently.core.errors import ConfigError, MissingArtifactError
from intently.core.workspace import Workspace
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from serve.app import Ingress, build
from serve.settings import ServeConfig

SERVE = Path(__file__).parents[2] / "serve"


@pytest.mark.parametrize("name", ["local.yaml", "config.yaml"])
def test_shipped_config_passes_ray_and_the_application(name: str) -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load((SERVE / name).read_text()))
    (application,) = deployed.applications
    assert application.import_path == "serve.app:build"
    ServeConfig.parse(application.args)
    assert [deployment.name for deployment in application.deployments] == [Ingress.name]


def test_local_config_listens_on_loopback_only() -> None:
    assert yaml.safe_load((SERVE / "local.yaml").read_text())["http_options"]["host"] == "127.0.0.1"


def test_build_unknown_argument_names_it() -> None:
    with pytest.raises(ConfigError, match=r"workspce = 'x': unknown key"):
        build({"workspce": "x"})


def test_build_wrong_value_names_field_and_value() -> None:
    with pytest.raises(ConfigError, match=r"events.dedupe_days = 0"):
        build({"events": {"dedupe_days": 0}})


def test_build_without_a_table_names_the_artifact(workspace: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="'history'"):
        build({"workspace": workspace.root})


def test_build_is_called_as_serve_run_and_deploy_call_it(served: Workspace) -> None:
    args = yaml.safe_load((SERVE / "local.yaml").read_text())["applications"][0]["args"] | {"workspace": served.root}
    assert isinstance(call_user_app_builder_with_args_if_necessary(build, args), Application)
