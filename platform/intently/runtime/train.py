"""The one harness of training: a loop runs in a group of workers, keeps checkpoints, and goes on from the last one.

A loop is a plain function `loop(session, **arguments)`. It builds its module, asks the session for a DeepSpeed engine, starts at
`session.resume(engine)` and calls `session.end_epoch(...)` after each epoch. It knows nothing of Ray, so that it runs

- in a Ray TorchTrainer (`launcher: ray`): gloo on CPU, NCCL on GPU, restarted from the last checkpoint when a worker dies;
- in this very process (`launcher: local`), or in the processes of `torchrun`, which sets RANK and WORLD_SIZE itself. The first of them goes
  on behind the loop; the others end there.

The run's name must stand for everything that decides its result (an artifact's version does): a run of the same name in the same
folder goes on where it was killed, and one that is complete gives its result at once.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import ray.train
import torch
import torch.distributed
from pyarrow.fs import LocalFileSystem
from pydantic import Field
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from safetensors.torch import save_file

from intently.core.config import Config, Resources, operational
from intently.core.errors import ConfigError, IntentlyError
from intently.core.workspace import Workspace
from intently.runtime.deepspeed import DeepSpeedConfig, build_engine
from intently.runtime.session import ray_session, resource_bundle

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHTS = "weights.safetensors"
PROGRESS = "progress.json"
STATE = "deepspeed"


class TrainConfig(Config):
    """Where and how a training loop runs; epochs, batch and learning rate are the loop's own."""

    deepspeed: DeepSpeedConfig = Field(DeepSpeedConfig(), description="ZeRO stage, precision, clipping")
    launcher: Literal["ray", "local"] = operational("ray", description="ray: a TorchTrainer; local: this process, or torchrun's")
    resources: Resources = operational(Resources(num_workers=1, cpus=1), description="of one training worker; cpus are its torch threads")
    max_failures: int = operational(1, ge=0, description="times that the group is restarted after a worker died")
    checkpoint_every: int = operational(5, ge=1, description="epochs between checkpoints (about 2 s each); the last is always kept")


class Store(Protocol):
    """Where a group keeps its checkpoints."""

    def latest(self, into: Path) -> bool:
        """Copy the last checkpoint into a folder; False if there is none."""

    def save(self, folder: Path, epoch: int) -> None:
        """Keep this worker's files; returns when the whole group's are kept."""


