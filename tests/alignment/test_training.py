"""Training end to end, tiny: the loss falls, a killed run goes on to the same weights, and the folder is a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from intently.alignment.examples import prompt_messages
from intently.alignment.teacher import TeacherConfig, write_examples
from intently.alignment.tokenizer import encode, train_tokenizer
from intently.alignment.training import Encoded, StudentConfig, TrainingConfig, cooccurrence_vectors, plan_batches, train
from intently.core.errors import ConfigError
from intently.core.schema import CHAT_EXAMPLE
from intently.llm.contract import Message
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

TINY = TrainingConfig(
    student=StudentConfig(vocabulary=600, hidden=32, layers=1, heads=2, kv_heads=1, head_size=32, feed_forward=64),
    num_steps=12,
    batch_tokens=1024,
    copy_steps=2,
    easy_steps=4,
    warmup_steps=2,
    decay_steps=4,
    threads=1,
    checkpoint_every=5,
)


class KilledError(Exception):
    """Stands for a machine that is gone."""


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    return write_examples(TeacherConfig(users_per_world=10, tags_per_world=6, explanations_per_world=20), 0)


@pytest.fixture(scope="module")
def trained(examples, tmp_path_factory) -> tuple[list[float], Path]:
    work = tmp_path_factory.mktemp("student")
    return train(examples, TINY, work), work / "model"


def test_train_loss_falls(trained):
    losses, _ = trained
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[2:5]) - 0.3


def test_train_killed_and_started_again_gives_the_same_weights(examples, trained, tmp_path):
    first = train(examples, TINY, tmp_path, until=7)
    second = train(examples, TINY, tmp_path)
    assert (len(first), len(second)) == (7, 5)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained[1], tmp_path / "model"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_train_killed_while_the_tokenizer_is_saved_goes_on(examples, tmp_path, monkeypatch):
    def die(tokenizer, folder):
        Path(folder).mkdir()
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", die)
        train(examples, TINY, tmp_path, until=1)
    assert len(train(examples, TINY, tmp_path, until=1)) == 1
    assert {path.name for path in tmp_path.glob("tokenizer*")} == {"tokenizer"}


def test_train_without_examples_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to train on"):
        train(CHAT_EXAMPLE.empty(), TINY, tmp_path)


def test_train_example_longer_than_the_context_is_named(examples, tmp_path):
    small = TINY.model_copy(update={"student": TINY.student.model_copy(update={"context": 128})})
    with pytest.raises(ConfigError, match="100000-"):
        train(examples, small, tmp_path)


def test_model_folder_is_what_transformers_loads(trained):
    _, folder = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    chat = [{"role": "system", "content": "You read what one person did on a platform."}, {"role": "user", "content": "Behaviours:"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>You read what one person<|user|>Behaviours:<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_tokenizer_gives_any_text_back():
    tokenizer = train_tokenizer(["a short text about boots and tents"] * 3, 300, 128)
    text = 'Amélie (2001) — "naïve" 🥾\n'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_encode_prompt_ends_with_the_assistants_turn_and_answer_with_the_end(examples):
    tokenizer = train_tokenizer(examples["prompt"].to_pylist(), 600, 2048)
    row = examples.slice(0, 1).to_pylist()[0]
    [chat] = encode(tokenizer, [prompt_messages(row["prompt"])], [row["completion"]], ("interest",))
    assert tokenizer.decode(chat.tokens[chat.prompt_length - 1 : chat.prompt_length]) == "<|assistant|>"
    assert tokenizer.decode(chat.tokens[chat.prompt_length :]) == row["completion"] + "<|end|>"


def test_encode_decisive_tokens_are_those_of_the_keys_values():
    tokenizer = train_tokenizer(['{"interest":"trail hiking","reason":"hiking boots"}'], 300, 128)
    chat: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    [coded] = encode(tokenizer, [chat], ['{"interest":"trail hiking","reason":"hiking boots"}'], ("interest",))
    answer = coded.tokens[coded.prompt_length :]
    said = tokenizer.decode([token for token, decisive in zip(answer, coded.decisive, strict=True) if decisive])
    assert said == "trail hiking"


def test_plan_batches_drill_first_then_easy_then_all_and_within_the_budget():
    encoded = [Encoded(tokens=list(range(n)), prompt_length=2, decisive=[], system_length=1, difficulty=n % 4) for n in range(10, 110)]
    plan = plan_batches(encoded, TINY)
    assert plan[:2] == [None, None] and len(plan) == 12
    assert all(encoded[i].difficulty <= 1 for batch in plan[2:6] for i in batch)
    assert {encoded[i].difficulty for batch in plan[6:] for i in batch} == {0, 1, 2, 3}
    assert all(len(batch) * max(len(encoded[i].tokens) for i in batch) <= TINY.batch_tokens for batch in plan[2:])


def test_plan_batches_longer_run_begins_like_the_shorter_one():
    encoded = [Encoded(tokens=[0] * 50, prompt_length=2, decisive=[], system_length=1, difficulty=0) for _ in range(200)]
    short, long = (plan_batches(encoded, TINY.model_copy(update={"num_steps": steps})) for steps in (12, 20))
    assert long[:12] == short


def test_cooccurrence_vectors_put_tokens_of_one_line_next_to_each_other():
    tokenizer = train_tokenizer(["boots poles\ncoffee grinder\n" * 30], 300, 128)
    lines = ["boots poles", "coffee grinder", "boots poles", "coffee grinder"]
    tokens = tokenizer("\n".join(lines * 5), add_special_tokens=False)["input_ids"]
    vectors = cooccurrence_vectors(tokenizer, [Encoded(tokens, 1, [], 0, 0)], 16, 0)
    boots, poles, grinder = (tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("boots", " poles", " grinder"))
    directions = torch.nn.functional.normalize(vectors, dim=1)
    assert directions[boots] @ directions[poles] > directions[boots] @ directions[grinder] + 0.3


def test_train_goes_on_from_a_model_folder_with_its_tokenizer(examples, trained, tmp_path):
    _, folder = trained
    onward = TINY.model_copy(update={"start": str(folder), "num_steps": 2, "copy_steps": 0, "easy_steps": 0, "warmup_steps": 100})
    train(examples, onward, tmp_path)
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "model"))
    # Two steps at a hundredth of the rate move a weight by a fraction of a percent; weights begun anew would share nothing.
    moved = [((after[name].float() - before[name].float()).norm() / before[name].float().norm()).item() for name in before]
    assert 0 < max(moved) < 0.02
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_encode_bare_word_is_decisive_from_end_to_end(examples, trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[1])
    chat = prompt_messages(examples["prompt"][0].as_py())
    (word,) = encode(tokenizer, [chat], ["Yes"], ["tag"])
    assert word.decisive == [True] * (len(word.tokens) - word.prompt_length - 1) + [False], "all but the end"
