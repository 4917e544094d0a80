"""Amazon Beauty (or the simulator) for generative_beauty.py: split histories, texts as vectors, and the baselines that score all items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from intently.core.schema import EMBEDDING
from intently.core.workspace import Workspace
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource
from intently.generative.evaluate import read_targets
from intently.generative.inputs import InputConfig, item_inputs
from intently.generative.sequences import SequenceConfig, Sequences, append_sequences, read_sequences
from intently.llm.embedding import ItemTextConfig, embedding_rows, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.metrics.ranking import ranks_of_targets
from intently.retrieval.baselines import ItemKNN, popularity, score_by_popularity
from intently.retrieval.evaluate import Scorer
from intently.retrieval.interactions import BehaviourConfig, Interactions, append_interactions, read_interactions
from intently.retrieval.sasrec import SASRec, SASRecConfig, train_sasrec
from intently.retrieval.towers import Towers
from intently.retrieval.trained import restore_towers
from intently.retrieval.training import LearningConfig, TowerData, TrainingConfig, read_tower_data
from made import put, put_log, put_splits
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import svds
from towers import FULL, READS, fit_towers, put_tags

BASELINES = ("popularity", "item_knn", "sasrec", "towers")
LISTED = 200
"""Items of a baseline's list that a fusion sees."""


def prepare(data: Path | None, folder: Path) -> Workspace:
    """Items, histories, and texts as vectors; what stands stays. Without data the simulator's."""
    workspace = Workspace.open(folder)
    if workspace.latest_version("tag_embedding"):
        return workspace
    simulator = SimulatorSource.parse({"num_users": 300, "num_items": 300, "events_per_user": 150, "pictures": False})
    histories, items = put_log(workspace, SharedParquetConfig(path=str(data)) if data else simulator)
    history, encoder = put_splits(workspace, histories), TextEncoder(EncoderConfig(max_tokens=64))
    texts = {"item": item_texts(items, ItemTextConfig()).to_pylist(), "keyword": keywords(data, items)}
    for kind, said in texts.items():
        put(workspace, f"{kind}_embedding", EMBEDDING, embedding_rows("item", items["item_id"], encoder.encode(said), encoder.name))
    put_tags(workspace, history, items, encoder)
    return workspace


def keywords(data: Path | None, items: pa.Table) -> list[str]:
    """What a language model said of each item; of the simulator's its attributes."""
    if data is None:
        return ["; ".join(row) for row in items["attributes"].to_pylist()]
    rows = pq.read_table(data / "items.parquet", columns=["item_id", "term_ids"]).to_pylist()
    said = {str(row["item_id"]): "; ".join(row["term_ids"] or []) for row in rows}
    return [said[item] for item in items["item_id"].to_pylist()]


@dataclass(frozen=True)
class Case:
    """Everything that models are fitted on and measured by.

    Attributes:
        past: what train knows, for baselines; sequences: for generators; later, sequences["test"]: with the validation item behind it.
        users, targets: split → user rows and item rows.
    """

    workspace: Workspace
    item_ids: pa.Array
    past: Interactions
    later: Interactions
    sequences: dict[str, Sequences]
    users: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]

    @classmethod
    def read(cls, workspace: Workspace) -> Case:
        """The tables as arrays."""
        item_ids = workspace.artifact("item").read(columns=["item_id"])["item_id"].combine_chunks()
        config, behaviours = SequenceConfig(), BehaviourConfig()
        history = {split: workspace.artifact(f"history_{split}").read() for split in ("train", "validation", "test")}
        read = {split: read_sequences(rows, item_ids, config) for split, rows in history.items()}
        past = read_interactions(history["train"], item_ids, behaviours)
        later = append_interactions(past, read_interactions(history["validation"], item_ids, behaviours))
        sequences = {"validation": read["train"], "test": append_sequences(read["train"], read["validation"])}
        users, targets = {}, {}
        for split in sequences:
            users[split], targets[split] = read_targets(sequences[split], read[split])
        return cls(workspace, item_ids, past, later, sequences, users, targets)

    def histories(self, split: str, most: int | None = None) -> list[np.ndarray]:
        """What the first `most` users of a split have taken, in order."""
        return [self.sequences[split].of(user) for user in self.users[split][:most]]


def item_vectors(case: Case, source: str, collaborative: float) -> np.ndarray:
    """[I, D] what is quantised.

    Args:
        case: items, texts, train.
        source: text, an item's own; keywords, those that a language model wrote of it; joined, both and collaborative vectors.
        collaborative: their share of the squared length in `joined`; the other two have as much as each other.
    """
    encoded = {
        name: item_inputs(case.item_ids, case.workspace.artifact(f"{kind}_embedding").read(), None, None, InputConfig(), None)
        for name, kind in (("text", "item"), ("keywords", "keyword"))
    }
    if source in encoded:
        return encoded[source]
    texts = [vectors * np.sqrt((1 - collaborative) / 2) for vectors in encoded.values()]
    return np.concatenate([*texts, collaborative_vectors(case) * np.sqrt(collaborative)], axis=1).astype(np.float32)


