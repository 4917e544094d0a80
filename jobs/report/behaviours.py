"""What compression does to whole lives: figures, plots and the page of report_behaviours."""

from __future__ import annotations

import html

import numpy as np
import pyarrow as pa

from report.plots import plot_histogram, plot_lives

BUDGETS = {"8k": 8_192, "32k": 32_768, "128k": 131_072}
STEPS = {"raw": "one line an event, full titles", "named": "short names", "compressed": "short names, shared lines"}
PAPER = {"raw": 0.88, "compressed": 0.98}
"""RecGPT §2.1.1: users of Taobao, 37,000 behaviours each on average, within 128k tokens."""


def figures_of(measured: pa.Table) -> dict[str, float]:
    """Rows of coverage.CoverageMeter → figures; users without an event that counts are left out."""
    columns = {name: measured[name].to_numpy() for name in measured.column_names if name != "user_id"}
    acting = columns["reliable"] > 0
    columns = {name: values[acting] for name, values in columns.items()}
    events = max(int(columns["reliable"].sum()), 1)
    figures = {
        "users": float(acting.sum()),
        "events": float(columns["events"].sum()),
        "events_that_count": float(columns["reliable"].sum()),
        "events_per_user": float(columns["events"].mean()) if acting.any() else 0.0,
        "events_per_user_max": float(columns["events"].max(initial=0)),
    }
    for step in STEPS:
        figures[f"tokens_per_event_{step}"] = float(columns[step].sum()) / events
        for name, budget in BUDGETS.items():
            figures[f"coverage_{name}_{step}"] = float((columns[step] <= budget).mean()) if acting.any() else 0.0
    figures["token_reduction"] = 1 - figures["tokens_per_event_compressed"] / max(figures["tokens_per_event_raw"], 1e-9)
    figures["users_trimmed"] = float((columns["fitting"] < columns["reliable"]).sum())
    figures["events_trimmed"] = float((columns["reliable"] - columns["fitting"]).sum())
    return figures


def summarise(figures: dict[str, float], tokenizer: str) -> str:
    """The figures as text, the paper's beside them."""
    lines = [
        f"{figures['users']:,.0f} users, {figures['events']:,.0f} events ({figures['events_per_user']:,.0f} a user, at most "
        f"{figures['events_per_user_max']:,.0f}), {figures['events_that_count']:,.0f} of them count; tokens by {tokenizer}",
        f"{'whole life as text':<32} {'tokens/event':>12} " + " ".join(f"{f'fit {name}':>9}" for name in BUDGETS) + f" {'paper 128k':>11}",
    ]
    for step, said in STEPS.items():
        shares = " ".join(f"{figures[f'coverage_{name}_{step}']:>9.1%}" for name in BUDGETS)
        paper = f"{PAPER[step]:.0%}" if step in PAPER else ""
        lines.append(f"{said:<32} {figures[f'tokens_per_event_{step}']:>12.2f} {shares} {paper:>11}")
    lines.append(
        f"tokens saved: {figures['token_reduction']:.1%}; users trimmed to the budget: {figures['users_trimmed']:,.0f}, "
        f"{figures['events_trimmed']:,.0f} events, weak and old ones first"
    )
    return "\n".join(lines)


def draw(measured: pa.Table) -> dict[str, bytes]:
    """File name → PNG."""
    acting = measured.filter(pa.array(measured["reliable"].to_numpy() > 0))
    tokens = {said: acting[step].to_numpy() for step, said in STEPS.items()}
    saved = 100 * (1 - acting["compressed"].to_numpy() / np.maximum(acting["raw"].to_numpy(), 1))
    return {
        "tokens.png": plot_lives(tokens, BUDGETS),
        "events.png": plot_histogram(acting["events"].to_numpy(), "events of a user", "users"),
        "saved.png": plot_histogram(np.round(saved), "tokens saved of a user, %", "users"),
    }


def page(summary: str, plots: dict[str, bytes]) -> str:
    """The page; plots lie beside it."""
    images = "\n".join(f'<p><img src="{name}" alt="{name.removesuffix(".png")}"></p>' for name in plots)
    style = "body{font:15px/1.5 system-ui;max-width:56rem;margin:2rem auto;padding:0 1rem}pre{overflow-x:auto}img{max-width:100%}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Behaviours</title><style>{style}</style>'
        f"<h1>Lifelong behaviours as text</h1><pre>{html.escape(summary)}</pre>\n{images}</html>\n"
    )
