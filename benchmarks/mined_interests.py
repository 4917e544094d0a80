"""What a job has mined on a real catalogue, against what can be counted: no language model is asked here.

    PYTHONPATH=platform python benchmarks/mined_interests.py --data FOLDER --workspace FOLDER [--version V] [--catalogue NAME]
        [--people N] [--quick] [--json FILE]

The workspace holds chunk and user_interest of a prepared set (default movielens_1m) that lies in --data. Only people whom the catalogue
teacher never read count. Facts and the baseline are those of `student_catalogues.py`: what a chunk's liked items have more of than
everybody's, and the chunk's most frequent categories. `lift` is how much likelier items liked in the *next* chunk are to have a named
aspect than any liked item is. Intervals are 95 % bootstraps over people.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.alignment.catalogue import Catalogue, CatalogueConfig, open_catalogue
from intently.alignment.catalogue_answers import shown_aspects
from intently.alignment.catalogue_teacher import seen_of, told_of
from intently.core.workspace import Workspace
from intently.metrics.ranking import bootstrap_interval
from student import agreement
from student_catalogues import CATALOGUES, frequent_categories, grounded, normalise_phrase

Key = tuple[str, int]


def said_by_chunk(interests: pa.Table) -> dict[Key, list[dict[str, Any]]]:
    """(user, chunk) → its rows, by rank."""
    said: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    rows = interests.select(["user_id", "chunk", "rank", "interest", "stage", "reason"]).to_pylist()
    for row in sorted(rows, key=lambda row: row["rank"]):
        said[row["user_id"], row["chunk"]].append(row)
    return said


def measure(
    catalogue: Catalogue, chunks: pa.Table, interests: pa.Table, num_people: int | None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures, and one row a side."""
    said = said_by_chunk(interests)
    held = set(pc.unique(catalogue.measured["user_id"]).to_pylist())
    chosen = set(sorted({user for user, _ in said} & held)[:num_people])
    told = told_of(catalogue.measured.filter(pc.is_in(catalogue.measured["user_id"], pa.array(sorted(chosen), pa.string()))))
    rows = {
        (row["user_id"], row["chunk"]): row
        for row in chunks.select(["user_id", "chunk", "event_ids", "item_ids", "text"]).to_pylist()
        if row["user_id"] in chosen
    }
    seen = {
        key: seen_of([told[event] for event in row["event_ids"]], [catalogue.row[item] for item in row["item_ids"]])
        for key, row in rows.items()
    }
    asked = sorted(key for key in said if key in rows)
    facts = {key: [catalogue.aspects[one.aspect].phrase for one in shown_aspects(catalogue, seen[key])] for key in asked}
    sides = {
        "mined": {key: list(dict.fromkeys(normalise_phrase(row["interest"]) for row in said[key])) for key in asked},
        "frequent categories": {key: frequent_categories(catalogue, seen[key].items) for key in asked},
        "facts": facts,
    }
    table = []
    for name, side in sides.items():
        row = {"side": name, "interests_a_chunk": float(np.mean([len(side[key]) for key in asked]))}
        row |= agreement([set(side[key]) for key in asked], [set(facts[key]) for key in asked], [user for user, _ in asked])
        table.append(row | next_lift(catalogue, side, {key: one.items for key, one in seen.items()}))
    reasons = [grounded(one["reason"], rows[key]["text"]) for key in asked for one in said[key]]
    known = {aspect.phrase for aspect in catalogue.aspects}
    phrases = [phrase for key in asked for phrase in sides["mined"][key]]
    figures = {"people": float(len(chosen)), "chunks": float(len(asked)), "reason_grounded": float(np.mean(reasons))}
    return figures | {"in_vocabulary": float(np.mean([phrase in known for phrase in phrases]))}, table


def next_lift(catalogue: Catalogue, side: dict[Key, list[str]], liked: dict[Key, np.ndarray]) -> dict[str, float]:
    """How much likelier the next chunk's liked items have the named aspects; the mean over people of their chunks' means."""
    place = {aspect.phrase: number for number, aspect in enumerate(catalogue.aspects)}
    lifts: dict[str, list[float]] = defaultdict(list)
    for (user, chunk), phrases in side.items():
        named = [place[phrase] for phrase in phrases if phrase in place]
        after = liked.get((user, chunk + 1))
        if named and after is not None and len(after):
            shares = catalogue.shows[after][:, named].mean(axis=0)
            lifts[user].append(float((shares / np.maximum(catalogue.rate[named], 1e-6)).mean()))
    values = np.array([float(np.mean(of_user)) for of_user in lifts.values()])
    low, high = bootstrap_interval(values)
    return {"lift": float(values.mean()), "lift_low": low, "lift_high": high}


def main() -> None:
    """Parse the flags, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data sets")
    parser.add_argument("--workspace", required=True, help="a workspace with chunk and user_interest")
    parser.add_argument("--version", help="version of user_interest; the latest without it")
    parser.add_argument("--catalogue", choices=sorted(CATALOGUES), default="movielens_1m", help="what was mined")
    parser.add_argument("--people", type=int, help="so many held-out people; all without it")
    parser.add_argument("--quick", action="store_true", help="50 people")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    workspace = Workspace.open(options.workspace)
    source = {"kind": "shared_parquet", "path": str(options.data / options.catalogue)}
    settings = CATALOGUES[options.catalogue]
    catalogue = open_catalogue(CatalogueConfig.parse({"name": options.catalogue, "source": source, **settings}))
    interests = workspace.artifact("user_interest", options.version)
    people = 50 if options.quick else options.people
    figures, rows = measure(catalogue, workspace.artifact("chunk").read(), interests.read(), people)
    asked = interests.manifest.metrics
    figures |= {name: asked[name] for name in ("questions", "valid_share", "repairs") if name in asked}
    figures["named_twice_share"] = interests.manifest.reject_reasons.get("named twice in one answer", 0) / max(
        interests.manifest.rows + interests.manifest.rejects, 1
    )
    for row in rows:
        print("  ".join(f"{value:<20}" if isinstance(value, str) else f"{key} {value:.3f}" for key, value in row.items()))
    print("\n".join(f"{name:<24}{value:.4g}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "mined_interests", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
