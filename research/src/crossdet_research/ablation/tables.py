"""The ablation's numbers as tables: for the terminal, as Markdown and as JSON. Everything comes from the JSONs.

Values are mean and standard deviation over the seeds; what was not run, or cannot be measured, is blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from crossdet_research.ablation.methods import methods_of, same_trainings, stands_for
from crossdet_research.ablation.results import (
    UNION_AP,
    Results,
    Run,
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
from crossdet_research.tables import machines, markdown_table, rich_table, spread


def _seeds(runs: Mapping[int, Run]) -> str:
    """`3`, or `2 (1 diverged)`; blank without any."""
    lost = sum(bool(run.get("diverged")) for run in runs.values())
    return f"{len(runs) - lost}" + (f" ({lost} diverged)" if lost else "") if runs else ""


def grid(results: Results, section: Section) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a table."""
    lines = []
    for name in section.methods:
        runs = results.of(name)
        cells = [spread(c.values(runs).values(), c.digits) for c in section.columns]
        lines.append([results.title(name), _seeds(runs), *cells])
    return ["method", "seeds", *(c.title for c in section.columns)], lines


def difference_grid(results: Results) -> tuple[list[str], list[list[str]]]:
    lines = [[f"{a} - {b}", column.title, *delta.cells] for a, b, column, delta in differences(results)]
    return ["difference", "of", *COLUMNS], lines


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
        same = stands_for(method, summary)[1:]
        if same:
            lines.append(f"{method.name} stands for {', '.join(same)}, too: {same_trainings(summary)[1]}")
    lines += [
        f"{run['method']}, seed {run['seed']}, diverged: {run['diverged'].splitlines()[0]}"
        for run in runs
        if run["diverged"]
    ]
    return lines


def markdown(results: Results, only: Sequence[str] = ()) -> str:
    """All tables of a split. only: those with these keys, without head, differences and methods not run."""
    lines = []
    if not only:
        lines = [f"### Ablation on {results.name}", "", *(f"- {note}" for note in notes(results)), ""]
        lines += [f"- **{recovered_text(results)}**", ""]
    for section in sections(results):
        if only and section.key not in only:
            continue
        headers, rows = grid(results, section)
        rows = [row for row in rows if row[1]] if only else rows
        lines += [f"**{section.title}**", "", *markdown_table(headers, rows), ""]
        lines += [f"({section.note})", ""] if section.note else []
    if differences(results) and not only:
        lines += ["**Differences**", "", *markdown_table(*difference_grid(results)), "", f"({PAIRED})", ""]
    return "\n".join(lines)


def rich_tables(results: Results) -> list[Table]:
    grids = [(section.title, *grid(results, section)) for section in sections(results)]
    return [
        rich_table(title, headers, rows)
        for title, headers, rows in [*grids, ("Differences", *difference_grid(results))]
    ]


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
    row = {}
    for column in section.columns:
        seeds = column.values(runs)
        many = list(seeds.values())
        row[column.title] = {
            "mean": mean(many) if many else None,
            "std": stdev(many) if len(many) > 1 else None,
            "n": len(many),
            "seeds": seeds,
        }
    return row


# ------------------------------------------------------------------------------------------- sweep

SWEPT = ("naive", "aware", "same_positives", "full")


def sweep_grid(splits: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """A row per split, by looks and conflict: union AP of the methods, and what aware recovers."""
    rows = []
    for one in sorted(all_levels(splits), key=lambda split: (split.looks, split.summary["conflict"])):
        values = {name: UNION_AP.values(one.of(name)) for name in SWEPT}
        delta = difference(values["aware"], values["naive"])
        share = recovered(one)
        rows.append(
            [
                one.name,
                ", ".join(one.looks),
                str(sum(part["images"] for part in one.summary["parts"].values())),
                f"{100 * one.summary['conflict']:.0f}",
                *(spread(values[name].values()) for name in SWEPT),
                "" if delta is None else delta.words,
                "undefined" if share["share"] is None else f"{100 * share['share']:.0f} %",
            ]
        )
    headers = ["split", "looks", "images", "conflict, %", *SWEPT, "aware - naive", "recovered"]
    return headers, rows


def damage_grid(splits: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """Naive training at two levels of conflict of the same parts: every level against the one below it, and against
    the lowest."""
    panels: dict[tuple[str, ...], list[Results]] = {}
    for one in sorted(all_levels(splits), key=lambda split: (split.looks, split.summary["conflict"])):
        panels.setdefault(sweep_key(one), []).append(one)
    rows = []
    for many in panels.values():
        pairs = [(many[i], many[i + 1]) for i in range(len(many) - 1)]
        pairs += [(many[0], many[-1])] if len(many) > 2 else []
        for low, high in pairs:
            delta = difference(*(UNION_AP.values(one.of("naive")) for one in (high, low)))
            if delta is not None:
                levels = " to ".join(f"{100 * one.summary['conflict']:.0f}" for one in (low, high))
                rows.append([high.name, ", ".join(high.looks), levels, *delta.cells])
    return ["split", "looks", "conflict, %", *COLUMNS], rows


SWEEP = "union AP over the share of images that show an unlabelled object"
DAMAGE = "what more conflict changes in union AP of naive training"


def sweep_markdown(splits: Sequence[Results]) -> str:
    lines = [f"**{SWEEP[0].upper()}{SWEEP[1:]}** (percent)", "", *markdown_table(*sweep_grid(splits)), ""]
    headers, rows = damage_grid(splits)
    if rows:
        lines += [f"**{DAMAGE[0].upper()}{DAMAGE[1:]}**", "", *markdown_table(headers, rows), ""]
        lines += [f"({PAIRED})", ""]
    return "\n".join(lines)


def sweep_tables(splits: Sequence[Results]) -> list[Table]:
    grids = [(SWEEP, sweep_grid(splits)), (DAMAGE, damage_grid(splits))]
    return [rich_table(title, headers, rows) for title, (headers, rows) in grids if rows]
