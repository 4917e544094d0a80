"""The report as one HTML page with its plots inside, and as a few lines for the console."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import jinja2
from intently.retrieval.fusion import Point, pareto_front

from report.contents import Contents
from report.figures import Score, Sweep, seconds_in_words
from report.people import Person
from report.plots import plot_behaviours, plot_front, plot_histogram, plot_path, plot_scores, plot_sweep

LINES_OF_A_PERSON = 5


def draw(contents: Contents) -> dict[str, bytes]:
    """File name → PNG, for every plot that the contents have data for."""
    plots = {
        "behaviours.png": plot_behaviours(contents.behaviours),
        "history_lengths.png": plot_histogram(contents.lengths, "behaviours of a user", "users"),
    }
    if len(contents.compression.tokens):
        plots["chunk_tokens.png"] = plot_histogram(contents.compression.tokens, "tokens of a compressed chunk", "chunks")
    for name in dict.fromkeys(score.name for score in contents.scores):
        plots[f"{name.lower()}.png"] = plot_scores(contents.scores, name)
    accuracy, spread = pick_sweep(contents, "NDCG"), pick_sweep(contents, "category_coverage")
    if accuracy is not None:
        plots["fusion.png"] = plot_sweep(accuracy, spread, contents.beta)
    points = sweep_points(contents)
    chosen = [point for point in points if point.beta == contents.beta]
    if chosen:
        plots["fusion_front.png"] = plot_front(points, pareto_front(points), chosen[0])
    paths = {place: plot_path(person.periods, person.wishes) for place, person in enumerate(contents.people) if person.wishes}
    return plots | {f"path_{place}.png": png for place, png in paths.items()}


def sweep_points(contents: Contents) -> list[Point]:
    """What the sweep chose among; none where it did not measure diversity."""
    accuracy, coverage, tail = (pick_sweep(contents, name) for name in ("NDCG", "category_coverage", "tail_share"))
    if accuracy is None or coverage is None or tail is None:
        return []
    return [Point(*values) for values in zip(accuracy.betas, accuracy.values, coverage.values, tail.values, strict=True)]


def pick_sweep(contents: Contents, name: str) -> Sweep | None:
    """The curve of a figure: filtered and on validation, where beta was chosen, if there is one like that."""
    found = [sweep for sweep in contents.sweeps if sweep.name == name]
    return min(found, key=lambda sweep: (not sweep.filter_seen, sweep.split != "validation", abs(sweep.k - contents.k)), default=None)


def headline(contents: Contents) -> dict[str, float]:
    """The report's main figures, for its manifest."""
    figures = {f"{s.label.replace(' ', '_')}_{s.name.lower()}_{s.k}": s.value for s in contents.scores if s.filter_seen}
    figures |= {"beta": contents.beta, "catalogue_coverage": contents.reach.coverage, "gini": contents.reach.gini}
    if contents.compression.num_events:
        figures["compression_ratio"] = contents.compression.ratio
    if contents.faithfulness is not None:
        figures |= {"interest_precision": contents.faithfulness.precision, "interest_recall": contents.faithfulness.recall}
    return figures


def render(contents: Contents, plots: Mapping[str, bytes]) -> str:
    """The page; plots are inside it as data URIs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = seconds_in_words
    uris = {name.removesuffix(".png"): f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in plots.items()}
    return environment.get_template("page.html.jinja").render(
        contents=contents,
        plots=uris,
        ranking=ranking_table(contents.scores),
        best=best(contents.scores),
        spread=ranking_table([score for score in contents.spread if score.filter_seen]),
        front=pareto_front(sweep_points(contents)),
    )


def ranking_table(scores: list[Score]) -> list[tuple[str, int, dict[str, float]]]:
    """(label, users, 'NDCG filtered' → value …) for each ranking."""
    rows: dict[str, tuple[str, int, dict[str, float]]] = {}
    for score in scores:
        row = rows.setdefault(score.label, (score.label, score.num_users, {}))
        row[2][f"{score.name} {'filtered' if score.filter_seen else 'unfiltered'}"] = score.value
    return list(rows.values())


def best(scores: list[Score]) -> dict[str, float]:
    """Column of the ranking table → its highest value."""
    highest: dict[str, float] = {}
    for _, _, values in ranking_table(scores):
        for column, value in values.items():
            highest[column] = max(value, highest.get(column, value))
    return highest


def summarise(contents: Contents) -> str:
    """The main figures and the people, as text."""
    lines = [f"rankings on the test split, {contents.scores[0].num_users} users:" if contents.scores else "no rankings were measured"]
    columns = list(best(contents.scores))
    if columns:
        lines.append(f"  {'':32}" + "".join(f"{column.replace(' ', f'@{contents.k} '):>20}" for column in columns))
    for label, _, values in ranking_table(contents.scores):
        lines.append(f"  {label:32}" + "".join(f"{values[column]:20.4f}" if column in values else f"{'–':>20}" for column in columns))
    reach = contents.reach
    lines.append(
        f"fusion weight beta {contents.beta:.2f}; the first {reach.k} items of {reach.num_users} users show "
        f"{reach.coverage:.1%} of {reach.num_items} items (Gini {reach.gini:.2f})"
    )
    if contents.faithfulness is not None:
        f = contents.faithfulness
        lines.append(f"mined interests against the truth: precision {f.precision:.2f}, recall {f.recall:.2f} ({f.num_chunks} chunks)")
    for person in contents.people:
        lines += ["", *_summarise_person(person)]
    return "\n".join(lines)


def _summarise_person(person: Person) -> list[str]:
    wishes = ", ".join(f"{wish.interest} ({wish.last.stage})" for wish in person.wishes[:LINES_OF_A_PERSON]) or "none read"
    lines = [f"{person.user_id}: {sum(person.behaviours.values())} behaviours", f"  wants: {wishes}"]
    for offer in person.offers[:LINES_OF_A_PERSON]:
        served = f" [{offer.interest}]" if offer.interest else ""
        lines.append(f"  - {offer.title}{served}: {offer.reason or 'no reason was written'}")
    return lines
