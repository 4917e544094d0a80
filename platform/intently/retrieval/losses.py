"""The three losses of the towers (RecGPT, user-item-tag retrieval): L = L_col + a·L_tag + (1 − a)·L_cate.

Each is a softmax over a set S of candidates that was drawn for the step: the positives of the batch (in-batch negatives) and
items drawn uniformly. An item that is drawn more often would be pushed away more often, so its logit is lowered by
log P(item ∈ S) (log-Q correction; Bengio & Senécal 2008, Yi et al. 2019); the softmax then stands for the one over all items.
S holds each item once, so that a positive is never its own negative.

Shapes: B queries, S candidates, D width, I items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def log_inclusion(rates: torch.Tensor) -> torch.Tensor:
    """log P(item ∈ S) = log(1 − e^(−λ)) for items that are drawn λ times on average.

    Args:
        rates: [S] λ > 0.
    """
    return torch.log(-torch.expm1(-rates))


def softmax_loss(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    positives: torch.Tensor,
    log_q: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    num_hardest: int = 0,
) -> torch.Tensor:
    """Mean, or weighted sum, of −log softmax of each query's positive: L_col and L_tag, and L_cate with `hidden`.

    Args:
        queries: [B, D] vectors of length 1.
        candidates: [S, D] vectors of length 1, of distinct items.
        positives: [B] place of each query's positive among the candidates.
        log_q: [S] log-Q correction.
        temperature: the cosine is divided by it.
        weights: [B], with which the losses are summed; None takes their mean.
        hidden: [B, S] candidates that do not compete, True where so; a positive always does.
        num_hardest: how many candidates, the highest-scored, compete with each positive; 0 for all. What stays is then no estimate of the
            softmax over all items.
    Returns:
        A scalar; zero for no query.
    """
    if not len(queries):
        return candidates.sum() * 0
    logits = torch.addmm(-log_q, queries / temperature, candidates.T)
    if hidden is not None:
        logits = logits.masked_fill(hidden.scatter(1, positives[:, None], False), -torch.inf)
    if 0 < num_hardest < logits.shape[1] - 1:
        others = logits.detach().scatter(1, positives[:, None], -torch.inf)
        easy = others < others.topk(num_hardest, dim=1).values[:, -1:]
        logits = logits.masked_fill(easy.scatter(1, positives[:, None], False), -torch.inf)
    losses = F.cross_entropy(logits, positives, reduction="none")
    return losses.mean() if weights is None else (losses * weights).sum()


def same_category(categories: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """[B, S] candidates of the positive's own category, itself too: L_cate takes its negatives from other categories.

    Args:
        categories: [S] category of each candidate.
        positives: [B] places among the candidates.
    """
    return categories[positives][:, None] == categories
