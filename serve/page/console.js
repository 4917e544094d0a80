// The console: figures of the replicas, read from /metrics every two seconds. A request is answered by one replica; each is remembered by its
// name, and the sums are over those that have answered.

import { acceptKey, at, fail, fetchJson, make, request } from "./api.js";

const EVERY_MS = 2000;
const KEPT_MS = 300_000;
const GONE_MS = 60_000;
const WINDOW_MS = 60_000;
const LINE = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

const seen = new Map();  // replica → [{ time, series }], the newest last
const traffic = [];  // [{ time, rate }]
let healthy = null;

/** Prometheus' text → [{ name, labels, value }]. */
function parse(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (found) series.push({ name: found[1], labels: Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map((label) => [label[1], label[2]])), value: Number(found[3]) });
  }
  return series;
}

async function look() {
  try {
    const [metrics, ready] = await Promise.all([request("metrics").then((response) => response.text()), fetchJson("readyz")]);
    const series = parse(metrics);
    const replica = series.find((one) => one.labels.replica)?.labels.replica;
    const now = Date.now();
    remember(replica, { time: now, series }, now);
    draw(ready.versions, now);
    say(true);
    at("failure").hidden = true;
    return true;
  } catch (error) {
    say(false);
    fail(error);
    return error.status !== 401 && error.status !== 403;
  }
}

function remember(replica, sample, now) {
  const samples = seen.get(replica) ?? [];
  // A replica that started again under its name counts from nothing.
  const last = samples.at(-1);
  seen.set(replica, last && total([sample], "intently_request_seconds_count") < total([last], "intently_request_seconds_count") ? [sample] : [...samples, sample].filter((one) => one.time > now - KEPT_MS));
  for (const [name, kept] of seen) if (kept.at(-1).time < now - GONE_MS) seen.delete(name);
}

/** Said once when it changes, so that a screen reader is not told the same every two seconds. */
function say(works) {
  if (works !== healthy) at("status").textContent = works ? "The service answers." : "The service does not answer.";
  healthy = works;
}

const chosen = (samples, name, labels = {}) => samples.flatMap((sample) => sample.series.filter((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value)));
const total = (samples, name, labels = {}) => chosen(samples, name, labels).reduce((sum, one) => sum + one.value, 0);
const latest = () => [...seen.values()].map((samples) => samples.at(-1));
const valuesOf = (samples, name, label) => [...new Set(chosen(samples, name).map((one) => one.labels[label]))].sort();

/** Of each replica the newest sample and the one of a minute before it. */
function spans() {
  return [...seen.values()].map((samples) => {
    const last = samples.at(-1);
    return [samples.find((one) => one.time >= last.time - WINDOW_MS), last];
  });
}

const grown = (name, labels = {}) => spans().reduce((sum, [first, last]) => sum + total([last], name, labels) - total([first], name, labels), 0);

function ratePerSecond(name, labels = {}) {
  return spans().reduce((sum, [first, last]) => sum + (last.time > first.time ? (1000 * (total([last], name, labels) - total([first], name, labels))) / (last.time - first.time) : 0), 0);
}

/** A quantile of a histogram over the last minute, or since the start where nothing happened in it; in milliseconds. */
function quantile(name, labels, share) {
  const bounds = [...new Set(chosen(latest(), `${name}_bucket`, labels).map((one) => one.labels.le))].map((le) => [le === "+Inf" ? Infinity : Number(le), le]).sort((a, b) => a[0] - b[0]);
  const recent = grown(`${name}_count`, labels) > 0;
  const count = (le) => (recent ? grown(`${name}_bucket`, { ...labels, le }) : total(latest(), `${name}_bucket`, { ...labels, le }));
  const counts = bounds.map(([, le]) => count(le));
  const wanted = share * (counts.at(-1) ?? 0);
  const place = counts.findIndex((sum) => sum >= wanted && sum > 0);
  if (place < 0) return null;
  const [low, high] = [place ? bounds[place - 1][0] : 0, bounds[place][0]];
  if (high === Infinity) return 1000 * low;
  const before = place ? counts[place - 1] : 0;
  return 1000 * (low + ((high - low) * (wanted - before)) / Math.max(1, counts[place] - before));
}

const ms = (value) => (value === null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "–");

