"""Every table that rooms hand to each other, with a line per column. This file is the law.

A stage checks what it reads and what it writes with `Table.check`: a missing column, a wrong type or a null where
none may be stops the stage with an error that names table, column and value. Columns that are not listed are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

from intently.core.errors import SchemaError

TIMESTAMP = pa.timestamp("us", tz="UTC")
TEXTS = pa.list_(pa.string())


class Behaviour(StrEnum):
    """What a person did, from the weakest signal to the strongest."""

    IMPRESSION = "impression"
    """An item was shown."""
    CLICK = "click"
    """An item was opened; a plain click, often noise."""
    DETAIL_VIEW = "detail_view"
    """The item's page was read for a while."""
    REVIEW_READ = "review_read"
    """Other people's reviews of the item were read."""
    SEARCH = "search"
    """A query was typed; `item_id` is null or the item chosen from the results."""
    FAVOURITE = "favourite"
    """The item was put on a list."""
    CART = "cart"
    """The item was put into the cart."""
    PURCHASE = "purchase"
    """The item was bought."""
    RATING = "rating"
    """The item was rated; `value` holds the stars."""


@dataclass(frozen=True)
class Column:
    """One column: its name, its Arrow type, what it means, and whether it may be null."""

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """The contract of one table: ordered columns and the columns that identify a row."""

    name: str
    doc: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema; each field's doc is in its metadata."""
        return pa.schema([pa.field(c.name, c.type, c.nullable, {"doc": c.doc}) for c in self.columns])

    @property
    def hash(self) -> str:
        """12 hex digits that change when names, types or nullability do."""
        described = ";".join(f"{c.name}:{c.type}:{c.nullable}" for c in self.columns)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    def empty(self) -> pa.Table:
        """A table of this schema with no rows."""
        return self.schema.empty_table()

    def from_rows(self, rows: list[dict]) -> pa.Table:
        """Rows as dicts → a checked Arrow table. Raises SchemaError as `check` does, and on unknown keys."""
        names = {c.name for c in self.columns}
        unknown = sorted({key for row in rows for key in row} - names)
        if unknown:
            raise SchemaError(f"table {self.name}: unknown column(s) {unknown}; it has {sorted(names)}")
        try:
            table = pa.Table.from_pylist(rows, schema=self.schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise SchemaError(f"table {self.name}: rows cannot become its columns: {error}") from error
        return self.check(table)

    def check(self, table: pa.Table) -> pa.Table:
        """The same rows in the contract's column order and types.

        Args:
            table: any Arrow table that has the contract's columns, in any order.
        Raises:
            SchemaError: a column is missing, unknown, of a type that cannot be cast without loss, or null where it
                may not be.
        """
        missing = [c.name for c in self.columns if c.name not in table.column_names]
        if missing:
            raise SchemaError(f"table {self.name}: missing column(s) {missing}; got {table.column_names}")
        unknown = [name for name in table.column_names if name not in {c.name for c in self.columns}]
        if unknown:
            raise SchemaError(f"table {self.name}: unknown column(s) {unknown}")
        return pa.table([self._check_column(c, table[c.name]) for c in self.columns], schema=self.schema)

    def _check_column(self, column: Column, values: pa.ChunkedArray) -> pa.ChunkedArray:
        if values.type != column.type:
            try:
                values = values.cast(column.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SchemaError(f"table {self.name}, column {column.name}: {values.type} cannot become {column.type}: {error}") from error
        if not column.nullable and values.null_count:
            first = pc.index(values.is_null(), True).as_py()
            raise SchemaError(f"table {self.name}, column {column.name}: {values.null_count} null(s), first in row {first}")
        return values


def _table(name: str, doc: str, key: str, *columns: Column) -> Table:
    return Table(name, doc, tuple(key.split()), columns)


ITEM = _table(
    "item",
    "What can be recommended.",
    "item_id",
    Column("item_id", pa.string(), "identifier, unique"),
    Column("title", pa.string(), "name as shown to people"),
    Column("description", pa.string(), "longer text", nullable=True),
    Column("category", pa.string(), "the one category that tags, diversity and explanations go by; 'unknown' if there is none"),
    Column("categories", TEXTS, "all categories, broad to narrow; may be empty"),
    Column("brand", pa.string(), "maker", nullable=True),
    Column("price", pa.float32(), "price in the catalogue's currency", nullable=True),
    Column("attributes", TEXTS, "further facts as 'name: value'; may be empty"),
    Column("image", pa.binary(), "picture, PNG or JPEG bytes", nullable=True),
)

USER = _table(
    "user",
    "Who acts.",
    "user_id",
    Column("user_id", pa.string(), "identifier, unique"),
    Column("attributes", TEXTS, "facts as 'name: value'; may be empty"),
)

EVENT = _table(
    "event",
    "One behaviour, as it was logged.",
    "event_id",
    Column("event_id", pa.string(), "identifier, unique; a second row with the same one is a duplicate"),
    Column("user_id", pa.string(), "who"),
    Column("item_id", pa.string(), "on what; null for a search without a choice", nullable=True),
    Column("behaviour", pa.string(), "a value of core.schema.Behaviour"),
    Column("timestamp", TIMESTAMP, "when, UTC"),
    Column("position", pa.int64(), "order in the source; breaks ties of timestamp"),
    Column("value", pa.float32(), "stars of a rating", nullable=True),
    Column("query", pa.string(), "what was typed, for a search", nullable=True),
    Column("dwell_s", pa.float32(), "seconds spent", nullable=True),
)

HISTORY = _table(
    "history",
    "One row a user: everything known of them, as lists in time order, all of one length.",
    "user_id",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "hash bucket of the user, fixed at ingest; one Parquet part holds one bucket"),
    Column("event_ids", TEXTS, "Event.event_id, oldest first"),
    Column("item_ids", TEXTS, "Event.item_id, an element is null for a search without a choice"),
    Column("behaviours", TEXTS, "Event.behaviour"),
    Column("timestamps", pa.list_(TIMESTAMP), "Event.timestamp, non-decreasing"),
    Column("values", pa.list_(pa.float32()), "Event.value"),
    Column("queries", TEXTS, "Event.query"),
    Column("dwell_s", pa.list_(pa.float32()), "Event.dwell_s"),
)

CHUNK = _table(
    "chunk",
    "A stretch of one user's reliable behaviours, compressed to text that an LLM can read.",
    "user_id chunk",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("chunk", pa.int32(), "0 is the oldest chunk of the user"),
    Column("event_ids", TEXTS, "the events in it, oldest first"),
    Column("item_ids", TEXTS, "their items, aligned with event_ids; null for a search without a choice"),
    Column("start", TIMESTAMP, "time of the first event"),
    Column("end", TIMESTAMP, "time of the last event"),
    Column("text", pa.string(), "lines 'time (behaviour, …), … | item, …'"),
    Column("num_tokens", pa.int32(), "tokens of text, by the configured tokenizer"),
)

TRUE_INTEREST = _table(
    "true_interest",
    "What a simulated user really wanted: kept aside for measuring, never read by a model.",
    "user_id interest start",
    Column("user_id", pa.string(), "who"),
    Column("interest", pa.string(), "the interest, a short phrase"),
    Column("category", pa.string(), "Item.category it shows in"),
    Column("start", TIMESTAMP, "when it began"),
    Column("end", TIMESTAMP, "when it ended"),
    Column("strength", pa.float32(), "mean share of the user's purposeful behaviour while it lasted, 0 to 1"),
)

ITEM_INTEREST = _table(
    "item_interest",
    "Why people want an item, as one or several LLMs read it.",
    "item_id interest",
    Column("item_id", pa.string(), "which item"),
    Column("interest", pa.string(), "the interest, a short phrase"),
    Column("confidence", pa.float32(), "0 to 1"),
    Column("support", pa.int32(), "how many models found it"),
    Column("sources", TEXTS, "which models"),
)

ITEM_NAME = _table(
    "item_name",
    "An item's short name as a language model wrote it: item-level compression, asked once an item.",
    "item_id",
    Column("item_id", pa.string(), "which item"),
    Column("name", pa.string(), "a few words, all of them from the item's facts"),
    Column("facts", pa.string(), "digest of what the model was shown; the same facts are not asked again"),
    Column("model", pa.string(), "which engine and model wrote it"),
)

USER_INTEREST = _table(
    "user_interest",
    "Why a user acts: one row an interest of a chunk's interest path.",
    "user_id chunk rank",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("chunk", pa.int32(), "Chunk.chunk that the interest was read from"),
    Column("rank", pa.int32(), "0 is the interest that the model named first"),
    Column("interest", pa.string(), "the interest, a short phrase"),
    Column("stage", pa.string(), "emerging, active or fading"),
    Column("reason", pa.string(), "why the model believes it"),
    Column("shift", pa.string(), "against the previous chunk: new, continued or returned"),
    Column("evidence", TEXTS, "item ids of the chunk that support it, checked to be in the chunk; may be empty"),
    Column("s_continuity", pa.float32(), "S_c of the rating model SRM", nullable=True),
    Column("s_effectiveness", pa.float32(), "S_e of the rating model PRM", nullable=True),
    Column("s_final", pa.float32(), "a·S_c + (1−a)·S_e, or S_e where there is no S_c", nullable=True),
    Column("path", pa.string(), "which branch of the search tree, as '0/3/1'", nullable=True),
    Column("model", pa.string(), "which engine and model wrote it"),
)

INTEREST_NODE = _table(
    "interest_node",
    "The search trees that interest paths were found in: one row a candidate that was drawn for a chunk (HiT-LBM, HTS).",
    "user_id chunk sample",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("chunk", pa.int32(), "Chunk.chunk that was read"),
    Column("sample", pa.int32(), "number among the answers that were drawn for this chunk; those without an interest have no row"),
    Column("parent", pa.string(), "path of the node that was kept before it; null for a user's first", nullable=True),
    Column("path", pa.string(), "samples from the first chunk that was read down to this node, as '0/3/1'"),
    Column("interests", TEXTS, "the phrases, as they rank"),
    Column("stages", TEXTS, "emerging, active or fading, aligned with interests"),
    Column("s_continuity", pa.float32(), "S_c of the rating model SRM; null for a user's first, or without rating models", nullable=True),
    Column("s_effectiveness", pa.float32(), "S_e of the rating model PRM; null without rating models", nullable=True),
    Column("s_final", pa.float32(), "a·S_c + (1−a)·S_e, or S_e where there is no S_c", nullable=True),
    Column("chosen", pa.bool_(), "whether the path goes through this node"),
    Column("model", pa.string(), "which engine and model wrote it"),
)

INTEREST_RATING = _table(
    "interest_rating",
    "How well mined interests foretell what a person liked next: what the rating models learn from (HiT-LBM §3.3.1).",
    "user_id chunk sample",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("chunk", pa.int32(), "InterestNode.chunk"),
    Column("sample", pa.int32(), "InterestNode.sample"),
    Column("previous", TEXTS, "interests of the parent node; empty for a user's first"),
    Column("interests", TEXTS, "InterestNode.interests"),
    Column("num_items", pa.int32(), "items that were asked about, half of them liked"),
    Column("auc_previous", pa.float32(), "AUC of P('Yes') given the previous interests; null where there are none", nullable=True),
    Column("auc_current", pa.float32(), "AUC of P('Yes') given these interests"),
    Column("auc_raw", pa.float32(), "AUC of P('Yes') given the raw chunk"),
    Column("continuity", pa.int8(), "1 where auc_current > auc_previous: label of SRM", nullable=True),
    Column("effectiveness", pa.int8(), "1 where auc_current > auc_raw: label of PRM"),
)

PROFILE = _table(
    "profile",
    "What a person cares for, over their whole history; one row an interest.",
    "user_id rank",
    Column("user_id", pa.string(), "who"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("rank", pa.int32(), "0 is the best supported"),
    Column("interest", pa.string(), "the interest, a short phrase"),
    Column("kind", pa.string(), "listed (read from chunks), extended (from the interests of items), pattern, lifestyle or guess"),
    Column("stage", pa.string(), "emerging, active or fading, over the whole history"),
    Column("reason", pa.string(), "why it is believed"),
    Column("evidence", TEXTS, "item ids of the history that support it, checked to be there; never empty"),
    Column("support", pa.int32(), "chunks it was read from, items that speak of it, or interests that it rests on"),
    Column("model", pa.string(), "which engine and model wrote it, or 'items'"),
)

VERDICT = _table(
    "verdict",
    "What a judge or a rule said of one result under one criterion.",
    "subject task criterion judge",
    Column("subject", pa.string(), "key of the judged row"),
    Column("task", pa.string(), "interests, tags or explanations"),
    Column("criterion", pa.string(), "which rule of the rubric"),
    Column("label", pa.string(), "yes/no, or excellent/good/bad"),
    Column("reason", pa.string(), "why"),
    Column("judge", pa.string(), "model, or 'rule'"),
)

HUMAN_LABEL = _table(
    "human_label",
    "What a person said of one result under one criterion.",
    "subject task criterion round",
    Column("subject", pa.string(), "key of the judged row"),
    Column("task", pa.string(), "interests, tags or explanations"),
    Column("criterion", pa.string(), "which rule of the rubric"),
    Column("label", pa.string(), "yes/no, or excellent/good/bad"),
    Column("round", pa.int32(), "labelling round, from 0"),
)

TAG = _table(
    "tag",
    "An item tag predicted for a user: modifiers and a core word, with the interest it serves.",
    "user_id rank",
    Column("user_id", pa.string(), "for whom"),
    Column("bucket", pa.int32(), "History.bucket"),
    Column("rank", pa.int32(), "0 is the best"),
    Column("tag", pa.string(), "modifiers + core word, no brand"),
    Column("interest", pa.string(), "UserInterest.interest that it serves"),
    Column("reason", pa.string(), "why"),
    Column("category", pa.string(), "Item.category that it falls into", nullable=True),
    Column("model", pa.string(), "which engine and model wrote it"),
)

EMBEDDING = _table(
    "embedding",
    "A vector of something.",
    "kind id",
    Column("kind", pa.string(), "item, user, tag, interest or category"),
    Column("id", pa.string(), "its identifier; for texts the text itself"),
    Column("vector", pa.list_(pa.float32()), "float32, one length for the whole table"),
    Column("model", pa.string(), "which encoder or artifact@version made it"),
)

SEMANTIC_ID = _table(
    "semantic_id",
    "The codes of an item.",
    "item_id",
    Column("item_id", pa.string(), "which item"),
    Column("codes", pa.list_(pa.int32()), "one code a level; unique over the table"),
)

ROLLOUT = _table(
    "rollout",
    "One item that a policy drew in training, and what it was paid.",
    "rollout sample",
    Column("rollout", pa.int32(), "which rollout, from 0"),
    Column("sample", pa.int32(), "place in the rollout; samples of one group stand next to each other"),
    Column("user_id", pa.string(), "whose history was the prompt"),
    Column("item_id", pa.string(), "what was drawn"),
    Column("target_id", pa.string(), "what came next in the history"),
    Column("log_prob", pa.float32(), "of the item under the policy that drew it"),
    Column("reward", pa.float32(), "weighted sum of the terms"),
    Column("terms", pa.map_(pa.string(), pa.float32()), "term of the rubric to its value before weights"),
)

CHAT_EXAMPLE = _table(
    "chat_example",
    "One training example of a language model.",
    "example_id",
    Column("example_id", pa.string(), "identifier, unique"),
    Column("task", pa.string(), "a task of llm.tasks"),
    Column("prompt", pa.string(), "the rendered prompt"),
    Column("completion", pa.string(), "what the model should answer"),
    Column("source", pa.string(), "who wrote the completion: teacher, self, human"),
    Column("difficulty", pa.int32(), "place in the curriculum, 0 is the easiest"),
)

CTR_SAMPLE = _table(
    "ctr_sample",
    "One labelled impression.",
    "event_id",
    Column("event_id", pa.string(), "Event that is predicted"),
    Column("user_id", pa.string(), "who"),
    Column("item_id", pa.string(), "on what"),
    Column("label", pa.int8(), "1 positive, 0 negative"),
    Column("history_length", pa.int32(), "how many earlier events of the user may be seen"),
    Column("chunk", pa.int32(), "interests of chunks below this one may be seen"),
)

CANDIDATE = _table(
    "candidate",
    "An item put forward for a user.",
    "user_id rank",
    Column("user_id", pa.string(), "for whom"),
    Column("item_id", pa.string(), "what"),
    Column("rank", pa.int32(), "0 is the best"),
    Column("score", pa.float32(), "higher is better, comparable within a user"),
    Column("source", pa.string(), "towers, generative or agent"),
)

EXPLANATION = _table(
    "explanation",
    "Why an item suits an interest, written ahead of time.",
    "item_id interest",
    Column("item_id", pa.string(), "which item"),
    Column("interest", pa.string(), "for which interest; empty string for the reason that fits anybody"),
    Column("text", pa.string(), "one or two sentences"),
    Column("model", pa.string(), "which engine and model wrote it"),
)

EXPOSURE = _table(
    "exposure",
    "What was shown to whom.",
    "request_id item_id",
    Column("request_id", pa.string(), "the request that was answered"),
    Column("user_id", pa.string(), "to whom"),
    Column("item_id", pa.string(), "what"),
    Column("rank", pa.int32(), "place on the page, from 0"),
    Column("variant", pa.string(), "arm of the experiment"),
    Column("timestamp", TIMESTAMP, "when"),
)

FEEDBACK = _table(
    "feedback",
    "What came of an exposure.",
    "event_id",
    Column("event_id", pa.string(), "Event.event_id"),
    Column("request_id", pa.string(), "Exposure.request_id"),
    Column("user_id", pa.string(), "who"),
    Column("item_id", pa.string(), "on what"),
    Column("behaviour", pa.string(), "a value of core.schema.Behaviour"),
    Column("timestamp", TIMESTAMP, "when"),
)

METRIC = _table(
    "metric",
    "One measured figure.",
    "subject split name k setting seed",
    Column("subject", pa.string(), "what was measured: towers, popularity, item_knn, …"),
    Column("split", pa.string(), "validation or test"),
    Column("name", pa.string(), "HR, NDCG, category_coverage, …"),
    Column("k", pa.int32(), "cut-off; 0 where there is none"),
    Column("value", pa.float64(), "the figure"),
    Column("setting", pa.string(), 'what was varied, as JSON, for example {"beta": 0.5}'),
    Column("filter_seen", pa.bool_(), "whether items of the user's history were taken out of the ranking"),
    Column("num_users", pa.int32(), "users it is a mean over"),
    Column("seed", pa.int32(), "random seed of the run"),
)

REJECT = _table(
    "reject",
    "What was refused, where and why. Nothing is dropped in silence.",
    "stage row",
    Column("stage", pa.string(), "artifact that refused it"),
    Column("row", pa.string(), "key or place of the refused row"),
    Column("reason", pa.string(), "short, the same words for the same cause, so that it can be counted"),
    Column("detail", pa.string(), "the row or answer itself, shortened"),
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        ITEM, USER, EVENT, HISTORY, CHUNK, TRUE_INTEREST, ITEM_INTEREST, ITEM_NAME, USER_INTEREST, INTEREST_NODE, INTEREST_RATING,
        PROFILE, VERDICT, HUMAN_LABEL, TAG, EMBEDDING, SEMANTIC_ID, ROLLOUT, CHAT_EXAMPLE, CTR_SAMPLE, CANDIDATE, EXPLANATION, EXPOSURE,
        FEEDBACK, METRIC, REJECT,
    )
}  # fmt: skip
