"""A trained generator that answers: the bundle it is kept in, and what serving asks (core.protocols.Generator).

Files of the artifact `generator`: what transformers saves of model and tokenizer, and SETTINGS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from intently.core.errors import ConfigError
from intently.core.schema import CANDIDATE
from intently.core.workspace import Artifact, Stage, Workspace
from intently.generative.beam import BeamConfig, ConstrainedBeam
from intently.generative.examples import ItemTokens, prompts
from intently.generative.sequences import read_sequences
from intently.generative.training import GeneratorConfig
from intently.generative.trie import LiveTrie, Trie, read_trie
from intently.generative.vocabulary import Vocabulary, add_codes

SETTINGS = "generator.json"
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_SHARDS = "model-*.safetensors*"
_BATCH = 64


@dataclass(frozen=True)
class Bundle:
    """What a generator is kept in.

    Attributes:
        folder: that `from_pretrained` loads.
        vocabulary: its tokens.
        config: that it was trained with.
        semantic_id: version of the catalogue that it was trained on.
    """

    folder: Path
    vocabulary: Vocabulary
    config: GeneratorConfig
    semantic_id: str


def open_bundle(artifact: Artifact) -> Bundle:
    """Read a `generator`, fetched if it lies elsewhere; its weights are left where they are."""
    settings = json.loads(artifact.fetch(SETTINGS).read_bytes())
    folder = {artifact.fetch(name).parent for name in artifact.manifest.files}.pop()
    vocabulary = add_codes(AutoTokenizer.from_pretrained(folder), settings["code_counts"])
    return Bundle(folder, vocabulary, GeneratorConfig.parse(settings["config"]), settings["semantic_id"])


class TrainedGenerator:
    """Implements core.protocols.Generator.

    Histories are told as semantic IDs, and items are found by constrained beam search. A catalogue that has grown or shrunk is swapped in
    without a new model, as long as its codes are codes of the model.
    """

    def __init__(self, model: torch.nn.Module, vocabulary: Vocabulary, trie: Trie, config: GeneratorConfig, beam: BeamConfig) -> None:
        """Put a model to work.

        Args:
            model: causal language model, on its device.
            vocabulary: its tokens.
            trie: the first catalogue.
            config: that it was trained with.
            beam: width and scores.
        Raises:
            SchemaError: the model has no tokens for the catalogue's codes.
        """
        self.config, self.vocabulary = config, vocabulary
        self.beam = ConstrainedBeam(model.eval(), vocabulary.sid, beam)
        self._device = next(model.parameters()).device
        self.live = LiveTrie(self._ready(trie), vocabulary.sid.counts)

    @classmethod
    def load(
        cls, workspace: Workspace, beam: BeamConfig | None = None, device: str = "cpu", versions: Mapping[str, str] | None = None
    ) -> TrainedGenerator:
        """The latest generator, with the semantic IDs that it was trained on.

        Args:
            workspace: holds generator and semantic_id.
            beam: how items are searched for; None takes the defaults.
            device: where the model runs.
            versions: artifact → version to load instead of the latest.
        Raises:
            MissingArtifactError: nothing was trained yet.
        """
        chosen = dict(versions or {})
        bundle = open_bundle(workspace.artifact("generator", chosen.get("generator")))
        model = AutoModelForCausalLM.from_pretrained(bundle.folder, dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32)
        version = chosen.get("semantic_id", bundle.semantic_id)
        trie = read_trie(workspace.artifact("semantic_id", version).read(), version)
        return cls(model.to(device), bundle.vocabulary, trie, bundle.config, beam or BeamConfig())

    def swap_catalogue(self, semantic_ids: pa.Table, version: str) -> None:
        """Answer from other SEMANTIC_ID rows from now on; searches that have begun end with theirs.

        Raises:
            SchemaError: an ID is ambiguous, or the model has no tokens for it; what stands is left standing.
        """
        self.live.swap(self._ready(read_trie(semantic_ids, version)))

    def generate(self, histories: pa.Table, k: int, filter_seen: bool = True) -> pa.Table:
        """The best items for some histories.

        Args:
            histories: HISTORY rows, at least user_id, item_ids and behaviours; unknown items and other behaviours are passed over.
            k: items a user, at most the width of the beam.
            filter_seen: leave out items of the history.
        Returns:
            CANDIDATE rows, users in the given order, best first; scores are log-probabilities.
        """
        trie = self.live.current
        sequences = read_sequences(histories, trie.ids, self.config.sequences)
        rows = [sequences.of(user) for user in range(sequences.num_users)]
        items, scores = self.rank(rows, k, rows if filter_seen else None, trie)
        return _candidates(sequences.user_ids.to_pylist(), items, scores, trie)

    def generate_items(
        self, item_ids: Sequence[str], k: int, filter_seen: bool = True, exclude: Sequence[str] = (), user_id: str = ""
    ) -> pa.Table:
        """The best items after some items, oldest first: what a request holds.

        Args:
            item_ids: unknown ones are passed over, and all but the first of those that repeat.
            k: items, at most the width of the beam.
            filter_seen: leave out those very items.
            exclude: item ids that may not be found either (out of stock, shown already).
            user_id: goes into the rows.
        Returns:
            CANDIDATE rows, best first.
        """
        trie = self.live.current
        known = [trie.rows[item] for item in dict.fromkeys(item_ids) if item in trie.rows]
        left_out = [trie.rows[item] for item in exclude if item in trie.rows] + (known if filter_seen else [])
        items, scores = self.rank([np.array(known, np.int64)], k, [np.array(left_out, np.int64)] if left_out else None, trie)
        return _candidates([user_id], items, scores, trie)

    def rank(
        self, histories: Sequence[np.ndarray], k: int, excluded: Sequence[np.ndarray] | None = None, trie: Trie | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best k items of each history, as rows of the catalogue.

        Args:
            histories: B histories as rows, oldest first.
            k: at most the width of the beam.
            excluded: rows that may not be found, for each history.
            trie: the catalogue that rows stand for; None takes the current one.
        Returns:
            items: [B, k] rows, −1 where nothing is left. scores: [B, k] float32.
        """
        trie = trie or self.live.current
        tokens = ItemTokens(trie.semantic_ids, self.vocabulary.sid)
        items, scores = np.full((len(histories), k), -1, np.int64), np.full((len(histories), k), -np.inf, np.float32)
        order = np.argsort([len(history) for history in histories], kind="stable")  # like lengths together: little is filled up
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            asked, lengths = prompts([histories[row] for row in rows], tokens, self.vocabulary, self.config.sequences.max_items)
            gone = None if excluded is None else [excluded[row] for row in rows]
            answer = self.beam.search(asked.to(self._device), lengths.to(self._device), trie, k, gone)
            items[rows], scores[rows] = answer.items.cpu().numpy(), answer.scores.cpu().numpy()
        return items, scores

    def _ready(self, trie: Trie) -> Trie:
        ready = trie.to(self._device)
        assert len(ready.rows) == ready.num_items, "looked up here, or the first request would wait for it"
        return ready


