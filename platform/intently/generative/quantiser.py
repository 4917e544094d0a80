"""Vectors of items to codes: residual k-means, and a residual quantised autoencoder (RQ-VAE) that begins with it.

Residual quantisation writes a vector as a sum of codewords, one a level: each level's codebook is for what the levels before left over.
Codes are chosen in the same way in training, in indexing and for new items: the nearest codeword. What makes them unique is assignment.py.

Shapes: N items, D width of their vectors, d width in which they are quantised, L learned levels, K codes of a level.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import load, save
from torch import nn

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.workspace import Artifact, Stage

WEIGHTS, SETTINGS = "quantiser.safetensors", "quantiser.json"
TOKENIZER = "tokenizer_version"
"""Note of a semantic_id: the version of the artifact `tokenizer` that holds its quantiser."""
_BLOCK = 8192


class AutoencoderConfig(Config):
    """How the RQ-VAE is shaped and trained."""

    hidden: tuple[int, ...] = Field((256, 128), description="widths of the encoder's hidden layers; the decoder mirrors them")
    latent: int = Field(32, ge=2, description="width in which codes are chosen")
    warmup_epochs: int = Field(10, ge=0, description="epochs without codes, after which codebooks begin as residual k-means")
    num_epochs: int = Field(150, ge=1, description="epochs with codes")
    batch_size: int = Field(1024, ge=1, description="items of a step")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    commitment: float = Field(0.25, ge=0, description="weight of what draws the encoder to its codewords")
    gradient: Literal["straight_through", "rotation"] = Field(
        "straight_through", description="how the decoder's gradient passes the codes: copied, or turned with the codeword (rotation trick)"
    )
    revive_until: float = Field(0.8, ge=0, le=1, description="share of the epochs in which codes that nobody used are set anew")


class QuantiserConfig(Config):
    """How items get their codes."""

    kind: Literal["rq_kmeans", "rq_vae"] = Field("rq_kmeans", description="k-means on residuals, or the autoencoder")
    num_levels: int = Field(4, ge=2, le=8, description="codes of a semantic ID")
    num_codes: int = Field(256, ge=2, description="codes of a level")
    last_level: Literal["balanced", "counter"] = Field(
        "balanced",
        description="balanced: learned, spread so that no two items share an ID; counter: 0, 1, … among items that share all before",
    )
    iterations: int = Field(50, ge=1, description="rounds of k-means at most")
    max_train_items: int = Field(100_000, ge=1, description="items that codebooks are learned from; more are sampled")
    autoencoder: AutoencoderConfig = Field(AutoencoderConfig(), description="of rq_vae")
    seed: int = Field(0, description="of every draw")

    @model_validator(mode="after")
    def _something_is_learned(self) -> QuantiserConfig:
        if self.num_codes**self.num_levels > 2**62:
            raise ValueError("num_codes to the power of num_levels must stay below 2^62")
        return self

    @property
    def learned_levels(self) -> int:
        """L."""
        return self.num_levels - (self.last_level == "counter")


class Quantised(nn.Module):
    """Codebooks, with the autoencoder around them where there is one."""

    def __init__(self, config: QuantiserConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        if config.kind == "rq_vae":
            widths = [width, *config.autoencoder.hidden, config.autoencoder.latent]
            self.encoder: nn.Module = _perceptron(widths)
            self.decoder: nn.Module = _perceptron(widths[::-1])
            width = config.autoencoder.latent
        else:
            self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.codebooks = nn.Parameter(torch.zeros(config.learned_levels, config.num_codes, width))

    def standardise(self, vectors: torch.Tensor) -> torch.Tensor:
        """[N, D] → the same with mean 0 and length 1 on average."""
        return (vectors - self.mean) / self.scale

    @torch.no_grad()
    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest codewords, level by level.

        Args:
            vectors: [N, D] float32.
        Returns:
            codes: [N, L] int32.
            latents: [N, d] float32, what was quantised.
        """
        codes, latents = [np.zeros((0, len(self.codebooks)), np.int32)], [np.zeros((0, self.codebooks.shape[2]), np.float32)]
        for start in range(0, len(vectors), _BLOCK):
            latent = self.encoder(self.standardise(torch.from_numpy(vectors[start : start + _BLOCK])))
            codes.append(quantise(latent, self.codebooks)[0].numpy().astype(np.int32))
            latents.append(latent.numpy())
        return np.concatenate(codes), np.concatenate(latents)

    @torch.no_grad()
    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """[N, ≥ L] codes → [N, D] vectors as far as the codes tell them; a counter tells nothing."""
        chosen = torch.from_numpy(codes[:, : len(self.codebooks)].astype(np.int64))
        latent = sum(book[chosen[:, level]] for level, book in enumerate(self.codebooks))
        return (self.decoder(latent) * self.scale + self.mean).numpy()


