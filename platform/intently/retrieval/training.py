"""Training the towers: what a step draws, the loss of it, and the loop that the harness runs.

Shapes: B stretches of a step with Q queries each, n examples among these, T tag pairs of a step, S candidates, I items, D width.

In a group of workers a step is still one step: all of them draw the same stretches, pairs and negatives, and hold all of the step's
items as candidates. Each holds the histories of its own users, asks for the stretches among the drawn ones that are theirs, and tells the
others their targets. So a group learns what one worker would, and a log is spread over its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.catalogue import Catalogue, Tags, pair_tags_with_items, read_catalogue, read_tags
from intently.retrieval.group import ALONE, Group
from intently.retrieval.interactions import COLUMNS, BehaviourConfig, Interactions, concat_interactions, first_events, read_interactions
from intently.retrieval.losses import log_inclusion, same_category, softmax_loss
from intently.retrieval.towers import TowerConfig, Towers, Window, WindowCutter, sizes_of

if TYPE_CHECKING:  # the harness brings Ray Train and DeepSpeed along; serving reads this module without them
    from intently.runtime.train import TrainSession


class LearningConfig(Config):
    """How the towers learn. Batches are the whole group's: each worker takes its share."""

    num_epochs: int = Field(5, ge=1, description="passes over the examples")
    batch_size: int = Field(2048, ge=1, description="examples of a step, on average")
    stretch: int = Field(16, ge=1, description="consecutive events of one user that are foretold together, each from those before it")
    num_negatives: int = Field(1024, ge=0, description="items drawn uniformly as negatives of a step, beside the in-batch ones")
    hard_negatives: int = Field(
        0,
        ge=0,
        description="candidates that compete with a positive: the highest-scored that are not the user's own; 0 for all, theirs too",
    )
    tag_batch_size: int = Field(256, ge=0, description="tag-item pairs of a step; 0 leaves L_tag and L_cate out")
    items_per_tag: int = Field(4, ge=0, description="its user's last events in the tag's category, with whose items it is paired")
    examples_per_epoch: int | None = Field(None, ge=1, description="examples drawn for an epoch; None takes all")
    learning_rate: float = Field(3e-3, gt=0, description="peak of AdamW's learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises; a cosine falls after it")
    temperature: float = Field(0.07, gt=0, description="cosines are divided by it in every softmax")
    alpha: float = Field(0.5, ge=0, le=1, description="a, the share of L_tag beside L_cate")
    tag_weight: float = Field(1.0, ge=0, description="w in L = L_col + w·(a·L_tag + (1 − a)·L_cate); 1 as in the paper")
    seed: int = Field(0, description="of initial weights and of every draw")


class TrainingConfig(Config):
    """Everything that decides the trained towers."""

    behaviours: BehaviourConfig = Field(BehaviourConfig(), description="what is read and what is foretold")
    towers: TowerConfig = Field(TowerConfig(), description="shapes")
    learning: LearningConfig = Field(LearningConfig(), description="losses and optimizer")


@dataclass(frozen=True)
class TowerData:
    """What the towers are trained on, all of it from history_train.

    Attributes:
        catalogue: I items.
        past: all users of history_train, with the events of those whom this worker holds.
        tags: tags of the users.
        pairs: [M, 2] tag, item.
    """

    catalogue: Catalogue
    past: Interactions
    tags: Tags
    pairs: np.ndarray


def read_tower_data(workspace: Workspace, versions: Mapping[str, str], config: TrainingConfig, group: Group = ALONE) -> TowerData:
    """The tables at the given versions (artifact → version) as arrays; of histories this worker's share.

    Raises:
        ConfigError: more workers than history_train has parts.
        SchemaError: nothing to learn from.
    """
    item_embedding, tag_embedding = (workspace.artifact(name, versions[name]).read() for name in ("item_embedding", "tag_embedding"))
    items = workspace.artifact("item", versions["item"]).read()
    catalogue = read_catalogue(items, item_embedding, config.towers.price_bins)
    past = read_past(workspace.artifact("history_train", versions["history_train"]), catalogue.item_ids, config.behaviours, group)
    num_examples = np.array(len(first_events(past, config.behaviours, config.behaviours.weights)[0]))
    if not sum(group.gather(num_examples)):
        raise SchemaError(f"table history: no event on a known item of any behaviour in {[str(b) for b in config.behaviours.weights]}")
    rows = workspace.artifact("tag", versions["tag"]).read()
    tags = read_tags(rows, past.user_ids, catalogue.category_names, config.towers.token_buckets)
    pairs = pair_tags_with_items(tags, tags.texts(tag_embedding), catalogue, past, config.learning.items_per_tag, group)
    return TowerData(catalogue, past, tags, pairs)