def put_generator(stage: Stage, folder: Path, trie: Trie, config: GeneratorConfig) -> None:
    """Write the files of a generator into its artifact.

    Args:
        stage: of `generator`.
        folder: that `save_pretrained` wrote, tokenizer included.
        trie: that it was trained on.
        config: that it was trained with.
    Raises:
        ConfigError: the folder holds no weights.
    """
    _put_files(stage, folder, {"config": config.model_dump(mode="json"), "code_counts": trie.code_counts, "semantic_id": trie.version})


def put_bundle(stage: Stage, bundle: Bundle, folder: Path) -> None:
    """The same for other weights of a bundle: everything but the files of `folder` stays as it was.

    Raises:
        ConfigError: the folder holds no weights.
    """
    config, counts = bundle.config.model_dump(mode="json"), bundle.vocabulary.sid.counts
    _put_files(stage, folder, {"config": config, "code_counts": counts, "semantic_id": bundle.semantic_id})


def _put_files(stage: Stage, folder: Path, settings: dict[str, Any]) -> None:
    weights = sorted({*folder.glob("model.safetensors"), *folder.glob(_SHARDS)})
    if not weights:
        raise ConfigError("folder", str(folder), "holds no weights")
    for path in sorted({*weights, *(folder / name for name in _MODEL_FILES if (folder / name).is_file())}):
        stage.put(path.name, path)
    stage.put(SETTINGS, json.dumps(settings).encode())


def _candidates(user_ids: Sequence[str], items: np.ndarray, scores: np.ndarray, trie: Trie) -> pa.Table:
    place, rank = np.nonzero(items >= 0)
    return pa.table(
        [
            pa.array(np.asarray(user_ids, object)[place], pa.string()),
            pa.array(trie.item_ids[items[place, rank]], pa.string()),
            pa.array(rank, pa.int32()),
            pa.array(scores[place, rank], pa.float32()),
            pa.repeat(pa.scalar("generative"), len(place)),
        ],
        schema=CANDIDATE.schema,
    )
