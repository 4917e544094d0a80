"""The report's plots, each a PNG; no window system and no global state of matplotlib is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from intently.retrieval.fusion import Point
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.figures import Score, Sweep
from report.people import Period, Wish

INK, QUIET = "#22303c", "#8795a1"
PALETTE = ("#1f7a8c", "#e07a5f", "#7a6ff0", "#81b29a", "#d4a017", "#b56576", "#5c677d", "#a3b18a")


def plot_behaviours(counts: dict[str, int]) -> bytes:
    """Behaviour → how often, as horizontal bars on a logarithmic scale, the weakest signal on top."""
    figure, axes = _canvas(6.4, 0.42 * len(counts) + 0.9)
    names = [name.replace("_", " ") for name in counts]
    values = list(counts.values())
    bars = axes.barh(names, values, color=PALETTE[0], height=0.66)
    axes.bar_label(bars, [f"{value:,}" for value in values], padding=4, color=INK, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(left=max(0.5, min(values, default=1) / 3), right=max(values, default=1) * 6)
    axes.invert_yaxis()
    axes.set_xlabel("behaviours")
    return _png(figure)


def plot_bars(values: dict[str, float], xlabel: str) -> bytes:
    """Name → figure, as horizontal bars in the given order."""
    figure, axes = _canvas(6.8, 0.36 * len(values) + 0.9)
    bars = axes.barh(list(values), list(values.values()), color=PALETTE[0], height=0.66)
    axes.bar_label(bars, [f"{value:,.0f}" if value == round(value) else f"{value:.3f}" for value in values.values()], padding=4, fontsize=9)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    return _png(figure)


def plot_histogram(values: np.ndarray, xlabel: str, ylabel: str) -> bytes:
    """[N] whole numbers → a histogram with the median marked."""
    figure, axes = _canvas(6.4, 3.0)
    axes.hist(values, bins=min(40, max(5, len(np.unique(values)))), color=PALETTE[0], edgecolor="white", linewidth=0.6)
    median = float(np.median(values))
    axes.axvline(median, color=PALETTE[1], linewidth=1.6)
    axes.margins(y=0.16)
    _note(axes, median, 0.94, f"median {median:g}", PALETTE[1])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return _png(figure)


def plot_lives(tokens: dict[str, np.ndarray], budgets: dict[str, int]) -> bytes:
    """What is written → [N] tokens of each user: the share of users up to a length, budgets as upright lines."""
    figure, axes = _canvas(6.4, 3.6)
    for (said, values), colour in zip(tokens.items(), PALETTE, strict=False):
        axes.step(np.sort(values), np.arange(1, len(values) + 1) / max(len(values), 1), where="post", color=colour, label=said)
    for name, budget in budgets.items():
        axes.axvline(budget, color=QUIET, linewidth=1.0, linestyle=":")
        _note(axes, budget, 0.03, name, QUIET)
    axes.set_xscale("log")
    axes.set_xlabel("tokens of a user's whole life")
    axes.set_ylabel("share of users")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _png(figure)


def plot_path(periods: Sequence[Period], wishes: Sequence[Wish], num_wishes: int = 14, num_periods: int = 16) -> bytes:
    """A person's interests over the newest stretches of their history: filled where new, ringed where taken up again, pale where fading.

    The wishes of the latest stretch come first, as everywhere; where tree search scored the stretches, S_final stands on top.
    """
    periods = periods[-num_periods:]
    recent = [Wish(wish.interest, wish.cells[-num_periods:]) for wish in wishes]
    shown = [wish for wish in recent if any(wish.cells)][:num_wishes]
    months = [f"{period.start:%b %Y}" for period in periods]
    labels = months if len(set(months)) == len(months) else [f"{period.start:%d %b %Y}" for period in periods]
    figure, axes = _canvas(max(6.4, 1.4 + 0.7 * len(periods)), 0.34 * len(shown) + 1.3)
    scores: dict[int, float] = {}
    for row, wish in enumerate(shown):
        places = [place for place, cell in enumerate(wish.cells) if cell is not None]
        axes.plot([places[0], places[-1]], [row, row], color="#d5dde2", linewidth=1.4, zorder=1)
        for place in places:
            cell = wish.cells[place]
            assert cell is not None
            colour = PALETTE[0] if cell.shift == "new" else PALETTE[1] if cell.shift == "returned" else "white"
            alpha = 0.45 if cell.stage == "fading" else 1.0
            edge = PALETTE[1] if cell.shift == "returned" else PALETTE[0]
            axes.plot([place], [row], "o", color=colour, markeredgecolor=edge, markersize=9, alpha=alpha, zorder=2)
            if cell.score is not None:
                scores[place] = cell.score
    for place, score in scores.items():
        axes.text(place, -0.85, f"{score:.2f}", ha="center", fontsize=7, color=QUIET)
    axes.set_yticks(range(len(shown)), [wish.interest for wish in shown])
    axes.set_xticks(range(len(periods)), labels, rotation=30, ha="right")
    axes.set_ylim(len(shown) - 0.4, -1.2)
    axes.set_xlim(-0.5, len(periods) - 0.5)
    marks = (("new", PALETTE[0], PALETTE[0]), ("continued", "white", PALETTE[0]), ("taken up again", PALETTE[1], PALETTE[1]))
    for said, colour, edge in marks:
        axes.plot([], [], "o", color=colour, markeredgecolor=edge, label=said)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _png(figure)


def plot_scores(scores: Sequence[Score], name: str) -> bytes:
    """One figure of every ranking as bars, filter-seen on and off side by side."""
    chosen = [score for score in scores if score.name == name]
    labels = list(dict.fromkeys(score.label for score in chosen))
    figure, axes = _canvas(6.4, 0.55 * len(labels) + 1.2)
    height = 0.38
    for offset, (filtered, colour, said) in zip(
        (-height / 2, height / 2), ((True, PALETTE[0], "seen items filtered"), (False, "#b8d0d6", "not filtered")), strict=True
    ):
        values = {score.label: score.value for score in chosen if score.filter_seen is filtered}
        places = [place + offset for place, label in enumerate(labels) if label in values]
        shown = [values[label] for label in labels if label in values]
        if not shown:
            continue
        bars = axes.barh(places, shown, height, color=colour, label=said)
        axes.bar_label(bars, [f"{value:.4f}" for value in shown], padding=4, color=INK, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel(f"{name}@{chosen[0].k}" if chosen else name)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _png(figure)


def plot_sweep(left: Sweep, right: Sweep | None, chosen: float) -> bytes:
    """A figure against beta, a second one on its own axis, and the chosen point."""
    figure, axes = _canvas(6.4, 3.2)
    _curve(axes, left, PALETTE[0])
    axes.axvline(chosen, color=QUIET, linewidth=1.2, linestyle=":")
    _note(axes, chosen, 0.04, f"chosen β = {chosen:.2f}", INK, leftwards=chosen > left.betas.mean())
    value = float(np.interp(chosen, left.betas, left.values))
    axes.plot([chosen], [value], "o", color=PALETTE[0], markersize=8, markeredgecolor="white", zorder=5)
    axes.set_xlabel("β: weight of the user tower; 1 − β: weight of the tag tower")
    if right is not None:
        beside = axes.twinx()
        beside.spines[["top", "left", "bottom"]].set_visible(False)
        beside.spines["right"].set_color(QUIET)
        _curve(beside, right, PALETTE[1])
    return _png(figure)


def plot_front(points: Sequence[Point], front: Sequence[Point], chosen: Point) -> bytes:
    """Every b of the sweep by accuracy and category coverage, coloured by the tail's share; the front joined, the chosen b ringed."""
    figure, axes = _canvas(6.4, 3.8)
    line = sorted(front, key=lambda point: point.accuracy)
    axes.plot([p.accuracy for p in line], [p.coverage for p in line], color=QUIET, linewidth=1.2, zorder=1)
    accuracy, coverage, tail = np.array([point.aims for point in points]).T
    dots = axes.scatter(accuracy, coverage, c=tail, cmap="viridis", s=34, zorder=2)
    axes.plot([chosen.accuracy], [chosen.coverage], "o", markersize=13, fillstyle="none", color=PALETTE[1], markeredgewidth=2, zorder=3)
    for point in {min(points, key=lambda p: p.beta), max(points, key=lambda p: p.beta)} - {chosen}:
        axes.annotate(
            f"β = {point.beta:g}", (point.accuracy, point.coverage), (7, -12), textcoords="offset points", color=QUIET, fontsize=8
        )
    said = f"chosen β = {chosen.beta:.2f}"
    axes.annotate(said, (chosen.accuracy, chosen.coverage), (-10, 12), textcoords="offset points", color=INK, ha="right")
    axes.margins(0.12)
    axes.set_xlabel("NDCG, validation, seen items left out")
    axes.set_ylabel("category coverage of a list")
    bar = figure.colorbar(dots, ax=axes)
    bar.set_label("share of the tail", color=INK)
    bar.outline.set_visible(False)
    return _png(figure)