def read_past(history: Artifact, item_ids: pa.Array, behaviours: BehaviourConfig, group: Group = ALONE) -> Interactions:
    """All users of a history, with the events of this worker's parts; read part by part, so that only numbers stay in memory."""
    parts = history.parts()
    if len(parts) < group.world_size:
        raise ConfigError("resources.num_workers", group.world_size, f"{history} has {len(parts)} part(s), and each worker needs one")
    own, read = set(group.share(parts)), []
    for part in parts:
        if part in own:
            read.append(read_interactions(history.read(part, columns=COLUMNS), item_ids, behaviours))
        else:
            users, none = history.read(part, columns=["user_id"])["user_id"].combine_chunks(), np.empty(0, np.int64)
            read.append(Interactions(users, np.zeros(len(users) + 1, np.int64), none, none))
    return concat_interactions(read)


def build_towers(data: TowerData, config: TrainingConfig) -> Towers:
    """Untrained towers, the same for the same seed."""
    torch.manual_seed(config.learning.seed)
    sizes = sizes_of(data.catalogue, data.past.num_users, len(config.behaviours.history), config.towers)
    return Towers(config.towers, sizes, data.catalogue)


class Batch(NamedTuple):
    """One worker's share of one step's draw."""

    window: Window
    asked: torch.Tensor
    """[B, Q] queries that are examples."""
    targets: torch.Tensor
    """[n] catalogue rows, of the asked queries."""
    weights: torch.Tensor
    """[n] weight of the target's behaviour; over the whole step, of all workers, they sum to the number of workers."""
    words: torch.Tensor
    """[W] hashed words of the T tags."""
    word_offsets: torch.Tensor
    """[T] where each tag's words begin."""
    tagged: torch.Tensor
    """[T] the item each tag is paired with."""
    peers: torch.Tensor
    """[T] an item of the same category."""
    tag_weights: torch.Tensor
    """[T] all alike; over the whole step they sum to the number of workers."""
    drawn: torch.Tensor
    """Catalogue rows that the whole step drew: targets, tagged items, peers, and negatives drawn uniformly."""


