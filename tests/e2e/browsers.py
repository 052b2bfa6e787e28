"""Chromium of the distribution, for tests of pages; without it they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


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
