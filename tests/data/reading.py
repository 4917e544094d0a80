"""Reads a source to its end, as ingest does."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
from intently.core.schema import EVENT, REJECT
from intently.data.raw import RAW, Source, validate


def read_all(source: Source) -> tuple[pa.Table, pa.Table]:
    """Every event and every refused row of a source, in its order."""
    events, rejects = [EVENT.empty()], [REJECT.empty()]
    for block in source.events():
        assert block.schema.equals(RAW)
        good, bad = validate(block, source.items["item_id"].combine_chunks(), date(1990, 1, 1), date(2100, 1, 1))
        events.append(good)
        rejects.append(bad)
    return pa.concat_tables(events), pa.concat_tables(rejects)
