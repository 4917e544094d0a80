"""What a model folder holds, in 12 hex digits: the name of a folder says nothing about a model that was trained anew."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

DECISIVE = (
    *("*.safetensors", "*model*.bin"),  # not training_args.bin, nor what optimizers keep
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "*.jinja"),
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
)
"""Files of a model folder that decide what the model says."""


def checkpoint_identity(model: str, folder: Path) -> str:
    """`model@digest` of the weights and the tokenizer in `folder`; `model` itself where that is no folder (a hub name)."""
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted({path for pattern in DECISIVE for path in folder.rglob(pattern) if path.is_file()}):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)}:{_digest(path, status.st_size, status.st_mtime_ns)};".encode())
    return f"{model}@{digest.hexdigest()[:12]}"


@cache
def _digest(path: Path, _size: int, _modified_ns: int) -> str:
    """SHA-256 of a file, read again only when its size or time changed: weights are large, and identities are asked for often."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
