"""Settings of engines: told apart by kind, refused by name, and the scripted engine that only tests use."""

from __future__ import annotations

import pickle

import pytest
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.llm.contract import Message, Request, Sampling
from intently.llm.engines.build import EngineConfig, build_engine, engine_environment, share_of
from intently.llm.engines.endpoint import EndpointConfig
from intently.llm.engines.scripted import ScriptedConfig, ScriptedEngine
from intently.llm.engines.vllm import VLLMConfig
from pydantic import Field


class JobConfig(Config):
    """A job's config, as jobs have them."""

    engine: EngineConfig = Field(default_factory=VLLMConfig, description="which engine")


def request(text: str, num_samples: int = 1) -> Request:
    return Request("a", (Message(role="system", content="be short"), Message(role="user", content=text)), Sampling(num_samples=num_samples))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], VLLMConfig()),
        (["engine.model=Qwen/Qwen3-8B"], VLLMConfig(model="Qwen/Qwen3-8B")),
        (
            ["engine.kind=endpoint", "engine.base_url=http://localhost/v1", "engine.model=m"],
            EndpointConfig(base_url="http://localhost/v1", model="m"),
        ),
        (["engine.kind=scripted", "engine.default=x"], ScriptedConfig(default="x")),
    ],
)
def test_engine_config_kind_decides_the_class(settings: list[str], expected: Config) -> None:
    config = JobConfig.load(None, settings)
    assert config.engine == expected
    assert pickle.loads(pickle.dumps(config)) == config
    assert JobConfig.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("setting", ["engine.kind=gpt", "engine.no_such=1", "engine.dtype=int3", "engine=7"])
def test_engine_config_bad_setting_is_refused_with_its_value(setting: str) -> None:
    with pytest.raises(ConfigError, match="engine"):
        JobConfig.load(None, [setting])


def test_engine_identity_tells_models_apart() -> None:
    one, other = (JobConfig.load(None, [f"engine.model={model}"]).identity() for model in ("a/b", "a/c"))
    assert one != other


def test_scripted_engine_first_part_found_answers() -> None:
    config = ScriptedConfig(replies={"boots": "snow and ice", "shoes": "mud"}, default="nothing")
    engine = build_engine(config)
    replies = engine.generate([request("winter boots and shoes"), request("red shoes", 2), request("a hat")])
    assert [reply.texts for reply in replies] == [("snow and ice",), ("mud", "mud"), ("nothing",)]
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (6, 3)
    assert engine.name == "scripted:replies"
    assert engine_environment(config) == {}


def test_scripted_engine_without_an_answer_fails_that_request() -> None:
    (reply,) = ScriptedEngine(lambda _: None).generate([request("anything")])
    assert (reply.texts, reply.error) == ((), "the script fails here")


def test_share_of_workers_keep_the_limits_of_their_job_together():
    job = EndpointConfig(
        base_url="http://127.0.0.1:1/v1", model="m", requests_per_minute=90, tokens_per_minute=600, max_total_tokens=1000, max_cost=2.0
    )
    one = share_of(job, 3)
    assert isinstance(one, EndpointConfig)
    assert (one.requests_per_minute, one.tokens_per_minute, one.max_total_tokens, one.max_cost) == (30, 200, 333, pytest.approx(2 / 3))
    assert one.identity() == job.identity(), "how many workers there are is no part of what is computed"
    free = EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m")
    assert share_of(free, 3) == free
    assert share_of(VLLMConfig(), 3) == VLLMConfig()
    with pytest.raises(ConfigError, match="max_total_tokens"):
        share_of(job.model_copy(update={"max_total_tokens": 2}), 3)
