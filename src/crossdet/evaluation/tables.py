"""How numbers stand in the tables of all commands: percent, and tables without lines. No torch."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def percent(value: float | None, digits: int = 1) -> str:
    """A ratio in percent, without the sign; `-` for None and NaN."""
    return "-" if value is None or value != value else f"{100 * value:.{digits}f}"


class LiteralTable(Table):
    """Shows texts as they are: names of classes and datasets may look like rich's markup (`[red]`, `[/x]`)."""

    def add_row(self, *cells: RenderableType | None, **style: Any) -> None:
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **style)


def lineless_table(
    *columns: str, title: str | None = None, left: int = 1, no_wrap: int | None = None, **style: Any
) -> Table:
    """left: so many columns are text, the others are numbers. no_wrap: from this column on no cell is broken into
    lines; None: all may be. style: further arguments of `Table`."""
    shown = None if title is None else Text(title, style="italic")
    table = LiteralTable(title=shown, title_justify="left", box=None, **{"pad_edge": False, **style})
    for place, column in enumerate(columns):
        fixed = no_wrap is not None and place >= no_wrap
        table.add_column(Text(column), justify="left" if place < left else "right", no_wrap=fixed)
    return table
