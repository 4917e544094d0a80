"""The shipped student in real vLLM, on simulated worlds that its teacher never drew: is it valid, and is what it says true?

    PYTHONPATH=platform OMP_NUM_THREADS=1 python benchmarks/student.py [--quick] [--json FILE] [--model FOLDER]

Interests are asked chunk after chunk with the student's own earlier answers before them, as mining does, and compared with what
the simulated person wanted (an interest counts as shown by a chunk from two of its events on). Beside it: a rule that knows which
category an item is in and which theme is the most common one of a category, and a ceiling that is told each item's theme and
only has to count. Precision, recall and F1 pool all chunks; the interval is a bootstrap over people.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from intently.alignment.answers import PHRASES
from intently.alignment.truth import Wish, histories, read_truth
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.simulator import Simulation, SimulatorConfig, query_themes, simulate
from intently.data.world import SEASONS, THEMES
from intently.interests.phrases import BrandFinder, normalise
from intently.interests.reason_rules import ReasonRules, RuleConfig
from intently.interests.tags import bounded_task
from intently.llm.answer import Question, answer
from intently.llm.contract import Engine, Request, Sampling
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.vllm import VLLMConfig, VLLMEngine, vllm_environment
from intently.llm.tasks import TASKS, AnswerError, ExplanationText, ItemTags, UserInterests

MIN_EVENTS = 2
Sets = list[set[str]]


@dataclass(frozen=True)
class HeldOut:
    """A world that the teacher did not draw, with one entry a chunk."""

    simulation: Simulation
    chunks: list[dict[str, Any]]
    truth: list[list[Wish]]
    item_theme: dict[str, int]
    event_query: dict[str, str | None]


def hold_out(seed: int, num_users: int) -> HeldOut:
    """The world of a small seed (the teacher's begin at 100,000), its chunks made as the pipeline makes them."""
    simulation = simulate(SimulatorConfig(seed=seed, num_users=num_users, pictures=False))
    events = pa.concat_tables(simulation.events())
    chunks = build_chunks(histories(events), simulation.items, ChunkConfig())
    item_theme = dict(zip(simulation.items["item_id"].to_pylist(), simulation.item_themes.tolist(), strict=True))
    queries = dict(zip(events["event_id"].to_pylist(), events["query"].to_pylist(), strict=True))
    return HeldOut(simulation, chunks.to_pylist(), read_truth(simulation, events, chunks, MIN_EVENTS), item_theme, queries)


def ask_interests(engine: Engine, world: HeldOut) -> tuple[list[UserInterests | None], dict[str, float]]:
    """The student's answer to every chunk, level by level, and how it went."""
    found: list[UserInterests | None] = [None] * len(world.chunks)
    previous: dict[str, list[str]] = {}
    repaired, tokens, began = 0, 0, time.monotonic()
    for level in range(max(chunk["chunk"] for chunk in world.chunks) + 1):
        places = [place for place, chunk in enumerate(world.chunks) if chunk["chunk"] == level]
        fields = [{"behaviours": world.chunks[p]["text"], "previous": previous.get(world.chunks[p]["user_id"], [])} for p in places]
        questions = [Question(str(p), field, Sampling(max_tokens=640)) for p, field in zip(places, fields, strict=True)]
        for place, outcome in zip(places, answer(engine, questions, TASKS["user_interests"]), strict=True):
            repaired += outcome.repaired
            tokens += outcome.completion_tokens
            if isinstance(outcome.answer, UserInterests):
                found[place] = outcome.answer
                previous[world.chunks[place]["user_id"]] = [draft.interest for draft in outcome.answer.interests]
    return found, {"repaired": repaired, "tokens": tokens, "seconds": time.monotonic() - began}


def unguided_validity(engine: Engine, world: HeldOut, limit: int) -> float:
    """Share of answers that follow the schema when nothing forces them to."""
    task = TASKS["user_interests"]
    texts = [chunk["text"] for chunk in world.chunks[:limit]]
    requests = [Request(str(i), task.render(behaviours=text, previous=[]), Sampling(max_tokens=640)) for i, text in enumerate(texts)]
    valid = 0
    for reply in engine.generate(requests):
        try:
            task.parse(reply.texts[0])
            valid += 1
        except AnswerError:
            pass  # that is what is counted
    return valid / len(texts)


def rule_of_category(world: HeldOut) -> Sets:
    """The baseline: every category with two events or more, as the theme that most items of that category belong to."""
    categories = world.simulation.items["category"].to_pylist()
    common: dict[str, Counter[int]] = {}
    for category, theme in zip(categories, world.simulation.item_themes.tolist(), strict=True):
        common.setdefault(category, Counter())[theme] += 1
    by_item = dict(zip(world.simulation.items["item_id"].to_pylist(), categories, strict=True))
    found = []
    for chunk in world.chunks:
        counts = Counter(by_item[item] for item in chunk["item_ids"] if item)
        found.append({THEMES[common[c].most_common(1)[0][0]].phrase for c, count in counts.items() if count >= MIN_EVENTS})
    return found


def counting_with_themes(world: HeldOut) -> Sets:
    """The ceiling of counting: every theme with two events or more, the theme of each item and query being told."""
    of_query = query_themes()
    found = []
    for chunk in world.chunks:
        events = zip(chunk["event_ids"], chunk["item_ids"], strict=True)
        counts = Counter(world.item_theme[item] if item else of_query[world.event_query[event] or ""] for event, item in events)
        found.append({THEMES[theme].phrase for theme, count in counts.items() if count >= MIN_EVENTS})
    return found


def agreement(said: Sets, true: Sets, people: Sequence[str]) -> dict[str, float]:
    """Pooled precision, recall, F1 and the 95 % interval of F1 over 1,000 bootstrap draws of people."""
    names = sorted(set(people))
    place = {name: row for row, name in enumerate(names)}
    counts = np.zeros((len(names), 3))  # right, said, true
    for says, truth, person in zip(said, true, people, strict=True):
        counts[place[person]] += (len(says & truth), len(says), len(truth))

    def scores(total: np.ndarray) -> tuple[float, float, float]:
        right, said_, true_ = np.maximum(total, 1e-9)
        return right / said_, right / true_, 2 * right / (said_ + true_)

    rng = np.random.default_rng(0)
    draws = [scores(counts[rng.integers(len(names), size=len(names))].sum(axis=0))[2] for _ in range(1000)]
    precision, recall, f1 = scores(counts.sum(axis=0))
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"precision": precision, "recall": recall, "f1": f1, "f1_low": float(low), "f1_high": float(high)}


