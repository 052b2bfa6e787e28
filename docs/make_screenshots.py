"""Takes the pictures of pages in the documents: `docs/images/report.jpg` and `docs/images/serve.jpg`.

    crossdet report RUN
    crossdet serve RUN --port 8080 &
    python docs/make_screenshots.py RUN PICTURE [--server http://127.0.0.1:8080]

Needs `pip install playwright` and Chromium of the distribution.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"


def save(tab: Page, name: str) -> None:
    Image.open(io.BytesIO(tab.screenshot())).convert("RGB").save(IMAGES / name, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--server", default="http://127.0.0.1:8080")
    args = parser.parse_args()
    browser_file = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 1400})
        tab.goto((args.run / "report.html").absolute().as_uri())
        save(tab, "report.jpg")
        tab.set_viewport_size({"width": 1000, "height": 620})
        tab.goto(args.server)
        tab.wait_for_selector("#classes label")
        tab.set_input_files("#file", str(args.picture))
        tab.locator("figcaption").last.filter(has_text=" ms").wait_for()
        save(tab, "serve.jpg")
        browser.close()


if __name__ == "__main__":
    main()
