"""What a page of the documentation shows: its blocks, and whether commands print what stands there."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def plain(text: str) -> str:
    """Without what differs between machines: numbers, and how lines are broken and filled."""
    return " ".join(re.sub(r"\d[\d.,]*", "#", text).split())


def assert_printed(block: str, output: str) -> None:
    """The parts of a block between `...`, in their order."""
    printed, at = plain(output), 0
    for part in block.split("..."):
        place = printed.find(plain(part), at)
        assert place >= 0, f"{part}\nis not printed:\n{output}"
        at = place + len(plain(part))
