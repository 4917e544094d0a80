"""The page in a real browser: choose a person, read them, move the slider, press a button, and find the event in the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from serve.events import read_events

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


def test_page_feedback_is_an_event_in_the_log(page: Page, event_log: Path) -> None:
    button = page.get_by_role("button", name="favourite: folding camp stove")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#status")).to_have_text("Stored: favourite")
    button.click()
    expect(page.locator("#status")).to_have_text("Stored already")
    (event,) = [event for event in read_events(event_log) if event["event_id"].startswith("page-")]
    assert (event["user_id"], event["item_id"], event["behaviour"]) == ("ada", "i03", "favourite")
    assert event["request_id"]


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


def test_page_fits_a_phone_without_sideways_scrolling(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 900})


def test_page_every_control_has_a_name_and_every_picture_an_alternative(page: Page) -> None:
    unnamed = "els => els.filter(el => !(el.ariaLabel || el.textContent.trim() || (el.labels && el.labels.length))).map(el => el.outerHTML)"
    assert page.locator("button, input").evaluate_all(unnamed) == []
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("h1, main, header, footer, [role=search]").count() == 5


def test_page_unknown_person_says_so(browser_pages: Page, address: str) -> None:
    browser_pages.goto(f"{address}?user=nobody")
    expect(browser_pages.get_by_role("alert")).to_have_text("user_id = 'nobody': no such user")
