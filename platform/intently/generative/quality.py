"""What semantic IDs are worth before any model is trained on them.

Shapes: N items, D width, H codes of a semantic ID, K codes of a level.
"""

from __future__ import annotations

import numpy as np

from intently.generative.quantiser import Quantised

_NEIGHBOURS, _SAMPLE = 10, 2000


def code_report(raw: np.ndarray, codes: np.ndarray, num_codes: int) -> dict[str, float]:
    """Codebook use and collisions.

    Args:
        raw: [N, L] nearest codes of the learned levels.
        codes: [N, H] semantic IDs as they were assigned.
        num_codes: K.
    Returns:
        use_level_l: share of the K codes that occur. perplexity_level_l: 2^entropy of the codes, K at best. unique_ratio_before: distinct
        raw codes an item. collisions_before, collisions_after: share of items whose ID another one has too. moved: share of items that do
        not have their nearest codes.
    """
    report: dict[str, float] = {}
    for level in range(codes.shape[1]):
        counts = np.bincount(codes[:, level], minlength=num_codes)
        shares = counts[counts > 0] / len(codes)
        report[f"use_level_{level + 1}"] = float((counts > 0).sum() / num_codes)
        report[f"perplexity_level_{level + 1}"] = float(2 ** -(shares * np.log2(shares)).sum())
    distinct = len(np.unique(raw, axis=0))
    report["unique_ratio_before"] = distinct / len(raw)
    report["collisions_before"] = collisions(raw)
    report["collisions_after"] = collisions(codes)
    report["moved"] = float((raw != codes[:, : raw.shape[1]]).any(axis=1).mean())
    return report


def collisions(codes: np.ndarray) -> float:
    """Share of items whose codes another item has too."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return float((counts[inverse.ravel()] > 1).mean())


def meaning_report(vectors: np.ndarray, codes: np.ndarray, quantiser: Quantised, seed: int = 0) -> dict[str, float]:
    """How much of the items' vectors the codes keep.

    Args:
        vectors: [N, D] float32 that were quantised.
        codes: [N, H] as assigned.
        quantiser: that made them.
        seed: of the items that neighbours are looked up for, at most 2,000.
    Returns:
        reconstruction_error: |x − x̂|² / |x − mean|². neighbour_purity: share of an item's 10 nearest others (cosine) with the same first
        code; neighbour_purity_chance: what that would be if codes were dealt at random.
    """
    error = ((vectors - quantiser.reconstruct(codes)) ** 2).sum()
    spread = ((vectors - vectors.mean(axis=0)) ** 2).sum()
    sample = np.random.default_rng(seed).permutation(len(vectors))[:_SAMPLE]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = unit[sample] @ unit.T
    similarity[np.arange(len(sample)), sample] = -np.inf
    width = min(_NEIGHBOURS, len(vectors) - 1)
    nearest = np.argpartition(-similarity, width - 1, axis=1)[:, :width]
    shares = np.bincount(codes[:, 0]) / len(codes)
    return {
        "reconstruction_error": float(error / max(spread, 1e-12)),
        "neighbour_purity": float((codes[nearest, 0] == codes[sample, 0][:, None]).mean()),
        "neighbour_purity_chance": float((shares**2).sum()),
    }
