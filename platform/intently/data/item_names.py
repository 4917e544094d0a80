"""Item-level compression: a title of any length becomes a name of a few words (RecGPT §2.1.1, step 1).

By rule here: the title's first words; then, as far as words are left, what the title does not say already: category, brand, the first
attributes. Names that a language model wrote (ITEM_NAME rows) go before. Either is made once an item, never once an event.
"""

from __future__ import annotations

from typing import Literal

import polars as pl
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config

NAME_COLUMNS = ("item_id", "title", "category", "categories", "brand", "attributes")
"""The columns of ITEM that a name is made of; pictures need not be read."""

Facet = Literal["category", "categories", "brand", "attributes"]


class NameConfig(Config):
    """How an item's short name is made."""

    max_words: int = Field(8, ge=1, description="words in a name, title and facets together")
    max_characters: int = Field(80, ge=8, description="characters in a name, for titles without spaces")
    facets: tuple[Facet, ...] = Field(
        ("category", "brand", "attributes"),
        description="what may follow the title in brackets, as far as words are left, in this order",
    )
    max_attributes: int = Field(2, ge=0, description="attributes that may be named")


def short_names(items: pa.Table, config: NameConfig) -> pl.DataFrame:
    """ITEM rows → columns item_id and name, such as 'Toy Story (1995) [Animation/Comedy]'.

    Args:
        items: at least the columns NAME_COLUMNS of ITEM.
        config: the rule.
    """
    frame = pl.from_arrow(items.select(list(NAME_COLUMNS)))
    assert isinstance(frame, pl.DataFrame)
    frame = frame.with_columns(title=_first_words(_tidy(pl.col("title")), pl.lit(config.max_words))).with_columns(
        said=pl.lit(""), left=config.max_words - _num_words(pl.col("title"))
    )
    for facet in config.facets:
        for text in _facets(facet, config):
            frame = _add_facet(frame, _tidy(text))
    bracket = pl.when(pl.col("said") != "").then(pl.concat_str(pl.lit(" ["), pl.col("said"), pl.lit("]"))).otherwise(pl.lit(""))
    name = pl.concat_str(pl.col("title"), bracket).str.strip_chars()
    short = pl.when(name.str.len_chars() > config.max_characters).then(name.str.slice(0, config.max_characters - 1) + "…").otherwise(name)
    return frame.select("item_id", name=pl.when(short == "").then(pl.col("item_id")).otherwise(short))


def names_of(items: pa.Table, config: NameConfig, written: pa.Table | None) -> pl.DataFrame:
    """`short_names`, or for items that are in `written` (ITEM_NAME rows, made by a language model) those."""
    by_rule = short_names(items, config)
    if written is None:
        return by_rule
    by_model = pl.from_arrow(written.select(["item_id", "name"]).rename_columns(["item_id", "better"]))
    assert isinstance(by_model, pl.DataFrame)
    joined = by_rule.join(by_model, on="item_id", how="left", maintain_order="left")
    return joined.select("item_id", name=pl.coalesce("better", "name"))


def _facets(facet: Facet, config: NameConfig) -> list[pl.Expr]:
    """The texts of a facet, most important first; null where there is none."""
    match facet:
        case "category":
            return [pl.when(pl.col("category") != "unknown").then(pl.col("category"))]
        case "categories":
            return [pl.col("categories").list.join("/")]
        case "brand":
            return [pl.col("brand")]
        case "attributes":
            values = [pl.col("attributes").list.get(place, null_on_oob=True) for place in range(config.max_attributes)]
            return [value.str.replace(r"^[^:]*:\s*", "") for value in values]


def _add_facet(frame: pl.DataFrame, facet: pl.Expr) -> pl.DataFrame:
    """Append a facet that is known, is not said yet and fits."""
    frame = frame.with_columns(facet=facet.fill_null(""))
    words = _num_words(pl.col("facet"))
    said = pl.concat_str(pl.col("title"), pl.lit(" "), pl.col("said")).str.to_lowercase()
    new = (pl.col("facet") != "") & ~said.str.contains(pl.col("facet").str.to_lowercase(), literal=True)
    fits = new & (words <= pl.col("left"))
    joined = pl.when(pl.col("said") == "").then(pl.col("facet")).otherwise(pl.concat_str(pl.col("said"), pl.lit("; "), pl.col("facet")))
    return frame.with_columns(
        said=pl.when(fits).then(joined).otherwise(pl.col("said")), left=pl.when(fits).then(pl.col("left") - words).otherwise(pl.col("left"))
    ).drop("facet")


def _tidy(text: pl.Expr) -> pl.Expr:
    """Runs of white space as one space, none at the ends."""
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def _first_words(text: pl.Expr, num_words: pl.Expr) -> pl.Expr:
    """The first words of tidy text, without a dangling comma, dash or bracket where it was cut."""
    words = text.str.split(" ")
    cut = words.list.head(num_words).list.join(" ").str.strip_chars_end(" ,;:-–—|/([&")
    return pl.when(words.list.len() > num_words).then(cut).otherwise(text)


def _num_words(text: pl.Expr) -> pl.Expr:
    """Words of tidy text, 0 for the empty one."""
    return pl.when(text == "").then(0).otherwise(text.str.count_matches(" ", literal=True).cast(pl.Int64) + 1)
