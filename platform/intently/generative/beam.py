"""Beam search that can only write semantic IDs of the catalogue, on any decoder of transformers whose logits are head(hidden).

The history is read once: its keys and values lie in the cache once a user, whatever the width. Beams are further positions of the same
sequence, all W of a level at the place right behind the history, and a mask lets each see the history and its own earlier codes: nothing is
copied or reordered when beams are chosen. A step scores the codes of its level (a slice of the head), gathers those that the trie allows
below each beam, and adds log-probabilities. Its cost depends on width, codes a level and model, not on the size of the catalogue.

Shapes: B queries, T tokens of the longest prompt, W beams, K codes of a level, C most children of a node of the level, D width, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from transformers import DynamicCache, PreTrainedModel

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.generative.trie import Blocked, Trie, check_codes


@dataclass(frozen=True)
class SidTokens:
    """Where the codes lie in a model's vocabulary: those of one level next to each other.

    Attributes:
        first: [L] token of code 0 of each level.
        counts: [L] codes of each level.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """[..., l] codes of the first l levels → tokens of the same shape."""
        return codes + np.asarray(self.first[: codes.shape[-1]])


class BeamConfig(Config):
    """How items are searched for."""

    width: int = Field(20, ge=1, description="beams; at least as many as items are asked for")
    scores: Literal["level", "children", "vocabulary"] = Field(
        "level",
        description="what each step's probabilities add up to 1 over: the codes of the level; only those that the catalogue allows there "
        "(the constrained policy's own); the whole vocabulary (as transformers scores beams, at the cost of the whole head)",
    )


class Found(NamedTuple):
    """What a search found, best first."""

    items: torch.Tensor
    """[B, k] rows of the trie's items; −1 where nothing is left."""
    scores: torch.Tensor
    """[B, k] float32 sums of log-probabilities; −inf where nothing is left."""
    trie: Trie
    """The catalogue that the rows stand for."""


class _Beams(NamedTuple):
    nodes: torch.Tensor
    """[B, W] int64 where each beam stands in the trie; −1 where there is none."""
    scores: torch.Tensor
    """[B, W] float32."""


