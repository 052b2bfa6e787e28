"""What the tables of all studies have in common: numbers over seeds, as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table

from crossdet.evaluation.tables import lineless_table

Run = Mapping[str, Any]
"""The JSON of one training."""


class Grid(NamedTuple):
    """A table as text. note: what a reader must know."""

    headers: list[str]
    rows: list[list[str]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """One measure. value: of a run; None where it has none. scale: 100 for percent."""

    title: str
    value: Callable[[Run], float | None]
    scale: float = 100.0
    digits: int = 1

    def values(self, runs: Mapping[int, Run]) -> dict[int, float]:
        """Seed -> value, of the runs that have one."""
        found = {seed: self.value(run) for seed, run in runs.items()}
        return {seed: self.scale * value for seed, value in found.items() if value is not None}


def method_row(title: str, runs: Mapping[int, Run], columns: Iterable[Column]) -> list[str]:
    """A method, how many of its seeds there are (`2 (1 diverged)`; blank without any), and its values."""
    lost = sum(bool(run.get("diverged")) for run in runs.values())
    seeds = f"{len(runs) - lost}" + (f" ({lost} diverged)" if lost else "") if runs else ""
    return [title, seeds, *(spread(column.values(runs).values(), column.digits) for column in columns)]


def number_at(row: Any, keys: Sequence[str]) -> float | None:
    """The number that a JSON has below these keys; None where there is none."""
    for key in keys:
        row = row.get(key) if isinstance(row, Mapping) else None
    return None if row is None else float(row)


def average(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None without any."""
    known = [float(value) for value in values if value is not None]
    return mean(known) if known else None


def spread(values: Iterable[float], digits: int = 1) -> str:
    """`34.9`, or mean ± standard deviation of several seeds; blank without any."""
    many = list(values)
    if not many:
        return ""
    return f"{mean(many):.{digits}f}" + (f" ± {stdev(many):.{digits}f}" if len(many) > 1 else "")


def as_json(seeds: Mapping[int, float]) -> dict[str, Any]:
    """The values of the seeds, not rounded, with their mean and standard deviation."""
    many = list(seeds.values())
    deviation = stdev(many) if len(many) > 1 else None
    return {"mean": mean(many) if many else None, "std": deviation, "seeds": dict(seeds)}


def machines(runs: Iterable[Run]) -> str:
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


def markdown_lines(grids: Iterable[Grid]) -> list[str]:
    """Each table below its title, with its note."""
    lines = []
    for grid in grids:
        lines += [f"**{grid.title}**", "", *markdown_table(grid.headers, grid.rows), ""]
        lines += [f"({grid.note})", ""] if grid.note else []
    return lines


def rich_tables(grids: Iterable[Grid], numbers_from: int = 1) -> list[Table]:
    """For the terminal: names on one line; numbers, from a column on, to the right."""
    tables = []
    for grid in grids:
        shown = lineless_table(*grid.headers, title=grid.title, left=numbers_from)
        shown.columns[0].no_wrap = True
        for row in grid.rows:
            shown.add_row(*row)
        tables.append(shown)
    return tables
