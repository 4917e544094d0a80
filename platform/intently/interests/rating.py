"""The two rating models of tree search (HiT-LBM §3.3.1): small heads on the text encoder.

SRM reads what was kept before and a candidate (previous ⊕ current) and says whether the candidate goes on from it with a gain; PRM reads
the candidate alone and says whether it foretells better than the raw chunk. A set of interests is one vector: the mean of its phrases'.
Both heads learn together, with binary cross-entropy on the labels of `rating_labels`, split by user.

Shapes: R rated candidates, N candidates of a step, D the encoder's dimension.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from safetensors.torch import load_file, save
from torch import nn

from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.protocols import TextEncoder as Encoder
from intently.core.workspace import Artifact, Stage, Workspace
from intently.interests.vectors import RememberingEncoder, interests_vector
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.metrics.binary import auc, brier, calibration_error

if TYPE_CHECKING:  # the harness brings Ray Train and DeepSpeed along; tree search reads this module without them
    from intently.runtime.train import TrainSession

WEIGHTS, SETTINGS = "weights.safetensors", "rating_model.json"


class RatingModelConfig(Config):
    """Shapes and learning of the two heads."""

    hidden: int = Field(128, ge=1, description="width of the hidden layer")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the hidden layer")
    num_epochs: int = Field(10, ge=1, description="passes over the labels")
    batch_size: int = Field(32, ge=1, description="rows of a step, over all workers")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW")
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of the users whose rows measure and teach nothing")
    seed: int = Field(0, description="of weights and order")
    encoder: EncoderConfig = Field(EncoderConfig(), description="turns interests into vectors, in training and in search")


class RatingHeads(nn.Module):
    """SRM and PRM.

    Args:
        dim: D.
        config: shapes.
    """

    def __init__(self, dim: int, config: RatingModelConfig) -> None:
        super().__init__()
        self.continuity = _head(2 * dim, config)
        self.effectiveness = _head(dim, config)

    def forward(self, previous: torch.Tensor, current: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Previous and current interests, [R, D] each → logits of S_c and S_e, [R] each."""
        return self.continuity(torch.cat([previous, current], dim=1)).squeeze(1), self.effectiveness(current).squeeze(1)


def _head(width: int, config: RatingModelConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1))


@dataclass(frozen=True)
class RatingData:
    """Labels with their vectors.

    Attributes:
        previous: [R, D], zeros where nothing was before.
        current: [R, D].
        labels: [R, 2] continuity, effectiveness; NaN where there is none.
        held_out: [R] bool, rows of users that teach nothing.
        table: the INTEREST_RATING rows.
    """

    previous: torch.Tensor
    current: torch.Tensor
    labels: torch.Tensor
    held_out: np.ndarray
    table: pa.Table


def read_rating_data(workspace: Workspace, version: str, config: RatingModelConfig) -> RatingData:
    """The labels of one version of interest_rating, encoded.

    Raises:
        SchemaError: no row teaches, or none measures.
    """
    table = workspace.artifact("interest_rating", version).read()
    users = table["user_id"].to_pylist()
    kept_apart = {user for user in set(users) if _place(user) < config.held_out_share}
    held_out = np.array([user in kept_apart for user in users], bool)
    if held_out.all() or not held_out.any():
        raise SchemaError(f"table interest_rating: {len(users)} rows of {len(set(users))} users cannot be split by user")
    encoder = RememberingEncoder(TextEncoder(config.encoder))
    current = np.stack([interests_vector(phrases, encoder) for phrases in table["interests"].to_pylist()])
    nothing = np.zeros_like(current[0])
    previous = np.stack([interests_vector(phrases, encoder) if phrases else nothing for phrases in table["previous"].to_pylist()])
    labels = np.stack([table[name].cast(pa.float32()).to_numpy() for name in ("continuity", "effectiveness")], axis=1)
    return RatingData(*(torch.from_numpy(each.astype(np.float32)) for each in (previous, current, labels)), held_out, table)


def _place(user: str) -> float:
    """0..1, another shuffle than the one by which users are chosen."""
    return int(hashlib.sha256(f"rating/{user}".encode()).hexdigest()[:8], 16) / 2**32


