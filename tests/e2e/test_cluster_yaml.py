"""cluster.yaml passes Ray's own validation, and says what the house promises of it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def validate(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_cluster_yaml_passes_rays_own_validation(cluster: dict[str, Any]) -> None:
    prepared = validate(cluster)
    assert prepared["available_node_types"]["cpu_worker"]["min_workers"] == 1


@pytest.mark.parametrize("key", ["idle_timeout_minute", "worker_start_command"])
def test_cluster_yaml_with_a_misspelt_key_is_refused(cluster: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        validate(cluster | {key: 1})


def test_cluster_yaml_with_more_first_workers_than_it_may_have_is_refused(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        validate(cluster | {"max_workers": 0})


def test_cluster_head_takes_no_work_and_gpus_start_from_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    gpu = [kind for kind in types.values() if "GPU" in kind["resources"]]
    cpu = [kind for name, kind in types.items() if "GPU" not in kind["resources"] and name != cluster["head_node_type"]]
    assert gpu
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in gpu)
    assert cpu
    assert all(0 < kind["min_workers"] < kind["max_workers"] for kind in cpu)
    assert cluster["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_cluster_nodes_start_with_token_authentication_and_the_fast_serve_path(cluster: dict[str, Any], commands: str) -> None:
    start = cluster[commands][-1]
    before, _, _ = start.partition("ray start")
    assert "export RAY_AUTH_MODE=token;" in before
    assert 'eval "$(cd ~/intently && python -m serve.haproxy)";' in before
    assert cluster["file_mounts"]["~/intently/serve"] == "./serve"
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_cluster_nodes_install_the_locks_and_the_torch_that_the_makefile_installs(cluster: dict[str, Any]) -> None:
    torch = re.search(r"torch==[\d.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert torch is not None
    gpu_worker = cluster["available_node_types"]["gpu_worker"]
    images = {"cpu": cluster["docker"]["image"], "gpu": gpu_worker["docker"]["worker_image"]}
    for kind, commands in (("cpu", cluster["setup_commands"]), ("gpu", gpu_worker["worker_setup_commands"])):
        assert torch.group() in commands[0]
        assert f"--no-deps -r ~/intently/locks/{kind}.txt" in commands[1]
        lock = (ROOT / "locks" / f"{kind}.txt").read_text(encoding="utf-8")
        ray = re.search(r"^ray==([\d.]+)$", lock, re.MULTILINE)
        assert ray is not None
        assert f":{ray.group(1)}-" in images[kind]
    assert cluster["file_mounts"]["~/intently/locks"] == "./locks"
