"""The pages in a real browser: choose a person, read them, move the slider, press a button and see what follows, watch the console."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from intently.core.workspace import Workspace
from playwright.sync_api import Page, expect, sync_playwright

from serve.app import create_app
from serve.auth import make_key
from serve.events import read_events
from serve.service import Service
from tests.serve.calling import config, listening

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser_pages() -> Iterator[Page]:
    """One page, which fails the test on any error in its script or console."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page.set_default_timeout(60_000)
        # Other tests may use the same two cores.
        expect.set_options(timeout=60_000)
        yield page
        browser.close()


@pytest.fixture
def page(browser_pages: Page, address: str) -> Iterator[Page]:
    """The page, opened on the first person."""
    errors: list[str] = []
    browser_pages.on("pageerror", lambda error: errors.append(str(error)))
    browser_pages.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    browser_pages.goto(address)
    expect(browser_pages.locator("#name")).to_have_text("ada")
    yield browser_pages
    assert errors == []


def open_whole(page: Page, url: str) -> None:
    """Open a page and wait until it has drawn what it fetches."""
    page.goto(url)
    expect(page.locator(".card, .tile, .operation").first).to_be_visible()


def items(page: Page) -> list[str]:
    """Item ids of the cards in their order."""
    return page.locator("#recommended .card").evaluate_all("cards => cards.map(card => card.dataset.item)")


def test_page_shows_history_interests_tags_and_items_with_reasons(page: Page) -> None:
    months = page.locator("#timeline h3")
    expect(months).to_have_text(["April 2025", "March 2025", "February 2025", "January 2025"])
    expect(page.locator("#timeline li.search")).to_contain_text("rain jacket")
    expect(page.locator("#timeline li.click")).to_have_count(0)
    page.get_by_label("hide clicks and impressions").uncheck()
    expect(page.locator("#timeline li.click")).to_have_count(1)

    rows = page.locator("#river tbody tr")
    expect(rows).to_have_count(3)
    expect(page.get_by_role("row", name="hiking in wet weather").get_by_role("button")).to_have_text(
        ["✦ active, new; why?", "● fading, continued; why?"]
    )
    expect(page.locator("#tags li")).to_have_count(2)
    expect(page.locator("#attributes")).to_contain_text("climate: rainy")

    stove = page.locator('.card[data-item="i03"]')
    expect(stove).to_contain_text("Boils water quickly on a wet hike, and folds flat.")
    expect(stove.locator(".interest")).to_have_text("hiking in wet weather")
    assert stove.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    expect(page.locator('.card[data-item="i07"]')).to_contain_text("(for anybody)")


def test_page_interest_opens_with_its_evidence_by_keyboard(page: Page) -> None:
    cell = page.get_by_role("row", name="running on trails").get_by_role("button")
    cell.focus()
    page.keyboard.press("Enter")
    expect(cell).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#why")).to_contain_text("Read from: trail running vest")
    expect(page.locator("#why .branch")).to_have_text(
        [
            "Reading 0, kept: hiking in wet weather · running on trails (foretells 0.71, in all 0.71)",
            "Reading 1, not kept: walking dogs (foretells 0.38, in all 0.38)",
        ]
    )
    page.keyboard.press("Enter")
    expect(page.locator("#why")).to_be_hidden()


def test_page_slider_ranks_the_list_again(page: Page) -> None:
    slider = page.get_by_role("slider")
    expect(page.locator("#beta-value")).to_have_text("behaviour to 50 %")
    orders = []
    for value in ("0", "1"):
        slider.fill(value)
        expect(page.locator("#beta-value")).to_have_text(f"behaviour to {int(value) * 100} %")
        orders.append(items(page))
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    expect(page.locator("#status")).to_contain_text("items changed their place")
    slider.press("ArrowLeft")
    expect(page.locator("#beta-value")).to_have_text("behaviour to 95 %")


def sent(event_log: Path, user: str) -> list[tuple[str, str, float | None]]:
    """What the page reported of a person: item, behaviour, stars."""
    mine = [event for event in read_events(event_log) if event["event_id"].startswith("page-") and event["user_id"] == user]
    assert all(event["request_id"] for event in mine)
    return [(event["item_id"], event["behaviour"], event["value"]) for event in mine]


def test_page_feedback_takes_the_item_off_the_list_and_ranks_the_rest_again(page: Page, address: str, event_log: Path) -> None:
    page.goto(f"{address}?user=bob")
    expect(page.locator("#name")).to_have_text("bob")
    expect(page.locator("#facts div").last).to_have_text("stretches read1")
    expect(page.locator("#visit")).to_be_hidden()
    before = items(page)
    liked, disliked = page.locator(f'.card[data-item="{before[0]}"]'), page.locator(f'.card[data-item="{before[2]}"]')
    liked.get_by_role("button", name="More like this").click()
    expect(liked).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("It left the list")
    after = items(page)
    assert sorted(after) == sorted(before[1:])
    disliked.get_by_role("button", name="Not for me").click()
    expect(disliked).to_have_count(0)
    expect(page.locator("#visit-acts li")).to_have_count(2)
    expect(page.locator("#visit-acts li").first).to_contain_text("Not for me:")
    assert sent(event_log, "bob") == [(before[0], "favourite", None), (before[2], "rating", 1.0)]
    # The effect is the service's, not the page's: opened anew, both stay away.
    page.reload()
    expect(page.locator("#name")).to_have_text("bob")
    expect(page.locator("#recommended .card")).to_have_count(len(before) - 2)
    assert not {before[0], before[2]} & set(items(page))