def quantise(latents: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, L] nearest codes, and [N, L + 1, d] what was left before each level and after the last."""
    codes, left = [], [latents]
    for book in codebooks:
        nearest = torch.cdist(left[-1], book).argmin(dim=1)
        codes.append(nearest)
        left.append(left[-1] - book[nearest])
    return torch.stack(codes, dim=1), torch.stack(left, dim=1)


def fit_quantiser(vectors: np.ndarray, config: QuantiserConfig) -> Quantised:
    """Learn codebooks (and the autoencoder) from the vectors of a catalogue.

    Args:
        vectors: [N, D] float32.
        config: how.
    Raises:
        ConfigError: there are fewer items than codes of a level.
    """
    if len(vectors) < config.num_codes:
        raise ConfigError("num_codes", config.num_codes, f"there are {len(vectors)} items to learn codes from; take fewer codes")
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(vectors), generator=generator)[: config.max_train_items]
    sample = torch.from_numpy(vectors[chosen.numpy()])
    torch.manual_seed(config.seed)
    model = Quantised(config, vectors.shape[1])
    model.mean.copy_(sample.mean(dim=0))
    model.scale.copy_((sample - model.mean).norm(dim=1).mean().clamp(min=1e-6))
    inputs = model.standardise(sample)
    if config.kind == "rq_vae":
        _train_autoencoder(model, inputs, config, generator)
    else:
        model.codebooks.data = residual_kmeans(inputs, config, generator)
    return model.eval()


def residual_kmeans(latents: torch.Tensor, config: QuantiserConfig, generator: torch.Generator) -> torch.Tensor:
    """[L, K, d] codebooks: k-means on what the levels before left over."""
    books, left = [], latents
    for _ in range(config.learned_levels):
        book = kmeans(left, config.num_codes, config.iterations, generator)
        books.append(book)
        left = left - book[torch.cdist(left, book).argmin(dim=1)]
    return torch.stack(books)


def kmeans(points: torch.Tensor, num_clusters: int, iterations: int, generator: torch.Generator) -> torch.Tensor:
    """[K, d] centres of Lloyd's k-means; a cluster that lost its points takes the point that lies worst.

    Args:
        points: [N, d], N ≥ K.
        num_clusters: K.
        iterations: rounds at most; it ends when nothing changes.
        generator: of the first centres.
    """
    centres = points[torch.randperm(len(points), generator=generator)[:num_clusters]].clone()
    before = None
    for _ in range(iterations):
        distance, nearest = torch.cdist(points, centres).min(dim=1)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        counts = torch.bincount(nearest, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centres[empty] = points[distance.topk(len(empty)).indices]
    return centres


def _train_autoencoder(model: Quantised, inputs: torch.Tensor, config: QuantiserConfig, generator: torch.Generator) -> None:
    """Minimises |x − x̂|² + |codewords − sg(left)|² + commitment · |left − sg(codewords)|², summed over levels."""
    settings = config.autoencoder
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    for epoch in range(settings.warmup_epochs + settings.num_epochs):
        with_codes = epoch >= settings.warmup_epochs
        if epoch == settings.warmup_epochs:
            with torch.no_grad():
                model.codebooks.copy_(residual_kmeans(model.encoder(inputs), config, generator))
        used = torch.zeros(model.codebooks.shape[:2])
        order = torch.randperm(len(inputs), generator=generator)
        for batch in order.split(settings.batch_size):
            latent = model.encoder(inputs[batch])
            decoded, loss = latent, torch.zeros(())
            if with_codes:
                codes, _ = quantise(latent.detach(), model.codebooks.detach())
                used.scatter_add_(1, codes.T, torch.ones(codes.T.shape))
                words = torch.stack([book[codes[:, level]] for level, book in enumerate(model.codebooks)], dim=1)  # [b, L, d]
                before = latent[:, None] - torch.cat([torch.zeros_like(words[:, :1]), words.detach().cumsum(dim=1)[:, :-1]], dim=1)
                loss = ((words - before.detach()) ** 2).sum(dim=(1, 2)).mean()
                loss = loss + settings.commitment * ((before - words.detach()) ** 2).sum(dim=(1, 2)).mean()
                decoded = _pass_through(latent, words.sum(dim=1).detach(), settings.gradient)
            loss = loss + ((model.decoder(decoded) - inputs[batch]) ** 2).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if with_codes and epoch - settings.warmup_epochs < settings.revive_until * settings.num_epochs - 1:
            _revive(model, inputs, used, generator)


def _pass_through(latent: torch.Tensor, quantised: torch.Tensor, gradient: str) -> torch.Tensor:
    """The quantised vectors [b, d], with a gradient back to the latents."""
    if gradient == "straight_through":
        return latent + (quantised - latent).detach()
    # q = (|q| / |e|) · R e with R the rotation from e to q, held fixed: R e = e − 2 r (r·e) + 2 q̂ (ê·e), r = (ê + q̂) / |ê + q̂|.
    norm = latent.detach().norm(dim=1, keepdim=True).clamp(min=1e-6)
    length = quantised.norm(dim=1, keepdim=True).clamp(min=1e-6)
    e, q = latent.detach() / norm, quantised / length
    r = nn.functional.normalize(e + q, dim=1)
    turned = latent - 2 * r * (r * latent).sum(dim=1, keepdim=True) + 2 * q * (e * latent).sum(dim=1, keepdim=True)
    return turned * (length / norm)


@torch.no_grad()
def _revive(model: Quantised, inputs: torch.Tensor, used: torch.Tensor, generator: torch.Generator) -> None:
    """Codes that no item took in an epoch begin anew at what random items have left over before that level."""
    if bool((used > 0).all()):
        return
    items = torch.randint(len(inputs), (model.codebooks.shape[1],), generator=generator)
    _, left = quantise(model.encoder(inputs[items]), model.codebooks)
    for level, book in enumerate(model.codebooks):
        dead = used[level] == 0
        book[dead] = left[dead, level]


def put_quantiser(stage: Stage, model: Quantised) -> None:
    """Write the files of a quantiser into an artifact."""
    stage.put(WEIGHTS, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    stage.put(SETTINGS, json.dumps({"config": model.config.model_dump(mode="json"), "width": len(model.mean)}).encode())


def load_quantiser(artifact: Artifact) -> Quantised:
    """Read them back."""
    settings = json.loads(artifact.fetch(SETTINGS).read_bytes())
    model = Quantised(QuantiserConfig.parse(settings["config"]), settings["width"])
    model.load_state_dict(load(artifact.fetch(WEIGHTS).read_bytes()))
    return model.eval()


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Distances:
    """Squared distances to the codewords of the last learned levels: what assigning codes weighs.

    Attributes:
        latents: [N, d] float32.
        codebooks: [L, K, d] float32.
        counter: whether the last level is a counter, which prefers low numbers and knows no distance.
    """

    latents: np.ndarray
    codebooks: np.ndarray
    counter: bool

    def last(self, items: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """[n, K] cost of every last code for items whose codes before are [n, H − 1]."""
        if self.counter:
            return np.broadcast_to(np.arange(self.codebooks.shape[1], dtype=np.float64), (len(items), self.codebooks.shape[1]))
        return self._squared(items, codes, codes.shape[1])

    def last_but_one(self, item: int, codes: np.ndarray) -> np.ndarray:
        """[K] cost of every code of the last level but one for an item whose codes before are [H − 2]."""
        return self._squared(np.array([item]), codes[None], len(codes))[0]

    def _squared(self, items: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        left = self.latents[items].astype(np.float64)
        for before in range(level):
            left = left - self.codebooks[before][codes[:, before]]
        return ((left[:, None, :] - self.codebooks[level][None]) ** 2).sum(axis=2)