def stage_and_reasons(found: Sequence[UserInterests | None], world: HeldOut) -> dict[str, float]:
    """Of the right interests: is the stage right, and were the core words that the reason names in the chunk?"""
    stages, grounded = [], []
    for said, wishes, chunk in zip(found, world.truth, world.chunks, strict=True):
        true = {wish.theme.phrase: wish for wish in wishes}
        for draft in said.interests if said else ():
            if draft.interest in true:
                stages.append(draft.stage == true[draft.interest].stage)
                named = [noun for noun in PHRASES[draft.interest].nouns if noun in draft.reason]
                if named:
                    grounded.append(all(noun in chunk["text"].lower() for noun in named))
    return {"stage_accuracy": float(np.mean(stages or [0])), "reason_grounded": float(np.mean(grounded or [0]))}


def tag_quality(engine: Engine, world: HeldOut, num_people: int, num_tags: int = 16) -> dict[str, float]:
    """Shares of tags that keep each rule, over people with true interests and a season drawn for each; asked as the pipeline asks."""
    rng = np.random.default_rng(0)
    titles = world.simulation.items["title"].to_pylist()
    brands = BrandFinder(world.simulation.items["brand"].to_pylist())
    people = [(wishes, chunk) for wishes, chunk in zip(world.truth, world.chunks, strict=True) if wishes][:num_people]
    seasons = rng.choice(list(SEASONS), len(people)).tolist()
    rows = {item: row for row, item in enumerate(world.simulation.items["item_id"].to_pylist())}
    questions = []
    for place, ((wishes, chunk), season) in enumerate(zip(people, seasons, strict=True)):
        recent = [titles[rows[item]] for item in dict.fromkeys(chunk["item_ids"][-8:]) if item]
        interests = [{"interest": wish.theme.phrase, "stage": wish.stage} for wish in wishes]
        fields = {"interests": interests, "recent": recent, "season": season, "num_tags": num_tags}
        questions.append(Question(str(place), fields, Sampling(max_tokens=1400)))
    theme_of = {noun: theme for theme in THEMES for noun in theme.tag_nouns}
    checks: dict[str, list[bool]] = {"valid": [], "no_brand": [], "in_season": [], "serves": [], "distinct": []}
    counts = []
    for (wishes, _), season, outcome in zip(people, seasons, answer(engine, questions, bounded_task(num_tags)), strict=True):
        checks["valid"].append(isinstance(outcome.answer, ItemTags) and not outcome.repaired)
        if not isinstance(outcome.answer, ItemTags):
            continue
        asked = {wish.theme.phrase for wish in wishes}
        any_suits = any(wish.theme.suits(season) for wish in wishes)
        tags = outcome.answer.tags
        counts.append(len({normalise(tag.tag) for tag in tags}))
        checks["distinct"].append(counts[-1] == len(tags))
        for tag in tags:
            core = next((theme for noun, theme in theme_of.items() if tag.tag.endswith(noun)), None)
            checks["no_brand"].append(not brands.find(tag.tag))
            checks["in_season"].append(core is not None and (core.suits(season) or not any_suits))
            checks["serves"].append(core is not None and tag.interest in asked and core.phrase == tag.interest)
    return {name: float(np.mean(values or [0])) for name, values in checks.items()} | {"distinct_tags_per_person": float(np.mean(counts))}


