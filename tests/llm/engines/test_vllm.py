"""The real vLLM on a tiny random Qwen3: in a Ray actor, in a mapped worker and in a plain process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from intently.core.config import Config, Resources
from intently.core.errors import ConfigError, EngineError
from intently.core.schema import EXPLANATION
from intently.core.workspace import Stage, Workspace, open_stage
from intently.llm.answer import Question, answer
from intently.llm.contract import Message, Reply, Request, Sampling
from intently.llm.engines.build import EngineConfig, build_engine, engine_environment
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TASK = TASKS["explanation"]
PLATFORM = Path(__file__).parents[3] / "platform"


class Holder:
    """An engine in an actor's process."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = build_engine(config)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return self.engine.generate(requests)

    def chain(self, requests: Sequence[Request], links: int) -> list[Reply]:
        """Each request, followed by `links` more."""

        def follow(reply: Reply) -> list[Request]:
            return [ask(f"{reply.request_id}+", "And then?", max_tokens=4)] if reply.request_id.count("+") < links else []

        return self.engine.generate(requests, follow)

    def close(self) -> str:
        self.engine.close()
        return self.engine.name


class Explain:
    """Writes one part of explanations, as a mining job does."""

    def __init__(self, config: EngineConfig, stage: Stage) -> None:
        self.engine, self.stage = build_engine(config), stage

    def __call__(self, part: str) -> dict[str, int]:
        sampling = Sampling(temperature=1.0, max_tokens=256, seed=1)
        outcomes = answer(self.engine, [Question(f"{part}-{i}", fields(f"{part} {i}"), sampling) for i in range(8)], TASK)
        rows = [
            {"item_id": o.question_id, "interest": "", "text": o.answer.explanation, "model": self.engine.name}
            for o in outcomes
            if o.answer
        ]
        self.stage.write(part, EXPLANATION.from_rows(rows))
        return {"answers": len(rows), "tokens": sum(o.completion_tokens for o in outcomes)}


def fields(title: str) -> dict[str, object]:
    item = {"title": title, "category": "Shoes", "brand": None, "price": None, "attributes": [], "description": None}
    return {"item": item, "interest": None}


def ask(name: str, text: str, schema: str | None = None, **sampling: object) -> Request:
    return Request(name, (Message(role="user", content=text),), Sampling.model_validate(sampling), schema)


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> VLLMConfig:
    return VLLMConfig(model=str(tiny_model), kv_cache_gb=0.0625, max_num_seqs=64)


@pytest.fixture(scope="module")
def engine(tiny: VLLMConfig, ray_session: None) -> Iterator[ray.actor.ActorHandle]:
    actor = ray.remote(num_cpus=0.5, runtime_env={"env_vars": engine_environment(tiny)})(Holder).remote(tiny)
    yield actor
    assert ray.get(actor.close.remote()) == f"vllm:{tiny.model}"
    ray.kill(actor)


def test_vllm_guided_json_of_a_random_model_always_parses(engine: ray.actor.ActorHandle) -> None:
    requests = [
        Request(str(i), TASK.render(**fields(f"shoe {i}")), Sampling(temperature=1.0, max_tokens=256), TASK.json_schema) for i in range(32)
    ]
    replies = ray.get(engine.generate.remote(requests))
    assert [reply.request_id for reply in replies] == [str(i) for i in range(32)]
    for reply in replies:
        TASK.parse(reply.texts[0])
        assert reply.error is None
        assert reply.prompt_tokens > 0 < reply.completion_tokens


def test_vllm_samples_of_one_request_share_the_prompt_and_repeat_with_the_seed(engine: ray.actor.ActorHandle) -> None:
    drawn = {"temperature": 1.0, "max_tokens": 12, "seed": 7}
    many, again, one = (ray.get(engine.generate.remote([ask("a", "Name a wish.", num_samples=n, **drawn)]))[0] for n in (4, 4, 1))
    assert len(many.texts) == 4
    assert len(set(many.texts)) > 1
    assert many.texts == again.texts
    assert many.prompt_tokens == one.prompt_tokens
    assert many.completion_tokens <= 48


