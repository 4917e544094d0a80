"""Training a DIN with the engine of our jobs against FuxiCTR's fit() and loader: same model, rows, batch and optimizer, one call.

PYTHONPATH=platform:. python benchmarks/ctr_speed.py [--quick] [--json FILE]

A made-up log of MovieLens' size: people like some kinds of items and give stars to what they meet. Both sides read the last 20 events
(item, category, stars), one thread, Adam at one constant rate, and are asked for AUC on the same held-out rows afterwards. FuxiCTR's
DIN and loader come from its model_zoo; an event is one row of its item table, so that it sees stars as we do. All sides start from the
same parameters, and that they then give the same chances is checked. Rates are rows per CPU second, because other work runs on the
machine; the sides take turns, and the ratio is that of each side's best epoch. What a side does once (reading its files, building its
model) is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from fuxictr.features import FeatureMap
from intently.metrics.binary import auc, paired_auc_gain
from intently.ranking.features import Catalogue, Log, Rows
from intently.ranking.training import BatchCutter, CtrData, CtrObjective, CtrTrainingConfig, build_model, predict
from intently.runtime.deepspeed import DeepSpeedConfig, build_engine
from intently.runtime.train import TrainConfig, process_group
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader

HISTORY, DIM, HIDDEN, ATTENTION, RATE, BATCH = 20, 32, [200, 80], 64, 1e-3, 1024
NUM_ITEMS, NUM_CATEGORIES, STARS = 3700, 18, 5


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    num_users: int
    events_per_user: int
    num_epochs: int
    rounds: int


FULL = Scale(num_users=2000, events_per_user=160, num_epochs=2, rounds=2)
QUICK = Scale(num_users=400, events_per_user=80, num_epochs=2, rounds=1)


def make_log(scale: Scale) -> CtrData:
    """People who like some categories and some items more than others, and rows for every event behind the first 20."""
    rng = np.random.default_rng(0)
    category = rng.integers(1, NUM_CATEGORIES + 1, NUM_ITEMS + 1)
    category[0] = 0
    popularity = 1 / np.arange(1, NUM_ITEMS + 1) ** 0.7
    items = rng.choice(NUM_ITEMS, (scale.num_users, scale.events_per_user), p=popularity / popularity.sum()) + 1
    taste = rng.normal(0, 1, (scale.num_users, NUM_CATEGORIES + 1))
    quality = rng.normal(0, 0.7, NUM_ITEMS + 1)
    liking = np.take_along_axis(taste, category[items], 1) + quality[items] + rng.normal(0, 0.7, items.shape)
    stars = np.clip(np.round(3.4 + liking), 1, STARS).astype(np.int64)
    starts = np.arange(scale.num_users + 1) * scale.events_per_user
    log = Log(pa.array(np.arange(scale.num_users).astype(str)), *(torch.from_numpy(each.ravel()) for each in (items, stars, starts)))
    users, within = (each.ravel() for each in np.indices(items.shape))
    rows = {}
    for part, chosen in (("train", within < 0.9 * scale.events_per_user), ("test", within >= 0.9 * scale.events_per_user)):
        chosen &= within >= HISTORY
        columns = (users, np.arange(items.size), items.ravel(), np.zeros(items.size, np.int64), (stars.ravel() > 3).astype(np.float32))
        rows[part] = Rows(*(torch.from_numpy(column[chosen]) for column in columns))
    return CtrData(Catalogue(pa.array(np.arange(NUM_ITEMS).astype(str)), torch.from_numpy(category)), log, rows)


class Ours:
    """Our model and batches, stepped by the engine that jobs train with."""

    def __init__(self, data: CtrData, precision: str) -> None:
        cpu = torch.device("cpu")
        model = {"backbone": "din", "dim": DIM, "hidden": HIDDEN, "history": HISTORY}
        config = CtrTrainingConfig.parse({"model": model, "learning": {"batch_size": BATCH}})
        self.train, self.test = (BatchCutter(data, part, config.model, cpu) for part in ("train", "test"))
        self.objective = CtrObjective(build_model(data, config), data.tables(cpu), precision)
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        self.engine = build_engine(self.objective, torch.optim.Adam(trained, lr=RATE, fused=True), DeepSpeedConfig(), BATCH)
        self.epochs = 0

    @torch.no_grad()
    def begin_as(self, theirs: DIN) -> None:
        """Take over their parameters, so that both sides start from the same function."""
        model, tables = self.objective.model, theirs.embedding_layer.embedding_layer.embedding_layers
        for ours, name in ((model.item, "item_id"), (model.category, "category"), (model.signal, "stars")):
            ours.weight[: STARS + 1 if name == "stars" else None] = tables[name].weight
        model.pool.layer.load_state_dict(theirs.attention_layers.state_dict())
        weights = theirs.dnn.state_dict()
        first, bias = weights["mlp.0.weight"], weights["mlp.0.bias"]
        # Their MLP also reads the target's stars, which are the same for every row: a part of our bias.
        weights["mlp.0.bias"] = bias + first[:, 2 * DIM : 3 * DIM] @ tables["stars"].weight[0]
        weights["mlp.0.weight"] = torch.cat([first[:, : 2 * DIM], first[:, 3 * DIM :]], dim=1)
        model.head.mlp.load_state_dict(weights)

    def epoch(self) -> None:
        """All rows once, in a random order."""
        self.epochs += 1
        for chosen in self.train.batches(BATCH, self.epochs):
            loss = self.engine(*self.train.batch(chosen))
            self.engine.backward(loss)
            self.engine.step()

    def chances(self) -> np.ndarray:
        """Of the held-out rows."""
        return predict(self.objective.model, self.test, self.objective.tables).numpy()


class Theirs:
    """FuxiCTR's DIN, fit() and loader; files as it wants them."""

    def __init__(self, data: CtrData, folder: Path) -> None:
        self.folder, self.rows = folder, data.rows
        # An event is one of its items: item number × 6 + stars, with the target at stars 0.
        codes = (data.log.items * (STARS + 1) + data.log.signals).numpy()
        users = [codes[start:stop].tolist() for start, stop in zip(data.log.starts[:-1], data.log.starts[1:], strict=True)]
        pd.DataFrame({"user_index": range(len(users)), "full_item_seq": users}).to_parquet(folder / "users.parquet")
        numbers = np.arange(NUM_ITEMS + 1).repeat(STARS + 1)
        table = {"item_id": numbers, "category": data.catalogue.categories.numpy()[numbers], "stars": np.arange(len(numbers)) % (STARS + 1)}
        pd.DataFrame({"item_index": range(len(numbers)), **table}).to_parquet(folder / "items.parquet")
        for part, rows in data.rows.items():
            lengths = rows.places - data.log.starts[rows.users]
            columns = {"user_index": rows.users, "seq_len": lengths, "item_index": rows.items * (STARS + 1), "label": rows.labels.long()}
            pd.DataFrame({name: column.numpy() for name, column in columns.items()}).to_parquet(folder / f"{part}.parquet")
        self.features = FeatureMap("made_up", str(folder))
        sizes = {"item_id": NUM_ITEMS + 1, "category": NUM_CATEGORIES + 1, "stars": STARS + 1}
        self.features.features.update({n: {"type": "categorical", "source": "item", "vocab_size": size} for n, size in sizes.items()})
        self.features.features.update({n: {"type": "meta"} for n in ("user_index", "seq_len", "item_index")})
        self.features.labels, self.features.num_fields, self.features.default_emb_dim = ["label"], 3, DIM
        self.model = DIN(
            self.features,
            dnn_hidden_units=HIDDEN,
            attention_hidden_units=[ATTENTION],
            attention_hidden_activations="ReLU",
            embedding_dim=DIM,
            learning_rate=RATE,
            optimizer="adam",
            loss="binary_crossentropy",
            metrics=["AUC"],
            verbose=0,
            model_root=str(folder),
            reduce_lr_on_plateau=False,
        )
        (folder / "made_up").mkdir()
        self.loaders = {part: self._loader(part) for part in data.rows}
        # fit() measures after each epoch, keeps the model if that is better than before and loads it; a few rows keep this out of the time.
        pd.read_parquet(folder / "test.parquet").head(256).to_parquet(folder / "few.parquet")
        self.few = self._loader("few")

    def _loader(self, part: str) -> LongCTRDataLoader:
        paths = (str(self.folder / f"{part}.parquet"), str(self.folder / "users.parquet"), str(self.folder / "items.parquet"))
        return LongCTRDataLoader(self.features, *paths, BATCH, shuffle=part == "train", num_workers=0, max_len=HISTORY, padding="post")

    def epoch(self) -> None:
        """fit() for one epoch."""
        self.model.fit(self.loaders["train"], epochs=1, validation_data=self.few)

    def chances(self) -> np.ndarray:
        """Of the held-out rows."""
        return self.model.predict(self.loaders["test"])