def explanation_quality(engine: Engine, world: HeldOut, num_items: int) -> dict[str, float]:
    """Shares of explanations that follow the schema, keep the pipeline's own rules, and name no feature that the item lacks."""
    rng = np.random.default_rng(0)
    items = world.simulation.items.select(["title", "category", "categories", "brand", "price", "attributes", "description"]).to_pylist()
    chosen = rng.choice(len(items), size=min(num_items, len(items)), replace=False).tolist()
    asked = [None if rng.random() < 0.3 else THEMES[world.simulation.item_themes[row]].phrase for row in chosen]
    asked_of = dict(zip(chosen, asked, strict=True))
    questions = [
        Question(str(row), {"item": items[row], "interest": interest}, Sampling(max_tokens=128)) for row, interest in asked_of.items()
    ]
    encodes = TextEncoder(EncoderConfig())
    rules = ReasonRules(world.simulation.items, [theme.phrase for theme in THEMES], encodes.is_word, RuleConfig())
    modifiers = {modifier for theme in THEMES for modifier in theme.modifiers if "-" in modifier}
    checks: dict[str, list[bool]] = {"valid": [], "rules": [], "features_true": []}
    for row, outcome in zip(chosen, answer(engine, questions, TASKS["explanation"]), strict=True):
        checks["valid"].append(outcome.answer is not None and not outcome.repaired)
        if isinstance(outcome.answer, ExplanationText):
            text = outcome.answer.explanation
            facts = json.dumps(items[row]).lower()
            checks["rules"].append(rules.broken(text, items[row], asked_of[row] or "") is None)
            checks["features_true"].append(all(modifier in facts for modifier in modifiers if modifier in text.lower()))
    return {name: float(np.mean(values or [0])) for name, values in checks.items()}


def measure(engine: Engine, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All figures, and the rows of the table of interests."""
    seeds, num_users = ((1,), 60) if quick else ((1, 2, 3), 150)
    worlds = [hold_out(seed, num_users) for seed in seeds]
    answers, went = zip(*(ask_interests(engine, world) for world in worlds), strict=True)
    people = [f"{w}/{chunk['user_id']}" for w, world in enumerate(worlds) for chunk in world.chunks]
    true = [{wish.theme.phrase for wish in wishes} for world in worlds for wishes in world.truth]
    said = [{draft.interest.lower() for draft in found.interests} if found else set() for part in answers for found in part]
    sides: dict[str, Callable[[HeldOut], Sets]] = {"rule_of_category": rule_of_category, "ceiling_told_themes": counting_with_themes}
    rows = [{"side": "student", **agreement(said, true, people)}]
    for name, side in sides.items():
        rows.append({"side": name, **agreement([found for world in worlds for found in side(world)], true, people)})
    figures: dict[str, float] = {"chunks": len(true), "people": len(set(people))}
    figures |= {f"{row['side']}_{key}": value for row in rows for key, value in row.items() if key != "side"}
    figures["f1_over_rule_of_category"] = figures["student_f1"] / figures["rule_of_category_f1"]
    asked, failed = len(true), sum(found is None for part in answers for found in part)
    figures["interests_valid_guided"] = 1 - sum(part["repaired"] for part in went) / asked
    figures["interests_answered"] = 1 - failed / asked
    figures["interests_valid_unguided"] = unguided_validity(engine, worlds[0], 100 if quick else 300)
    figures["output_tokens_per_s"] = sum(part["tokens"] for part in went) / sum(part["seconds"] for part in went)
    figures |= stage_and_reasons([found for part in answers for found in part], _joined(worlds))
    figures |= {f"tags_{key}": value for key, value in tag_quality(engine, worlds[0], 40 if quick else 150).items()}
    figures |= {f"explanations_{key}": value for key, value in explanation_quality(engine, worlds[0], 80 if quick else 400).items()}
    return {name: float(value) for name, value in figures.items()}, rows


def _joined(worlds: Sequence[HeldOut]) -> HeldOut:
    first = worlds[0]
    chunks, truth = [c for world in worlds for c in world.chunks], [t for world in worlds for t in world.truth]
    return HeldOut(first.simulation, chunks, truth, first.item_theme, first.event_query)


def main() -> None:
    """Parse the flags, start the engine in an environment that it needs, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one world, 60 people")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--model", default="student", help="a model folder instead of the shipped student")
    options = parser.parse_args()
    config = VLLMConfig(model=options.model)
    environment = vllm_environment(config)
    if any(os.environ.get(key) != value for key, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)  # threads are bound before Python runs
    engine = VLLMEngine(config)
    figures, rows = measure(engine, options.quick)
    engine.close()
    for row in rows:
        print("  ".join(f"{value:<20}" if isinstance(value, str) else f"{key} {value:.3f}" for key, value in row.items()))
    print("\n".join(f"{name:<40}{value:.4g}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "student", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # vLLM's libraries complain for a second otherwise


if __name__ == "__main__":
    main()
