"""From settings to an engine: the one place that knows all kinds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag

from intently.core.workspace import Stage
from intently.llm.contract import Engine
from intently.llm.engines.endpoint import EndpointConfig, EndpointEngine
from intently.llm.engines.scripted import ScriptedConfig, ScriptedEngine
from intently.llm.engines.vllm import VLLMConfig, VLLMEngine, vllm_environment
from intently.llm.request_cache import CachedEngine


def _kind(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return getattr(value, "kind", None)
    return value.get("kind", "vllm") if isinstance(value, dict) else None


EngineConfig = Annotated[
    Annotated[VLLMConfig, Tag("vllm")] | Annotated[EndpointConfig, Tag("endpoint")] | Annotated[ScriptedConfig, Tag("scripted")],
    Discriminator(_kind),
]
"""A field of this type takes the settings of any engine, told apart by `kind`: vllm (the default), endpoint or scripted."""


def build_engine(config: EngineConfig) -> Engine:
    """Start the engine that `config` describes; its process must have `engine_environment(config)`.

    Raises:
        ConfigError: a setting cannot be met: a missing model, a key that is not in the environment.
        EngineError: the engine cannot start.
    """
    match config:
        case VLLMConfig():
            return VLLMEngine(config)
        case EndpointConfig():
            return EndpointEngine(config)
        case ScriptedConfig():
            return ScriptedEngine.from_config(config)


def cached_engine(config: EngineConfig, stage: Stage) -> CachedEngine:
    """`build_engine`, with the request cache of the stage's workspace before it: the form in which jobs hold an engine."""
    return CachedEngine.of(build_engine(config), config, stage)


def share_of(config: EngineConfig, num_workers: int) -> EngineConfig:
    """The settings of one of a job's workers: rates and budgets of an endpoint are the job's, and each worker gets an equal part."""
    return config.share(num_workers) if isinstance(config, EndpointConfig) else config


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables for the process that will hold the engine, to be set before it starts.

    Never a key: an endpoint's key must be in the environment of the machines themselves, because a runtime environment is
    shown on Ray's dashboard.
    """
    match config:
        case VLLMConfig():
            return vllm_environment(config)
        case EndpointConfig() | ScriptedConfig():
            return {}
