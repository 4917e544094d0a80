"""Explanations: what the rules let through and refuse, how fast reasons are found, and how good those of a finished pipeline are.

    PYTHONPATH=platform:. python benchmarks/explanations.py [--quick] [--json FILE] [--workspace DIR [--markdown FILE]]

Rules: ideal sentences of the simulator's teacher, and the same sentences spoiled in one way each; beside them the plain alternative, that
every longer word of a text must stand in the item's row or the interest. Lookups: the reasons for answers of 20 items by eight interests
each, from LMDB and from a real Redis on the loopback, beside a dict in memory; nothing is remembered between answers. With --workspace:
what `jobs/run_pipeline.py` left there, whole answers of all its people, and a sample of 20 reasons as Markdown. There the simulator knows
what an item is and has, so that the texts that passed can be checked against the truth.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from intently.alignment.answers import explanation_answer
from intently.core.schema import EXPLANATION
from intently.core.workspace import Artifact, Workspace
from intently.data.simulator import Simulation, SimulatorConfig, simulate
from intently.data.world import THEMES, Theme
from intently.interests.explanations import ANYBODY, ASKED, BY_RULE
from intently.interests.phrases import normalise, words
from intently.interests.reason_rules import ReasonRules, RuleConfig
from intently.interests.reason_store import LmdbReasons, ReasonStore, RedisReasons, connect, publish_reasons, write_reasons
from intently.llm.encoder import EncoderConfig, TextEncoder

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port
from serve.reasons import Reasons
from serve.state import State

K = 20
SAMPLE = 20
TURNS = 7
ANSWERED = ("interest_by_model", "interest_from_facts", "anybody_by_model", "anybody_from_facts", "none")
KINDS = sorted({noun for theme in THEMES for noun in (theme.tag_nouns if theme.film else theme.nouns)}, key=len, reverse=True)
QUALITIES = sorted({modifier for theme in THEMES for modifier in theme.modifiers})
HEAD_ENDS = re.compile(r", for anyone| for your interest|, close to your interest")


# --- the rules ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoiling:
    """One text and what is wrong with it; nothing if `fault` is 'none'."""

    fault: str
    text: str
    item: dict[str, Any]
    interest: str


def spoiled_texts(world: Simulation, count: int, rng: np.random.Generator) -> list[Spoiling]:
    """Ideal sentences for random items, and each of them spoiled in every way that applies."""
    rows = world.items.select(ASKED).to_pylist()
    brands = sorted({row["brand"] for row in rows if row["brand"]})
    found = []
    for place in rng.choice(len(rows), min(count, len(rows)), replace=False).tolist():
        item, theme = rows[place], THEMES[world.item_themes[place]]
        interest = theme.phrase if rng.random() < 0.5 else ANYBODY
        good = explanation_answer(item, theme, int(world.catalogue.noun[place]), interest or None).explanation
        told = dict(_spoil(good, item, theme, brands, rng))
        found += [Spoiling(fault, text, item, interest) for fault, text in {"none": good, **told}.items()]
    return found


def _spoil(good: str, item: dict[str, Any], theme: Theme, brands: Sequence[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    facts = json.dumps(item, default=str).lower()
    siblings = [kind for other in THEMES if other.category == theme.category for kind in other.nouns if kind not in facts]
    own = next((kind for kind in KINDS if kind in good.lower()), None)
    lacking = [quality for quality in theme.modifiers if quality not in facts]
    other = [each.phrase for each in THEMES if each.category != theme.category]
    rest = good[0].lower() + good[1:]
    made = [
        ("a number", good[:-1] + f", with {rng.integers(12, 90)} settings."),
        ("another brand", f"As good as any {rng.choice([brand for brand in brands if brand != item['brand']])}: {rest}"),
        ("another interest", f"For your interest in {rng.choice(other)}: {rest}"),
        ("stutter", good.replace(" for ", " and good and good for ", 1)),
        ("cliché", f"A game changer: {rest}"),
        ("the person", f"Since you bought one before: {rest}"),
        ("hard sell", f"Buy now, limited offer: {rest}"),
    ]
    if own and siblings:
        made.append(("another kind", re.sub(re.escape(own), str(rng.choice(siblings)), good, flags=re.IGNORECASE)))
    if lacking:
        made.append(("another quality", f"{str(rng.choice(lacking)).capitalize()}, {rest}"))
    return made


def every_word_grounded(text: str, item: dict[str, Any], interest: str) -> bool:
    """The plain alternative: every longer word of the text stands in the item's row or the interest."""
    told = [item["title"], item["category"], item["brand"] or "", item["description"] or "", *item["categories"], *item["attributes"]]
    known = set(words(" ; ".join([*told, interest, "interest helps anyone wants close your"])))
    return all(word in known for word in words(text) if len(word) > 3)