def plot_curves(notes: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]], xlabel: str) -> bytes:
    """Figures of a run against the number of its note, a panel each group of names; a figure that a note lacks leaves a gap."""
    figure = Figure(figsize=(6.8, 1.9 * len(panels) + 0.4), dpi=160, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for name, colour in zip(names, PALETTE, strict=False):
            axes.plot([note.get(name, np.nan) for note in notes], color=colour, linewidth=1.8, marker=".", label=name.replace("_", " "))
        axes.set_ylabel(title, color=INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xlabel(xlabel, color=INK)
    return _png(figure)


def _curve(axes: Axes, sweep: Sweep, colour: str) -> None:
    cut = f"@{sweep.k}" if sweep.k else ""
    axes.plot(sweep.betas, sweep.values, color=colour, linewidth=2, marker=".", markersize=5)
    axes.set_ylabel(f"{sweep.name.replace('_', ' ')}{cut}, {sweep.split}", color=colour)
    axes.tick_params(axis="y", colors=colour)


def _note(axes: Axes, place: float, height: float, text: str, colour: str, leftwards: bool = False) -> None:
    """Text just beside a place on the x axis, at a share of the axes' height."""
    offset, side = (-6, "right") if leftwards else (6, "left")
    axes.annotate(text, (place, height), (offset, 0), xycoords=("data", "axes fraction"), textcoords="offset points", color=colour, ha=side)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of width × height inches with one quiet pair of axes."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
