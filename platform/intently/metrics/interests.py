"""How good mined interests and predicted categories are, judged by what people did later.

Shapes: U users, N interests or categories named, M later items, D dimension of the vectors.
"""

from __future__ import annotations

import numpy as np


def interest_quality(
    interests: np.ndarray, interest_user: np.ndarray, items: np.ndarray, item_user: np.ndarray, num_users: int
) -> np.ndarray:
    """IQ_u = mean over u's interests e and later items v of cos(e, v) (DeepInterestGR); their mean is IQ.

    With unit vectors the mean of all pairs is the product of the two means.

    Args:
        interests: [N, D] unit rows.
        interest_user: [N] whose, 0 to U − 1.
        items: [M, D] unit rows.
        item_user: [M] who went for it, 0 to U − 1.
        num_users: U.
    Returns:
        [U] float64, NaN for users without an interest or without a later item.
    """
    wish, wanted = _mean_by_user(interests, interest_user, num_users), _mean_by_user(items, item_user, num_users)
    return np.einsum("ud,ud->u", wish, wanted)


def category_hits(named: np.ndarray, named_user: np.ndarray, target: np.ndarray, k: int, num_categories: int) -> np.ndarray:
    """[U] 1 where the category of the user's next item is among those of their first k tags, else 0; the mean is HR@k (RecGPT §3).

    Args:
        named: [N] categories of the tags, −1 for a tag without one; each user's best first.
        named_user: [N] whose, 0 to U − 1.
        target: [U] categories of the next items.
        k: tags of a user that count, those without a category too.
        num_categories: distinct categories.
    """
    order = np.argsort(named_user, kind="stable")
    user, category = named_user[order], named[order]
    starts = np.searchsorted(user, np.arange(len(target)))
    counts = (np.arange(len(user)) - starts[user] < k) & (category >= 0)
    says = np.zeros((len(target), num_categories), bool)
    says[user[counts], category[counts]] = True
    return says[np.arange(len(target)), target].astype(np.float64)


def _mean_by_user(vectors: np.ndarray, user: np.ndarray, num_users: int) -> np.ndarray:
    """[·, D] → [U, D] float64; NaN where a user has none."""
    total = np.zeros((num_users, vectors.shape[1]))
    np.add.at(total, user, vectors)
    count = np.bincount(user, minlength=num_users).astype(np.float64)
    return total / np.where(count == 0, np.nan, count)[:, None]