def measure(scale: Scale) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All sides by turns: figures, and a row an epoch."""
    data, rows = make_log(scale), []
    reached: dict[str, list[np.ndarray]] = {}
    num_rows = len(data.rows["train"].labels)
    for round_ in range(scale.rounds):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(round_)
            theirs, ours, half = Theirs(data, Path(folder)), Ours(data, "fp32"), Ours(data, "bf16")
            sides: dict[str, Theirs | Ours] = {"fuxictr": theirs, "ours": ours, "ours_bf16": half}
            for side in (ours, half):
                side.begin_as(theirs.model)
            assert np.allclose(theirs.chances(), ours.chances(), atol=1e-5), "the two sides do not compute the same function"
            for epoch in range(scale.num_epochs):
                for name, side in sides.items():
                    begin = time.process_time()
                    side.epoch()
                    seconds = time.process_time() - begin
                    rows.append({"side": name, "round": round_, "epoch": epoch + 1, "rows_per_cpu_second": num_rows / seconds})
                    print(f"{name}: round {round_}, epoch {epoch + 1}, {num_rows / seconds:,.0f} rows a CPU second", flush=True)
            for name, side in sides.items():
                reached.setdefault(name, []).append(side.chances())
    best = {name: max(row["rows_per_cpu_second"] for row in rows if row["side"] == name) for name in reached}
    figures = {f"{name}_rows_per_cpu_second": value for name, value in best.items()}
    labels, users = (column.numpy() for column in (data.rows["test"].labels, data.rows["test"].users))
    figures |= {f"{name}_auc": float(np.mean([auc(chances, labels) for chances in sides])) for name, sides in reached.items()}
    for name in ("ours", "ours_bf16"):
        gain = paired_auc_gain(reached[name], reached["fuxictr"], labels, users)
        figures |= dict(zip((f"{name}_auc_gain", f"{name}_auc_gain_lower", f"{name}_auc_gain_upper"), gain, strict=True))
    figures["train_vs_fuxictr_ratio"] = best["ours"] / best["fuxictr"]
    figures["train_bf16_vs_fuxictr_ratio"] = best["ours_bf16"] / best["fuxictr"]
    return figures, rows


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller log, one round; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with process_group(TrainConfig.parse({"launcher": "local"})):
        figures, rows = measure(QUICK if options.quick else FULL)
    print("\n".join(f"{name:<36}{value:,.4f}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "ctr_speed", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