class ConstrainedBeam:
    """Searches with one model; holds no state of a search."""

    def __init__(self, model: PreTrainedModel, tokens: SidTokens, config: BeamConfig) -> None:
        """Check that the model can be searched with.

        Args:
            model: in evaluation mode, on any device.
            tokens: of its vocabulary.
            config: width and scores.
        Raises:
            ConfigError: its logits are not its head applied to its hidden states, or its attention is not over everything before.
        """
        self.model, self.tokens, self.config = model, tokens, config
        self._decoder = model.base_model
        self._head = model.get_output_embeddings().weight  # [V, D]
        kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError("model", model.config.model_type, f"its attention is {sorted(kinds)}; beams need full attention")
        with torch.no_grad():
            probe = torch.tensor([[tokens.first[0]]], device=self._head.device)
            logits, hidden = model(input_ids=probe).logits[0, 0], self._decoder(input_ids=probe).last_hidden_state[0, 0]
            own = hidden @ self._head.T
            if not torch.allclose(logits.float(), own.float(), rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
                raise ConfigError("model", model.config.model_type, "its logits are not its head applied to its last hidden state")

    @torch.no_grad()
    def search(
        self, prompts: torch.Tensor, lengths: torch.Tensor, trie: Trie, k: int, excluded: Sequence[np.ndarray] | None = None
    ) -> Found:
        """The likeliest items of a catalogue after each prompt.

        Args:
            prompts: [B, T] tokens, filled up on the right with any token.
            lengths: [B] tokens of each prompt, at least 1.
            trie: the catalogue, on the model's device.
            k: items a query, at most the width.
            excluded: rows of items that may not be found, for each query (seen, out of stock).
        Raises:
            ConfigError: k is above the width.
            SchemaError: the model has no tokens for the catalogue's codes.
        """
        width = self.config.width
        if not 1 <= k <= width:
            raise ConfigError("k", k, f"must lie between 1 and the width of the beam, {width}")
        check_codes(trie, self.tokens.counts)
        num_queries = len(prompts)
        blocked = trie.block(excluded) if excluded is not None else None
        cache, hidden = self.read(prompts, lengths)
        nodes = torch.zeros(num_queries, 1, dtype=torch.long, device=prompts.device)
        beams = _Beams(nodes, torch.zeros(num_queries, 1, device=prompts.device))
        sees = torch.arange(prompts.shape[1], device=prompts.device) < lengths[:, None, None]  # [B, W, positions before this level]
        for level in range(trie.depth):
            children, scores = self._extend(trie, level, beams, self._log_probs(hidden, level), blocked)
            fan_out = children.shape[2]
            best, chosen = scores.flatten(1).topk(min(width, scores[0].numel()), dim=1)
            nodes = torch.where(best == -torch.inf, -1, children.flatten(1).gather(1, chosen))
            beams = _Beams(nodes, best)
            if level + 1 < trie.depth:
                parents = (chosen // fan_out)[..., None]
                sees = sees.expand(-1, max(sees.shape[1], 1), -1).gather(1, parents.expand(-1, -1, sees.shape[2]))
                own = torch.eye(best.shape[1], dtype=torch.bool, device=sees.device).expand(num_queries, -1, -1)
                sees = torch.cat([sees, own], dim=2)
                hidden = self.step(trie, level, nodes, lengths, sees, cache)
        items = torch.where(beams.nodes >= 0, trie.items[beams.nodes.clamp(min=0)].long(), -1)
        missing = max(0, k - items.shape[1])
        items = torch.nn.functional.pad(items, (0, missing), value=-1)[:, :k]
        return Found(items, torch.nn.functional.pad(beams.scores, (0, missing), value=-torch.inf)[:, :k], trie)

    def read(self, prompts: torch.Tensor, lengths: torch.Tensor) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of the prompts, and [B, 1, D] the hidden state behind each one's last token.

        What fills up a prompt stands to the right of it, where causal attention does not look.
        """
        cache = DynamicCache(config=self.model.config)
        hidden = self._decoder(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state
        return cache, hidden[torch.arange(len(prompts), device=prompts.device), lengths - 1][:, None]

    def step(
        self, trie: Trie, level: int, nodes: torch.Tensor, lengths: torch.Tensor, sees: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """[B, W, D] hidden states of the codes that were just chosen on `level`."""
        tokens = trie.codes[nodes.clamp(min=0)].long() + self.tokens.first[level]
        # A beam that has ended or died keeps its place with a token that nobody looks at; its code may be of another level.
        tokens = tokens.clamp(max=self.tokens.first[level] + self.tokens.counts[level] - 1)
        positions = (lengths[:, None] + level).expand(-1, nodes.shape[1])
        smallest = torch.finfo(self._head.dtype).min
        mask = torch.zeros(sees.shape, dtype=self._head.dtype, device=sees.device).masked_fill_(~sees, smallest)[:, None]
        return self._decoder(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state

    def _log_probs(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """[B, W, K] of the codes of a level; for `children` logits, which are normalised where the children are known."""
        first, count = self.tokens.first[level], self.tokens.counts[level]
        match self.config.scores:
            case "vocabulary":
                logits = (hidden @ self._head.T).float()
                return logits[..., first : first + count] - logits.logsumexp(dim=-1, keepdim=True)
            case "level":
                return (hidden @ self._head[first : first + count].T).float().log_softmax(dim=-1)
            case "children":
                return (hidden @ self._head[first : first + count].T).float()

    def _extend(
        self, trie: Trie, level: int, beams: _Beams, log_probs: torch.Tensor, blocked: Blocked | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nodes that each beam can go to and the scores there, [B, W, C] each; −inf where there is no child.

        Once items may have ended there is one column more, in which such a beam stays where it is.
        """
        children, valid = trie.children(beams.nodes, level)
        steps = log_probs.gather(2, trie.codes[children].long()).masked_fill(~valid, -torch.inf)
        if self.config.scores == "children":
            steps = steps.log_softmax(dim=-1).masked_fill(~valid, -torch.inf)
        scores = beams.scores[..., None] + steps
        if blocked is not None and blocked.nodes[level].shape[1]:
            query, place, beam = (beams.nodes[:, None, :] == blocked.parents[level][..., None]).nonzero(as_tuple=True)
            scores[query, beam, blocked.nodes[level][query, place] - children[query, beam, 0]] = -torch.inf
        if any(trie.ends[: level + 1]):
            ended = trie.items[beams.nodes.clamp(min=0)] >= 0
            stay = beams.scores.masked_fill(~ended | (beams.nodes < 0), -torch.inf)
            children = torch.cat([children, beams.nodes[..., None]], dim=2)
            scores = torch.cat([scores, stay[..., None]], dim=2)
        return children, scores
