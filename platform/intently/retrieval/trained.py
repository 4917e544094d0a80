"""What stays of a training run: the `towers` artifact, and the tables of vectors made from it.

Files of `towers`: `weights.safetensors` (all three towers), `representations.npy` (r_v of the catalogue, [I, D]), `towers.json`
(settings, shapes, item ids). With these the user tower and the tag tower run; the item tower needs the tables it was trained on, and
its vectors are the table item_vector.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save

from intently.core.workspace import Artifact, Stage
from intently.retrieval.catalogue import hash_words
from intently.retrieval.interactions import Interactions
from intently.retrieval.towers import Sizes, TagTower, Towers, UserTower, Window, WindowCutter, sizes_of
from intently.retrieval.training import TowerData, TrainingConfig, build_towers

WEIGHTS = "weights.safetensors"
REPRESENTATIONS = "representations.npy"
SETTINGS = "towers.json"


@dataclass(frozen=True)
class TrainedTowers:
    """User and tag tower ready to run, on the CPU.

    Attributes:
        config: how they were trained.
        user: user tower.
        tag: tag tower.
        representations: r_v [I, D].
        item_ids: [I] strings, the catalogue that the rows stand for.
    """

    config: TrainingConfig
    user: UserTower
    tag: TagTower
    representations: torch.Tensor
    item_ids: pa.Array

    def user_vectors(self, past: Interactions) -> np.ndarray:
        """h_u [U, D] of the users of training, in their order, after their whole past."""
        return self.user.vectors(past, self.representations).numpy()

    @torch.no_grad()
    def stranger_vector(self, items: np.ndarray, behaviours: np.ndarray) -> np.ndarray:
        """h_u [D] of someone unknown with this history.

        Args:
            items: [n] catalogue rows, oldest first; may be empty.
            behaviours: [n] places in BehaviourConfig.history.
        """
        past = Interactions(pa.array([""]), np.array([0, len(items)]), items, behaviours)
        cutter = WindowCutter(past, self.config.towers.windows[-1], self.representations.device)
        window = cutter.window(torch.zeros(1, dtype=torch.long), torch.tensor([len(items)]))
        unknown = Window(window.items, window.behaviours, window.valid, torch.tensor([-1]))
        return self.user(unknown, self.representations[unknown.items])[0].numpy()

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
    settings = {"config": config.model_dump(mode="json"), "sizes": sizes.model_dump(), "item_ids": data.catalogue.item_ids.to_pylist()}
    stage.put(WEIGHTS, save(dict(towers.state_dict())))
    stage.put(REPRESENTATIONS, content.getvalue())
    stage.put(SETTINGS, json.dumps(settings).encode())


def load_towers(artifact: Artifact) -> TrainedTowers:
    """Read the `towers` artifact."""
    settings = json.loads(artifact.fetch(SETTINGS).read_bytes())
    config, sizes = TrainingConfig.parse(settings["config"]), Sizes.parse(settings["sizes"])
    state = load_file(artifact.fetch(WEIGHTS))
    user, tag = UserTower(config.towers, sizes), TagTower(config.towers)
    for name, tower in (("user", user), ("tag", tag)):
        tower.load_state_dict({key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")})
        tower.eval()
    representations = torch.from_numpy(np.load(artifact.fetch(REPRESENTATIONS)))
    return TrainedTowers(config, user, tag, representations, pa.array(settings["item_ids"], pa.string()))


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
