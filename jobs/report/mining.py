"""What mining did and what it is worth: the figures, plots and page of report_mining."""

from __future__ import annotations

import base64
import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from intently.core.schema import TRUE_INTEREST
from intently.core.workspace import Artifact, Workspace
from intently.interests.outcomes import Measured, hits_of_tags, interests_of_items, quality_of_interests
from intently.llm.encoder import EncoderConfig, TextEncoder

from report.people import Period, Wish, choose_people, read_path
from report.plots import plot_bars, plot_path

STAGES = ("item_name", "item_interest", "user_interest", "tag", "explanation", "interest_verdict")
COUNTED = ("questions", "valid", "repairs", "reused", "prompt_tokens", "completion_tokens", "cost", "seconds")
TEXTS = ["item_id", "title", "category", "categories", "brand", "attributes", "description"]
EXAMPLES = 8
STYLE = (
    "body{font:15px/1.5 system-ui;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#22303c}"
    "table{border-collapse:collapse;margin:.6rem 0}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #e3e8ec;text-align:left;vertical-align:top}td.n{text-align:right;"
    "font-variant-numeric:tabular-nums}img{max-width:100%}h2{margin-top:2rem}"
)
Rows = list[tuple[str | float, ...]]


@dataclass(frozen=True)
class MiningFacts:
    """What the report shows.

    Attributes:
        stages: artifact, rows, refused, then COUNTED.
        models: artifact, model, then COUNTED; jobs that ask several.
        reasons: reason → how many were refused, over all stages, the most frequent first.
        quality: IQ, by what was mined and by which model.
        hits: HR of tags and of what they are compared with.
        notes: further lines.
        examples: heading → rows of examples.
        path: the stretches and interests of the person whose interests moved most; None where nobody's were mined.
    """

    stages: Rows
    models: Rows
    reasons: dict[str, int]
    quality: list[Measured]
    hits: list[Measured]
    notes: list[str]
    examples: dict[str, Rows]
    path: tuple[Sequence[Period], Sequence[Wish]] | None

    def figures(self) -> dict[str, float]:
        """For the manifest."""
        told = {f"iq/{one.name}": one.value for one in self.quality} | {one.name: one.value for one in self.hits}
        return told | {"rejects": float(sum(self.reasons.values()))}


def gather(workspace: Workspace, encoder: EncoderConfig, k: int) -> MiningFacts:
    """Read what stands of the mining artifacts, and measure it where something was held out."""
    standing = {name: workspace.artifact(name) for name in (*STAGES, "item_reading") if workspace.latest_version(name)}
    stages, models, reasons = [], [], Counter[str]()
    for name in STAGES:
        if name not in standing:
            continue
        manifest = standing[name].manifest
        stages.append((name, manifest.rows, manifest.rejects, *(manifest.metrics.get(figure, 0.0) for figure in COUNTED)))
        reasons.update(manifest.reject_reasons)
        asked = sorted({figure.rpartition("/")[0] for figure in manifest.metrics if figure.endswith("/questions")})
        models += [(name, model, *(manifest.metrics[f"{model}/{figure}"] for figure in COUNTED)) for model in asked]
    quality, hits, notes = _measure(workspace, standing, encoder, k)
    path = _path(workspace, standing["user_interest"]) if "user_interest" in standing else None
    return MiningFacts(stages, models, dict(reasons.most_common()), quality, hits, notes, _examples(standing), path)


def _path(workspace: Workspace, mined: Artifact) -> tuple[Sequence[Period], Sequence[Wish]] | None:
    interests = mined.read()
    people = choose_people(interests, interests["user_id"].unique().to_pylist(), 1)
    if not people or not workspace.latest_version("chunk"):
        return None
    chunks = workspace.artifact("chunk", mined.manifest.inputs.get("chunk")).read(columns=["user_id", "chunk", "start", "end"])
    return read_path(people[0], interests, chunks, TRUE_INTEREST.empty())


def _measure(
    workspace: Workspace, standing: Mapping[str, Artifact], encoder: EncoderConfig, k: int
) -> tuple[list[Measured], list[Measured], list[str]]:
    if not all(workspace.latest_version(name) for name in ("history_train", "history_test")):
        return [], [], ["Nothing was held out, so nothing is measured."]
    items = workspace.artifact("item").read(columns=TEXTS)
    train, later = (workspace.artifact(name).read() for name in ("history_train", "history_test"))
    encodes = TextEncoder(encoder)
    quality: list[Measured] = []
    if "user_interest" in standing:
        quality += quality_of_interests(_by_model(standing["user_interest"].read()), later, items, encodes)
    if "item_interest" in standing:
        readings = standing["item_reading"].read()
        models = sorted({model for sources in readings["sources"].to_pylist() for model in sources})
        sets = {f"items, {model}": _of_model(readings, model) for model in models}
        if len(models) > 1:
            sets["items, ensemble"] = standing["item_interest"].read()
        quality += quality_of_interests({name: interests_of_items(said, train) for name, said in sets.items()}, later, items, encodes)
    if "tag" not in standing:
        return quality, [], []
    hits, distinct = hits_of_tags(standing["tag"].read(), train, later, items, k)
    return quality, hits, [f"A user's first {k} tags name {distinct:.1f} different categories on average."]


