"""Tokens of a text are those of its pieces: against a tokenizer that reads every text whole."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intently.data.chunking import ChunkConfig, Chunker
from intently.data.tokens import MINILM, TokenCounter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPACES = ["a  b", " lead", "trail ", "tab\there", "non\u00a0breaking", "", "\n\n"]
odd = st.sampled_from([*SPACES, "3.5, 4", "日本語 語", "e\u0301 x", "(cart)", "_"])
titles = st.lists(st.one_of(odd, st.text(st.characters(exclude_categories=["Cs"]), max_size=15)), min_size=4, max_size=4)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE as models of the GPT family have it, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["2024-05-17 (detail_view, cart) | red boots, blue tent [Camping]\n"] * 20, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["words", "packaged", "byte level"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=titles, queries=titles)
def test_chunk_has_as_many_tokens_as_its_text_read_whole(
    kind: str,
    byte_level: str,
    make_history: Callable[..., pa.Table],
    make_items: Callable[..., pa.Table],
    names: list[str],
    queries: list[str],
) -> None:
    path = {"words": None, "packaged": MINILM, "byte level": byte_level}[kind]
    items = make_items(**{f"i{number}": name for number, name in enumerate(names)})
    log = [f"2024-0{1 + number}-0{1 + number} cart i{number % 5}" for number in range(8)]
    asked = [f"2024-09-0{1 + number} search - {query}" for number, query in enumerate(queries) if query.strip()]
    chunks = Chunker(items, ChunkConfig(tokenizer=path, num_events=6)).chunk(make_history(u=[*log, *asked])).chunks
    assert chunks["num_tokens"].to_pylist() == TokenCounter(path).count(chunks["text"].combine_chunks()).tolist()
