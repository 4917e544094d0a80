// The page: one person at a time. Everything shown is fetched from this service; nothing is kept in the browser but the address, and a key
// for as long as the tab is open.

import { acceptKey, at, fail, fetchJson, make } from "./api.js";

const NUM_ITEMS = 24;
const HISTORY_STEP = 200;
const WEAK = new Set(["click", "impression"]);
const MOST_ITEMS = 100;
// What a button says, to the eye and to a screen reader, what it reports, and what is said when it is stored.
const FEEDBACK = [
  { sign: "☆", text: "More like this", report: { behaviour: "favourite" }, done: "More like" },
  { sign: "✕", text: "Not for me", report: { behaviour: "rating", value: 1 }, done: "Not for me:" },
  { sign: "+", text: "Cart", report: { behaviour: "cart" }, done: "In the cart:" },
  { sign: "✓", text: "Buy", report: { behaviour: "purchase" }, done: "Bought:" },
];
const MARKS = { new: "✦", continued: "●", returned: "↺" };

const view = {
  people: [], user: null, beta: null, requestId: null, events: [], order: [], nextOffset: null, run: 0, asked: null, touched: new Set(), visit: [],
};

const ofUser = (what) => `v1/users/${encodeURIComponent(view.user)}/${what}`;
const day = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short", timeZone: "UTC" });
const month = new Intl.DateTimeFormat("en-GB", { month: "long", year: "numeric", timeZone: "UTC" });
const shortMonth = new Intl.DateTimeFormat("en-GB", { month: "short", year: "2-digit", timeZone: "UTC" });
const words = (name) => name.replaceAll("_", " ");

// --- the person -----------------------------------------------------------------------------------------------------------------

async function loadPeople() {
  const { users } = await fetchJson("v1/users?limit=300");
  view.people = users;
  at("people").replaceChildren(...users.map((user) => make("option", { value: user.user_id, label: `${user.num_events} events, ${user.num_interests} interests` })));
  const wanted = new URLSearchParams(location.search).get("user");
  await choose(wanted ?? users[0]?.user_id);
}

async function choose(user) {
  if (!user) return;
  const run = ++view.run;
  at("failure").hidden = true;
  at("status").textContent = `Loading ${user} …`;
  Object.assign(view, { user, beta: null, order: [], events: [], nextOffset: null, touched: new Set(), visit: [] });
  at("person").value = user;
  showVisit();
  try {
    const [history, interests, tags] = await Promise.all([
      fetchJson(ofUser(`history?limit=${HISTORY_STEP}`)), fetchJson(ofUser("interests")), fetchJson(ofUser("tags")), recommend(),
    ]);
    if (run !== view.run) return;
    window.history.replaceState(null, "", `?user=${encodeURIComponent(user)}`);
    showPerson(history, interests);
    showInterests(interests.periods);
    showTags(tags.tags);
    showMonths(history.months);
    addHistory(history, true);
    at("status").textContent = `${user}: ${at("recommended").children.length} items recommended`;
  } catch (error) {
    if (run === view.run) fail(error);
  }
}

function step(by) {
  const place = view.people.findIndex((user) => user.user_id === view.user);
  const next = view.people[(place + by + view.people.length) % view.people.length];
  choose(next?.user_id);
}

function showPerson(history, interests) {
  const known = view.people.find((user) => user.user_id === view.user);
  const distinct = new Set(interests.periods.flatMap((period) => period.interests.map((one) => one.interest)));
  at("name").textContent = view.user;
  document.title = `${view.user} · intently`;
  at("attributes").replaceChildren(...(known?.attributes ?? []).map((text) => make("li", { textContent: text })));
  const read = interests.periods.filter((period) => period.interests.length);
  const facts = [["events", history.total], ["months", history.months.length], ["interests", distinct.size], ["stretches read", read.length]];
  at("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value.toLocaleString("en") }))));
}

// --- interests: a row an interest, a column a stretch of the history --------------------------------------------------------------

function showInterests(periods) {
  at("why").hidden = true;
  if (!periods.some((period) => period.interests.length)) {
    at("river").replaceChildren(make("tbody", {}, make("tr", {}, make("td", { class: "empty", textContent: "No interests have been read from this history yet." }))));
    return;
  }
  const rows = new Map();
  periods.forEach((period, column) => period.interests.forEach((one) => {
    if (!rows.has(one.interest)) rows.set(one.interest, new Array(periods.length).fill(null));
    rows.get(one.interest)[column] = { ...one, branches: period.branches };
  }));
  const last = (cells) => cells.findLastIndex((cell) => cell !== null);
  const ordered = [...rows.entries()].sort(([, a], [, b]) => last(b) - last(a) || a.findIndex(Boolean) - b.findIndex(Boolean));
  const heads = periods.map((period) => make("th", { scope: "col", textContent: spanOf(period) }));
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "interest" }), ...heads));
  const body = make("tbody", {}, ...ordered.map(([interest, cells]) => riverRow(interest, cells)));
  at("river").replaceChildren(make("caption", { class: "hidden", textContent: "Interests by stretch of the history" }), head, body);
}

