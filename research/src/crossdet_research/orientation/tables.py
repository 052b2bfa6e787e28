"""The JSONs of `crossdet-research orientation run` as tables: mean and standard deviation over the seeds.

Below the tables stands what makes their lines comparable, or that something does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import mean
from typing import Any

from crossdet.errors import UserError
from crossdet_research import jobs, study
from crossdet_research.orientation.queue import DOMAINS, LOOKS_OF, METHODS, ROLLS
from crossdet_research.paired import COLUMNS, NOTE, difference
from crossdet_research.tables import Column, Grid, Run, average, machines, markdown_table, method_row, number_at

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
    runs = study.read_results(folder, "*_seed*.json", "orientation", ("tool", "method", "seed", "name"))
    names = sorted({run["name"] for run in runs})
    if len(names) > 1:
        raise UserError(f"{folder} holds results of several configs: {', '.join(names)}")
    order = [method.name for method in METHODS]
    return sorted(runs, key=lambda run: (order.index(run["method"]), run["seed"]))


def grids(runs: Sequence[Run]) -> list[Grid]:
    """A table per comparison that was run, and the differences."""
    made = []
    for asks, title in ((ROLLS, "over all rolls"), (DOMAINS, "one class, several datasets")):
        columns, rows = _columns(asks, runs), []
        for method in METHODS:
            if method.asks == asks and (mine := _of(runs, method.name)):
                rows.append(method_row(method.title, mine, columns))
                if method.name == LOOKS_OF and (looks := _looks(runs)):
                    rows.append(method_row(*looks, columns))
        headers = ["method", "seeds", *(column.title for column in columns)]
        made.append(Grid(headers, rows, f"{runs[0]['name']}: {title}"))
    return [one for one in (*made, difference_grid(runs)) if one.rows]


def difference_grid(runs: Sequence[Run]) -> Grid:
    """Differences of AP50 between methods."""
    rows = []
    for a, b in PAIRS:
        asks = next(method.asks for method in METHODS if method.name == a)
        for column in _columns(asks, runs):
            if column.title == "AP50" or column.title.endswith("AP50, split"):
                delta = difference(*(column.values(_of(runs, method)) for method in (a, b)))
                if delta is not None:
                    rows.append([f"{a} - {b}", column.title, *delta.cells])
    return Grid(["difference", "of", *COLUMNS], rows, "Differences", NOTE)


def _of(runs: Sequence[Run], method: str) -> dict[int, Run]:
    """Seed -> run of the method."""
    return {run["seed"]: run for run in runs if run["method"] == method}


def _columns(asks: str, runs: Sequence[Run]) -> list[Column]:
    return _roll_columns(runs) if asks == ROLLS else _domain_columns(runs)


def _looks(runs: Sequence[Run]) -> tuple[str, dict[int, Run]] | None:
    """Title and runs of what was measured with several looks at a picture; None without any."""
    made = [run for run in runs if run.get("looks")]
    if not made:
        return None
    counts = sorted({row["looks"] for run in made for row in run["looks"].values()})
    number = " or ".join(map(str, counts))
    by_seed: dict[int, Run] = {run["seed"]: {**run, "datasets": run["looks"]} for run in made}
    return f"upright, {number} looks ({number} x inference)", by_seed


def _roll_columns(runs: Sequence[Run]) -> list[Column]:
    degrees = sorted({int(d) for run in runs for row in _rows(run) for d in row["rolls"]})
    return [
        Column("AP", _mean("AP")),
        Column("AP50", _mean("AP50")),
        *(Column(f"AP50 at {d}°", _mean("rolls", str(d), "AP50")) for d in degrees),
        Column("found %", _mean("found", "share")),
        Column("direction right, of found %", _mean("orientation", "accuracy")),
        Column("mean error °", _mean("orientation", "mean_error"), 1),
        Column("found at 0.3 %", _mean("found", "confident")),
        Column("direction right, of found at 0.3 %", _mean("orientation", "confident", "accuracy")),
    ]


def _domain_columns(runs: Sequence[Run]) -> list[Column]:
    columns = [Column("AP", _mean("AP")), Column("AP50", _mean("AP50"))]
    for name in dict.fromkeys(name for run in runs for name in run["datasets"] or {}):
        columns += [Column(f"{name} {key}", _of_dataset(name, key)) for key in SHOWN]
        split = [c for c in split_classes(runs) if any(c in _per_class(run, name) for run in runs)]
        columns += [Column(f"{name} {key}, split", _of_classes(name, key, split)) for key in SHOWN if split]
    return columns


def split_classes(runs: Sequence[Run]) -> list[str]:
    """The classes that `labels.per_dataset` splits, by the name of them all."""
    return sorted({name for run in runs for name in run.get("split_classes", ())})


def _per_class(run: Run, dataset: str) -> Mapping[str, Any]:
    row = (run["datasets"] or {}).get(dataset) or {}
    return row.get("per_class") or {}


def _of_classes(dataset: str, key: str, names: Sequence[str]) -> Value:
    """The mean over some classes of a dataset."""
    return lambda run: average(number_at(_per_class(run, dataset), (name, key)) for name in names)


def _rows(run: Run) -> list[Mapping[str, Any]]:
    """The datasets of a run; those with rolls where there are some."""
    rows = list((run["datasets"] or {}).values())
    return [row for row in rows if row["rolls"]] or rows


def _mean(*keys: str) -> Value:
    """The mean over the datasets that have the number; None without any."""

    def value(run: Run) -> float | None:
        return average(number_at(row, keys) for row in _rows(run))

    return value


def _of_dataset(dataset: str, key: str) -> Value:
    return lambda run: number_at((run["datasets"] or {}).get(dataset), (key,))


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


def markdown(runs: Sequence[Run]) -> str:
    parts, shown = [], grids(runs)
    for grid in shown:
        head, _, *rows = markdown_table(grid.headers, grid.rows)
        rule = "|".join(["", "---", *("---:" for _ in grid.headers[1:]), ""])
        parts.append("\n".join([f"**{grid.title}**", "", head, rule, *rows]))
    parts += [f"({grid.note})" for grid in shown if grid.note]
    said, wrong = notes(runs)
    parts += [f"**{line}**" for line in wrong]
    times = [run["seconds"] / 60 for run in runs if run.get("seconds")]
    said += [f"{mean(times):.1f} minutes per training."] if times else []
    parts.append(" ".join([*said, f"Hardware: {machines(runs)}."]))
    return "\n\n".join(parts) + "\n"