def test_vllm_choices_have_the_models_own_probabilities(engine: ray.actor.ActorHandle, tiny_model: Path) -> None:
    asked = Request("a", (Message(role="user", content="Do you like tea?"),), Sampling(), choices=("Yes", "No"))
    alike = replace(asked, request_id="b", choices=("Yes", "Yet"))
    reply, refused = ray.get(engine.generate.remote([asked, alike]))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    prompt = tokenizer.apply_chat_template(list(asked.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(prompt["input_ids"]).logits[0, -1]
    wanted = torch.softmax(logits[[tokenizer.encode(word)[0] for word in asked.choices]], 0).tolist()
    assert reply.probabilities == pytest.approx(wanted, abs=0.02)  # vLLM computes in bfloat16 here
    assert reply.texts == (("Yes", "No")[wanted.index(max(wanted))],)
    assert (refused.texts, refused.error) == ((), "the model's tokenizer begins several of Yes, Yet alike")


def test_vllm_same_prefix_is_computed_once(engine: ray.actor.ActorHandle) -> None:
    prefix = "walks " * 60
    (first,) = ray.get(engine.generate.remote([ask("a", f"{prefix} uphill", max_tokens=1)]))
    (second,) = ray.get(engine.generate.remote([ask("b", f"{prefix} downhill", max_tokens=1)]))
    assert first.cached_tokens == 0
    # The cache works in blocks of 128 tokens.
    assert second.cached_tokens == second.prompt_tokens // 128 * 128 > 0


def test_vllm_more_seeded_prompts_than_a_step_reads_are_all_answered(engine: ray.actor.ActorHandle) -> None:
    # Together they exceed the 4,096 tokens of a step: one prompt would be cut in two, which vLLM does not survive with seeds.
    requests = [ask(str(i), f"{i} " + "walks " * 60, temperature=1.0, max_tokens=8, seed=i) for i in range(20)]
    replies = ray.get(engine.generate.remote(requests))
    assert sum(reply.prompt_tokens for reply in replies) > 4096
    assert [reply.error for reply in replies] == [None] * 20
    assert all(reply.completion_tokens for reply in replies)


def test_vllm_requests_that_cannot_be_met_fail_alone(engine: ray.actor.ActorHandle) -> None:
    requests = [
        ask("good", "Name a wish.", max_tokens=4),
        ask("long", "wish " * 600, max_tokens=4),
        ask("schema", "Name a wish.", schema='{"type": "wish"}', max_tokens=4),
        ask("greedy", "Name a wish.", max_tokens=100_000),
    ]
    good, long, schema, greedy = ray.get(engine.generate.remote(requests))
    assert good.error is None
    assert len(good.texts) == 1
    assert (long.texts, long.error) == ((), "the prompt is longer than 511 tokens")
    assert schema.error is not None
    assert schema.error.startswith("refused by the engine: Grammar error")
    assert greedy.error is None
    assert greedy.prompt_tokens + greedy.completion_tokens <= 512


def test_vllm_mapped_over_parts_writes_valid_answers(tiny: VLLMConfig, workspace: Workspace, ray_session: None) -> None:
    stage = open_stage(workspace, "explanation", EXPLANATION, {}, Config())
    parts = ["part-00000", "part-00001"]
    summaries = map_parts(Explain, {"config": tiny, "stage": stage}, parts, Resources(cpus=0.5), "explain", engine_environment(tiny))
    assert [summary["answers"] for summary in summaries] == [8, 8]
    rows = stage.finish().read()
    assert rows.num_rows == 16
    assert set(rows["model"].to_pylist()) == {f"vllm:{tiny.model}"}


def test_vllm_plain_process_with_the_environment_refuses_bad_settings_and_answers(tiny: VLLMConfig) -> None:
    script = (
        "import json, sys; from intently.llm.contract import *; from intently.llm.engines.vllm import *\n"
        "config = VLLMConfig.model_validate_json(sys.argv[1])\n"
        "try:\n"
        "    VLLMEngine(config.model_copy(update={'quantization': 'sqeezed'}))\n"
        "except EngineError as error:\n"
        "    refusal = str(error)\n"
        "engine = VLLMEngine(config)\n"
        "request = Request('a', ({'role': 'user', 'content': 'Hello'},), Sampling(max_tokens=3), None)\n"
        "print(json.dumps([engine.generate([request])[0].completion_tokens, engine.generate([]), refusal]), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM), **engine_environment(tiny)}
    done = subprocess.run(
        [sys.executable, "-c", script, tiny.model_dump_json()], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    num_tokens, nothing, refusal = json.loads(done.stdout.splitlines()[-1])
    assert (num_tokens, nothing) == (3, [])
    assert refusal.startswith(f"vllm:{tiny.model} cannot start")
    assert "sqeezed" in refusal


def test_vllm_process_without_the_environment_is_refused(tiny: VLLMConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    with pytest.raises(EngineError, match="lacks VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        build_engine(tiny)


def test_vllm_lora_adapter_changes_what_the_model_says_and_one_of_zeros_does_not(tiny: VLLMConfig, tmp_path: Path) -> None:
    requests = [ask(str(i), f"Name wish number {i}.", max_tokens=24) for i in range(4)]
    told = {}
    for name, scale in (("nothing", 0.0), ("something", 4.0)):
        adapter = write_adapter(tmp_path / name, scale)
        config = tiny.model_copy(update={"lora": str(adapter), "lora_rank": 8})
        assert config.identity()["lora"] != tiny.identity()["lora"]
        actor = ray.remote(num_cpus=0.5, runtime_env={"env_vars": engine_environment(config)})(Holder).remote(config)
        told[name] = [reply.texts for reply in ray.get(actor.generate.remote(requests))]
        assert ray.get(actor.close.remote()) == f"vllm:{tiny.model}+{name}"
        ray.kill(actor)
    assert told["nothing"] != told["something"]


def write_adapter(folder: Path, scale: float) -> Path:
    """A LoRA adapter of rank 8 for the tiny model's queries and values, in PEFT's format."""
    generator = torch.Generator().manual_seed(1)
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights = {}
    for layer in range(2):
        for module, width in (("q_proj", 64), ("v_proj", 32)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{place}.lora_A.weight"] = torch.randn(8, 64, generator=generator)
            weights[f"{place}.lora_B.weight"] = scale * torch.randn(width, 8, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_vllm_follow_ups_join_the_running_batch(engine: ray.actor.ActorHandle) -> None:
    replies = ray.get(engine.chain.remote([ask(str(i), f"Name wish {i}.", max_tokens=4) for i in range(3)], 2))
    assert [reply.request_id for reply in replies[:3]] == ["0", "1", "2"]
    assert sorted(reply.request_id for reply in replies[3:]) == ["0+", "0++", "1+", "1++", "2+", "2++"]
    assert [reply.error for reply in replies if "+" not in reply.request_id] == [None] * 3


def test_vllm_picture_is_refused_and_named(engine: ray.actor.ActorHandle) -> None:
    (reply,) = ray.get(engine.generate.remote([replace(ask("a", "What is this?"), images=(b"png",))]))
    assert reply.error == "the engine in this process reads no pictures; serve the model and use an endpoint"


def test_vllm_unknown_model_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VLLMConfig(model="nobody/nothing")
    for key, value in engine_environment(config).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match="model = 'nobody/nothing'"):
        build_engine(config)


def test_vllm_identity_follows_the_weights_and_not_the_machine(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = VLLMConfig(model=str(copy)).identity()
    assert VLLMConfig(model=str(copy), max_num_seqs=2, threads=2, device="gpu").identity() == before
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert VLLMConfig(model=str(copy)).identity() != before


def test_vllm_environment_names_the_hub_only_for_hub_models(tiny: VLLMConfig) -> None:
    assert engine_environment(tiny)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment(VLLMConfig(model="Qwen/Qwen3-8B"))
    on_gpu = engine_environment(VLLMConfig(model="Qwen/Qwen3-8B", device="gpu"))
    assert not {"LD_PRELOAD", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS"} & set(on_gpu)