def _by_model(interests: pa.Table) -> dict[str, pa.Table]:
    models = sorted(set(interests["model"].to_pylist()))
    return {f"users, {model}": interests.filter(pc.equal(interests["model"], model)) for model in models}


def _of_model(readings: pa.Table, model: str) -> pa.Table:
    return readings.filter(pa.array([model in sources for sources in readings["sources"].to_pylist()], pa.bool_()))


def _examples(standing: Mapping[str, Artifact]) -> dict[str, Rows]:
    shown = {
        "item_interest": ("item_id", "interest", "confidence", "support", "sources"),
        "user_interest": ("user_id", "chunk", "interest", "stage", "reason", "evidence"),
        "tag": ("user_id", "tag", "interest", "category", "reason"),
        "interest_verdict": ("subject", "criterion", "label", "reason", "judge"),
    }
    found: dict[str, Rows] = {}
    for name, columns in shown.items():
        if name in standing:
            rows = standing[name].read(columns=columns)
            picked = rows.take(pa.array(range(0, rows.num_rows, max(1, rows.num_rows // EXAMPLES))[:EXAMPLES], pa.int64())).to_pylist()
            found[name] = [columns, *(tuple(_said(row[column]) for column in columns) for row in picked)]
    for name, artifact in standing.items():
        refused = artifact.rejects().select(["row", "reason", "detail"]).slice(0, EXAMPLES).to_pylist()
        if refused:
            found[f"refused: {name}"] = [("row", "reason", "detail"), *(tuple(row.values()) for row in refused)]
    return found


def draw(facts: MiningFacts) -> dict[str, bytes]:
    """File name → PNG, for what there is to draw."""
    plots = {}
    if facts.reasons:
        plots["rejects.png"] = plot_bars({name: float(count) for name, count in list(facts.reasons.items())[:14]}, "refused")
    if facts.stages:
        written = COUNTED.index("completion_tokens") + 3
        plots["tokens.png"] = plot_bars({str(row[0]): float(row[written]) for row in facts.stages}, "tokens written")
    if facts.quality:
        plots["iq.png"] = plot_bars({one.name: one.value for one in facts.quality}, "interest quality (mean cosine with later items)")
    if facts.hits:
        plots["hits.png"] = plot_bars({one.name: one.value for one in facts.hits}, "share of users whose next category is named")
    if facts.path:
        plots["path.png"] = plot_path(*facts.path)
    return plots


def summarise(facts: MiningFacts) -> str:
    """The figures as text."""
    lines = [f"{row[0]}: {row[1]:,.0f} rows, {row[2]:,.0f} refused" for row in facts.stages if not isinstance(row[1], str)]
    lines += [f"IQ {one.name}: {one.value:.4f} ({one.low:.4f} to {one.high:.4f}), {one.num_users} users" for one in facts.quality]
    lines += [f"{one.name}: {one.value:.4f} ({one.low:.4f} to {one.high:.4f}), {one.num_users} users" for one in facts.hits]
    return "\n".join([*lines, *facts.notes])


def page(facts: MiningFacts, plots: Mapping[str, bytes]) -> str:
    """The page, with its plots inside."""
    measured = [(one.name, one.value, one.low, one.high, one.num_users) for one in (*facts.quality, *facts.hits)]
    parts = ["<h1>Mining</h1>", "<h2>Stages</h2>", _table([("artifact", "rows", "refused", *COUNTED), *facts.stages])]
    if facts.models:
        parts += ["<h2>Models</h2>", _table([("artifact", "model", *COUNTED), *facts.models])]
    parts += ["<h2>Refused</h2>", _table([("reason", "rows"), *facts.reasons.items()])]
    if measured:
        parts += ["<h2>Against what people did later</h2>", _table([("measured", "mean", "95 % from", "to", "users"), *measured])]
    parts += [f"<p>{html.escape(note)}</p>" for note in facts.notes]
    for name, png in plots.items():
        parts.append(f'<p><img alt="{name.removesuffix(".png")}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>')
    for name, rows in facts.examples.items():
        parts += [f"<h2>{html.escape(name)}</h2>", _table(rows)]
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Mining</title><style>{STYLE}</style>{"".join(parts)}</html>\n'


def _table(rows: Sequence[Sequence[str | float]]) -> str:
    head, *others = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(str(cell).replace('_', ' '))}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in others]
    return f"<table>{''.join(lines)}</table>"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    if math.isnan(value):
        return "<td></td>"
    return f'<td class="n">{value:,.0f}</td>' if value == int(value) else f'<td class="n">{value:,.4g}</td>'


def _said(value: object) -> str | float:
    match value:
        case list():
            return ", ".join(map(str, value))
        case int() | float():
            return value
        case _:
            return "" if value is None else str(value)
