"""What the studies' command lines have in common: options, the reading of lists, and printing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crossdet.commands.terminal import JsonFile, out, say
from crossdet.errors import UserError

__all__ = ["JsonFile", "out", "say"]

wide = Console(width=max(200, out.width))
"""For tables: a narrow terminal breaks their lines, which is better than to cut names."""

MarkdownFile = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="also write as Markdown")]
FigureFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="where to draw")]
Seeds = Annotated[list[str] | None, typer.Option("--seeds", metavar="N,M", help="default: 0,1,2")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a config value of all trainings")
]
RunsDir = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="where the trainings go (default: DIR/runs)")
]


def words(given: list[str] | None) -> list[str]:
    """The option may be repeated, and each may hold several words: `A,B` or `A B`."""
    return list(dict.fromkeys(word for text in given or [] for word in text.replace(",", " ").split()))


def seed_numbers(given: list[str] | None) -> list[int]:
    """Of `Seeds`. Raises `UserError` for what is no whole number."""
    found = words(given) or ["0", "1", "2"]
    wrong = [word for word in found if not word.isdecimal()]
    if wrong:
        raise UserError(f"--seeds {', '.join(wrong)}: expected whole numbers from 0 on, such as 0,1,2")
    return [int(word) for word in found]


def say_bold(text: str) -> None:
    """For the steps of a queue, among all that the trainings print."""
    say(text, style="bold")
