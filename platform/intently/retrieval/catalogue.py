"""The catalogue as numbers: what the item tower and the tag tower look up.

Shapes: I items, E length of a text embedding, T distinct tags, W words over all tags.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.retrieval.group import ALONE, Group
from intently.retrieval.interactions import Interactions, rows_of

PUNCTUATION = ".,;:!?'\"()[]"


class Vocabulary(Config):
    """How item features are numbered; kept with trained towers, so that a later item is read with the same numbers."""

    category_names: list[str] = Field(description="the category of each code")
    brand_names: list[str] = Field(description="the brand of each code from 1; 0 is no brand, or one that came later")
    price_edges: list[float] | None = Field(description="where the price bins meet, rising; None where no price was known")


@dataclass(frozen=True)
class Catalogue:
    """Item features. Row i of every array is item i of `item_ids`.

    Attributes:
        item_ids: [I] strings, distinct.
        vocabulary: what the codes stand for.
        categories: [I] int64 codes; −1 is a category that the vocabulary does not hold.
        brands: [I] int64 codes; 0 is no brand.
        prices: [I] int64 bins by quantile from 1; 0 is no price.
        texts: [I, E] float32, zero where an item has no text embedding; E is 0 without any.
    """

    item_ids: pa.Array
    vocabulary: Vocabulary
    categories: np.ndarray
    brands: np.ndarray
    prices: np.ndarray
    texts: np.ndarray

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.item_ids)

    @property
    def category_names(self) -> list[str]:
        """The category of each code."""
        return self.vocabulary.category_names


def read_catalogue(items: pa.Table, embeddings: pa.Table, price_bins: int) -> Catalogue:
    """Item rows and their text embeddings → numbers, in a vocabulary of their own.

    Args:
        items: ITEM.
        embeddings: EMBEDDING of kind item, may be empty.
        price_bins: number of price quantiles.
    Raises:
        SchemaError: there are no items.
    """
    if not items.num_rows:
        raise SchemaError("table item: no rows, so there is nothing to recommend")
    vocabulary = Vocabulary(
        category_names=pc.unique(items["category"]).to_pylist(),
        brand_names=pc.unique(items["brand"]).drop_null().to_pylist(),
        price_edges=_price_edges(items, price_bins),
    )
    return number_items(items, embeddings, vocabulary)


def number_items(items: pa.Table, embeddings: pa.Table, vocabulary: Vocabulary) -> Catalogue:
    """Item rows and their text embeddings → numbers of a given vocabulary.

    Args:
        items: ITEM; of the catalogue that the vocabulary comes from, or later ones.
        embeddings: EMBEDDING of kind item, may be empty.
        vocabulary: numbers of categories, brands and price bins.
    """
    item_ids = items["item_id"].combine_chunks()
    return Catalogue(
        item_ids=item_ids,
        vocabulary=vocabulary,
        categories=rows_of(items["category"], pa.array(vocabulary.category_names, pa.string())),
        brands=rows_of(items["brand"], pa.array(vocabulary.brand_names, pa.string())) + 1,
        prices=_bins(_prices(items), vocabulary.price_edges),
        texts=_aligned(embeddings, item_ids),
    )


@dataclass(frozen=True)
class Tags:
    """Distinct tags and who has them.

    Attributes:
        names: [T] strings.
        words: [W] int64 hashed words of all tags, one tag after the other.
        offsets: [T + 1] int64 places in `words`.
        users: [N] int64 user row of each (user, tag) row.
        tags: [N] int64 its tag.
        categories: [N] int64 its category code, −1 where none is known.
    """

    names: pa.Array
    words: np.ndarray
    offsets: np.ndarray
    users: np.ndarray
    tags: np.ndarray
    categories: np.ndarray

    def texts(self, embeddings: pa.Table) -> np.ndarray:
        """[T, E] float32 text embeddings of the tags, from EMBEDDING rows of kind tag."""
        return _aligned(embeddings, self.names)


def read_tags(tags: pa.Table, user_ids: pa.Array, category_names: list[str], token_buckets: int) -> Tags:
    """TAG rows → numbers; tags of unknown users are left out."""
    users = rows_of(tags["user_id"], user_ids)
    known = users >= 0
    encoded = tags["tag"].combine_chunks().dictionary_encode() if tags.num_rows else pa.array([], pa.string()).dictionary_encode()
    words, offsets = hash_words(encoded.dictionary, token_buckets)
    categories = rows_of(tags["category"], pa.array(category_names, pa.string()))
    return Tags(encoded.dictionary, words, offsets, users[known], _codes(encoded)[known], categories[known])


def hash_words(texts: pa.Array, token_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts → hashed lower-case words, and the offsets of each text's own.

    Words end at spaces, hyphens and slashes, and lose punctuation at their ends. (A regular expression with Unicode classes would cost
    2.5 ms a call, more than all the rest of a request.)

    Args:
        texts: [T] strings.
        token_buckets: rows of the vocabulary.
    Returns:
        [W] int64 rows, and [T + 1] int64 offsets.
    """
    spaced = pc.replace_substring(pc.replace_substring(pc.utf8_lower(texts), "-", " "), "/", " ")
    split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(spaced))
    distinct = pc.utf8_trim(pc.list_flatten(split), characters=PUNCTUATION).dictionary_encode()
    # One hash a distinct word: the loop is over the vocabulary, not over the rows.
    buckets = np.array([zlib.crc32(word.encode()) % token_buckets for word in distinct.dictionary.to_pylist()], np.int64)
    lengths = pc.list_value_length(split).to_numpy(zero_copy_only=False)
    return buckets[distinct.indices.to_numpy(zero_copy_only=False)], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def pair_tags_with_items(
    tags: Tags, tag_texts: np.ndarray, catalogue: Catalogue, past: Interactions, per_tag: int, group: Group = ALONE
) -> np.ndarray:
    """Pairs (tag, item) that should lie close, for L_tag.

    Two kinds. A tag with the items of its user's last `per_tag` events in its own category, whatever their behaviour; an item with two
    of them is paired twice. Tags are written from history_train, so these are the very events that the tag was read from, and nothing
    of validation or test is used. And each tag with the item whose text embedding is nearest, within the tag's category where that is
    known.

    Args:
        tags: T distinct tags, N (user, tag) rows.
        tag_texts: [T, E] text embeddings; E = 0 leaves the second kind out.
        catalogue: I items.
        past: events of history_train, of this worker's users.
        per_tag: pairs of the first kind for one (user, tag) row.
        group: who holds the other users' events.
    Returns:
        [M, 2] int64 tag, item.
    """
    num_categories = len(catalogue.category_names)
    event_keys = past.users * num_categories + catalogue.categories[past.items]
    order = np.argsort(event_keys, kind="stable")
    known = tags.categories >= 0
    keys = tags.users[known] * num_categories + tags.categories[known]
    low, high = (np.searchsorted(event_keys[order], keys, side) for side in ("left", "right"))
    places = high[:, None] - 1 - np.arange(per_tag)
    row, column = np.nonzero(places >= low[:, None])
    # Each user's events lie with one worker, so that in the order of (user, tag) rows the group has what one worker would have.
    taken = np.concatenate(group.gather(np.stack([row, tags.tags[known][row], past.items[order[places[row, column]]]], axis=1)))
    taken = taken[np.argsort(taken[:, 0], kind="stable"), 1:]
    return np.concatenate([taken, _nearest(tags, tag_texts, catalogue)])