def rating_loss(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of both heads, each a mean over the rows that have its label.

    Args:
        logits: [R] of each head.
        labels: [R, 2], NaN where there is none.
    """
    losses = []
    for place, logit in enumerate(logits):
        known = ~labels[:, place].isnan()
        loss = nn.functional.binary_cross_entropy_with_logits(logit[known], labels[known, place], reduction="sum")
        losses.append(loss / known.sum().clamp(min=1))
    return torch.stack(losses).sum()


def train_rating_heads(session: TrainSession, workspace: Workspace, version: str, config: RatingModelConfig) -> None:
    """The loop: reads its labels, trains, hands a checkpoint in after each epoch."""
    # 1. data and module, the same on every worker
    data = read_rating_data(workspace, version, config)
    taught = torch.from_numpy(np.flatnonzero(~data.held_out))
    torch.manual_seed(config.seed)
    heads = RatingHeads(data.current.shape[1], config).to(session.device)
    batch_size = min(config.batch_size, len(taught))

    # 2. optimizer
    optimizer = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    engine = session.engine(heads, optimizer, max(1, batch_size // session.world_size))

    # 3. epochs
    for epoch in range(session.resume(engine), config.num_epochs):
        engine.train()
        order = taught[torch.randperm(len(taught), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch))]
        torch.manual_seed((config.seed + 1) * 7_919 + epoch * 101 + session.rank)  # of dropout
        total, num_steps = 0.0, math.ceil(len(order) / batch_size)
        for step in range(num_steps):
            rows = order[step * batch_size :][:batch_size][session.rank :: session.world_size]
            previous, current, labels = (each[rows].to(session.device) for each in (data.previous, data.current, data.labels))
            loss = rating_loss(engine(previous, current), labels)
            engine.backward(loss)
            engine.step()
            total += loss.item()
        session.end_epoch(engine, config.num_epochs, {"loss": total / num_steps})


class RatingModels:
    """The trained heads, ready to score.

    Args:
        heads: SRM and PRM.
        encoder: name of the encoder that they were trained on.
    """

    def __init__(self, heads: RatingHeads, encoder: str) -> None:
        self._heads, self.encoder = heads.eval(), encoder

    @classmethod
    def load(cls, artifact: Artifact) -> RatingModels:
        """What `put_rating_models` wrote."""
        settings = json.loads(artifact.fetch(SETTINGS).read_text())
        config = RatingModelConfig.parse(settings["config"])
        heads = RatingHeads(settings["dim"], config)
        heads.load_state_dict(load_file(artifact.fetch(WEIGHTS)))
        return cls(heads, config.encoder.model)

    def require(self, encoder: Encoder) -> None:
        """Raise ConfigError if an encoder is not the one of training."""
        if encoder.name != self.encoder:
            raise ConfigError("encoder.model", encoder.name, f"the rating models were trained on {self.encoder}")

    @torch.inference_mode()
    def rate(self, previous: np.ndarray | None, candidates: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Candidates of one step in one batch, as probabilities.

        Args:
            previous: [D] what was kept before; None where nothing was.
            candidates: [N, D].
        Returns:
            S_c [N], None where nothing was before; S_e [N].
        """
        before = np.zeros_like(candidates) if previous is None else np.broadcast_to(previous, candidates.shape)
        logits = self._heads(torch.tensor(before), torch.tensor(candidates))
        continuity, effectiveness = (torch.sigmoid(logit).numpy() for logit in logits)
        return None if previous is None else continuity, effectiveness


def restore_heads(data: RatingData, config: RatingModelConfig, weights: str) -> RatingHeads:
    """The heads with the weights of a checkpoint."""
    heads = RatingHeads(data.current.shape[1], config)
    heads.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    return heads.eval()


def put_rating_models(stage: Stage, heads: RatingHeads, data: RatingData, config: RatingModelConfig) -> None:
    """Write weights and settings into an artifact."""
    stage.put(WEIGHTS, save({key: value.contiguous() for key, value in heads.state_dict().items()}))
    stage.put(SETTINGS, json.dumps({"dim": data.current.shape[1], "config": config.model_dump(mode="json")}).encode())


def rating_quality(heads: RatingHeads, data: RatingData, weight: float) -> dict[str, float]:
    """What the heads are worth on users that taught nothing.

    Args:
        heads: trained.
        data: labels of everybody.
        weight: a of S_final.
    Returns:
        For each head AUC, Brier score, expected calibration error, share of ones and rows; for chunks of several candidates the mean
        AUC of P("Yes") over the candidates, of the one with the highest S_final, and of the best.
    """
    with torch.inference_mode():
        scores = [torch.sigmoid(logit).numpy() for logit in heads(data.previous, data.current)]
    figures: dict[str, float] = {"rows_taught": float((~data.held_out).sum())}
    for place, name in enumerate(("continuity", "effectiveness")):
        labels = data.labels[:, place].numpy()
        rows = data.held_out & ~np.isnan(labels)
        told, wanted = scores[place][rows], labels[rows]
        figures |= {f"{name}_rows": float(rows.sum()), f"{name}_share": float(wanted.mean()) if len(wanted) else float("nan")}
        figures |= {f"{name}_auc": auc(told, wanted), f"{name}_brier": brier(told, wanted)}
        figures[f"{name}_calibration_error"] = calibration_error(told, wanted)
    known = ~np.isnan(data.labels[:, 0].numpy())
    final = np.where(known, weight * scores[0] + (1 - weight) * scores[1], scores[1])
    return figures | _choice_quality(data, final)


def _choice_quality(data: RatingData, final: np.ndarray) -> dict[str, float]:
    foretold = data.table["auc_current"].to_numpy()
    steps: dict[tuple[str, int], list[int]] = {}
    keys = zip(data.table["user_id"].to_pylist(), data.table["chunk"].to_pylist(), strict=True)
    for row, key in enumerate(keys):
        if data.held_out[row]:
            steps.setdefault(key, []).append(row)
    several = [np.array(rows) for rows in steps.values() if len(rows) > 1]
    chosen: Mapping[str, list[float]] = {
        "mean": [foretold[rows].mean() for rows in several],
        "picked": [foretold[rows[final[rows].argmax()]] for rows in several],
        "best": [foretold[rows].max() for rows in several],
    }
    means = {f"auc_of_{name}_candidate": float(np.mean(values)) if values else float("nan") for name, values in chosen.items()}
    return means | {"steps_measured": float(len(several))}
