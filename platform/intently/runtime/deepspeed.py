"""DeepSpeed around a module: its settings from ours, and an engine with torch's own AdamW.

DeepSpeed's fused optimizers are compiled on first use (minutes on a busy machine), so the optimizer is always handed in; the
shared-memory communication op, which only its inference all-reduce uses, is switched off for the same reason.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from intently.core.config import Config

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

NEVER = 10**9


class DeepSpeedConfig(Config):
    """How parameters, gradients and optimizer state lie on the workers."""

    zero_stage: Literal[0, 1, 2] = Field(1, description="0 keeps all state on every worker; 1 shards the optimizer's, 2 gradients too")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="number format of weights and activations")
    max_gradient_norm: float = Field(0.0, ge=0, description="gradients are clipped to this norm; 0 leaves them")


def deepspeed_settings(config: DeepSpeedConfig, micro_batch: int) -> dict[str, Any]:
    """The dict that `deepspeed.initialize` and the trainers of transformers and TRL read.

    Args:
        config: ours.
        micro_batch: examples a worker takes in one step.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.max_gradient_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
    }


def quiet_deepspeed() -> None:
    """Keep DeepSpeed from compiling its shared-memory op and from logging every start; call before it is initialised."""
    # Imported where it starts: it probes the machine's compilers and accelerators on import, and only training workers need it.
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def build_engine(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: DeepSpeedConfig,
    micro_batch: int,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> DeepSpeedEngine:
    """A DeepSpeed engine: `loss = engine(batch)`, `engine.backward(loss)`, `engine.step()` (which also moves the schedule on).

    Args:
        module: its forward is what the engine calls.
        optimizer: over `module.parameters()`.
        config: ZeRO stage, precision, clipping.
        micro_batch: examples a worker takes in one step.
        schedule: of the optimizer's learning rate, stepped once a step.
    """
    import deepspeed  # see quiet_deepspeed

    quiet_deepspeed()
    # One worker has nobody to share state or gradients with: sharding and averaging would only copy them, several times a step.
    alone = torch.distributed.get_world_size() == 1 and config.precision == "fp32"
    if alone:
        config = config.model_copy(update={"zero_stage": 0})
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_settings(config, micro_batch), dist_init_required=False
    )
    engine.enable_backward_allreduce = not alone
    return engine
