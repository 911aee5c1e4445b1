"""Driving a page in a headless browser."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
TIMEOUT = 20_000


@contextmanager
def open_browser():
    """A headless Chromium; the test is skipped where there is none."""
    from playwright import sync_api as api

    executable = next((path for name in NAMES if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser, url, **options):
    """A page at an address. Leaving it fails if it wrote an error to the console or asked for anything elsewhere."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda seen: None if seen.url.startswith((url, "data:")) else wrong.append(seen.url))
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert wrong == []
