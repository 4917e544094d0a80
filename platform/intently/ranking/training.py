"""Training a CTR model: the data in memory, the loop that the harness runs, and predictions.

The loop takes the whole group's batches: every worker draws the same order and asks for its share. After each epoch validation is
measured; the parameters of the best epoch are kept beside the current ones (so that a run that was killed knows them too), and
training ends when validation has not improved for `patience` epochs. Test rows are never read here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn

from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.workspace import Artifact, Workspace
from intently.data.days import open_histories
from intently.metrics.binary import auc, calibration_error, log_loss
from intently.ranking.features import Catalogue, Log, Rows, events_at, last_events, read_catalogue, read_log, read_rows, similar_events
from intently.ranking.knowledge import ChunkVectors, histogram_vectors, interest_vectors, item_vectors
from intently.ranking.model import Batch, CtrModel, ModelConfig, Sizes, Tables
from intently.ranking.samples import SPLITS

if TYPE_CHECKING:  # the harness brings Ray Train and DeepSpeed along; whoever only predicts does without
    from intently.runtime.train import TrainSession

PREDICTED_AT_ONCE = 16_384
SORTED_TOGETHER = 32
"""Batches among which rows are sorted by how many chunks they see, so that a batch holds little padding. Models that see none get the
same batches: what two models differ by is not the order of their rows."""


class LearningConfig(Config):
    """How a model learns. Batches are the whole group's: each worker takes its share."""

    num_epochs: int = Field(4, ge=1, description="passes over the rows, at most")
    patience: int = Field(2, ge=1, description="epochs without a better AUC on validation after which training ends")
    batch_size: int = Field(2048, ge=1, description="rows of a step")
    learning_rate: float = Field(2e-3, gt=0, description="peak of Adam's learning rate")
    weight_decay: float = Field(1e-5, ge=0, description="of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises; a cosine falls after it")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the layers while learning; parameters stay float32")
    seed: int = Field(0, description="of initial weights and of the order of rows")


class CtrTrainingConfig(Config):
    """Everything that decides a trained CTR model."""

    model: ModelConfig = Field(ModelConfig(), description="backbone, history, knowledge")
    learning: LearningConfig = Field(LearningConfig(), description="steps and optimizer")
    histograms: bool = Field(False, description="interests are histograms of the chunks' categories and decades, not texts")


@dataclass(frozen=True)
class CtrData:
    """What models are trained on and asked for, in memory.

    Attributes:
        catalogue: items.
        log: events of all users.
        rows: train, validation and test.
        interests: vectors of chunks; None without.
        item_vectors: [I + 1, V]; None without.
        likeness: [I + 1, V] of length 1, what SIM compares items by; None without.
    """

    catalogue: Catalogue
    log: Log
    rows: Mapping[str, Rows]
    interests: ChunkVectors | None = None
    item_vectors: torch.Tensor | None = None
    likeness: torch.Tensor | None = None

    @property
    def sizes(self) -> Sizes:
        """What a model has to know of it."""
        interests, items = (0 if table is None else table.shape[1] for table in (self._chunk_table, self.item_vectors))
        return Sizes(len(self.catalogue.item_ids) + 1, self.catalogue.num_categories, interests, items)

    @property
    def _chunk_table(self) -> torch.Tensor | None:
        return None if self.interests is None else self.interests.vectors

    def tables(self, device: torch.device) -> Tables:
        """For the model's forward."""
        nothing = torch.zeros(1, 1)
        chunks = (nothing, nothing[0]) if self.interests is None else (self.interests.vectors, self.interests.scores)
        items = nothing if self.item_vectors is None else self.item_vectors
        return Tables(*(each.to(device) for each in (self.catalogue.categories, *chunks, items)))