def collaborative_vectors(case: Case, width: int = 64) -> np.ndarray:
    """[I, width] of length 1: singular vectors of who took what in train, both sides scaled by the root of their counts."""
    past, num_items = case.past, len(case.item_ids)
    taken = sparse.csr_array((np.ones(len(past.items)), (past.users, past.items)), shape=(past.num_users, num_items))
    left, right = (1 / np.sqrt(np.maximum(taken.sum(axis=axis), 1)) for axis in (1, 0))
    _, values, vectors = svds(sparse.diags_array(left) @ taken @ sparse.diags_array(right), k=min(width, num_items - 2), rng=0)
    items = (vectors * values[:, None]).T
    return (items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@dataclass(frozen=True)
class Learned:
    """Settings of the baselines that are trained."""

    sasrec: SASRecConfig
    towers: TrainingConfig
    max_users: int
    """Users of validation by whom SASRec's epoch is chosen."""

    def with_seed(self, seed: int) -> Learned:
        """The same, drawn anew."""
        learning = self.towers.learning.model_copy(update={"seed": seed})
        return replace(
            self, sasrec=self.sasrec.model_copy(update={"seed": seed}), towers=self.towers.model_copy(update={"learning": learning})
        )


LEARNED = Learned(SASRecConfig(patience=20, evaluate_every=5), next(each.towers for each in FULL if each.name == "beauty"), 5000)
QUICK_LEARNED = Learned(
    SASRecConfig(num_epochs=2), TrainingConfig(learning=LearningConfig(num_epochs=1, batch_size=256, num_negatives=256)), 200
)
"""Of the simulator's people for --quick."""


def fit_baseline(case: Case, model: str, learned: Learned, folder: Path) -> tuple[dict[str, Scorer], int]:
    """A baseline: split → its scorer, and its parameters; weights of what is trained are kept in the folder."""
    behaviours, num_items = BehaviourConfig(), len(case.item_ids)
    match model:
        case "popularity":
            scorer = score_by_popularity(popularity(case.past, num_items, behaviours))
            return {"validation": scorer, "test": scorer}, 0
        case "item_knn":
            neighbours = ItemKNN(case.past, num_items, behaviours)
            return {"validation": neighbours.scorer(case.past), "test": neighbours.scorer(case.later)}, 0
        case "sasrec":
            sasrec = learned.sasrec

            def validate(scorer: Scorer) -> float:
                return float((ranks_of(case, scorer, "validation", filter_seen=True, most=learned.max_users) < 10).mean())

            path = folder / f"sasrec-{sasrec.seed}.safetensors"
            if not path.exists():
                save_file(train_sasrec(case.past, num_items, behaviours, sasrec, validate).state_dict(), path)
            trained = SASRec(num_items, sasrec)
            trained.load_state_dict(load_file(path))
            pasts = (("validation", case.past), ("test", case.later))
            scorers = {split: trained.scorer(past, behaviours, behaviours.taken) for split, past in pasts}
            return scorers, sum(parameter.numel() for parameter in trained.parameters())
        case "towers":
            return fit_dense(case, learned.towers, folder)
        case _:
            raise ValueError(f"model {model!r}: one of {', '.join(BASELINES)}")


def fit_or_restore_towers(workspace: Workspace, config: TrainingConfig, folder: Path) -> tuple[TowerData, Towers]:
    """What the towers read, and they, fitted on train; their weights are kept in the folder."""
    data = read_tower_data(workspace, {name: workspace.artifact(name).version for name in READS}, config)
    path = folder / f"towers-{config.learning.seed}.safetensors"
    if not path.exists():
        fitted = fit_towers(workspace, data, config, Workspace.open(folder / "training"))
        save_file({name: value.contiguous().clone() for name, value in fitted.state_dict().items()}, path)
    return data, restore_towers(data, config, path)


def fit_dense(case: Case, config: TrainingConfig, folder: Path) -> tuple[dict[str, Scorer], int]:
    """The towers' user side against their items, in cosines over the temperature that they were trained with."""
    data, towers = fit_or_restore_towers(case.workspace, config, folder)
    representations, items = towers.item_vectors()
    matrix = items.numpy().T / config.learning.temperature
    validation = case.workspace.artifact("history_validation").read()
    later = append_interactions(data.past, read_interactions(validation, case.item_ids, config.behaviours))

    def scorer(past: Interactions) -> Scorer:
        vectors = towers.user.vectors(past, representations).numpy()
        return lambda users: vectors[users] @ matrix

    scorers = {"validation": scorer(data.past), "test": scorer(later)}
    return scorers, sum(parameter.numel() for parameter in towers.parameters())


def score(case: Case, scorer: Scorer, split: str, filter_seen: bool, rows: slice) -> np.ndarray:
    """[n, I] scores for some users of a split, −inf for what they have taken where it is filtered."""
    users = case.users[split][rows]
    scores = np.array(scorer(users), np.float32)
    if filter_seen:
        for row, user in enumerate(users):
            scores[row, case.sequences[split].of(user)] = -np.inf
    return scores


def ranks_of(case: Case, scorer: Scorer, split: str, filter_seen: bool, most: int | None = None) -> np.ndarray:
    """[N] ranks of the targets among all items, of the first `most` users."""
    blocks = _blocks(len(case.users[split][:most]))
    return np.concatenate([ranks_of_targets(score(case, scorer, split, filter_seen, rows), case.targets[split][rows]) for rows in blocks])


def list_best(case: Case, model: str, scorer: Scorer, split: str, filter_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """[N, LISTED] best items of each user and their probabilities: shares of ItemKNN's sum, a softmax of the other models' scores."""
    items, probabilities = [], []
    for rows in _blocks(len(case.users[split])):
        scores = score(case, scorer, split, filter_seen, rows)
        weights = np.maximum(scores, 0) if model == "item_knn" else np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        most = min(LISTED, scores.shape[1])
        best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable"), axis=1)
        items.append(np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), -1, best))
        probabilities.append(np.take_along_axis(weights, best, axis=1))
    return np.concatenate(items), np.concatenate(probabilities)


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + 512, count)) for start in range(0, count, 512)]