function riverRow(interest, cells) {
  const columns = cells.map((cell) => {
    if (cell === null) return make("td", {}, make("span", { class: "none" }, make("span", { class: "hidden", textContent: "absent" })));
    const button = make("button", { type: "button", class: `${cell.shift} ${cell.stage}`, "aria-expanded": "false", "aria-controls": "why" },
      make("span", { class: `mark ${cell.shift}`, textContent: `${MARKS[cell.shift] ?? "●"} ` }), cell.stage,
      make("span", { class: "hidden", textContent: `, ${cell.shift}; why?` }));
    button.addEventListener("click", () => explainInterest(button, cell));
    return make("td", {}, button);
  });
  return make("tr", {}, make("th", { scope: "row", textContent: interest }), ...columns);
}

function explainInterest(button, cell) {
  const opens = button.getAttribute("aria-expanded") === "false";
  document.querySelectorAll("#river button").forEach((other) => other.setAttribute("aria-expanded", "false"));
  button.setAttribute("aria-expanded", String(opens));
  at("why").hidden = !opens;
  const titles = cell.evidence.map((item) => item.title ?? item.item_id);
  at("why").replaceChildren(
    make("h3", { textContent: cell.interest }),
    make("p", { textContent: cell.reason }),
    titles.length ? make("p", { class: "evidence", textContent: `Read from: ${titles.join(" · ")}` }) : "",
    ...cell.branches.map(branchLine),
  );
}

function branchLine(branch) {
  const scores = [["continues", branch.s_continuity], ["foretells", branch.s_effectiveness], ["in all", branch.s_final]]
    .filter(([, score]) => score !== null).map(([name, score]) => `${name} ${score.toFixed(2)}`);
  const verdict = branch.chosen ? "kept" : "not kept";
  return make("p", { class: "branch", textContent: `Reading ${branch.path}, ${verdict}: ${branch.interests.join(" · ")}${scores.length ? ` (${scores.join(", ")})` : ""}` });
}

function spanOf(period) {
  if (!period.start) return `stretch ${period.chunk + 1}`;
  const [start, end] = [period.start, period.end].map((moment) => shortMonth.format(new Date(moment)));
  return start === end ? start : `${start} – ${end}`;
}

// --- tags -------------------------------------------------------------------------------------------------------------------------

function showTags(tags) {
  const chips = tags.map((tag) => make("li", { title: tag.reason }, tag.tag, make("small", { textContent: ` · ${tag.interest}` })));
  at("tags").replaceChildren(...(chips.length ? chips : [make("li", { class: "empty", textContent: "No tags have been predicted yet." })]));
}

// --- recommended items --------------------------------------------------------------------------------------------------------------

async function recommend() {
  view.asked?.abort();
  view.asked = new AbortController();
  const beta = view.beta === null ? "" : `&beta=${view.beta}`;
  // What was touched in this visit is left out here as well: another replica may hear of it a moment later.
  const k = Math.min(MOST_ITEMS, NUM_ITEMS + view.touched.size);
  const answer = await fetchJson(ofUser(`recommendations?k=${k}${beta}`), { signal: view.asked.signal });
  if (answer.user_id !== view.user) return 0;
  view.requestId = answer.request_id;
  at("beta").value = answer.beta;
  at("beta-value").textContent = `behaviour to ${Math.round(answer.beta * 100)} %`;
  return showItems(answer.items.filter((one) => !view.touched.has(one.item.item_id)).slice(0, NUM_ITEMS));
}

/** Draws the list; the number of items that are not where they were. */
function showItems(items) {
  const list = at("recommended");
  const positions = new Map([...list.children].map((card) => [card.dataset.item, card.getBoundingClientRect()]));
  const before = new Map(view.order.filter((id) => !view.touched.has(id)).map((id, place) => [id, place]));
  const cards = items.map((one, place) => itemCard(one, place, before.get(one.item.item_id)));
  list.replaceChildren(...(cards.length ? cards : [make("li", { class: "empty", textContent: "Nothing to recommend." })]));
  const moved = view.order.length ? items.filter((one, place) => before.get(one.item.item_id) !== place).length : 0;
  view.order = items.map((one) => one.item.item_id);
  for (const card of list.children) slide(card, positions.get(card.dataset.item));
  return moved;
}

/** Lets a card glide from where it was. */
function slide(card, from) {
  if (!from || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const to = card.getBoundingClientRect();
  if (from.x === to.x && from.y === to.y) return;
  card.animate([{ transform: `translate(${from.x - to.x}px, ${from.y - to.y}px)` }, { transform: "none" }], { duration: 350, easing: "ease" });
}

function itemCard(one, rank, rankBefore) {
  const { item, reason } = one;
  const image = item.image
    ? make("img", { src: item.image, alt: "", loading: "lazy", width: 72, height: 72 })
    : make("span", { class: "blank", "aria-hidden": "true", textContent: item.title.slice(0, 1) });
  const place = make("span", { class: "place", textContent: `${rank + 1}. ` }, moveOf(rank, rankBefore));
  const sub = [item.brand, words(item.category), item.price === null ? null : item.price.toFixed(2)].filter(Boolean).join(" · ");
  const title = make("h3", { textContent: item.title });
  const top = make("div", { class: "top" }, image, make("div", {}, place, title, make("p", { class: "sub", textContent: sub })));
  const interest = one.interest ? make("p", { class: "interest", textContent: one.interest }) : null;
  const why = reason ? make("p", { class: "reason", textContent: reason.text }, reason.fallback ? make("small", { textContent: " (for anybody)" }) : "") : null;
  const card = make("li", { class: "card" }, top, interest, why, feedbackButtons(item));
  card.dataset.item = item.item_id;
  return card;
}

function moveOf(rank, before) {
  if (before === undefined || before === rank) return "";
  const up = rank < before;
  return make("span", { class: up ? "up" : "down", textContent: `${up ? "▲" : "▼"}${Math.abs(rank - before)}` });
}

// --- feedback -----------------------------------------------------------------------------------------------------------------------

function feedbackButtons(item) {
  const buttons = FEEDBACK.map((feedback) => {
    // One id a button: pressing again after a failure repeats the same event instead of making a second one.
    const eventId = freshId();
    const label = `${feedback.text}: ${item.title}`;
    const button = make("button", { type: "button", "aria-label": label }, make("span", { "aria-hidden": "true", textContent: `${feedback.sign} ` }), feedback.text);
    button.addEventListener("click", () => report(button, item, feedback, { event_id: eventId, item_id: item.item_id, ...feedback.report }));
    return button;
  });
  return make("div", { class: "feedback", role: "group", "aria-label": `Feedback on ${item.title}` }, ...buttons);
}

/** Stores what was said of an item; then it leaves the list, and the rest is ranked again. */
async function report(button, item, feedback, event) {
  const user = view.user;
  const body = { ...event, user_id: user, request_id: view.requestId, timestamp: new Date().toISOString() };
  const card = button.closest(".card");
  const [place, which] = [view.order.indexOf(item.item_id), [...button.parentElement.children].indexOf(button)];
  card.querySelectorAll("button").forEach((other) => { other.disabled = true; });
  try {
    await fetchJson("v1/events", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (user !== view.user) return;
    view.touched.add(item.item_id);
    view.visit.unshift(`${feedback.done} ${item.title}`);
    showVisit();
    const moved = await recommend();
    at("status").textContent = `${feedback.done} ${item.title}. It left the list; ${moved} of ${view.order.length} other items changed their place.`;
    // The keyboard stays where it was, on the card that moved up.
    at("recommended").children[Math.min(place, view.order.length - 1)]?.querySelectorAll(".feedback button")[which]?.focus();
  } catch (error) {
    card.querySelectorAll("button").forEach((other) => { other.disabled = false; });
    button.focus();
    fail(error);
  }
}

function showVisit() {
  at("visit").hidden = !view.visit.length;
  at("visit-acts").replaceChildren(...view.visit.map((text) => make("li", { textContent: text })));
}

function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// --- history ------------------------------------------------------------------------------------------------------------------------

function showMonths(months) {
  const most = Math.max(1, ...months.map((one) => one.events));
  const bars = months.map((one) => {
    const bar = make("span", { title: `${month.format(new Date(one.month))}: ${one.events}` });
    bar.style.height = `${(100 * one.events) / most}%`;
    return bar;
  });
  at("months").replaceChildren(...bars);
  at("months").setAttribute("aria-label", `Events by month, ${months.length} months, at most ${most} in one`);
}

function addHistory(history, fresh) {
  view.events = fresh ? history.events : [...view.events, ...history.events];
  view.nextOffset = history.next_offset;
  at("older").hidden = view.nextOffset === null;
  drawTimeline();
}

function drawTimeline() {
  const shown = at("strong").checked ? view.events.filter((event) => !WEAK.has(event.behaviour)) : view.events;
  const months = Map.groupBy(visits(shown), (visit) => month.format(new Date(visit[0].timestamp)));
  const blocks = [...months].flatMap(([name, found]) => [make("h3", { textContent: name }), make("ol", {}, ...found.map(timelineEntry))]);
  at("timeline").replaceChildren(...(blocks.length ? blocks : [make("p", { class: "empty", textContent: "Only clicks and impressions here." })]));
}

/** Events that follow each other on one day and one item, as one entry. */
function visits(events) {
  const found = [];
  for (const event of events) {
    const last = found.at(-1)?.[0];
    const same = last && last.item_id === event.item_id && last.timestamp.slice(0, 10) === event.timestamp.slice(0, 10);
    if (same) found.at(-1).push(event);
    else found.push([event]);
  }
  return found;
}

function timelineEntry(visit) {
  const [newest] = visit;
  const what = newest.item?.title ?? newest.item_id ?? "";
  const acts = [...new Set(visit.toReversed().map(actOf))].join(", ");
  return make("li", { class: visit.map((event) => event.behaviour).join(" ") },
    make("time", { dateTime: newest.timestamp, textContent: day.format(new Date(newest.timestamp)) }),
    make("span", {}, what, make("span", { class: "act", textContent: `${what ? " · " : ""}${acts}` })));
}

function actOf(event) {
  const stars = event.value === null ? "" : ` ${"★".repeat(Math.round(event.value))}`;
  return `${words(event.behaviour)}${event.query ? ` “${event.query}”` : ""}${stars}`;
}

async function older() {
  try {
    addHistory(await fetchJson(ofUser(`history?limit=${HISTORY_STEP}&offset=${view.nextOffset}`)), false);
  } catch (error) {
    fail(error);
  }
}

// --- start --------------------------------------------------------------------------------------------------------------------------

async function showVersions() {
  const { versions } = await fetchJson("readyz");
  at("versions").textContent = Object.entries(versions).map(([name, version]) => `${name}@${version.slice(0, 6)}`).join("  ");
}

function start() {
  loadPeople().catch(fail);
  showVersions().catch(fail);
}

at("chooser").addEventListener("submit", (event) => { event.preventDefault(); choose(at("person").value.trim()); });
at("person").addEventListener("change", () => choose(at("person").value.trim()));
at("person").addEventListener("focus", () => at("person").select());
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
at("older").addEventListener("click", older);
at("strong").addEventListener("change", drawTimeline);
at("beta").addEventListener("input", () => {
  view.beta = at("beta").valueAsNumber;
  recommend().then((moved) => { at("status").textContent = `${moved} of ${view.order.length} items changed their place`; }).catch(fail);
});
acceptKey(start);
start();
