"""What `crossdet score` prints: a table in percent, and a line for each thing that a reader must know."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from crossdet.evaluation import tables

out = Console(emoji=False)  # a class or path with `:car:` in it is printed as it is


def percent(value: float) -> str:
    return tables.percent(value, 2)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, the others are numbers."""
    out.print(escape(title), highlight=False, soft_wrap=True)
    table = tables.lineless_table(*columns, no_wrap=1)
    for row in rows:
        table.add_row(*row)
    out.print(table, highlight=False)


def print_line(text: str) -> None:
    out.print(escape(text), highlight=False, soft_wrap=True)