function draw(versions, now) {
  const samples = latest();
  const rate = ratePerSecond("intently_request_seconds_count");
  traffic.push({ time: now, rate });
  while (traffic[0].time < now - KEPT_MS) traffic.shift();
  const statuses = valuesOf(samples, "intently_request_seconds_count", "status");
  const failed = statuses.filter((status) => status >= "500").reduce((sum, status) => sum + total(samples, "intently_request_seconds_count", { status }), 0);
  const reasons = total(samples, "intently_reasons_total");
  const fallback = total(samples, "intently_reasons_total", { kind: "fallback" });
  const behind = total(samples, "intently_tables_behind") > 0;
  const route = valuesOf(samples, "intently_request_seconds_count", "route").find((name) => name.endsWith("{user_id}/recommendations"));
  tiles([
    ["Replicas seen", whole(seen.size), ""],
    ["Requests a second", rate.toFixed(1), "last minute"],
    ["p95 of recommendations", route ? ms(quantile("intently_request_seconds", { route }, 0.95)) : "–", "last minute"],
    ["Failed (5xx)", percent(failed, total(samples, "intently_request_seconds_count")), "since start"],
    ["Reasons that fit anybody", percent(fallback, reasons), "share of items, since start"],
    ["Tables", behind ? "newer ones wait" : "newest", behind ? "see the log of reloads" : ""],
  ]);
  drawTraffic();
  drawLatencies("routes", "route", "intently_request_seconds");
  drawLatencies("stages", "stage", "intently_stage_seconds");
  drawAnswers(samples, reasons);
  table("tables", ["table", "version"], Object.entries(versions).sort().map(([name, version]) => [name, version]));
}

function tiles(rows) {
  at("tiles").replaceChildren(...rows.map(([name, value, note]) => make("div", { class: "tile" }, make("p", { textContent: name }), make("strong", { textContent: value }), make("small", { textContent: note }))));
}

function drawTraffic() {
  const most = Math.max(1, ...traffic.map((one) => one.rate));
  const [first, last] = [traffic[0].time, traffic.at(-1).time];
  const points = traffic.map((one) => `${(600 * (one.time - first)) / Math.max(1, last - first)},${88 - (84 * one.rate) / most}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  at("traffic").replaceChildren(line);
  at("traffic-range").textContent = `0 to ${most.toFixed(1)}, the last ${Math.round((last - first) / 1000)} s`;
}

function drawLatencies(id, label, name) {
  const rows = valuesOf(latest(), `${name}_count`, label).map((value) => {
    const labels = { [label]: value };
    return [value, whole(total(latest(), `${name}_count`, labels)), ...[0.5, 0.95, 0.99].map((share) => ms(quantile(name, labels, share)))];
  });
  table(id, [label, "count", "p50", "p95", "p99"], rows);
}

function drawAnswers(samples, reasons) {
  const kinds = ["interest", "fallback", "none"].map((kind) => [`items with ${{ interest: "a reason for an interest", fallback: "a reason that fits anybody", none: "no reason" }[kind]}`, "intently_reasons_total", { kind }]);
  const counted = [
    ["answers for known users", "intently_answers_total", { source: "towers" }], ["answers by history", "intently_answers_total", { source: "history" }],
    ["empty answers", "intently_empty_answers_total", {}], ["items that the catalogue does not have", "intently_unknown_candidates_total", {}], ...kinds,
    ["answers whose reasons could not be looked up", "intently_reason_failures_total", {}],
    ["events written", "intently_events_total", { status: "written" }], ["events sent again", "intently_events_total", { status: "duplicate" }],
  ];
  const rows = counted.map(([text, name, labels]) => [text, whole(total(samples, name, labels)), ratePerSecond(name, labels).toFixed(1), name === "intently_reasons_total" ? percent(total(samples, name, labels), reasons) : ""]);
  const [hits, misses] = ["hit", "miss"].map((result) => total(samples, "intently_reason_lookups_total", { result }));
  table("answers", ["what", "since start", "a second", "share"], [...rows, ["items whose reasons were remembered", whole(hits), "", percent(hits, hits + misses)]]);
}

function table(id, heads, rows) {
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", textContent: text }))));
  const body = rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells.map((text) => make("td", { textContent: text }))));
  at(id).replaceChildren(head, make("tbody", {}, ...body));
}

async function watch() {
  if (await look()) setTimeout(watch, EVERY_MS);
}

acceptKey(watch);
watch();
