"""The ablation's numbers as tables: for the terminal, as Markdown and as JSON. Everything comes from the JSONs.

Values are mean and standard deviation over the seeds; what was not run, or cannot be measured, is blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from crossdet_research import tables
from crossdet_research.ablation.methods import methods_of, same_trainings, stands_for
from crossdet_research.ablation.results import (
    UNION_AP,
    Results,
    Section,
    all_levels,
    differences,
    given_settings,
    recovered,
    sections,
    sweep_key,
)
from crossdet_research.paired import COLUMNS, difference
from crossdet_research.paired import NOTE as PAIRED
from crossdet_research.tables import Grid, Run, machines, markdown_lines, method_row, spread


def grid(results: Results, section: Section) -> Grid:
    rows = [method_row(results.title(name), results.of(name), section.columns) for name in section.methods]
    return Grid(["method", "seeds", *(c.title for c in section.columns)], rows, section.title, section.note)


def difference_grid(results: Results) -> Grid:
    rows = [[f"{a} - {b}", column.title, *delta.cells] for a, b, column, delta in differences(results)]
    return Grid(["difference", "of", *COLUMNS], rows, "Differences", PAIRED)


def grids(results: Results) -> list[Grid]:
    found = [*(grid(results, section) for section in sections(results)), difference_grid(results)]
    return [one for one in found if one.rows]


def recovered_text(results: Results) -> str:
    found = recovered(results)
    share = "undefined: " + found["why"] if found["share"] is None else f"{100 * found['share']:.0f} %"
    many = f" ({len(found['seeds'])} seeds; gap {found['gap']:.1f})" if found["share"] is not None else ""
    return f"recovered share of the gap naive -> same positives, on union AP: {share}{many}"


def notes(results: Results) -> list[str]:
    """What the numbers are made of."""
    summary = results.summary
    parts = "; ".join(
        f"{name}: {', '.join(p['classes'])} ({p['images']} images, look {p['look']})"
        for name, p in summary["parts"].items()
    )
    runs = [run for many in results.runs.values() for run in many.values()]
    lines = [
        f"{results.name}: {parts}; conflict: {100 * summary['conflict']:.0f} % of the images show an "
        f"unlabelled object; {summary['val_images']} test images in {len(results.looks)} look(s)",
        f"{len(runs)} trainings, {len({run['seed'] for run in runs})} seed(s); hardware: {machines(runs)}",
        "values: mean ± standard deviation over the seeds, in percent where nothing else is said; blank: not run",
    ]
    of_all, of_taught = ({text for run in runs for text in given_settings(run)[i]} for i in (0, 1))
    if of_all:
        lines.append(f"settings other than the split's: {', '.join(sorted(of_all))}")
    if of_taught:
        lines.append(f"of methods with teachers also: {', '.join(sorted(of_taught))}")
    for method in methods_of(summary):
        if same := stands_for(method, summary)[1:]:
            lines.append(f"{method.name} stands for {', '.join(same)}, too: {same_trainings(summary)[1]}")
    lines += [
        f"{run['method']}, seed {run['seed']}, diverged: {run['diverged'].splitlines()[0]}"
        for run in runs
        if run["diverged"]
    ]
    return lines


def markdown(results: Results, only: Sequence[str] = ()) -> str:
    """All tables of a split. only: those with these keys, without head, differences and methods not run."""
    if only:
        found = [grid(results, section) for section in sections(results) if section.key in only]
        return "\n".join(markdown_lines(one._replace(rows=[row for row in one.rows if row[1]]) for one in found))
    lines = [f"### Ablation on {results.name}", "", *(f"- {note}" for note in notes(results)), ""]
    return "\n".join([*lines, f"- **{recovered_text(results)}**", "", *markdown_lines(grids(results))])


def as_json(results: Results) -> dict[str, Any]:
    """The tables with every seed's number, not rounded; `scale` as in the text (percent)."""
    return {
        "split": results.name,
        "summary": dict(results.summary),
        "recovered": recovered(results),
        "differences": [
            {"a": a, "b": b, "of": column.title, **vars(delta), "verdict": delta.verdict}
            for a, b, column, delta in differences(results)
        ],
        "tables": {
            section.key: {
                "title": section.title,
                "rows": {name: _row(section, results.of(name)) for name in section.methods},
            }
            for section in sections(results)
        },
        "notes": notes(results),
    }


def _row(section: Section, runs: Mapping[int, Run]) -> dict[str, Any]:
    values = {column.title: column.values(runs) for column in section.columns}
    return {title: tables.as_json(seeds) | {"n": len(seeds)} for title, seeds in values.items()}


# ------------------------------------------------------------------------------------------- sweep

SWEPT = ("naive", "aware", "same_positives", "full")


def sweep_grid(splits: Sequence[Results]) -> Grid:
    """A row per split, by looks and conflict: union AP of the methods, and what aware recovers."""
    rows = []
    for one in by_conflict(splits):
        values = {name: UNION_AP.values(one.of(name)) for name in SWEPT}
        delta = difference(values["aware"], values["naive"])
        share = recovered(one)["share"]
        images = sum(part["images"] for part in one.summary["parts"].values())
        rows.append(
            [
                *(one.name, ", ".join(one.looks), str(images), f"{100 * one.summary['conflict']:.0f}"),
                *(spread(values[name].values()) for name in SWEPT),
                "" if delta is None else delta.words,
                "undefined" if share is None else f"{100 * share:.0f} %",
            ]
        )
    headers = ["split", "looks", "images", "conflict, %", *SWEPT, "aware - naive", "recovered"]
    return Grid(headers, rows, "Union AP over the share of images that show an unlabelled object")


def by_conflict(splits: Sequence[Results]) -> list[Results]:
    return sorted(all_levels(splits), key=lambda split: (split.looks, split.summary["conflict"]))


def damage_grid(splits: Sequence[Results]) -> Grid:
    """Naive training at two levels of conflict of the same parts: every level against the one below it, and against
    the lowest."""
    panels: dict[tuple[str, ...], list[Results]] = {}
    for one in by_conflict(splits):
        panels.setdefault(sweep_key(one), []).append(one)
    rows = []
    for many in panels.values():
        for low, high in [*pairwise(many), *([(many[0], many[-1])] if len(many) > 2 else [])]:
            delta = difference(*(UNION_AP.values(one.of("naive")) for one in (high, low)))
            if delta is not None:
                levels = " to ".join(f"{100 * one.summary['conflict']:.0f}" for one in (low, high))
                rows.append([high.name, ", ".join(high.looks), levels, *delta.cells])
    title = "What more conflict changes in union AP of naive training"
    return Grid(["split", "looks", "conflict, %", *COLUMNS], rows, title, PAIRED)


def sweep_grids(splits: Sequence[Results]) -> list[Grid]:
    return [one for one in (sweep_grid(splits), damage_grid(splits)) if one.rows]


def sweep_markdown(splits: Sequence[Results]) -> str:
    first, *others = markdown_lines(sweep_grids(splits))
    return "\n".join([f"{first} (percent)", *others])
