"""What benchmarks/ctr_movielens.py measures on: MovieLens-1M as CTR rows, in two orders, with whatever is known of chunks and films."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from intently.alignment.catalogue import Catalogue, CatalogueConfig, open_catalogue
from intently.alignment.catalogue_answers import interests_of, shown_aspects
from intently.alignment.catalogue_teacher import seen_of
from intently.core.schema import CHUNK, EMBEDDING, HISTORY, USER_INTEREST
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.flat import EVENT_COLUMNS, flat_columns, fold
from intently.data.sources import SourceConfig, open_source
from intently.llm.embedding import INTEREST_ENCODER, ItemTextConfig, embedding_rows, interest_texts, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.ranking.features import read_catalogue, read_log, read_rows
from intently.ranking.knowledge import histogram_vectors, interest_vectors, item_vectors
from intently.ranking.samples import SampleConfig, label_events, split_samples
from intently.ranking.training import CtrData

from benchmarks.made import Made, put, put_log

MICROSECONDS_A_DAY = 86_400_000_000


def prepare(source: SourceConfig, folder: Path) -> Workspace:
    """history, item and chunk of one log, in this process; what stands already stays."""
    workspace = Workspace.open(folder)
    if workspace.latest_version("chunk"):
        return workspace
    put(workspace, "chunk", CHUNK, build_chunks(*put_log(workspace, source), ChunkConfig()))
    return workspace


def put_true_interests(tables: Workspace, source: SourceConfig) -> Artifact:
    """USER_INTEREST of a simulated world: what people truly wanted while each chunk lasted, the strongest first."""
    chunks = pl.DataFrame(tables.artifact("chunk").read().select(["user_id", "bucket", "chunk", "start", "end"]))
    truth = pl.DataFrame(open_source(source).true_interests).rename({"start": "begins", "end": "ends"})
    rows = chunks.join(truth, on="user_id").filter((pl.col("begins") <= pl.col("end")) & (pl.col("ends") >= pl.col("start")))
    rows = rows.sort("user_id", "chunk", "strength", descending=[False, False, True])
    rank = pl.int_range(pl.len()).over("user_id", "chunk").alias("rank")
    said = {"stage": "active", "reason": "", "shift": "new", "evidence": [], "model": "simulator"}
    known = [{**row, **said} for row in rows.select("user_id", "bucket", "chunk", rank, "interest").to_dicts()]
    return put(tables, "user_interest", USER_INTEREST, USER_INTEREST.from_rows(known))


def shuffle_within_days(history: pa.Table, seed: int = 0) -> pa.Table:
    """HISTORY in which time is known to the day alone, and the events of a day stand in some order.

    The released code of HiT-LBM cuts times to the day and keeps the order of the file, which has nothing to do with time; the prepared set
    does not have that order, so a fixed shuffle stands in for it.
    """
    row, columns = flat_columns(history, tuple(EVENT_COLUMNS))
    days = columns["timestamp"].cast(pa.int64()).to_numpy() // MICROSECONDS_A_DAY
    order = pa.array(np.lexsort((np.random.default_rng(seed).random(len(row)), days, row)))
    columns["timestamp"] = pa.array(days * MICROSECONDS_A_DAY).cast(columns["timestamp"].type)
    lists = fold(
        row, history.num_rows, {name: columns[column].take(order) for name, column in EVENT_COLUMNS.items() if name != "timestamps"}
    )
    lists["timestamps"] = fold(row, history.num_rows, {"timestamps": columns["timestamp"].take(order)})["timestamps"]
    return HISTORY.check(pa.table({"user_id": history["user_id"], "bucket": history["bucket"], **lists}))


@dataclass(frozen=True)
class World:
    """A log as CTR rows.

    Attributes:
        tables: workspace with history, item and chunk.
        mined: interests of a kind (cube, independent, hts) → their artifact.
        kept: where vectors are kept.
        samples: which events are rows.
        by_day: order within a day is not known.
        taught: the catalogue whose facts a student is taught to write; None where there is none.
    """

    tables: Workspace
    mined: Mapping[str, Artifact]
    kept: Workspace
    samples: SampleConfig
    by_day: bool = False
    taught: CatalogueConfig | None = None

    def read(self, name: str) -> pa.Table:
        """A table of the log."""
        return self.tables.artifact(name).read()

    @cached_property
    def covered(self) -> pa.Array:
        """Users whose rows are measured on: those of whom all kinds of interests were mined; without any, those who have chunks."""
        found = [set(artifact.read(columns=["user_id"])["user_id"].to_pylist()) for artifact in self.mined.values()]
        return pa.array(sorted(set.intersection(self.chunked, *found)))

    @cached_property
    def chunked(self) -> set[str]:
        """Users who have chunks."""
        return set(self.tables.artifact("chunk").read(columns=["user_id"])["user_id"].to_pylist())

    @property
    def restriction(self) -> list[str]:
        """A digest of the users, where they are not all."""
        users = self.covered.to_pylist()
        return [] if len(users) == len(self.chunked) else [hashlib.sha256(" ".join(users).encode()).hexdigest()]

    @cached_property
    def history(self) -> pa.Table:
        """In the order that this world knows."""
        history = self.read("history")
        return shuffle_within_days(history) if self.by_day else history

    @cached_property
    def bare(self) -> CtrData:
        """Rows and log, nothing else."""
        chunks = self.read("chunk")
        config = self.samples.model_copy(update={"min_chunks": 0}) if self.by_day else self.samples
        events = label_events(self.history, chunks, config)
        if self.by_day:
            # Interests were read in the exact order: a row sees those of chunks that had truly ended before it.
            exact = label_events(self.read("history"), chunks, config).samples
            place = pc.index_in(events.samples["event_id"].combine_chunks(), value_set=exact["event_id"].combine_chunks())
            at = events.samples.column_names.index("chunk")
            rows = events.samples.set_column(at, events.samples.schema.field("chunk"), exact["chunk"].take(place))
            late = events.places >= ChunkConfig().num_events
            events = replace(events, samples=rows.filter(pa.array(late)), places=events.places[late], lengths=events.lengths[late])
        ours = pc.is_in(events.samples["user_id"].combine_chunks(), value_set=self.covered)
        chosen = ours.to_numpy(zero_copy_only=False)
        events = replace(events, samples=events.samples.filter(ours), places=events.places[chosen], lengths=events.lengths[chosen])
        catalogue = read_catalogue(self.read("item"))
        log = read_log(self.history, catalogue)
        return CtrData(catalogue, log, {n: read_rows(part, log, catalogue) for n, part in split_samples(events, config).items()})

    @cached_property
    def film_texts(self) -> torch.Tensor:
        """[I + 1, V] vectors of what is said of the items."""
        items = self.read("item")
        found = self._encoded("item_embedding", "item", items["item_id"], item_texts(items, ItemTextConfig()), EncoderConfig())
        return item_vectors(self.bare.catalogue, found)

    def made_of(self, knowledge: str) -> str:
        """What knowledge that is not mined is made of, beside the log."""
        return f"facts of {self.taught.identity()}" if knowledge == "facts" and self.taught else knowledge

    def data(self, knowledge: str) -> CtrData:
        """Rows with what is known: nothing, items, histograms, or facts as text, or interests of a kind."""
        match knowledge:
            case "nothing":
                return self.bare
            case "items":
                return replace(self.bare, item_vectors=self.film_texts, likeness=self.film_texts)
            case "histograms":
                # Counted over the chunks as they were cut, in the exact order, whichever order this world knows.
                history = self.read("history")
                log = read_log(history, self.bare.catalogue)
                interests, items = histogram_vectors(log, self.read("item"), history, self.read("chunk"))
                return replace(self.bare, interests=interests, item_vectors=items)
            case "facts":
                assert self.taught is not None, "the caller leaves such runs out"
                interests = self._facts(open_catalogue(self.taught))
                ids, texts = interest_texts(interests)
                found = self._encoded("interest_embedding_facts", "interest", ids, texts, INTEREST_ENCODER)
                return replace(self.bare, interests=interest_vectors(self.bare.log, interests, found), item_vectors=self.film_texts)
            case _:
                artifact = self.mined[knowledge]
                rows = artifact.read()
                ids, texts = interest_texts(rows)
                found = self._encoded(f"interest_embedding_{knowledge}", "interest", ids, texts, INTEREST_ENCODER)
                return replace(self.bare, interests=interest_vectors(self.bare.log, rows, found), item_vectors=self.film_texts)

    def _facts(self, catalogue: Catalogue) -> pa.Table:
        """USER_INTEREST rows as the student's teacher would have it write them: a student that made no mistake."""
        _, columns = flat_columns(self.read("history"), ("event_ids", "timestamps", "values"))
        stars, times = columns["value"].to_numpy(), columns["timestamp"].cast(pa.int64()).to_numpy()
        place = {event: number for number, event in enumerate(columns["event_id"].to_pylist())}
        chunks = self.read("chunk").select(["user_id", "bucket", "chunk", "event_ids", "item_ids", "text"])
        rows: list[dict[str, Any]] = []
        before: dict[str, list[str]] = {}  # user → the phrases of the chunk before
        earlier: dict[str, set[str]] = defaultdict(set)
        for row in chunks.sort_by([("user_id", "ascending"), ("chunk", "ascending")]).to_pylist():
            events = [place[event] for event in row["event_ids"]]
            happened = [{"time": times[event], "liked": stars[event] >= catalogue.config.min_rating} for event in events]
            seen = seen_of(happened, [catalogue.row[item] for item in row["item_ids"]])
            user, previous = row["user_id"], before.get(row["user_id"], [])
            if not (shown := shown_aspects(catalogue, seen)):
                continue
            drafts = interests_of(catalogue, shown, seen, row["text"], previous, "rating").interests
            for rank, draft in enumerate(drafts):
                shift = "continued" if draft.interest in previous else "returned" if draft.interest in earlier[user] else "new"
                told = {"rank": rank, "interest": draft.interest, "stage": draft.stage, "reason": draft.reason, "shift": shift}
                rows.append({"user_id": user, "bucket": row["bucket"], "chunk": row["chunk"], "evidence": [], "model": "facts", **told})
            before[user] = [draft.interest for draft in drafts]
            earlier[user].update(before[user])
        return USER_INTEREST.from_rows(rows)

    def _encoded(self, name: str, kind: str, ids: pa.ChunkedArray, texts: pa.ChunkedArray, config: EncoderConfig) -> pa.Table:
        """EMBEDDING rows; what was encoded before is kept, by the texts themselves."""
        told = json.dumps([config.model_dump(mode="json"), ids.to_pylist(), texts.to_pylist()])
        made = hashlib.sha256(told.encode()).hexdigest()
        stage = open_stage(self.kept, name, EMBEDDING, {}, Made(made=made))
        if not stage.finished:
            print(f"encoding {len(texts)} texts: {name}", flush=True)
            encoder = TextEncoder(config)
            put(self.kept, name, EMBEDDING, embedding_rows(kind, ids, encoder.encode(texts.to_pylist()), encoder.name), made)
        return stage.reuse().read()