@dataclass
class TrainSession:
    """What a loop sees of the group it runs in.

    Attributes:
        rank: this worker's number.
        world_size: workers in the group.
        device: where its tensors live.
        config: the harness's settings.
        label: what progress lines are headed with.
    """

    rank: int
    world_size: int
    device: torch.device
    config: TrainConfig
    label: str
    store: Store
    history: list[dict[str, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def engine(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> DeepSpeedEngine:
        """A DeepSpeed engine around the module; see `runtime.deepspeed.build_engine`."""
        return build_engine(module, optimizer, self.config.deepspeed, micro_batch, schedule)

    def resume(self, engine: DeepSpeedEngine) -> int:
        """Load the last checkpoint, if there is one; the number of epochs that are done."""
        with tempfile.TemporaryDirectory() as name:
            if not self.store.latest(Path(name)):
                return 0
            self.history = json.loads((Path(name) / PROGRESS).read_text())
            engine.load_checkpoint(name, tag=STATE)
        return len(self.history)

    def note(self, num_epochs: int, metrics: Mapping[str, float]) -> None:
        """Note an epoch's metrics with its seconds, and print them."""
        self.history.append({**metrics, "seconds": time.monotonic() - self.began})
        self.began = time.monotonic()
        if self.rank == 0:
            figures = ", ".join(f"{key} {value:.4g}" for key, value in self.history[-1].items())
            print(f"{self.label}: epoch {len(self.history)}/{num_epochs}, {figures}", flush=True)

    def end_epoch(self, engine: DeepSpeedEngine, num_epochs: int, metrics: Mapping[str, float]) -> None:
        """Note an epoch's metrics (the group's mean), print them, and keep a checkpoint where one is due. Every worker calls it."""
        self.note(num_epochs, self._mean(metrics))
        epoch = len(self.history)
        if epoch == num_epochs or epoch % self.config.checkpoint_every == 0:
            self._save(engine, epoch)

    def _mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        if self.world_size == 1:
            return dict(metrics)
        values = torch.tensor(list(metrics.values()), device=self.device)
        torch.distributed.all_reduce(values)
        return dict(zip(metrics, (values / self.world_size).tolist(), strict=True))

    def _save(self, engine: DeepSpeedEngine, epoch: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / STATE).mkdir()
            engine.save_checkpoint(name, tag=STATE, save_latest=False)
            if self.rank == 0:
                state = {key: value.detach().contiguous().cpu() for key, value in engine.module.state_dict().items()}
                save_file(state, folder / WEIGHTS)
                (folder / PROGRESS).write_text(json.dumps(self.history))
            self.store.save(folder, epoch)


Loop = Callable[..., None]
"""loop(session, **arguments): trains; its result is the last checkpoint."""


@dataclass(frozen=True)
class TrainResult:
    """What a training run left.

    Attributes:
        history: metrics of each epoch, with its seconds.
        folder: the last checkpoint: WEIGHTS (the module's state dict), PROGRESS and the optimizer's state.
    """

    history: list[dict[str, float]]
    folder: Path


@contextmanager
def train(loop: Loop, arguments: Mapping[str, Any], config: TrainConfig, workspace: Workspace, name: str) -> Iterator[TrainResult]:
    """Run a loop to its end and lend out its last checkpoint while the block runs.

    Args:
        loop: a module-level function, so that workers can import it.
        arguments: its keyword arguments, picklable and small: workers read tables themselves.
        config: where it runs.
        workspace: checkpoints are kept in it, under `name`.
        name: a path that stands for everything that decides the result, such as `towers/<version>/training`.
    Raises:
        ConfigError: the local launcher is asked for an object store.
        SystemExit: in every process of torchrun but the first, once the loop has ended.
        IntentlyError: as raised in the loop.
        ray.train.TrainingFailedError: workers died more often than `max_failures`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        match config.launcher:
            case "ray":
                _train_in_ray(loop, arguments, config, workspace, name, folder)
            case "local":
                _train_here(loop, arguments, config, workspace, name, folder)
        yield TrainResult(json.loads((folder / PROGRESS).read_text()), folder)


def _train_in_ray(loop: Loop, arguments: Mapping[str, Any], config: TrainConfig, workspace: Workspace, name: str, folder: Path) -> None:
    resources = config.resources
    parent, _, leaf = workspace.path(name).rpartition("/")
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"loop": loop, "arguments": dict(arguments), "config": config, "label": name.split("/")[0]},
        torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resource_bundle(resources),
        ),
        run_config=ray.train.RunConfig(
            name=leaf,
            storage_path=parent,
            storage_filesystem=workspace.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": _worker_environment(gpu=resources.gpus > 0)},
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    with ray_session():
        try:
            result = trainer.fit()
        except ray.train.WorkerGroupError as error:
            ours = [failure for failure in error.worker_failures.values() if isinstance(failure, IntentlyError)]
            if ours:
                raise ours[0] from error
            raise
        assert result.checkpoint is not None, f"{name}: the loop ended without an epoch"
        result.checkpoint.to_directory(str(folder))


def _worker_environment(gpu: bool) -> dict[str, str]:
    # Ray Train would log every printed line a second time; DeepSpeed would warn that it looked for an accelerator and found none.
    quiet = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    return quiet if gpu else {**quiet, "DS_ACCELERATOR": "cpu"}


def _ray_worker(given: dict[str, Any]) -> None:
    context = ray.train.get_context()
    config: TrainConfig = given["config"]
    torch.set_num_threads(max(1, int(config.resources.cpus)))
    session = TrainSession(context.get_world_rank(), context.get_world_size(), get_device(), config, given["label"], _RayStore())
    given["loop"](session, **given["arguments"])


class _RayStore:
    def latest(self, into: Path) -> bool:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return False
        checkpoint.to_directory(str(into))
        return True

    def save(self, folder: Path, epoch: int) -> None:
        ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def _train_here(loop: Loop, arguments: Mapping[str, Any], config: TrainConfig, workspace: Workspace, name: str, folder: Path) -> None:
    if not isinstance(workspace.filesystem, LocalFileSystem):
        raise ConfigError("launcher", "local", "keeps its checkpoints in a folder; for an object store use launcher: ray")
    torch.set_num_threads(max(1, int(config.resources.cpus)))
    store = _WorkspaceStore(workspace, name)
    with process_group(config) as device:
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        loop(TrainSession(rank, world_size, device, config, name.split("/")[0], store), **arguments)
        torch.distributed.barrier()
    if rank > 0:
        # What follows writes artifacts and deletes checkpoints: it is for one process.
        sys.exit()
    assert store.latest(folder), f"{name}: the loop ended without an epoch"


@contextmanager
def process_group(config: TrainConfig) -> Iterator[torch.device]:
    """torch.distributed from torchrun's environment, else a group of this process alone.

    DeepSpeed keeps hold of the first group of a process, so the group is made once and lives as long as the process.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    added = {} if "RANK" in os.environ else alone
    os.environ.update(added)
    gpu = config.resources.gpus > 0
    try:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if gpu else "gloo")
        yield torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu")
    finally:
        for key in added:
            del os.environ[key]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class _WorkspaceStore:
    """Checkpoints as `epoch-<n>/<file>` under a run's name; a checkpoint counts once its PROGRESS is there, written last."""

    workspace: Workspace
    name: str

    def latest(self, into: Path) -> bool:
        root = Path(self.workspace.path(self.name))
        done = sorted(path.parent for path in root.glob(f"epoch-*/{PROGRESS}"))
        if done:
            shutil.copytree(done[-1], into, dirs_exist_ok=True)
        return bool(done)

    def save(self, folder: Path, epoch: int) -> None:
        root = Path(self.workspace.path(self.name))
        kept = root / f"epoch-{epoch:06d}"
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns(PROGRESS), dirs_exist_ok=True)
        torch.distributed.barrier()
        if (folder / PROGRESS).exists():
            self.workspace.write_bytes(str(kept / PROGRESS), (folder / PROGRESS).read_bytes())
            for old in root.glob("epoch-*"):
                if old < kept:
                    shutil.rmtree(old)
        torch.distributed.barrier()