def measure_rules(count: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Shares that pass, by what is wrong with them."""
    world = simulate(SimulatorConfig(seed=11, num_items=max(800, count), num_users=10, pictures=False))
    rules = ReasonRules(world.items, [theme.phrase for theme in THEMES], TextEncoder(EncoderConfig()).is_word, RuleConfig())
    texts = spoiled_texts(world, count, np.random.default_rng(11))
    sides: dict[str, Callable[[Spoiling], bool]] = {
        "rules": lambda one: rules.broken(one.text, one.item, one.interest) is None,
        "words": lambda one: every_word_grounded(one.text, one.item, one.interest),
    }
    passed = {side: Counter(one.fault for one in texts if passes(one)) for side, passes in sides.items()}
    faults = Counter(one.fault for one in texts)
    rows = [{"fault": fault, "texts": n, **{side: passed[side][fault] / n for side in sides}} for fault, n in faults.items()]
    spoiled = sum(n for fault, n in faults.items() if fault != "none")
    figures = {}
    for side in sides:
        figures[f"{side}_good_passed"] = passed[side]["none"] / faults["none"]
        figures[f"{side}_bad_refused"] = 1 - (passed[side].total() - passed[side]["none"]) / spoiled
    start = time.perf_counter()
    for one in texts:
        rules.broken(one.text, one.item, one.interest)
    return figures | {"rules_us_per_text": 1e6 * (time.perf_counter() - start) / len(texts)}, rows


# --- lookups --------------------------------------------------------------------------------------------------------------------------


class InMemory:
    """The other side: a dict that holds everything."""

    def __init__(self, records: dict[str, dict[str, str]]) -> None:
        self._records = records

    def version(self) -> str:
        """Never another."""
        return "v"

    def records(self, version: str, item_ids: Sequence[str]) -> list[dict[str, str]]:
        """Interest → text for each item."""
        return [self._records.get(item_id, {}) for item_id in item_ids]


def measure_lookups(num_items: int, answers: int) -> dict[str, float]:
    """Microseconds an answer, by store, with nothing remembered; and with everything remembered."""
    rng = np.random.default_rng(3)
    phrases = [theme.phrase for theme in THEMES]
    picked = rng.integers(0, len(phrases), (num_items, 2))
    text = "A reason of a usual length, which says why this suits you."
    records = {f"i{i:06d}": {"": text} | {phrases[p]: text for p in picked[i]} for i in range(num_items)}
    rows = [(item_id, interest, told) for item_id, texts in records.items() for interest, told in texts.items()]
    columns = dict(zip(("item_id", "interest", "text"), map(list, zip(*rows, strict=True)), strict=True))
    table = EXPLANATION.check(pa.table(columns | {"model": ["-"] * len(rows)}))
    asked = [
        ([f"i{i:06d}" for i in rng.integers(0, num_items, K)], [phrases[p] for p in rng.choice(len(phrases), 8, replace=False)])
        for _ in range(answers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reasons.lmdb"
        start = time.perf_counter()
        write_reasons(table, path)
        figures = {"lookup_write_s": time.perf_counter() - start, "lookup_file_mb": path.stat().st_size / 1e6}
        server = RedisServer(Path(folder), free_port(), "no")
        with connect(server.url, None, 10.0) as client:
            start = time.perf_counter()
            publish_reasons(path, "v", client, "benchmark", 60)
            figures["lookup_publish_s"] = time.perf_counter() - start
            stores: dict[str, ReasonStore] = {"memory": InMemory(records), "lmdb": LmdbReasons(path, "v")}
            stores["redis"] = RedisReasons(client, "benchmark")
            sides = {name: Reasons(store, 0) for name, store in stores.items()} | {"remembered": Reasons(stores["lmdb"], num_items)}
            for name, reasons in sides.items():
                assert all(reasons.find_all(*one).reasons == sides["memory"].find_all(*one).reasons for one in asked), name
            # Turn by turn, and the best of each: whatever else the machine does then hits all sides alike.
            turns = [{name: _time(reasons, asked) for name, reasons in sides.items()} for _ in range(TURNS)]
            figures |= {f"lookup_{name}_us_per_answer": min(turn[name] for turn in turns) for name in sides}
        server.stop()
    return figures


def _time(reasons: Reasons, asked: Sequence[tuple[list[str], list[str]]]) -> float:
    start = time.perf_counter()
    for items, interests in asked:
        reasons.find_all(items, interests)
    return 1e6 * (time.perf_counter() - start) / len(asked)


# --- a finished pipeline --------------------------------------------------------------------------------------------------------------


def true_themes(items: Artifact) -> dict[str, Theme]:
    """Item → what the simulator made it of."""
    world = simulate(SimulatorConfig.parse({key: value for key, value in items.manifest.config["source"].items() if key != "kind"}))
    return {item: THEMES[theme] for item, theme in zip(world.items["item_id"].to_pylist(), world.item_themes.tolist(), strict=True)}


def tells_the_truth(text: str, item: dict[str, Any], theme: Theme) -> bool:
    """Whether a text of the student calls the item what it is, and names no quality that it lacks."""
    head = HEAD_ENDS.split(text.lower())[0]
    named = next((kind for kind in KINDS if kind in head), None)
    right = named is not None and (named in theme.tag_nouns if theme.film else normalise(named) in normalise(item["title"]))
    facts = json.dumps(item, default=str).lower()
    rest = head.replace(named or "\0", " ")
    return right and all(quality in facts for quality in QUALITIES if re.search(rf"\b{re.escape(quality)}\b", rest))


def measure_pipeline(workspace: Workspace) -> tuple[dict[str, float], list[dict[str, Any]], Counter[str]]:
    """Figures over all pairs and all people's answers, 20 reasons as they are served, and what was refused."""
    artifact = workspace.artifact("explanation")
    counts, rows = artifact.manifest.metrics, artifact.read().to_pylist()
    items = {row["item_id"]: row for row in workspace.artifact("item").read(columns=ASKED).to_pylist()}
    themes = true_themes(workspace.artifact("item"))
    written = [row for row in rows if row["model"] != BY_RULE]
    true = {
        (row["item_id"], row["interest"]): tells_the_truth(row["text"], items[row["item_id"]], themes[row["item_id"]]) for row in written
    }
    pairs = [(row["interest"], themes[row["item_id"]]) for row in written if row["interest"]]
    own = [interest == theme.phrase for interest, theme in pairs]
    near = [interest in {other.phrase for other in THEMES if other.category == theme.category} for interest, theme in pairs]
    from_facts = {(row["item_id"], row["interest"]) for row in rows if row["model"] == BY_RULE}
    kinds, served = _answers(State.load(workspace), from_facts)
    figures = {
        "pairs": counts["pairs"],
        "passed_share": counts["passed"] / counts["pairs"],
        "passed_at_once_share": counts["passed_at_once"] / counts["pairs"],
        "from_facts_share": counts["from_facts"] / counts["pairs"],
        "true_share_of_passed": float(np.mean(list(true.values()))),
        "own_interest_share_of_passed": float(np.mean(own)),
        "same_category_share_of_passed": float(np.mean(near)),
        **{f"answers_{kind}_share": kinds[kind] / kinds.total() for kind in ANSWERED},
        "answers_fallback_share": (kinds["anybody_by_model"] + kinds["anybody_from_facts"]) / kinds.total(),
    }
    rng = np.random.default_rng(0)
    sample = [served[place] for place in rng.choice(len(served), SAMPLE, replace=False).tolist()]
    for one in sample:
        item = items[one["item"]]
        one |= {"title": item["title"], "category": item["category"], "true": true.get((one["item"], one["interest"]))}
    return figures, sample, Counter(artifact.manifest.reject_reasons)


def _answers(state: State, from_facts: set[tuple[str, str]]) -> tuple[Counter[str], list[dict[str, Any]]]:
    """What kind of reason each of the best K items has, for everybody whom the towers know, and the distinct ones with a reason."""
    kinds: Counter[str] = Counter()
    served: dict[tuple[str, str], dict[str, Any]] = {}
    for user in filter(state.retriever.knows, state.histories.user_ids()):
        found = state.retriever.retrieve([user], K)["item_id"].to_pylist()
        for item, reason in zip(found, state.reasons.find_all(found, state.about(user).interests).reasons, strict=True):
            interest = ANYBODY if reason is None or reason.interest is None else reason.interest
            told = "interest" if interest else "anybody"
            kinds["none" if reason is None else f"{told}_from_facts" if (item, interest) in from_facts else f"{told}_by_model"] += 1
            if reason is not None:
                served.setdefault((item, interest), {"item": item, "interest": interest, "text": reason.text})
    return kinds, list(served.values())


def as_markdown(figures: dict[str, float], sample: Sequence[dict[str, Any]], refused: Counter[str], command: str) -> str:
    """A page with the figures, what was refused, and the sample."""
    lines = ["# Explanations on the simulator", "", f"Written by `{command}`.", "", "| figure | |", "|---|---|"]
    lines += [f"| {name} | {value:,.3g} |" for name, value in figures.items()]
    lines += ["", "| refused because | texts |", "|---|---|", *(f"| {reason} | {count:,} |" for reason, count in refused.most_common())]
    lines += ["", f"{len(sample)} of the reasons that the people of this run are served, drawn at random:", ""]
    lines += ["| item | for | reason | true |", "|---|---|---|---|"]
    for one in sample:
        truth = "from its facts" if one["true"] is None else "yes" if one["true"] else "**no**"
        lines.append(f"| {one['title']} ({one['category']}) | {one['interest'] or '*anybody*'} | {one['text']} | {truth} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer texts and items; within a minute")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--workspace", help="a workspace of jobs/run_pipeline.py on simulated people")
    parser.add_argument("--markdown", metavar="FILE", help="write figures and sample of the workspace there")
    options = parser.parse_args()
    figures, rows = measure_rules(150 if options.quick else 1500)
    print(f"{'what is wrong':20}{'texts':>7}{'rules let through':>20}{'word check lets through':>26}")
    for row in rows:
        print(f"{row['fault']:20}{row['texts']:7}{row['rules']:20.3f}{row['words']:26.3f}")
    figures |= measure_lookups(5_000 if options.quick else 100_000, 200 if options.quick else 1_500)
    figures |= {
        "lookup_lmdb_vs_memory_ratio": figures["lookup_memory_us_per_answer"] / figures["lookup_lmdb_us_per_answer"],
        "lookup_redis_vs_memory_ratio": figures["lookup_memory_us_per_answer"] / figures["lookup_redis_us_per_answer"],
    }
    if options.workspace:
        found, sample, refused = measure_pipeline(Workspace.open(options.workspace))
        figures |= found
        rows += sample
        if options.markdown:
            command = "PYTHONPATH=platform:. python benchmarks/explanations.py --workspace WORKSPACE --markdown docs/explanations.md"
            Path(options.markdown).write_text(as_markdown(found, sample, refused, command))
    for name, value in figures.items():
        print(f"{name:42}{value:12,.4g}")
    if options.json:
        result = {"benchmark": "explanations", "quick": options.quick, "figures": figures, "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
