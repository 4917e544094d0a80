"""The identity of a model folder: what decides answers changes it, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
from intently.llm.checkpoint import checkpoint_identity


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("model.safetensors", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("adapter_model.bin", True),
        ("adapter_config.json", True),
        ("spiece.model", True),
        ("vocab.txt", True),
        ("merges.txt", True),
        ("modules.json", True),
        ("1_Pooling/config.json", True),
        ("sentence_bert_config.json", True),
        ("training_args.bin", False),
        ("optimizer.bin", False),
        ("README.md", False),
    ],
)
def test_checkpoint_identity_follows_the_files_that_decide(tmp_path: Path, name: str, decides: bool) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("one")
    before = checkpoint_identity("m", tmp_path)
    path.write_text("another")
    assert (checkpoint_identity("m", tmp_path) != before) == decides


def test_checkpoint_identity_folder_inside_that_is_named_like_a_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    assert checkpoint_identity("m", tmp_path).startswith("m@")


def test_checkpoint_identity_hub_name_is_itself(tmp_path: Path) -> None:
    assert checkpoint_identity("Qwen/Qwen3-8B", tmp_path / "Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