class BatchCutter:
    """Rows of one part as batches, features gathered when they are asked for.

    Args:
        data: everything.
        part: train, validation or test.
        config: what the model looks at.
        device: where batches are wanted.
    Raises:
        ConfigError: the model asks for knowledge that the data lacks.
    """

    def __init__(self, data: CtrData, part: str, config: ModelConfig, device: torch.device) -> None:
        _require(data, config)
        self.rows = Rows(*(column.to(device) for column in data.rows[part]))
        self.log = Log(data.log.user_ids, *(column.to(device) for column in (data.log.items, data.log.signals, data.log.starts)))
        self.config = config
        self.similar = None
        if config.similar:
            assert data.likeness is not None, "_require has seen to it"
            self.similar = similar_events(data.log, data.rows[part], data.likeness, config.similar).to(device)
        self.chunks = None
        if config.interests:
            assert data.interests is not None, "_require has seen to it"
            tables = (data.interests.vectors, data.interests.scores, data.interests.known, data.interests.starts)
            self.chunks = ChunkVectors(*(table.to(device) for table in tables))

    def __len__(self) -> int:
        return len(self.rows.labels)

    def batches(self, batch_size: int, seed: int) -> list[torch.Tensor]:
        """All rows in a random order, cut into whole batches of row numbers; a last one that is not full is left out."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator).to(self.rows.labels.device)
        batches = []
        for together in order.split(SORTED_TOGETHER * batch_size):
            together = together[self.rows.bounds[together].argsort(stable=True)]
            batches += together[: len(together) // batch_size * batch_size].split(batch_size)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator)]

    def batch(self, chosen: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        """[B] row numbers → features and [B] labels."""
        rows = Rows(*(column[chosen] for column in self.rows))
        history = last_events(self.log, rows.users, rows.places, self.config.history)
        similar = None if self.similar is None else events_at(self.log, self.similar[chosen].long(), rows.places)
        visible = None if self.chunks is None else self.chunks.visible(rows, self.config.selection, self.config.max_chunks)
        return Batch(rows.items, history, similar, visible), rows.labels


def _require(data: CtrData, config: ModelConfig) -> None:
    for field, wanted, table in (
        ("model.interests", config.interests, data.interests),
        ("model.item_knowledge", config.interests or config.item_knowledge, data.item_vectors),
        ("model.similar", config.similar, data.likeness),
    ):
        if wanted and table is None:
            raise ConfigError(field, wanted, "asks for vectors that the data does not hold")


class CtrObjective(nn.Module):
    """A model and the best of its earlier states, as one module: the engine saves both, and trains the first."""

    def __init__(self, model: CtrModel, tables: Tables, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.best = model, copy.deepcopy(model).requires_grad_(False)
        self.half = precision == "bf16"
        # The table of all chunks is read in every step; cast once.
        self.tables = tables._replace(interests=tables.interests.bfloat16()) if self.half else tables

    def forward(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        """Mean binary cross-entropy of the batch."""
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model(batch, self.tables)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)

    def keep(self) -> None:
        """The current parameters are the best so far."""
        self.best.load_state_dict(self.model.state_dict())


def build_model(data: CtrData, config: CtrTrainingConfig) -> CtrModel:
    """An untrained model, the same for the same seed."""
    torch.manual_seed(config.learning.seed)
    return CtrModel(config.model, data.sizes)


@torch.no_grad()
def predict(model: CtrModel, cutter: BatchCutter, tables: Tables, share: slice = slice(None)) -> torch.Tensor:
    """Chances of a part's rows.

    Args:
        model: trained.
        cutter: the part.
        tables: of the same data.
        share: which rows, such as one worker's.
    Returns:
        float32, one a row of the share.
    """
    model.eval()
    chosen = torch.arange(len(cutter), device=cutter.rows.labels.device)[share]
    chances = [torch.sigmoid(model(cutter.batch(part)[0], tables).float()) for part in chosen.split(PREDICTED_AT_ONCE)]
    model.train()
    return torch.cat(chances) if chances else torch.empty(0)


def figures(chances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUC, LogLoss and calibration of predictions."""
    return {"auc": auc(chances, labels), "log_loss": log_loss(chances, labels), "calibration_error": calibration_error(chances, labels)}


