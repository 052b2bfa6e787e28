"""Chromium of the distribution, for tests of pages; without it they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ALL_PICTURES = "[...document.images].map(one => one.complete && one.naturalWidth > 0)"
FITS = "document.documentElement.scrollWidth <= window.innerWidth"
PHONE = {"viewport": {"width": 390, "height": 800}}
CUT_ON_PAPER = (
    "[...document.querySelectorAll('.scroll')].filter(one => getComputedStyle(one).overflowX !== 'visible').length"
)


@contextmanager
def open_tab(**context: Any) -> Iterator[tuple[Any, list[str]]]:
    """A tab of a browser with a camera, and what went wrong in it so far: errors in its console and of its scripts,
    and dialogs. context: of Playwright's `new_context`, such as a phone's `viewport`."""
    api = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    names = ("chromium", "chromium-browser", "google-chrome")
    file = next(filter(None, map(shutil.which, names)), None)
    if file is None:
        pytest.skip("needs Chromium")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=file, args=["--no-sandbox", *camera])
        tab = browser.new_context(permissions=["camera"], **context).new_page()
        errors: list[str] = []
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("dialog", lambda dialog: errors.append(dialog.message))
        yield tab, errors
        browser.close()


def opened(page: Path, least: int) -> str:
    """What a page shows as text on a phone; it has at least so many pictures, and on paper no table is cut."""
    with open_tab(**PHONE) as (tab, errors):
        tab.goto(page.as_uri())
        loaded = tab.evaluate(ALL_PICTURES)
        assert len(loaded) >= least
        assert all(loaded)
        assert tab.evaluate(FITS)
        text: str = tab.inner_text("body")
        tab.emulate_media(media="print")
        assert tab.evaluate(CUT_ON_PAPER) == 0
        assert not any(one.is_visible() for one in tab.query_selector_all(".screen"))
        assert errors == []
    return text