class Sampler:
    """Draws batches: a random order of the stretches an epoch, random pairs and negatives a step."""

    def __init__(self, data: TowerData, config: TrainingConfig, device: torch.device, group: Group = ALONE) -> None:
        self.learning, self.device, self.group = config.learning, device, group
        self.cutter = WindowCutter(data.past, config.towers.windows[-1], device)
        places, weights = first_events(data.past, config.behaviours, config.behaviours.weights)
        every = np.zeros(len(data.past.items), np.float32)
        every[places] = weights
        self.weights, self.num_examples = torch.from_numpy(every).to(device), int(sum(group.gather(np.array(len(places)))))
        self.counts = torch.bincount(torch.from_numpy(data.past.items[places]), minlength=data.catalogue.num_items).to(device)
        group.add(self.counts)
        starts, owners = _stretches(data.past, places, self.learning.stretch)
        self.starts, self.owners = torch.from_numpy(starts).to(device), torch.from_numpy(owners).to(device)
        self.own = torch.from_numpy(_own_places(owners, group)).to(device)
        self.pairs = torch.tensor(data.pairs, device=device)
        self.words, self.word_offsets = torch.tensor(data.tags.words, device=device), torch.tensor(data.tags.offsets, device=device)
        self.categories, self.num_items = torch.tensor(data.catalogue.categories, device=device), data.catalogue.num_items
        self.by_category = self.categories.argsort(stable=True)
        self.category_sizes = torch.bincount(self.categories)
        self.category_starts = self.category_sizes.cumsum(0) - self.category_sizes
        num_stretches = len(self.own)
        self.step_size = min(num_stretches, max(1, round(self.learning.batch_size * num_stretches / self.num_examples)))
        share = min(1.0, (self.learning.examples_per_epoch or self.num_examples) / self.num_examples)
        self.num_steps = max(1, int(share * num_stretches) // self.step_size)
        self.num_tags = self.learning.tag_batch_size if len(data.pairs) else 0

    @property
    def rates(self) -> torch.Tensor:
        """[I] how often each item is drawn into a step's candidates on average, λ of the log-Q correction."""
        rates = self.counts * (self.step_size / len(self.own)) + self.learning.num_negatives / self.num_items
        if self.num_tags:
            tagged = torch.bincount(self.pairs[:, 1], minlength=self.num_items).float() * self.num_tags / len(self.pairs)
            in_category = torch.bincount(self.categories, weights=tagged, minlength=len(self.category_sizes))
            rates = rates + tagged + in_category[self.categories] / self.category_sizes[self.categories]
        return rates.float()

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of this worker in one epoch."""
        generator = torch.Generator().manual_seed(self.learning.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.own), generator=generator)
        for step in range(self.num_steps):
            yield self.batch(order[step * self.step_size :][: self.step_size].to(self.device), generator)

    def batch(self, chosen: torch.Tensor, generator: torch.Generator) -> Batch:
        """This worker's share of a step's stretches, by their numbers in the group, with freshly drawn tag pairs and negatives."""
        mine = self.own[chosen] >= 0
        chosen = self.own[chosen][mine]
        targets = torch.zeros(len(mine), self.learning.stretch, dtype=torch.long, device=self.device)
        weights = torch.zeros(targets.shape, device=self.device)
        targets[mine], weights[mine] = self._targets(chosen)
        self.group.add(targets, weights)  # of the whole step now
        total, world_size = weights.sum(), self.group.world_size
        own = slice(self.group.rank, None, world_size)
        pairs = torch.randint(max(1, len(self.pairs)), (self.num_tags,), generator=generator).to(self.device)
        tags, tagged = self.pairs[pairs].unbind(1)
        sizes = self.category_sizes[self.categories[tagged]]
        nth = (torch.rand(len(tagged), generator=generator).to(self.device) * sizes).long()
        peers = self.by_category[self.category_starts[self.categories[tagged]] + nth]
        negatives = torch.randint(self.num_items, (self.learning.num_negatives,), generator=generator).to(self.device)
        drawn = torch.cat([targets[weights > 0], tagged, peers, negatives])
        targets, weights = targets[mine], weights[mine]
        words, word_offsets = self._words(tags[own])
        asked = weights > 0
        window = self.cutter.window(self.owners[chosen], self.starts[chosen], self.learning.stretch)
        return Batch(
            # The views that led to a purchase would give it away, and the splits leave them out of what is measured.
            window=window._replace(hidden=targets),
            asked=asked,
            targets=targets[asked],
            weights=weights[asked] * (world_size / total),
            words=words,
            word_offsets=word_offsets,
            tagged=tagged[own],
            peers=peers[own],
            tag_weights=torch.full_like(tagged[own], world_size / max(1, self.num_tags), dtype=torch.float32),
            drawn=drawn,
        )

    def _targets(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, Q] items that stretches ask for, and their weights, 0 where a query is no example."""
        places = self.starts[chosen][:, None] + torch.arange(self.learning.stretch, device=self.device)
        inside = places < self.cutter.offsets[self.owners[chosen] + 1][:, None]
        places = places.clamp(max=len(self.cutter.items) - 1)
        return self.cutter.items[places], self.weights[places] * inside

    def _words(self, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        starts, counts = self.word_offsets[tags], self.word_offsets[tags + 1] - self.word_offsets[tags]
        offsets = counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum()), device=self.device) - offsets.repeat_interleave(counts)
        return self.words[starts.repeat_interleave(counts) + within], offsets


