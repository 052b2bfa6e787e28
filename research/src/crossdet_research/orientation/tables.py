"""The JSONs of `crossdet-research orientation run` as tables: mean and standard deviation over the seeds.

Below the tables stands what makes their lines comparable, or that something does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from crossdet.errors import UserError
from crossdet_research import jobs
from crossdet_research.orientation.queue import DOMAINS, LOOKS_OF, METHODS, ROLLS, TOOL, Method
from crossdet_research.paired import COLUMNS, NOTE, difference
from crossdet_research.tables import machines, rich_table, spread

Run = Mapping[str, Any]
Value = Callable[[Run], float | None]
SHOWN = ("AP", "AP50")
PAIRS = (
    ("rotated", "upright"),
    ("directions", "rotated"),
    ("merged", "per_dataset"),
    ("merged", "per_dataset_open"),
)
"""Methods whose AP50 is compared."""


def read_runs(folder: Path) -> list[Run]:
    """The JSONs of a folder, by method and seed. Raises `UserError` where there is none, or of several configs."""
    found = [jobs.read_json(file) for file in sorted(folder.glob("*_seed*.json"))]
    runs = [run for run in found if run.get("tool") == TOOL]
    if not runs:
        raise UserError(
            f"{folder} holds no result; `crossdet-research orientation run CONFIG --output {folder}` makes them"
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
        columns = _columns(asks, runs)
        lines: list[list[str]] = []
        for method in methods:
            lines.append(_line(method, runs, columns))
            if method.name == LOOKS_OF and (looks := _looks(runs)):
                lines.append(_line(*looks, columns))
        made.append((f"{runs[0]['name']}: {title}", ["method", "seeds", *(name for name, _, _ in columns)], lines))
    return made


def difference_grid(runs: Sequence[Run]) -> tuple[str, list[str], list[list[str]]]:
    """Title, headers and cells of the differences of AP50 between methods; no cells where no pair was run."""
    rows = []
    for a, b in PAIRS:
        asks = next(method.asks for method in METHODS if method.name == a)
        for name, value, factor in _columns(asks, runs):
            of = name.partition("AP50")
            if of[1] and (name == "AP50" or of[2] == ", split"):
                delta = difference(*(_by_seed(runs, method, value, factor) for method in (a, b)))
                if delta is not None:
                    rows.append([f"{a} - {b}", name, *delta.cells])
    return "Differences", ["difference", "of", *COLUMNS], rows


def _by_seed(runs: Sequence[Run], method: str, value: Value, factor: float) -> dict[int, float]:
    mine = [run for run in runs if run["method"] == method and not run["diverged"]]
    return {run["seed"]: factor * v for run in mine if (v := value(run)) is not None}


def _columns(asks: str, runs: Sequence[Run]) -> list[tuple[str, Value, float]]:
    return _roll_columns(runs) if asks == ROLLS else _domain_columns(runs)


def _looks(runs: Sequence[Run]) -> tuple[Method, list[Run]] | None:
    """What was measured with several looks at a picture, as a method of its own and its runs; None without any."""
    made = [run for run in runs if run.get("looks")]
    if not made:
        return None
    counts = sorted({row["looks"] for run in made for row in run["looks"].values()})
    number = " or ".join(map(str, counts))
    method = Method("looks", f"upright, {number} looks ({number} x inference)", ROLLS)
    return method, [{**run, "method": method.name, "datasets": run["looks"]} for run in made]


def _line(method: Method, runs: Sequence[Run], columns: Sequence[tuple[str, Value, float]]) -> list[str]:
    mine = [run for run in runs if run["method"] == method.name]
    good = [run for run in mine if not run["diverged"]]
    seeds = f"{len(good)}" + (f" ({len(mine) - len(good)} diverged)" if len(good) < len(mine) else "")
    cells = [spread(factor * v for run in good if (v := value(run)) is not None) for _, value, factor in columns]
    return [method.title, seeds, *cells]


def _roll_columns(runs: Sequence[Run]) -> list[tuple[str, Value, float]]:
    degrees = sorted({int(d) for run in runs for row in _rows(run) for d in row["rolls"]})
    return [
        ("AP", _mean("AP"), 100),
        ("AP50", _mean("AP50"), 100),
        *((f"AP50 at {d}°", _mean("rolls", str(d), "AP50"), 100) for d in degrees),
        ("found %", _mean("found", "share"), 100),
        ("direction right, of found %", _mean("orientation", "accuracy"), 100),
        ("mean error °", _mean("orientation", "mean_error"), 1),
        ("found at 0.3 %", _mean("found", "confident"), 100),
        ("direction right, of found at 0.3 %", _mean("orientation", "confident", "accuracy"), 100),
    ]


def _domain_columns(runs: Sequence[Run]) -> list[tuple[str, Value, float]]:
    names = list(dict.fromkeys(name for run in runs for name in run["datasets"] or {}))
    columns: list[tuple[str, Value, float]] = [("AP", _mean("AP"), 100), ("AP50", _mean("AP50"), 100)]
    for name in names:
        columns += [(f"{name} {key}", _of(name, key), 100) for key in SHOWN]
        split = [c for c in split_classes(runs) if any(c in _per_class(run, name) for run in runs)]
        columns += [(f"{name} {key}, split", _of_classes(name, key, split), 100) for key in SHOWN if split]
    return columns


def split_classes(runs: Sequence[Run]) -> list[str]:
    """The classes that `labels.per_dataset` splits, by the name of them all."""
    return sorted({name for run in runs for name in run.get("split_classes", ())})


def _per_class(run: Run, dataset: str) -> Mapping[str, Any]:
    row = (run["datasets"] or {}).get(dataset) or {}
    return row.get("per_class") or {}


def _of_classes(dataset: str, key: str, names: Sequence[str]) -> Value:
    """The mean over some classes of a dataset."""
    return lambda run: _average(_at(_per_class(run, dataset), (name, key)) for name in names)


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


# ------------------------------------------------------------------------------------------- comparable


def notes(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """(what a reader must know, what makes the lines of the tables incomparable)."""
    said, wrong = [], []
    if names := split_classes(runs):
        said.append(f"split: mean over the classes of `labels.per_dataset` alone ({', '.join(names)}).")
    steps: dict[int, list[str]] = {}
    for run in runs:
        if run["steps"] and not run["diverged"]:
            steps.setdefault(run["steps"], []).append(_title(run))
    if len(steps) == 1:
        said.append(f"Optimiser steps of every training: {next(iter(steps))}.")
    elif steps:
        groups = "; ".join(f"{count}: {', '.join(titles)}" for count, titles in sorted(steps.items()))
        wrong.append(f"OPTIMISER STEPS DIFFER, the lines cannot be compared. {groups}.")
    for run in runs[1:]:
        changed = list(jobs.differences(_common(runs[0]), _common(run)))
        if changed:
            wrong.append(
                f"SETTINGS DIFFER between {_title(runs[0])} and {_title(run)}, the lines cannot be compared: "
                f"{', '.join(changed)}."
            )
    return said, wrong


def _title(run: Run) -> str:
    return f"{run['method']} (seed {run['seed']})"


def _common(run: Run) -> dict[str, Any]:
    """The config without what methods and seeds differ in; `directions` only where the method has none."""
    config = deepcopy(dict(run["config"]))
    config.pop("seed", None)
    for key in ("per_dataset", "open_members"):
        config.get("labels", {}).pop(key, None)
    for dataset in config.get("datasets", {}).values():
        for key in ("direction_classes", "val_directions"):
            dataset.pop(key, None)
        if dataset.get("directions") is None:
            dataset.pop("directions", None)
    return config


# ------------------------------------------------------------------------------------------- showing


def rich_tables(runs: Sequence[Run]) -> list[Table]:
    return [rich_table(*grid) for grid in _with_differences(runs)]


def _with_differences(runs: Sequence[Run]) -> list[tuple[str, list[str], list[list[str]]]]:
    compared = difference_grid(runs)
    return [*grids(runs), *([compared] if compared[2] else [])]


def markdown(runs: Sequence[Run]) -> str:
    parts = []
    for title, headers, lines in _with_differences(runs):
        rule = "|".join(["---", *("---:" for _ in headers[1:])])
        rows = [f"| {' | '.join(line)} |" for line in lines]
        parts.append("\n".join([f"**{title}**", "", f"| {' | '.join(headers)} |", f"|{rule}|", *rows]))
    parts += [f"({NOTE})"] if difference_grid(runs)[2] else []
    said, wrong = notes(runs)
    parts += [f"**{line}**" for line in wrong]
    times = [run["seconds"] / 60 for run in runs if run.get("seconds")]
    said += [f"{mean(times):.1f} minutes per training."] if times else []
    parts.append(" ".join([*said, f"Hardware: {machines(runs)}."]))
    return "\n\n".join(parts) + "\n"
