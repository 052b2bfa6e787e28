"""What the tables of several experiments have in common: cells, and tables as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table


def spread(values: Iterable[float], digits: int = 1) -> str:
    """`34.9`, or mean ± standard deviation of several seeds; blank without any."""
    many = list(values)
    if not many:
        return ""
    return f"{mean(many):.{digits}f}" + (f" ± {stdev(many):.{digits}f}" if len(many) > 1 else "")


def machines(runs: Iterable[Mapping[str, Any]]) -> str:
    """What the trainings ran on, from `hardware` of their JSONs: each kind of GPU with its number, or number of CPU
    cores, once."""

    def machine(hardware: Mapping[str, Any]) -> str:
        if hardware.get("gpu"):
            return f"{hardware.get('processes', 1)} x {hardware['gpu']}"
        return f"{hardware.get('cpus', '?')} CPU cores"

    return ", ".join(sorted({machine(run.get("hardware") or {}) for run in runs}))


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines; a `|` in a cell becomes `/`."""

    def line(parts: Iterable[str]) -> str:
        return f"| {' | '.join(part.replace('|', '/') for part in parts)} |"

    return [line(headers), line("---" for _ in headers), *(line(row) for row in rows)]


def rich_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first column is a name and stays on one line; the others are numbers."""
    shown = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(headers):
        shown.add_column(escape(name), justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown
