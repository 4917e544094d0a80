"""A student on real catalogues: people, items and a whole catalogue that its teacher never read.

    PYTHONPATH=platform OMP_NUM_THREADS=1 python benchmarks/student_catalogues.py --data FOLDER [--model FOLDER] [--people 150]
        [--catalogues NAME …] [--quick] [--json FILE]

FOLDER holds movielens_1m, amazon_beauty and amazon_cellphones as prepared Parquet sets. Of the first two a fifth of the people and of the
items are kept from the teacher (told by a hash), but for the categories, decades and brands of these items; of the third everything is.
People are asked chunk after chunk with the student's own earlier answers before them, on the training part of their log.

- Facts: what a chunk's liked items have more of than everybody's, by rule (`alignment.catalogue_answers`); the student was taught to say
  this, so precision and recall say how well it learned to count, not what people want. Beside it a baseline without a language model:
  the chunk's most frequent categories.
- Later: what the person liked afterwards, which nobody was taught. `lift` is how much likelier a later item is to have a named aspect
  than any liked item is; HR@30 of tags that the pipeline asks for by these interests, over categories, against as many of the most popular
  and of the person's own most frequent ones; IQ is the mean cosine of interests and later items, for phrases of any vocabulary.
Intervals are 95 % bootstraps over people.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.alignment.catalogue import Catalogue, CatalogueConfig, open_catalogue
from intently.alignment.catalogue_answers import DEGREES, shown_aspects
from intently.alignment.catalogue_teacher import seen_of, told_of
from intently.alignment.truth import histories
from intently.core.schema import HISTORY, USER_INTEREST
from intently.data.chunking import Chunker
from intently.interests.outcomes import hits_of_tags, quality_of_interests
from intently.interests.phrases import BrandFinder, normalise
from intently.interests.tags import TagConfig, predict_tags
from intently.llm.answer import Question, answer
from intently.llm.contract import Engine, Sampling
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.vllm import VLLMConfig, VLLMEngine, vllm_environment
from intently.llm.tasks import TASKS, ItemInterests, UserInterests
from student import agreement

CATALOGUES: dict[str, dict[str, Any]] = {
    "movielens_1m": {"levels": "flat", "noun": "films", "chunks": {"names": {"facets": ["categories"]}, "max_tokens": 800}},
    "amazon_beauty": {"levels": "path"},
    "amazon_cellphones": {"levels": "path"},
}
UNTAUGHT = "amazon_cellphones"
CHUNKS_A_PERSON = 2
Figures = dict[str, float]
Answers = list[UserInterests | None]


@dataclass(frozen=True)
class Asked:
    """A chunk of a person who was kept apart, and what holds of it."""

    user: str
    text: str
    facts: set[str]
    frequent: list[str]


@dataclass(frozen=True)
class People:
    """People who were kept apart.

    Attributes:
        asked: their last chunks, oldest first.
        before: HISTORY rows of the training part.
        later: HISTORY rows of what they liked afterwards.
    """

    asked: list[Asked]
    before: pa.Table
    later: pa.Table


def people_of(catalogue: Catalogue, num_people: int) -> People:
    """Some held-out people who liked something later."""
    log = catalogue.measured
    later = log.filter(pc.and_(log["later"], log["liked"]))
    users = pc.unique(later["user_id"]).sort().to_pylist()
    chosen = pa.array(np.random.default_rng(0).permutation(users)[:num_people].tolist(), pa.string())
    before = log.filter(pc.and_(pc.invert(log["later"]), pc.is_in(log["user_id"], chosen)))
    told = told_of(before)
    chunks = Chunker(catalogue.items, catalogue.config.chunks).chunk(histories(before)).chunks
    rows = chunks.select(["user_id", "event_ids", "item_ids", "text"]).to_pylist()
    last: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        last[row["user_id"]] = [*last[row["user_id"]], row][-CHUNKS_A_PERSON:]
    asked = []
    for row in (row for of_user in last.values() for row in of_user):
        seen = seen_of([told[event] for event in row["event_ids"]], [catalogue.row[item] for item in row["item_ids"]])
        facts = {catalogue.aspects[one.aspect].phrase for one in shown_aspects(catalogue, seen)}
        asked.append(Asked(row["user_id"], row["text"], facts, frequent_categories(catalogue, seen.items)))
    wanted = later.filter(pc.is_in(later["user_id"], chosen))
    return People(asked, HISTORY.check(histories(before)), HISTORY.check(histories(wanted)))


def frequent_categories(catalogue: Catalogue, items: np.ndarray) -> list[str]:
    """The baseline: categories of two liked items or more (one, of up to five), the most frequent first, as many as the rule may name."""
    noun = catalogue.config.noun
    names = catalogue.items["category"].to_pylist()
    count: dict[str, int] = defaultdict(int)
    for row in items.tolist():
        count[f"{names[row].lower().replace(' & ', ' and ')} {noun}".strip()] += 1
    least = 1 if len(items) <= 5 else 2
    ordered = sorted((name for name, number in count.items() if number >= least), key=lambda name: (-count[name], name))
    return ordered[: min(catalogue.config.max_interests, 2 + len(items) // 8)]


def ask_people(engine: Engine, asked: Sequence[Asked]) -> tuple[Answers, float, float]:
    """Answers in the order of `asked`; share that followed the schema at once; share answered at all."""
    levels: dict[int, list[int]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for place, one in enumerate(asked):
        levels[seen[one.user]].append(place)
        seen[one.user] += 1
    found: Answers = [None] * len(asked)
    previous: dict[str, list[str]] = {}
    repaired = 0
    for level in sorted(levels):
        fields = [{"behaviours": asked[place].text, "previous": previous.get(asked[place].user, [])} for place in levels[level]]
        questions = [Question(str(place), field, Sampling(max_tokens=640)) for place, field in zip(levels[level], fields, strict=True)]
        for place, outcome in zip(levels[level], answer(engine, questions, TASKS["user_interests"]), strict=True):
            repaired += outcome.repaired
            if isinstance(outcome.answer, UserInterests):
                found[place] = outcome.answer
                previous[asked[place].user] = [draft.interest for draft in outcome.answer.interests]
    return found, 1 - repaired / len(asked), sum(one is not None for one in found) / len(asked)


def later_lift(catalogue: Catalogue, said: Sequence[Sequence[str]], people: People) -> Figures:
    """How much likelier later liked items have the aspects named of a person's last chunk; phrases outside the vocabulary do not count."""
    place = {aspect.phrase: number for number, aspect in enumerate(catalogue.aspects)}
    last = {one.user: number for number, one in enumerate(people.asked)}
    later = dict(zip(people.later["user_id"].to_pylist(), people.later["item_ids"].to_pylist(), strict=True))
    lifts = []
    for user, number in last.items():
        named = [place[phrase] for phrase in said[number] if phrase in place]
        if named:
            shares = catalogue.shows[[catalogue.row[item] for item in later[user]]][:, named].mean(axis=0)
            lifts.append(float((shares / np.maximum(catalogue.rate[named], 1e-6)).mean()))
    if not lifts:
        return {}
    values = np.array(lifts)
    draws = np.random.default_rng(0).choice(values, size=(1000, len(values))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"lift": float(values.mean()), "lift_low": float(low), "lift_high": float(high)}


def measure_people(engine: Engine, catalogue: Catalogue, num_people: int, encoder: TextEncoder) -> tuple[Figures, list[dict[str, Any]]]:
    """Figures and one row a side: the student, the baseline, and the facts themselves."""
    people = people_of(catalogue, num_people)
    asked = people.asked
    found, valid, answered = ask_people(engine, asked)
    sides = {
        "student": [list(dict.fromkeys(normalise_phrase(draft.interest) for draft in one.interests)) if one else [] for one in found],
        "frequent categories": [one.frequent for one in asked],
        "facts": [sorted(one.facts) for one in asked],
    }
    users = [one.user for one in asked]
    true = [one.facts for one in asked]
    quality = quality_of_interests(
        {
            name: pa.table(
                {
                    "user_id": [one.user for one, phrases in zip(asked, said, strict=True) for _ in phrases],
                    "interest": [phrase for phrases in said for phrase in phrases],
                }
            )
            for name, said in sides.items()
        },
        people.later,
        catalogue.items,
        encoder,
    )
    iq = {one.name: one for one in quality}
    rows = []
    for name, said in sides.items():
        row: dict[str, Any] = {"side": name, "interests_a_chunk": float(np.mean([len(phrases) for phrases in said]))}
        row |= agreement([set(phrases) for phrases in said], true, users) if catalogue.config.name != UNTAUGHT else {}
        row |= later_lift(catalogue, said, people) if catalogue.config.name != UNTAUGHT else {}
        row |= {"iq": iq[name].value, "iq_low": iq[name].low, "iq_high": iq[name].high} if name in iq else {}
        rows.append(row)
    reasons = [
        grounded(draft.reason, one.text)
        for said_one, one in zip(found, asked, strict=True)
        for draft in (said_one.interests if said_one else ())
    ]
    figures = {"chunks": float(len(asked)), "valid": valid, "answered": answered, "reason_grounded": float(np.mean(reasons or [0]))}
    return figures | measure_tags(engine, catalogue, people, found, encoder), rows


def normalise_phrase(phrase: str) -> str:
    """As the vocabulary writes phrases."""
    return " ".join(phrase.lower().split())


def grounded(reason: str, text: str) -> bool:
    """Whether the things that a reason says were liked or bought stand in the chunk."""
    degrees = {word for _, degree in DEGREES for word in degree.split()}
    named = reason.split(",")[0].split()[1:]
    there = text.lower()
    return all(word.lower() in there for word in named if word not in ("and", *degrees))


def measure_items(engine: Engine, catalogue: Catalogue, num_items: int) -> Figures:
    """Item interests of held-out items against the aspects that their metadata give them."""
    rows = np.flatnonzero(~catalogue.teachable & (catalogue.shows.sum(axis=1) > 0))
    chosen = np.random.default_rng(1).permutation(rows)[:num_items].tolist()
    shown = catalogue.items.select(["title", "category", "categories", "brand", "price", "attributes", "description"])
    items = [shown.slice(row, 1).to_pylist()[0] for row in chosen]
    questions = [Question(str(n), {"item": item, "look": None}, Sampling(max_tokens=400)) for n, item in enumerate(items)]
    right = said = valid = 0
    for row, outcome in zip(chosen, answer(engine, questions, TASKS["item_interests"]), strict=True):
        valid += isinstance(outcome.answer, ItemInterests) and not outcome.repaired
        if isinstance(outcome.answer, ItemInterests):
            true = {catalogue.aspects[a].phrase for a in np.flatnonzero(catalogue.shows[row]).tolist()}
            named = {normalise_phrase(draft.interest) for draft in outcome.answer.interests}
            right, said = right + len(named & true), said + len(named)
    return {"items": float(len(chosen)), "items_valid": valid / len(chosen), "items_precision": right / max(said, 1)}


def measure_tags(
    engine: Engine, catalogue: Catalogue, people: People, found: Sequence[UserInterests | None], encoder: TextEncoder
) -> Figures:
    """Tags asked for by the student's own interests, as the pipeline asks, and whether they name the category of the next liked item."""
    rows = []
    seen: Counter[str] = Counter()
    for one, said in zip(people.asked, found, strict=True):
        chunk, seen[one.user] = seen[one.user], seen[one.user] + 1
        fixed = {"user_id": one.user, "bucket": 0, "chunk": chunk, "shift": "new", "evidence": [], "model": engine.name}
        drafts = {normalise(draft.interest): draft for draft in (said.interests if said else ())}
        rows += [fixed | {"rank": rank, **draft.model_dump()} for rank, draft in enumerate(drafts.values())]
    settings = TagConfig(num_tags=16, max_interests=6, max_recent=8, sampling=Sampling(max_tokens=1400))
    brands = BrandFinder.of_items(catalogue.items)
    told = predict_tags(USER_INTEREST.from_rows(rows), people.before, catalogue.items, brands, engine, encoder, settings)
    hits, distinct = hits_of_tags(told.tags, people.before, people.later, catalogue.items)
    refused = Counter(told.rejects["reason"].to_pylist())
    figures = {
        "tags_valid": told.usage.valid / max(told.usage.questions, 1),
        "tags_a_person": told.tags.num_rows / max(told.usage.questions, 1),
    }
    figures |= {"tags_brand": refused["names a brand"] / max(told.tags.num_rows + told.rejects.num_rows, 1), "tags_categories": distinct}
    for name, hit in zip(("tags", "popular", "own"), hits, strict=True):
        figures |= {f"hr30_{name}": hit.value, f"hr30_{name}_low": hit.low, f"hr30_{name}_high": hit.high}
    return figures | {"hr30_people": float(hits[0].num_users)}


def main() -> None:
    """Parse the flags, start the engine in an environment that it needs, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data sets")
    parser.add_argument("--model", default="student", help="a model folder instead of the shipped student")
    parser.add_argument("--catalogues", nargs="+", choices=sorted(CATALOGUES), default=list(CATALOGUES), help="which are read")
    parser.add_argument("--people", type=int, default=150, help="held-out people of each catalogue")
    parser.add_argument("--quick", action="store_true", help="20 people")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    config = VLLMConfig(model=options.model)
    environment = vllm_environment(config)
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)  # threads are bound before Python runs
    engine, encoder = VLLMEngine(config), TextEncoder(EncoderConfig())
    people = 20 if options.quick else options.people
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name in options.catalogues:
        settings = CATALOGUES[name]
        source = {"kind": "shared_parquet", "path": str(options.data / name)}
        catalogue = open_catalogue(CatalogueConfig.parse({"name": name, "source": source, **settings}))
        found, sides = measure_people(engine, catalogue, people, encoder)
        if name != UNTAUGHT:
            found |= measure_items(engine, catalogue, people)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        for row in sides:
            rows.append({"catalogue": name, **row})
            print("  ".join(f"{v:<20}" if isinstance(v, str) else f"{k} {v:.3f}" for k, v in rows[-1].items()), flush=True)
        print("\n".join(f"  {key:<24}{value:.4g}" for key, value in found.items()), flush=True)
    if options.json:
        result = {"benchmark": "student_catalogues", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # vLLM's libraries complain for a second otherwise


if __name__ == "__main__":
    main()