def _stretches(past: Interactions, examples: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Event places at which stretches of `length` events begin, counted from each user's first, and their users; those with an example."""
    users = past.users[examples]
    begins = past.offsets[users] + (examples - past.offsets[users]) // length * length
    starts, first = np.unique(begins, return_index=True)
    return starts, users[first]


def _own_places(owners: np.ndarray, group: Group) -> np.ndarray:
    """[G] where a stretch of the group, in the order of users, lies among this worker's; −1 where it is another's.

    Args:
        owners: user of each of this worker's stretches, ascending; no user has stretches with two workers.
    """
    gathered = group.gather(owners)
    holders = np.repeat(np.arange(len(gathered)), [len(each) for each in gathered])
    own = holders[np.argsort(np.concatenate(gathered), kind="stable")] == group.rank
    return np.where(own, own.cumsum() - 1, -1)


class Losses(NamedTuple):
    """Scalars of one step."""

    total: torch.Tensor
    collaborative: torch.Tensor
    tag: torch.Tensor
    category: torch.Tensor


class TowerObjective(nn.Module):
    """Towers and their loss as one module, which is what the engine wraps."""

    def __init__(self, towers: Towers, learning: LearningConfig, rates: torch.Tensor) -> None:
        super().__init__()
        self.towers, self.learning = towers, learning
        self.register_buffer("log_q", log_inclusion(rates), persistent=False)

    def forward(self, batch: Batch) -> Losses:
        """L_col + w·(a·L_tag + (1 − a)·L_cate) over the step's candidates."""
        temperature, alpha = self.learning.temperature, self.learning.alpha
        num_items = len(self.log_q)
        drawn, _ = _distinct(num_items, batch.drawn)
        needed, place = _distinct(num_items, drawn, batch.window.items.flatten())
        representations = self.towers.represent(needed)  # r_v of every item in sight
        candidates = self.towers.item(representations[place[drawn]])  # [S, D]
        _, among = _distinct(num_items, drawn)
        log_q = self.log_q[drawn]

        users = self.towers.user(batch.window, nn.functional.embedding(place[batch.window.items], representations), batch.asked)
        hard = self.learning.hard_negatives
        taken = _own_items(batch, drawn, num_items) if hard else None
        collaborative = softmax_loss(users, candidates, among[batch.targets], log_q, temperature, batch.weights, taken, hard)
        if not len(users):  # none of this step's stretches is this worker's; the others average their gradients with its zeros
            collaborative = collaborative + 0 * sum(weight.sum() for weight in self.towers.user.parameters())
        if not len(batch.tagged):
            zero = torch.zeros_like(collaborative)
            return Losses(collaborative, collaborative, zero, zero)
        tags = self.towers.tag(batch.words, batch.word_offsets)
        tag = softmax_loss(tags, candidates, among[batch.tagged], log_q, temperature, batch.tag_weights)
        peers = among[batch.peers]
        hidden = same_category(self.towers.categories[drawn], peers)
        category = softmax_loss(tags, candidates, peers, log_q, temperature, batch.tag_weights, hidden)
        total = collaborative + self.learning.tag_weight * (alpha * tag + (1 - alpha) * category)
        return Losses(total, collaborative, tag, category)


def _own_items(batch: Batch, drawn: torch.Tensor, num_items: int) -> torch.Tensor:
    """[n, S] candidates that are in the stretch of the example's own user: no negatives to look hard at."""
    window = batch.window
    assert window.hidden is not None
    own = torch.zeros(
        len(batch.asked), num_items + 1, dtype=torch.bool, device=drawn.device
    )  # the last column is for places without an item
    own.scatter_(1, torch.where(window.valid, window.items, num_items), True)
    own.scatter_(1, torch.where(batch.asked, window.hidden, num_items), True)
    return own[:, drawn][batch.asked.nonzero()[:, 0]]


def _distinct(num_items: int, *rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct values of the tensors, ascending, and [I] the place of each among them (cheaper than sorting the windows)."""
    present = torch.zeros(num_items, dtype=torch.bool, device=rows[0].device)
    for each in rows:
        present[each] = True
    return present.nonzero()[:, 0], present.cumsum(0) - 1


def train_towers(session: TrainSession, workspace: Workspace, versions: Mapping[str, str], config: TrainingConfig) -> None:
    """The loop: reads its tables, trains, hands a checkpoint in after each epoch."""
    # 1. data and modules, the same on every worker
    learning = config.learning
    group = Group(session.rank, session.world_size)
    data = read_tower_data(workspace, versions, config, group)
    sampler = Sampler(data, config, session.device, group)
    module = TowerObjective(build_towers(data, config), learning, sampler.rates).to(session.device)
    total_steps = learning.num_epochs * sampler.num_steps

    # 2. optimizer: warm-up, then a cosine to zero
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning.learning_rate, weight_decay=learning.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total_steps, learning.warmup))
    engine = session.engine(module, optimizer, max(1, sampler.step_size // session.world_size), schedule)

    # 3. epochs
    for epoch in range(session.resume(engine), learning.num_epochs):
        engine.train()
        torch.manual_seed((learning.seed + 1) * 7_919 + epoch * 101 + session.rank)  # of dropout
        sums = torch.zeros(len(Losses._fields))
        for batch in sampler.epoch(epoch):
            losses = engine(batch)
            engine.backward(losses.total)
            engine.step()
            sums += torch.stack([loss.detach() for loss in losses]).cpu()
        session.end_epoch(engine, learning.num_epochs, dict(zip(Losses._fields, (sums / sampler.num_steps).tolist(), strict=True)))


def _rate(step: int, total_steps: int, warmup: float) -> float:
    rising = max(1, int(warmup * total_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))
