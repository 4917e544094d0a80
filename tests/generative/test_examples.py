"""Training examples: what is asked in each, how batches are made, and that checkpoints take new tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from intently.core.errors import ConfigError
from intently.core.schema import ITEM_INTEREST
from intently.generative.beam import BeamConfig, ConstrainedBeam
from intently.generative.examples import IGNORED, Collate, ItemTokens, MixtureConfig, build_examples, prompts
from intently.generative.sequences import SequenceConfig, Sequences, read_sequences
from intently.generative.training import DecoderConfig, build_decoder
from intently.generative.trie import END, build_trie
from intently.generative.vocabulary import Task, Vocabulary, add_codes, learn_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.retrieval.world import history

IDS = pa.array(["a", "b", "c", "d"])
TITLES = ["red shoes", "blue boots", "green hat", "red hat"]
CODES = np.array([[0, 1, 0], [0, 2, END], [1, 0, 0], [1, 0, 1]], np.int32)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return add_codes(learn_tokenizer(TITLES, 300), (2, 3, 2))


def past() -> Sequences:
    events = {"u": ["a", "b", "c", "d"], "v": ["c"]}
    return read_sequences(history({user: [(item, "purchase") for item in items] for user, items in events.items()}), IDS, SequenceConfig())


def examples(vocabulary: Vocabulary, shares: dict[Task, float], max_items: int = 3, interests: pa.Table | None = None) -> list:
    items = ItemTokens(CODES, vocabulary.sid)
    return build_examples(past(), items, TITLES, interests, IDS, vocabulary, MixtureConfig(shares=shares), max_items)


def written(vocabulary: Vocabulary, tokens: np.ndarray) -> str:
    return vocabulary.tokenizer.decode(tokens)


def test_vocabulary_codes_of_a_level_lie_next_to_each_other_and_are_found_again(vocabulary: Vocabulary) -> None:
    first = vocabulary.sid.first
    assert vocabulary.tokenizer.convert_ids_to_tokens([first[1], first[1] + 2, first[2]]) == ["<s1_0>", "<s1_2>", "<s2_0>"]
    size = len(vocabulary.tokenizer)
    again = add_codes(vocabulary.tokenizer, (2, 3, 2))
    assert (again.sid, again.marks, len(again.tokenizer)) == (vocabulary.sid, vocabulary.marks, size)
    assert vocabulary.tokenizer("red <s1_2>", add_special_tokens=False)["input_ids"][-1] == first[1] + 2


def test_examples_history_is_cut_into_pieces_and_all_of_it_is_asked(vocabulary: Vocabulary) -> None:
    made = examples(vocabulary, {Task.HISTORY: 1.0})
    assert [written(vocabulary, example.tokens) for example in made] == [
        "<|history|><s0_0><s1_1><s2_0>",
        "<|history|><s0_0><s1_2><s0_1><s1_0><s2_0><s0_1><s1_0><s2_1>",
        "<|history|><s0_1><s1_0><s2_0>",
    ]
    assert [example.sizes.tolist() for example in made] == [[3], [2, 3, 3], [3]]
    assert {example.start for example in made} == {1}


def test_examples_of_texts_ask_for_the_answer_only(vocabulary: Vocabulary) -> None:
    tasks = (Task.TITLE_TO_SID, Task.SID_TO_TITLE, Task.HISTORY_TO_TITLE, Task.TITLES_TO_SID, Task.INTERESTS_TO_SID)
    interests = ITEM_INTEREST.from_rows([{"item_id": "b", "interest": "dry feet", "confidence": 1.0, "support": 1, "sources": []}])
    made = examples(vocabulary, dict.fromkeys(tasks, 1.0), interests=interests)
    parts = [(written(vocabulary, e.tokens[: e.start]), written(vocabulary, e.tokens[e.start :])) for e in made]
    assert parts[:4] == [
        ("<|title_to_sid|>red shoes<|answer|>", "<s0_0><s1_1><s2_0>"),
        ("<|title_to_sid|>blue boots<|answer|>", "<s0_0><s1_2>"),
        ("<|title_to_sid|>green hat<|answer|>", "<s0_1><s1_0><s2_0>"),
        ("<|title_to_sid|>red hat<|answer|>", "<s0_1><s1_0><s2_1>"),
    ]
    assert parts[4] == ("<|sid_to_title|><s0_0><s1_1><s2_0><|answer|>", "red shoes<|over|>")
    sids = ("<s0_0><s1_1><s2_0>", "<s0_0><s1_2>", "<s0_1><s1_0><s2_0>", "<s0_1><s1_0><s2_1>")
    told = dict(zip(sids, TITLES, strict=True))
    order = list(told)
    (before, title) = parts[8]
    place = list(told.values()).index(title.removesuffix("<|over|>"))
    assert before == f"<|history_to_title|>{''.join(order[:place])}<|answer|>"
    (before, answer) = parts[9]
    place = order.index(answer)
    shown = "\n".join(list(told.values())[:place])
    assert before == f"<|titles_to_sid|>{shown}<|answer|>"
    assert parts[10] == ("<|interests_to_sid|>dry feet<|answer|>", "<s0_0><s1_2>")
    assert len(parts) == 11


def test_examples_share_of_a_half_takes_half_and_of_two_doubles(vocabulary: Vocabulary) -> None:
    assert len(examples(vocabulary, {Task.TITLE_TO_SID: 0.5})) == 2
    assert len(examples(vocabulary, {Task.TITLE_TO_SID: 2.0})) == 8


def test_examples_about_interests_without_any_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match="interests_to_sid"):
        examples(vocabulary, {Task.INTERESTS_TO_SID: 1.0})


def test_collate_pads_on_the_right_and_hides_prompts() -> None:
    rows = [{"input_ids": [5, 6, 7], "start": 2, "sizes": []}, {"input_ids": [8, 9], "start": 1, "sizes": [1]}]
    batch = Collate(pad=0, item_dropout=0.0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_collate_drops_whole_items_and_other_ones_each_time() -> None:
    row = {"input_ids": [1, 10, 11, 20, 30, 31, 32, 40], "start": 1, "sizes": [2, 1, 3, 1]}
    items = [[10, 11], [20], [30, 31, 32], [40]]
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        tokens = Collate(pad=0, item_dropout=0.5)([row])["input_ids"][0].tolist()
        assert tokens[0] == 1
        kept = [item for item in items if item[0] in tokens]
        assert tokens[1:] == [token for item in kept for token in item]
        seen.add(len(kept))
    assert len(seen) > 2


def test_prompts_hold_the_latest_items_and_may_be_empty(vocabulary: Vocabulary) -> None:
    tokens, lengths = prompts([np.array([0, 1, 2]), np.array([], int)], ItemTokens(CODES, vocabulary.sid), vocabulary, max_items=2)
    assert lengths.tolist() == [6, 1]
    assert written(vocabulary, tokens[0]) == "<|history|><s0_0><s1_2><s0_1><s1_0><s2_0>"
    assert tokens[1].tolist() == [vocabulary.marks[Task.HISTORY], *[vocabulary.pad] * 5]


@pytest.mark.parametrize("tied", [True, False])
def test_build_decoder_checkpoint_gets_rows_for_codes_and_searches(tmp_path: Path, tied: bool) -> None:
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 16, "feed_forward": 32, "text_tokens": 300}
    base, words = build_decoder(DecoderConfig.parse(sizes), TITLES, (2,), seed=0)
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(torch.randn_like(base.lm_head.weight))
    base.save_pretrained(tmp_path)
    words.tokenizer.save_pretrained(tmp_path)
    old = len(words.tokenizer)
    model, vocabulary = build_decoder(DecoderConfig(checkpoint=str(tmp_path)), TITLES, (2, 3, 2), seed=0)
    assert len(vocabulary.tokenizer) == old + 5
    rows = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert (rows[0] is rows[1]) == tied
    assert rows[0].shape[0] == rows[1].shape[0] == old + 5
    for after, before in zip(rows, (base.get_input_embeddings().weight, base.get_output_embeddings().weight), strict=True):
        assert torch.equal(after[:old], before)
        assert (after[old:] - before.mean(dim=0)).abs().max() < before.std()
    trie = build_trie(CODES, np.array(IDS.to_pylist(), object), "v1")
    asked = prompts([np.array([0])], ItemTokens(CODES, vocabulary.sid), vocabulary, max_items=2)
    assert (ConstrainedBeam(model.eval(), vocabulary.sid, BeamConfig(width=4)).search(*asked, trie, 4).items >= 0).all()
    model.save_pretrained(tmp_path / "after")
    vocabulary.tokenizer.save_pretrained(tmp_path / "after")
    loaded = add_codes(AutoTokenizer.from_pretrained(tmp_path / "after"), (2, 3, 2))
    assert (loaded.sid, loaded.marks) == (vocabulary.sid, vocabulary.marks)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert torch.equal(again.get_output_embeddings().weight, rows[1])


def test_build_decoder_unknown_checkpoint_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoder\.checkpoint"):
        build_decoder(DecoderConfig(checkpoint=str(tmp_path / "nowhere")), TITLES, (2,), seed=0)