def _nearest(tags: Tags, tag_texts: np.ndarray, catalogue: Catalogue, block: int = 256) -> np.ndarray:
    if not tag_texts.shape[1] or not catalogue.texts.shape[1] or not len(tags.names):
        return np.empty((0, 2), np.int64)
    category = np.full(len(tags.names), -1)
    category[tags.tags] = tags.categories
    nearest = np.empty(len(tags.names), np.int64)
    for start in range(0, len(nearest), block):
        rows = slice(start, start + block)
        similarity = tag_texts[rows] @ catalogue.texts.T
        foreign = (category[rows, None] >= 0) & (category[rows, None] != catalogue.categories)
        nearest[rows] = np.where(foreign, -np.inf, similarity).argmax(axis=1)
    return np.stack([np.arange(len(nearest)), nearest], axis=1)


def _codes(encoded: pa.DictionaryArray) -> np.ndarray:
    return pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _prices(items: pa.Table) -> np.ndarray:
    return pc.fill_null(items["price"], float("nan")).to_numpy()


def _price_edges(items: pa.Table, num_bins: int) -> list[float] | None:
    prices = _prices(items)
    known = prices[np.isfinite(prices)]
    return np.unique(np.quantile(known, np.linspace(0, 1, num_bins + 1)[1:-1])).tolist() if len(known) else None


def _bins(prices: np.ndarray, edges: list[float] | None) -> np.ndarray:
    if edges is None:
        return np.zeros(len(prices), np.int64)
    return np.where(np.isfinite(prices), np.searchsorted(edges, np.nan_to_num(prices), side="right") + 1, 0).astype(np.int64)


def _aligned(embeddings: pa.Table, ids: pa.Array) -> np.ndarray:
    """[len(ids), E] the vector of each id, zero where there is none."""
    if not embeddings.num_rows:
        return np.zeros((len(ids), 0), np.float32)
    matrix = vectors_of(embeddings)
    rows = rows_of(ids, embeddings["id"].combine_chunks())
    return np.where(rows[:, None] >= 0, matrix[rows], np.float32(0))


def vectors_of(embeddings: pa.Table) -> np.ndarray:
    """EMBEDDING rows → [n, D] float32.

    Raises:
        SchemaError: the vectors are not of one length.
    """
    lengths = pc.unique(pc.list_value_length(embeddings["vector"])).to_pylist()
    if len(lengths) > 1:
        raise SchemaError(f"table embedding, column vector: lengths {sorted(lengths)}, must be one")
    flat = pc.list_flatten(embeddings["vector"]).to_numpy()
    return flat.reshape(embeddings.num_rows, -1).astype(np.float32)
