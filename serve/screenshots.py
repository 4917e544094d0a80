"""Pictures of the pages for the documents, taken from a running service with a real browser.

    PYTHONPATH=platform:. python -m serve.screenshots --address http://127.0.0.1:8000 --out docs

Writes page.png, page-phone.png, console.png and console-phone.png, of few colours, so that they stay small. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
SIZES = {"": (1280, 1500), "-phone": (390, 1300)}
COLOURS = 200


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.screenshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", default="http://127.0.0.1:8000", help="root of the service (default: %(default)s)")
    parser.add_argument("--out", default="docs", help="folder (default: %(default)s)")
    parser.add_argument("--person", help="whose page; the first one if left out")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for suffix, (width, height) in SIZES.items():
            for name in ("page", "console"):
                path = Path(options.out) / f"{name}{suffix}.png"
                page = _opened(browser, width, height)
                address = options.address.rstrip("/")
                if name == "page":
                    _show_person(page, f"{address}/?user={options.person}" if options.person else address)
                else:
                    _show_console(page, f"{address}/console")
                _save(page.screenshot(), path)
                page.close()
                print(f"{path}: {path.stat().st_size // 1024} KB")
        browser.close()


def _opened(browser: Browser, width: int, height: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce", color_scheme="light", bypass_csp=True)
    page.set_default_timeout(60_000)
    return page


def _show_person(page: Page, address: str) -> None:
    """A person's page, opened at one interest."""
    page.goto(address, wait_until="networkidle")
    page.locator("#river td button").first.click()
    page.evaluate("window.scrollTo(0, 0); document.querySelector('#interests .scroll').scrollLeft = 0")


def _show_console(page: Page, address: str) -> None:
    """The console after it has looked a few times."""
    page.goto(address)
    page.wait_for_function("document.querySelector('#traffic polyline')?.getAttribute('points').split(' ').length > 5")


def _save(picture: bytes, path: Path) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
