"""The paper's tables with the paper's numbers and ours side by side: for the terminal, as Markdown and as JSON.

All values are in percent. A number that was not run, or that a protocol leaves undefined, is left blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from crossdet.errors import UserError
from crossdet_research import study, tables
from crossdet_research.paper import rows as paper
from crossdet_research.tables import Grid, Run, machines, markdown_lines, spread

SCALES = ("full", "mini")


@dataclass(frozen=True)
class PaperTable:
    """columns: (dataset, metric). results: scale -> training -> JSONs of its seeds; only scales that have any."""

    table: str
    rows: tuple[paper.Row, ...]
    columns: tuple[tuple[str, str], ...]
    results: Mapping[str, Mapping[str, Sequence[Run]]]

    @property
    def scales(self) -> tuple[str, ...]:
        return tuple(self.results) or ("full",)

    def ours(self, row: paper.Row, column: tuple[str, str], scale: str) -> dict[int, float]:
        """Seed -> percent."""
        found = self.results.get(scale, {}).get(row.training, ())
        values = {int(result["seed"]): value_of(result, *column) for result in found}
        return {seed: value for seed, value in values.items() if value is not None}


def value_of(result: Run, dataset: str, metric: str) -> float | None:
    """The paper's metric of one run, in percent; None where the run has no such number."""
    keys = ("metrics", "datasets", paper.DATASETS[dataset].key, *paper.RECORD_KEYS[dataset][metric])
    value = tables.number_at(result, keys)
    return None if value is None else 100 * value


def read_results(folder: Path, scale: str) -> dict[str, list[Run]]:
    """Experiment name (`coco_resnet50`, `voc_resnet50_photos`) -> its JSONs, by seed."""
    found: dict[str, list[Run]] = {}
    keys = ("seed", "metrics", "training")
    for run in study.read_results(folder / scale, "*_seed*.json", "paper", keys, needed=False):
        found.setdefault(run["file"].stem.rpartition("_seed")[0], []).append(run)
    return {name: sorted(results, key=lambda r: int(r["seed"])) for name, results in found.items()}


def paper_table(table: str, folder: Path | None = None) -> PaperTable:
    """table: a key of `TITLES`. folder: where the queue wrote its JSONs; None: the paper's numbers alone."""
    if table not in paper.TITLES:
        raise UserError(f"no table {table!r}; there are {', '.join(paper.TITLES)}")
    rows = tuple(row for row in paper.ROWS if row.table == table)
    columns = dict.fromkeys(
        (dataset, metric)
        for dataset in paper.DATASETS_ORDER[table]
        for row in rows
        for metric in row.values.get(dataset, {})
    )
    results: dict[str, dict[str, list[Run]]] = {}
    if folder is None:
        return PaperTable(table, rows, tuple(columns), results)
    for scale in SCALES:
        everything = read_results(folder, scale)
        suffix = "_photos" if table == "5" and any(name.endswith("_photos") for name in everything) else ""
        names = {row.training: row.training + suffix for row in rows}
        if own := {training: everything[name] for training, name in names.items() if name in everything}:
            results[scale] = own
    return PaperTable(table, rows, tuple(columns), results)


def headers(table: PaperTable) -> list[str]:
    fixed = ["data", "backbone", "ratios", "scales", *(["merge"] if table.table == "4" else [])]
    several = len({dataset for dataset, _ in table.columns}) > 1
    names = [f"{d} {m}" if several and d != "FACE" else m for d, m in table.columns]
    return [*fixed, *names, "notes"]


def cells(table: PaperTable, row: paper.Row) -> list[str]:
    training = paper.TRAININGS[row.training]
    fixed = ["+".join(training.datasets), paper.BACKBONES[training.backbone], *anchor_texts(training, row)]
    if table.table == "4":
        fixed.append("yes" if training.merge else "no")
    values = [_cell(table, row, column) for column in table.columns]
    return [*fixed, *values, ", ".join(map(str, row.notes))]


def anchor_texts(training: paper.Training, row: paper.Row | None = None) -> tuple[str, str]:
    """Ratios and scales; the scales as the row prints them."""
    scales = training.anchors.scales if row is None or row.scales is None else row.scales
    return _numbers(training.anchors.ratios), _numbers(scales)


def _numbers(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _cell(table: PaperTable, row: paper.Row, column: tuple[str, str]) -> str:
    dataset, metric = column
    if metric not in row.values.get(dataset, {}):
        return ""
    printed = row.values[dataset][metric]
    texts = ["" if printed is None else str(printed)]
    texts += [spread(table.ours(row, column, scale).values()) for scale in table.scales]
    return " / ".join(texts)


def caption(table: PaperTable) -> str:
    name = f"Table {table.table}" if table.table.isdigit() else "Figure 5"
    labels = " / ".join(["paper", *(f"ours, {scale}" for scale in table.scales)])
    return f"{name}. {paper.TITLES[table.table]}. In percent: {labels}"


def notes(table: PaperTable) -> list[str]:
    """What the numbers are made of, and the contradictions of the rows shown."""
    lines = []
    for scale in table.scales:
        results = [result for runs in table.results.get(scale, {}).values() for result in runs]
        if not results:
            lines.append(f"{scale}: nothing has been run")
            continue
        seeds = len({int(result["seed"]) for result in results})
        data = ", ".join(sorted({str(result.get("data")) for result in results}))
        minutes = mean(float(result.get("seconds", 0)) for result in results) / 60
        lines.append(
            f"{scale}: {data}; {len(results)} run(s), {seeds} seed(s), {minutes:.1f} minutes each; "
            f"{machines(results)}"
        )
        if scale == "mini":
            lines.append(
                "mini is another experiment of the same structure (small networks and pictures, few steps): only "
                "differences within the table mean anything, its level has nothing to do with the paper's"
            )
    for number in sorted({note for row in table.rows for note in row.notes}):
        entry = paper.CONTRADICTIONS[number]
        lines.append(f"({number}) {entry.problem}. Run: {entry.reading}")
    return lines


def grid(table: PaperTable) -> Grid:
    return Grid(headers(table), [cells(table, row) for row in table.rows], caption(table))


def markdown(table: PaperTable) -> str:
    return "\n".join([*markdown_lines([grid(table)]), *(f"- {note}" for note in notes(table)), ""])


def as_json(table: PaperTable) -> dict[str, Any]:
    """The table with every seed's number, not rounded, in percent."""
    return {
        "table": table.table,
        "title": paper.TITLES[table.table],
        "unit": "percent",
        "rows": [row_as_json(row) | {"values": _values(table, row)} for row in table.rows],
        "notes": notes(table),
    }


def row_as_json(row: paper.Row) -> dict[str, Any]:
    """A row and its training, with the numbers that the paper prints."""
    training = paper.TRAININGS[row.training]
    return {
        "row": row.name,
        "training": row.training,
        "data": list(training.datasets),
        "backbone": training.backbone,
        "ratios": list(training.anchors.ratios),
        "scales": list(training.anchors.scales),
        "printed_scales": list(row.scales or training.anchors.scales),
        "merge": training.merge,
        "paper": {dataset: dict(values) for dataset, values in row.values.items()},
        "notes": list(row.notes),
    }


def _values(table: PaperTable, row: paper.Row) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for dataset, metrics in row.values.items():
        for metric, printed in metrics.items():
            entry: dict[str, Any] = {"paper": printed}
            for scale in table.scales:
                entry[scale] = tables.as_json(table.ours(row, (dataset, metric), scale))
            values.setdefault(dataset, {})[metric] = entry
    return values