def train_ctr(session: TrainSession, data: CtrData, config: CtrTrainingConfig) -> None:
    """The loop: trains on train, is judged by validation, hands a checkpoint in after each epoch."""
    # 1. data and modules, the same on every worker
    learning, device = config.learning, session.device
    tables = data.tables(device)
    cutter, validation = (BatchCutter(data, part, config.model, device) for part in ("train", "validation"))
    module = CtrObjective(build_model(data, config).to(device), tables, learning.precision)
    batch_size = max(session.world_size, min(learning.batch_size, len(cutter)))
    num_steps = max(1, len(cutter) // batch_size)

    # 2. optimizer: warm-up, then a cosine to zero
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning.learning_rate, weight_decay=learning.weight_decay, fused=True)
    total_steps = learning.num_epochs * num_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total_steps, learning.warmup))
    engine = session.engine(module, optimizer, max(1, batch_size // session.world_size), schedule)

    # 3. epochs, until validation does not improve any more
    first = session.resume(engine)
    if _stale(session.history) >= learning.patience:
        return
    for epoch in range(first, learning.num_epochs):
        engine.train()
        total = torch.zeros((), device=device)
        for chosen in cutter.batches(batch_size, learning.seed * 1_000_003 + epoch):
            loss = engine(*cutter.batch(chosen[session.rank :: session.world_size]))
            engine.backward(loss)
            engine.step()
            total += loss.detach()
        measured = figures(_predict_together(session, module.model, validation, tables), validation.rows.labels.cpu().numpy())
        stale = _stale([*session.history, measured])
        if not stale:
            module.keep()
        last = epoch + 1 if stale >= learning.patience else learning.num_epochs
        session.end_epoch(engine, last, {"loss": float(total) / num_steps, **measured})
        if last == epoch + 1:
            return


def _stale(history: Sequence[Mapping[str, float]]) -> int:
    """Epochs since the first best AUC."""
    aucs = [epoch["auc"] for epoch in history]
    return len(aucs) - 1 - int(np.argmax(aucs)) if aucs else 0


def _predict_together(session: TrainSession, model: CtrModel, cutter: BatchCutter, tables: Tables) -> np.ndarray:
    """[R] chances, each worker computing its share."""
    own = slice(session.rank, None, session.world_size)
    together = torch.zeros(len(cutter), device=session.device)
    together[own] = predict(model, cutter, tables, own)
    if session.world_size > 1:
        torch.distributed.all_reduce(together)
    return together.cpu().numpy()


def _rate(step: int, total_steps: int, warmup: float) -> float:
    rising = max(1, int(warmup * total_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))


def restore_model(data: CtrData, config: CtrTrainingConfig, weights: Path) -> CtrModel:
    """The model of the best epoch from the file that the harness left."""
    model = CtrModel(config.model, data.sizes)
    model.load_state_dict({name.removeprefix("best."): value for name, value in load_file(weights).items() if name.startswith("best.")})
    return model.eval()


def read_ctr_data(workspace: Workspace, versions: Mapping[str, str], config: CtrTrainingConfig) -> CtrData:
    """The tables at the given versions (artifact → version) as tensors; those that the model does not look at are not read.

    Raises:
        ConfigError: an artifact that the model asks for does not stand.
        SchemaError: there are no rows of both classes to train on or to validate with; interests were not mined from the chunks that the
            rows were cut by, or embedded before they were mined.
    """

    def find(name: str, field: str) -> Artifact:
        if name not in versions:
            raise ConfigError(field, True, f"needs the artifact {name}, which does not stand in workspace {workspace.root!r}")
        return workspace.artifact(name, versions[name])

    # A row's place counts the events that stood when the rows were cut: the same history, with the days appended until then.
    train = find("ctr_train", "reads")
    histories = open_histories(workspace, train.manifest.inputs)
    history = pa.concat_tables([rows for _, rows in histories.iter_parts()])
    items = find("item", "reads").read()
    catalogue = read_catalogue(items)
    log = read_log(history, catalogue)
    rows = {part: read_rows(find(f"ctr_{part}", "reads").read(), log, catalogue) for part in SPLITS}
    for part in ("train", "validation"):
        if len(rows[part].labels.unique()) < 2:
            told = f"{len(rows[part].labels)} rows, {int(rows[part].labels.sum())} of them positive"
            raise SchemaError(
                f"artifact ctr_{part}: {told}; build_ctr_samples chooses by samples.sampled, positive, min_events, min_chunks"
            )
    model = config.model
    interests, vectors, likeness = None, None, None
    if config.histograms and (model.interests or model.item_knowledge):
        chunks = find("chunk", "histograms")
        train.require_input("chunk", chunks.version)
        interests, vectors = histogram_vectors(log, items, history, chunks.read())
    elif model.interests or model.item_knowledge:
        vectors = item_vectors(catalogue, find("item_embedding", "model.item_knowledge").read())
        if model.interests:
            said, embedded = (find(name, "model.interests") for name in ("user_interest", "interest_embedding"))
            # In another cut of chunks the same number may end after the row.
            if cut := train.manifest.inputs.get("chunk"):
                said.require_input("chunk", cut)
            embedded.require_input("user_interest", said.version)
            interests = interest_vectors(log, said.read(), embedded.read())
    if model.similar:
        likeness = item_vectors(catalogue, find("item_embedding", "model.similar").read())
    return CtrData(catalogue, log, rows, interests, vectors, likeness)


def train_from_tables(session: TrainSession, workspace: Workspace, versions: Mapping[str, str], config: CtrTrainingConfig) -> None:
    """`train_ctr` as a job runs it: each worker reads the tables itself."""
    train_ctr(session, read_ctr_data(workspace, versions, config), config)
