"""How numbers stand in the tables of all commands: percent, and tables without lines. No torch."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text


def percent(value: float | None, digits: int = 1) -> str:
    """A ratio in percent, without the sign; `-` for None and NaN."""
    return "-" if value is None or value != value else f"{100 * value:.{digits}f}"


def lineless_table(
    *columns: str, title: str | None = None, left: int = 1, no_wrap: int | None = None, **style: Any
) -> Table:
    """left: so many columns are text, the others are numbers. no_wrap: from this column on no cell is broken into
    lines; None: all may be. style: further arguments of `Table`."""
    table = Table(title=title, title_justify="left", box=None, **{"pad_edge": False, **style})
    for place, column in enumerate(columns):
        fixed = no_wrap is not None and place >= no_wrap
        table.add_column(Text(column), justify="left" if place < left else "right", no_wrap=fixed)
    return table
