"""The student that is shipped is one that this room's code made, and small enough to ship."""

from __future__ import annotations

from pathlib import Path

import intently.llm
import numpy as np
from intently.alignment.examples import prompt_messages
from intently.alignment.teacher import TeacherConfig, write_examples
from intently.alignment.tokenizer import CHAT_TEMPLATE
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

FOLDER = Path(intently.llm.__file__).parent / "student"


def test_shipped_student_takes_at_most_20_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 20 * 2**20


def test_shipped_student_is_a_qwen3_with_finite_tied_weights_and_our_chat_template():
    config, tokenizer = AutoConfig.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    weights = load_file(FOLDER / "model.safetensors")
    assert (config.architectures, config.tie_word_embeddings) == (["Qwen3ForCausalLM"], True)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert "lm_head.weight" not in weights and weights["model.embed_tokens.weight"].shape[0] == len(tokenizer)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_shipped_tokenizer_reads_the_pipelines_questions_in_few_tokens():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    examples = write_examples(TeacherConfig(seed=5, users_per_world=10, tags_per_world=5, explanations_per_world=5), 0).to_pylist()
    texts = [tokenizer.apply_chat_template(prompt_messages(row["prompt"]), tokenize=False, add_generation_prompt=True) for row in examples]
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert np.sum([len(text) for text in texts]) / np.sum(counts) > 2.5
