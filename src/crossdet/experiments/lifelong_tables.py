"""The numbers of a lifelong sequence as tables: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from rich.table import Table

from crossdet.experiments.lifelong_plan import JOINT
from crossdet.experiments.lifelong_results import (
    PLACES,
    Old,
    Results,
    asked,
    old_classes,
    unchanged,
)
from crossdet.experiments.tables import machines, markdown_table, rich_table, spread

Grid = tuple[list[str], list[list[str]]]
OLD_NOTE = (
    "old: mean AP50 of the old classes, against the weights that the generation started from; interval: 95 %, "
    "paired bootstrap over the images, ends averaged over the seeds; significant: seeds whose interval lies below "
    "0, and classes for which this holds in any seed; of joint: new classes against joint training on the same "
    "datasets"
)


def old_grid(results: Results, place: str) -> Grid:
    """A row per method and extension."""
    rows = []
    for method in results.methods():
        if method == JOINT.name:
            continue
        for generation in range(2, results.last + 1):
            old = old_classes(results, method, generation, place)
            new = results.by_seed(method, generation, place, results.new(generation))
            share = results.of_joint(method, generation, place)
            if not old and not new:
                continue
            same = unchanged(results, method, generation)
            rows.append(
                [
                    results.title(method),
                    str(generation),
                    str(max(len(old), len(new))),
                    spread(one.before for one in old.values()),
                    spread(one.after for one in old.values()),
                    spread(one.difference for one in old.values()),
                    _interval(old),
                    _significant(old),
                    f"{100 * mean(one.after / one.before for one in old.values()):.0f} %"
                    if _all(old)
                    else "",
                    spread(new.values()),
                    f"{100 * mean(share.values()):.0f} %" if share else "",
                    ("yes" if all(same) else "no") if same else "",
                ]
            )
    headers = [
        "method",
        "generation",
        "seeds",
        "old before",
        "old after",
        "difference",
        "interval",
        "significant",
    ]
    return [*headers, "kept", "new", "of joint", "old weights unchanged"], rows


def _all(old: Mapping[int, Old]) -> bool:
    return bool(old) and all(one.before for one in old.values())


def _interval(old: Mapping[int, Old]) -> str:
    ends = [(one.low, one.high) for one in old.values() if one.low is not None and one.high is not None]
    if not ends:
        return ""
    return f"{mean(low for low, _ in ends):+.1f} to {mean(high for _, high in ends):+.1f}"


def _significant(old: Mapping[int, Old]) -> str:
    """`2 of 3 seeds (car, face)`."""
    if not old:
        return ""
    classes = list(dict.fromkeys(name for one in old.values() for name in one.lost))
    text = f"{sum(one.is_loss for one in old.values())} of {len(old)}"
    return f"{text} ({', '.join(classes)})" if classes else text


def mean_grid(results: Results, place: str) -> Grid:
    """Mean AP50 of all classes so far, a column per generation."""
    rows = []
    for method in results.methods():
        cells = [
            spread(results.by_seed(method, generation, place, results.known(generation)).values())
            for generation in range(1, results.last + 1)
        ]
        rows.append([results.title(method), *cells])
    return ["method", *(f"generation {number + 1}" for number in range(results.last))], rows


def class_grid(results: Results, place: str) -> Grid:
    """A row per class: its AP50 when it arrived and after the last generation."""
    methods = results.methods()
    rows = []
    for arrived in range(1, results.last + 1):
        for name in results.new(arrived):
            cells = []
            for method in methods:
                ends = [results.by_seed(method, g, place, [name]) for g in (arrived, results.last)]
                first, end = (spread(one.values()) for one in ends)
                arrow = bool(first and end) and arrived < results.last and method != JOINT.name
                cells.append(f"{first} → {end}" if arrow else end)
            rows.append([name, str(arrived), *cells])
    return ["class", "arrives", *map(results.title, methods)], rows


def asked_grid(results: Results, place: str) -> Grid:
    rows = [
        [one.text, one.value, "" if one.met is None else "yes" if one.met else "no"]
        for one in asked(results, place)
    ]
    return ["asked, in the worst generation", "found", "met"], rows


def grids(results: Results) -> list[tuple[str, Grid]]:
    """Title and table, of every place."""
    return [
        (f"{title} {PLACES[place]}", grid(results, place))
        for place in results.places()
        for title, grid in (
            ("Old and new classes", old_grid),
            ("Mean AP50 of all classes so far", mean_grid),
            ("AP50 when a class arrived and at the end", class_grid),
            ("What is asked", asked_grid),
        )
    ]


def notes(results: Results) -> list[str]:
    runs = list(results.runs.values())
    arrivals = zip(results.generations, results.classes, strict=True)
    order = "; ".join(
        f"{number}: {', '.join(names)} ({', '.join(new) or 'no new class'})"
        for number, (names, new) in enumerate(arrivals, 1)
    )
    first = runs[0]
    lines = [
        f"{results.name}: {order}",
        f"{len(runs)} trainings, {len(results.seeds)} seed(s); hardware: {machines(runs)}",
        f"replay sees {first['share']} of the old images; AP50 in percent, mean ± standard deviation over the "
        "seeds; blank: not run",
        OLD_NOTE,
    ]
    for key, what in (("overrides", "all trainings"), ("extend_overrides", "extensions")):
        if first.get(key):
            lines.append(f"settings other than the config's, of {what}: {', '.join(first[key])}")
    lines += [
        f"{run['method']}, generation {run['generation']}, seed {run['seed']}, diverged: "
        f"{run['diverged'].splitlines()[0]}"
        for run in runs
        if run.get("diverged")
    ]
    return lines


def markdown(results: Results) -> str:
    """All tables."""
    lines = [f"### Lifelong sequence {results.name}", "", *(f"- {note}" for note in notes(results)), ""]
    for title, (headers, rows) in grids(results):
        lines += [f"**{title}**", "", *markdown_table(headers, rows), ""]
    return "\n".join(lines)


def rich_tables(results: Results) -> list[Table]:
    return [rich_table(title, headers, rows) for title, (headers, rows) in grids(results)]


def as_json(results: Results) -> dict[str, Any]:
    """Every seed's numbers, in points and ratios, not rounded."""
    extensions = range(2, results.last + 1)
    return {
        "name": results.name,
        "generations": [list(names) for names in results.generations],
        "classes": [list(names) for names in results.classes],
        "places": {
            place: {
                "asked": [vars(one) for one in asked(results, place)],
                "methods": {
                    method: {
                        "old": {
                            g: {
                                seed: vars(one) | {"difference": one.difference}
                                for seed, one in old_classes(results, method, g, place).items()
                            }
                            for g in extensions
                        },
                        "share_of_joint": {g: results.of_joint(method, g, place) for g in extensions},
                        "AP50": {
                            name: {
                                g: results.by_seed(method, g, place, [name])
                                for g in range(1, results.last + 1)
                            }
                            for name in results.known(results.last)
                        },
                    }
                    for method in results.methods()
                },
            }
            for place in results.places()
        },
        "notes": notes(results),
    }
