"""The Train harness: the same loop in Ray and without it, killed and gone on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
import torch
from intently.core.config import Resources
from intently.core.errors import ConfigError, SchemaError
from intently.core.workspace import Workspace
from intently.runtime.deepspeed import DeepSpeedConfig, deepspeed_settings
from intently.runtime.train import WEIGHTS, TrainConfig, TrainSession, train
from safetensors.torch import load_file

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Line(torch.nn.Module):
    """Squared error of w·x against 3x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.w * x - 3 * x) ** 2).mean()


def fit_line(session: TrainSession, num_epochs: int, die_at: int, mark: str) -> None:
    """Four steps an epoch; the last worker dies once, in epoch `die_at`."""
    module = Line()
    engine = session.engine(module, torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.0), micro_batch=4)
    for epoch in range(session.resume(engine), num_epochs):
        x = torch.arange(1.0, 9.0).reshape(2, 4)[session.rank % 2]
        for _ in range(4):
            if epoch == die_at and session.rank == session.world_size - 1 and not Path(mark).exists():
                Path(mark).touch()
                os._exit(1)
            loss = engine(x)
            engine.backward(loss)
            engine.step()
        session.end_epoch(engine, num_epochs, {"loss": loss.item(), "started_at": float(epoch)})


def refuse(session: TrainSession) -> None:
    raise SchemaError("table item: no rows")


def config(launcher: str, num_workers: int = 1, stage: int = 1) -> TrainConfig:
    return TrainConfig(
        deepspeed=DeepSpeedConfig(zero_stage=stage),
        launcher=launcher,
        resources=Resources(num_workers=num_workers, cpus=0.5),
        checkpoint_every=1,
    )


def plain_torch(num_epochs: int) -> float:
    module = Line()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(4 * num_epochs):
        optimizer.zero_grad()
        module(torch.arange(1.0, 5.0)).backward()
        optimizer.step()
    return module.w.item()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_train_here_one_process_equals_plain_torch(workspace: Workspace, tmp_path: Path, stage: int) -> None:
    arguments = {"num_epochs": 3, "die_at": -1, "mark": str(tmp_path / "mark")}
    with train(fit_line, arguments, config("local", stage=stage), workspace, "line/v/training") as result:
        assert load_file(result.folder / WEIGHTS)["w"].item() == pytest.approx(plain_torch(3), abs=1e-5)
        assert [epoch["started_at"] for epoch in result.history] == [0, 1, 2]
    assert "RANK" not in os.environ


def test_train_here_more_epochs_goes_on_from_checkpoint(workspace: Workspace, tmp_path: Path) -> None:
    arguments = {"num_epochs": 1, "die_at": -1, "mark": str(tmp_path / "mark")}
    with train(fit_line, arguments, config("local"), workspace, "line/v/training"):
        pass
    with train(fit_line, arguments | {"num_epochs": 3}, config("local"), workspace, "line/v/training") as result:
        assert load_file(result.folder / WEIGHTS)["w"].item() == pytest.approx(plain_torch(3), abs=1e-5)
        assert len(result.history) == 3


def test_train_here_object_store_refused(workspace: Workspace) -> None:
    remote = Workspace.open("mock://bucket")
    with pytest.raises(ConfigError, match="launcher"), train(fit_line, {}, config("local"), remote, "line/v/training"):
        pass


def note_memory(session: TrainSession, note: str) -> None:
    Path(note).write_text(str(ray.get_runtime_context().get_assigned_resources()["memory"]))
    raise SchemaError("that is all")


def test_train_in_ray_worker_has_its_memory_set_aside(workspace: Workspace, tmp_path: Path, ray_session: None) -> None:
    settings = TrainConfig(resources=Resources(cpus=0.5, memory_gb=0.25), max_failures=0)
    note = tmp_path / "memory"
    with pytest.raises(SchemaError, match="that is all"), train(note_memory, {"note": str(note)}, settings, workspace, "m/v/training"):
        pass
    assert float(note.read_text()) == 0.25 * 2**30


def test_train_in_ray_worker_dies_group_resumes_and_learns(workspace: Workspace, tmp_path: Path, ray_session: None) -> None:
    mark = tmp_path / "mark"
    arguments = {"num_epochs": 3, "die_at": 2, "mark": str(mark)}
    with train(fit_line, arguments, config("ray", num_workers=2, stage=2), workspace, "line/v/training") as result:
        assert mark.exists()
        assert [epoch["started_at"] for epoch in result.history] == [0, 1, 2]
        weight = load_file(result.folder / WEIGHTS)["w"].item()
    assert 0.3 < weight < 3
    with train(fit_line, arguments, config("ray", num_workers=2, stage=2), workspace, "line/v/training") as again:
        assert load_file(again.folder / WEIGHTS)["w"].item() == weight


def test_train_in_ray_loop_refuses_error_arrives_as_raised(workspace: Workspace, ray_session: None) -> None:
    settings = config("ray").model_copy(update={"max_failures": 0})
    with pytest.raises(SchemaError, match="no rows"), train(refuse, {}, settings, workspace, "refused/v/training"):
        pass


def test_deepspeed_settings_hold_what_was_configured() -> None:
    settings = deepspeed_settings(DeepSpeedConfig(zero_stage=2, precision="bf16", max_gradient_norm=0.5), micro_batch=7)
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["bf16"] == {"enabled": True}
    assert (settings["gradient_clipping"], settings["train_micro_batch_size_per_gpu"]) == (0.5, 7)
