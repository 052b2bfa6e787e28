"""The JSONs of `crossdet orientation run` as tables: mean and standard deviation over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from crossdet.errors import UserError
from crossdet.experiments import jobs
from crossdet.experiments.orientation import DOMAINS, METHODS, ROLLS, TOOL, Method
from crossdet.experiments.tables import rich_table, spread

Run = Mapping[str, Any]
Value = Callable[[Run], float | None]


def read_runs(folder: Path) -> list[Run]:
    """The JSONs of a folder, by method and seed. Raises `UserError` where there is none, or of several configs."""
    found = [jobs.read_json(file) for file in sorted(folder.glob("*_seed*.json"))]
    runs = [run for run in found if run.get("tool") == TOOL]
    if not runs:
        raise UserError(
            f"{folder} holds no result; `crossdet orientation run CONFIG --output {folder}` makes them"
        )
    names = sorted({run["name"] for run in runs})
    if len(names) > 1:
        raise UserError(f"{folder} holds results of several configs: {', '.join(names)}")
    order = [method.name for method in METHODS]
    return sorted(runs, key=lambda run: (order.index(run["method"]), run["seed"]))


def grids(runs: Sequence[Run]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, headers, cells) of every comparison that was run."""
    made = []
    for asks, title in ((ROLLS, "over all rolls"), (DOMAINS, "one class, several datasets")):
        methods = [m for m in METHODS if m.asks == asks and any(r["method"] == m.name for r in runs)]
        if not methods:
            continue
        columns = _roll_columns(runs) if asks == ROLLS else _domain_columns(runs)
        lines = [_line(method, runs, columns) for method in methods]
        made.append(
            (f"{runs[0]['name']}: {title}", ["method", "seeds", *(name for name, _, _ in columns)], lines)
        )
    return made


def _line(method: Method, runs: Sequence[Run], columns: Sequence[tuple[str, Value, float]]) -> list[str]:
    mine = [run for run in runs if run["method"] == method.name]
    good = [run for run in mine if not run["diverged"]]
    seeds = f"{len(good)}" + (f" ({len(mine) - len(good)} diverged)" if len(good) < len(mine) else "")
    cells = [
        spread(factor * v for run in good if (v := value(run)) is not None) for _, value, factor in columns
    ]
    return [method.title, seeds, *cells]


def _roll_columns(runs: Sequence[Run]) -> list[tuple[str, Value, float]]:
    degrees = sorted({int(d) for run in runs for row in _rows(run) for d in row["rolls"]})
    return [
        ("AP", _mean("AP"), 100),
        ("AP50", _mean("AP50"), 100),
        *((f"AP50 at {d}°", _mean("rolls", str(d), "AP50"), 100) for d in degrees),
        ("direction right %", _mean("orientation", "accuracy"), 100),
        ("of score >= 0.3 %", _mean("orientation", "confident", "accuracy"), 100),
        ("mean error °", _mean("orientation", "mean_error"), 1),
    ]


def _domain_columns(runs: Sequence[Run]) -> list[tuple[str, Value, float]]:
    names = list(dict.fromkeys(name for run in runs for name in run["datasets"] or {}))
    columns: list[tuple[str, Value, float]] = [("AP", _mean("AP"), 100), ("AP50", _mean("AP50"), 100)]
    for name in names:
        columns += [(f"{name} {key}", _of(name, key), 100) for key in ("AP", "AP50")]
    return columns


def _rows(run: Run) -> list[Mapping[str, Any]]:
    """The datasets of a run; those with rolls where there are some."""
    rows = list((run["datasets"] or {}).values())
    return [row for row in rows if row["rolls"]] or rows


def _mean(*keys: str) -> Value:
    """The mean over the datasets that have the number; None without any."""

    def value(run: Run) -> float | None:
        return _average(_at(row, keys) for row in _rows(run))

    return value


def _of(dataset: str, key: str) -> Value:
    return lambda run: _at((run["datasets"] or {}).get(dataset), (key,))


def _at(row: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        row = row.get(key) if isinstance(row, Mapping) else None
    return None if row is None else float(row)


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ------------------------------------------------------------------------------------------- showing


def rich_tables(runs: Sequence[Run]) -> list[Table]:
    return [rich_table(*grid) for grid in grids(runs)]


def markdown(runs: Sequence[Run]) -> str:
    parts = []
    for title, headers, lines in grids(runs):
        rule = "|".join(["---", *("---:" for _ in headers[1:])])
        rows = [f"| {' | '.join(line)} |" for line in lines]
        parts.append("\n".join([f"**{title}**", "", f"| {' | '.join(headers)} |", f"|{rule}|", *rows]))
    machines = sorted({_machine(run) for run in runs})
    steps = sorted({str(run["steps"]) for run in runs if run["steps"]})
    parts.append(f"Optimiser steps: {', '.join(steps)}. {'; '.join(machines)}.")
    return "\n\n".join(parts) + "\n"


def _machine(run: Run) -> str:
    return ", ".join(f"{key} {value}" for key, value in (run["hardware"] or {}).items())