def test_page_feedback_by_keyboard_goes_on_at_the_next_item(page: Page, address: str) -> None:
    page.goto(f"{address}?user=bob")
    expect(page.locator("#name")).to_have_text("bob")
    before = items(page)
    page.locator(f'.card[data-item="{before[1]}"]').get_by_role("button", name="Buy").focus()
    page.keyboard.press("Enter")
    expect(page.locator(f'.card[data-item="{before[1]}"]')).to_have_count(0)
    expect(page.locator("#status")).to_contain_text("Bought:")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("Buy: ")


def test_page_person_can_be_chosen_and_kept_in_the_address(page: Page, address: str) -> None:
    page.get_by_label("Person", exact=True).fill("bob")
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("bob")
    expect(page.locator("#river")).to_contain_text("watching birds")
    assert page.url == f"{address}?user=bob"
    page.get_by_role("button", name="Next person").click()
    expect(page.locator("#name")).to_have_text("cyd")
    expect(page.locator("#river")).to_contain_text("No interests have been read from this history yet.")
    assert items(page)


@pytest.mark.parametrize("path", ["", "console", "docs"])
@pytest.mark.parametrize("width", [390, 360])
def test_page_fits_a_phone_without_sideways_scrolling(page: Page, address: str, path: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_whole(page, f"{address}{path}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if not path:
        boxes = [button.bounding_box() for button in page.locator(".feedback button").all()]
        assert boxes and all(box is not None and box["height"] >= 44 for box in boxes), "a thumb needs room"
    page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("path", ["", "console", "docs"])
def test_page_every_control_has_a_name_and_every_picture_an_alternative(page: Page, address: str, path: str) -> None:
    open_whole(page, f"{address}{path}")
    unnamed = "els => els.filter(el => !(el.ariaLabel || el.textContent.trim() || (el.labels && el.labels.length))).map(el => el.outerHTML)"
    assert page.locator("button, input").evaluate_all(unnamed) == []
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("h1, main, header").count() == 3
    ids = page.locator("[id]").evaluate_all("els => els.map(el => el.id)")
    assert len(ids) == len(set(ids))
    names = ["aria-labelledby", "aria-describedby", "aria-controls"]
    told = "(els, names) => els.flatMap(el => names.map(name => el.getAttribute(name)).filter(Boolean))"
    pointed = page.locator(", ".join(f"[{name}]" for name in names)).evaluate_all(told, names)
    assert set(pointed) <= set(ids)


CONTRAST = """() => {
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const parse = (text) => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(') ? found.map((v, i) => i < 3 ? v * 255 : v) : found;
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const colour = parse(getComputedStyle(el).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const el of document.querySelectorAll('body *')) {
    const own = [...el.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !el.checkVisibility() || el.closest('.hidden, :disabled, .skip')) continue;
    const [a, b] = [light(parse(getComputedStyle(el).color)), light(behind(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${el.tagName} ${el.className} ${el.textContent.trim().slice(0, 30)}`);
  }
  return weak;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_text_stands_out_from_what_is_behind_it(page: Page, address: str, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    for path in ("", "console", "docs"):
        open_whole(page, f"{address}{path}")
        assert page.evaluate(CONTRAST) == [], path
    page.emulate_media(color_scheme="light", reduced_motion="reduce")


def test_console_shows_traffic_latency_answers_and_versions(page: Page, address: str) -> None:
    page.goto(f"{address}console")
    expect(page.locator("#status")).to_have_text("The service answers.")
    expect(page.get_by_role("row", name="/v1/users/{user_id}/recommendations")).to_contain_text("ms")
    expect(page.locator("#stages").get_by_role("row", name="explain")).to_be_visible()
    expect(page.locator("#tables").get_by_role("row", name="explanation_store")).to_be_visible()
    expect(page.locator("#answers").get_by_role("row", name="events written")).to_be_visible()
    expect(page.locator(".tile").first).to_contain_text("Replicas seen")
    count = page.get_by_role("row", name="/readyz").get_by_role("cell").first
    first = count.inner_text()
    expect(count).not_to_have_text(first)  # it goes on looking by itself
    assert page.locator("#traffic polyline").get_attribute("points")


def test_docs_list_every_endpoint_without_a_network(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}docs")
    expect(page.locator("#status")).to_contain_text("endpoints")
    document = page.request.get(f"{address}openapi.json").json()
    endpoints = [f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations]
    expect(page.locator(".operation h3")).to_have_count(len(endpoints) + len(document["components"]["schemas"]))
    headings = page.locator("#operations h3").all_inner_texts()
    assert sorted(headings) == sorted(endpoints)
    assert all(url.startswith(address) for url in asked)


def test_page_asks_for_a_key_and_keeps_it_in_the_tab(browser_pages: Page, served: Workspace, tmp_path: Path) -> None:
    key, entry = make_key("page", ("read", "events", "admin"), 1000.0, 1000)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [json.loads(entry.model_dump_json())]}))
    settings = config(served, tmp_path / "log", access={"keys_file": str(tmp_path / "keys.json")})
    page = browser_pages
    with listening(create_app(Service.open(settings, "r"))) as home:
        page.goto(home)
        expect(page.get_by_role("alert")).to_contain_text("no API key")
        page.get_by_label("This service asks for a key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#name")).to_have_text("ada")
        page.goto(f"{home}/console")
        expect(page.locator("#status")).to_have_text("The service answers.")
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert key in page.evaluate("JSON.stringify(sessionStorage)") and key not in page.content()
        page.goto("about:blank")
