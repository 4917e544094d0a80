"""What stays of a training run: the `towers` artifact, and the tables of vectors made from it.

Files of `towers`: `weights.safetensors` (all three towers), `representations.npy` (r_v of the catalogue, [I, D]), `towers.json`
(settings, shapes, vocabulary, item and user ids). With these all towers run: the item tower for items that came after training too.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from intently.core.errors import SchemaError, WorkspaceError
from intently.core.workspace import Artifact, Stage
from intently.retrieval.catalogue import Vocabulary, hash_words, number_items
from intently.retrieval.interactions import Interactions, rows_of
from intently.retrieval.towers import ItemTower, Sizes, TagTower, Towers, UserTower, Window, WindowCutter, features_of, sizes_of
from intently.retrieval.training import TowerData, TrainingConfig, build_towers

WEIGHTS = "weights.safetensors"
REPRESENTATIONS = "representations.npy"
SETTINGS = "towers.json"


@dataclass(frozen=True)
class TrainedTowers:
    """The towers ready to run, on the CPU.

    Attributes:
        config: how they were trained.
        sizes: shapes, from the data of training.
        vocabulary: how item features were numbered in training.
        item, user, tag: the towers.
        representations: r_v [I, D].
        item_ids: [I] strings, the catalogue that the rows stand for: that of training, then later items (`with_items`).
        user_rows: user id → row of training.
    """

    config: TrainingConfig
    sizes: Sizes
    vocabulary: Vocabulary
    item: ItemTower
    user: UserTower
    tag: TagTower
    representations: torch.Tensor
    item_ids: pa.Array
    user_rows: dict[str, int]

    def user_vectors(self, past: Interactions) -> np.ndarray:
        """h_u [U, D] of the users of training, in their order, after their whole past."""
        return self.user.vectors(past, self.representations).numpy()

    @torch.no_grad()
    def user_vector(self, user_id: str | None, items: np.ndarray, behaviours: np.ndarray) -> np.ndarray:
        """h_u [D] of somebody after these events, which are all that is read of their past.

        Args:
            user_id: a user of training; None, or one whom training did not know, is the unknown user.
            items: [n] rows of `item_ids`, oldest first; may be empty.
            behaviours: [n] places in BehaviourConfig.history.
        """
        past = Interactions(pa.array([""]), np.array([0, len(items)]), items, behaviours)
        cutter = WindowCutter(past, self.config.towers.windows[-1], self.representations.device)
        window = cutter.window(torch.zeros(1, dtype=torch.long), torch.tensor([len(items)]))
        row = -1 if user_id is None else self.user_rows.get(user_id, -1)
        window = Window(window.items, window.behaviours, window.valid, torch.tensor([row]))
        return self.user(window, self.representations[window.items])[0].numpy()

    def embed_items(self, items: pa.Table, embeddings: pa.Table) -> np.ndarray:
        """h_v [n, D] of any items: the vectors of training for its own, and for later ones those of their features.

        Args:
            items: ITEM, n rows. A later item goes by the id that all later items share, and by its category, brand, price and text.
            embeddings: EMBEDDING of kind item, made by the encoder of training; an item may lack one.
        Raises:
            SchemaError: the embeddings are of another length than those of training.
        """
        return self._embed(items, embeddings)[1].numpy()

    def with_items(self, items: pa.Table, embeddings: pa.Table) -> TrainedTowers:
        """The same towers with those of the items behind `item_ids` that are not in it yet, so that events on them can be read.

        Args and Raises as `embed_items`.
        """
        later = items.filter(pa.array(rows_of(items["item_id"], self.item_ids) < 0))
        representations = torch.cat([self.representations, self._embed(later, embeddings)[0]])
        item_ids = pa.concat_arrays([self.item_ids, later["item_id"].combine_chunks()])
        return replace(self, representations=representations, item_ids=item_ids)

    @torch.no_grad()
    def _embed(self, items: pa.Table, embeddings: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
        numbered = number_items(items, embeddings, self.vocabulary)
        if not embeddings.num_rows:
            numbered = replace(numbered, texts=np.zeros((len(items), self.sizes.text_dim), np.float32))
        length = numbered.texts.shape[1]
        if self.sizes.text_dim and length != self.sizes.text_dim:
            raise SchemaError(f"table embedding, column vector: length {length}, but the towers were trained on {self.sizes.text_dim}")
        rows = rows_of(items["item_id"], self.item_ids.slice(0, self.sizes.num_items))
        representations = self.item.represent(features_of(numbered, rows))
        return representations, self.item(representations)

    @torch.no_grad()
    def tag_vectors(self, tags: pa.Array) -> np.ndarray:
        """h_t [T, D] of tags, as texts."""
        words, offsets = hash_words(tags, self.config.towers.token_buckets)
        return self.tag(torch.from_numpy(words), torch.from_numpy(offsets[:-1])).numpy()


def restore_towers(data: TowerData, config: TrainingConfig, weights: Path) -> Towers:
    """All three towers with the weights of a checkpoint (of a TowerObjective), ready to run."""
    towers = build_towers(data, config)
    state = {key.removeprefix("towers."): value.float() for key, value in load_file(weights).items()}
    towers.load_state_dict(state)
    return towers.eval()


def put_towers(stage: Stage, towers: Towers, config: TrainingConfig, data: TowerData) -> None:
    """Write the files of `towers`."""
    representations, _ = towers.item_vectors()
    content = io.BytesIO()
    np.save(content, representations.numpy())
    sizes = sizes_of(data.catalogue, data.past.num_users, len(config.behaviours.history), config.towers)
    settings = {
        "config": config.model_dump(mode="json"),
        "sizes": sizes.model_dump(),
        "vocabulary": data.catalogue.vocabulary.model_dump(),
        "item_ids": data.catalogue.item_ids.to_pylist(),
        "user_ids": data.past.user_ids.to_pylist(),
    }
    stage.put(WEIGHTS, save(dict(towers.state_dict())))
    stage.put(REPRESENTATIONS, content.getvalue())
    stage.put(SETTINGS, json.dumps(settings).encode())


def load_towers(artifact: Artifact) -> TrainedTowers:
    """Read the `towers` artifact.

    Raises:
        WorkspaceError: the weights are not whole.
    """
    settings = json.loads(artifact.fetch(SETTINGS).read_bytes())
    config, sizes = TrainingConfig.parse(settings["config"]), Sizes.parse(settings["sizes"])
    try:
        state = load_file(artifact.fetch(WEIGHTS))
    except SafetensorError as error:
        raise WorkspaceError(f"{artifact}: {WEIGHTS} cannot be read: {error}") from error
    item, user, tag = ItemTower(config.towers, sizes), UserTower(config.towers, sizes), TagTower(config.towers)
    for name, tower in (("item", item), ("user", user), ("tag", tag)):
        tower.load_state_dict({key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")})
        tower.eval()
    return TrainedTowers(
        config=config,
        sizes=sizes,
        vocabulary=Vocabulary.parse(settings["vocabulary"]),
        item=item,
        user=user,
        tag=tag,
        representations=torch.from_numpy(np.load(artifact.fetch(REPRESENTATIONS))),
        item_ids=pa.array(settings["item_ids"], pa.string()),
        user_rows={user_id: row for row, user_id in enumerate(settings["user_ids"])},
    )


def embedding_table(kind: str, ids: pa.Array, vectors: np.ndarray, model: str) -> pa.Table:
    """Vectors [n, D] as EMBEDDING rows."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    offsets = pa.array(np.arange(len(ids) + 1) * vectors.shape[1], pa.int32())
    return pa.table(
        {
            "kind": pa.repeat(pa.scalar(kind), len(ids)),
            "id": ids,
            "vector": pa.ListArray.from_arrays(offsets, flat),
            "model": pa.repeat(pa.scalar(model), len(ids)),
        }
    )
