"""The numbers of a lifelong sequence as tables: for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import mean
from typing import Any

from crossdet_research.lifelong.plan import JOINT
from crossdet_research.lifelong.results import EXTENSIONS, PLACES, REPLAYING, Old, Results, worst_class
from crossdet_research.tables import Grid, Run, machines, markdown_lines, spread

OLD_NOTE = (
    "old: mean AP50 of the old classes, against the weights that the generation started from; interval: 95 %, "
    "paired bootstrap over the images, ends averaged over the seeds; significant: seeds whose interval lies below "
    "0, and classes for which this holds in any seed; without new labels: the difference of the old classes that "
    "the newest datasets do not label, blank where these are all; worst class: by its mean over the seeds; of "
    "joint: new classes against joint training on the same datasets, whose steps are others (last table)"
)


def old_grid(results: Results, place: str) -> Grid:
    """A row per method and extension."""
    rows = [
        row
        for method in EXTENSIONS
        for generation in range(2, results.last + 1)
        if (row := _old_row(results, method, generation, place)) is not None
    ]
    headers = ["method", "generation", "seeds", "old before", "old after", "difference", "interval"]
    headers += ["significant", "kept", "without new labels", "worst class"]
    headers += ["new", "of joint", "old weights unchanged"]
    return Grid(headers, rows, f"Old and new classes {PLACES[place]}")


def _old_row(results: Results, method: str, generation: int, place: str) -> list[str] | None:
    old = results.old_classes(method, generation, place)
    new = results.by_seed(method, generation, place, results.new(generation))
    if not old and not new:
        return None
    names = [results.old_names(generation, place, unlabelled) for unlabelled in (False, True)]
    rest = results.old_classes(method, generation, place, unlabelled=True) if names[0] != names[1] else {}
    share = results.of_joint(method, generation, place)
    same = results.unchanged(method, generation)
    worst = worst_class(old)
    kept = [one.after / one.before for one in old.values() if one.before]
    return [
        results.title(method),
        str(generation),
        str(max(len(old), len(new))),
        spread(one.before for one in old.values()),
        spread(one.after for one in old.values()),
        spread((one.difference for one in old.values()), 2),
        _interval(old),
        _significant(old),
        _percent(kept) if len(kept) == len(old) else "",
        spread((one.difference for one in rest.values()), 2),
        "" if worst is None else f"{worst[0]} {spread(worst[1], 2)}",
        spread(new.values()),
        _percent(share.values()),
        ("yes" if all(same.values()) else "no") if same else "",
    ]


def _percent(ratios: Collection[float]) -> str:
    return f"{100 * mean(ratios):.0f} %" if ratios else ""


def _interval(old: Mapping[int, Old]) -> str:
    ends = [(one.low, one.high) for one in old.values() if one.low is not None and one.high is not None]
    if not ends:
        return ""
    return f"{mean(low for low, _ in ends):+.2f} to {mean(high for _, high in ends):+.2f}"


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
    headers = ["method", *(f"generation {number + 1}" for number in range(results.last))]
    return Grid(headers, rows, f"Mean AP50 of all classes so far {PLACES[place]}")


def class_grid(results: Results, place: str) -> Grid:
    """A row per class: its AP50 when it arrived and after the last generation."""
    rows = [[name, str(g), *_ends(results, place, name, g)] for g, name in results.arrivals()]
    headers = ["class", "arrives", *map(results.title, results.methods())]
    return Grid(headers, rows, f"AP50 when a class arrived and at the end {PLACES[place]}")


def class_part_grid(results: Results) -> Grid:
    """The same on the parts of the union test, a row per class and part."""
    rows = [
        [name, str(arrived), part, *cells]
        for arrived, name in results.arrivals()
        for part in results.part_names()
        if any(cells := _ends(results, part, name, arrived))
    ]
    headers = ["class", "arrives", "part", *map(results.title, results.methods())]
    return Grid(headers, rows, "AP50 when a class arrived and at the end, by part of the union test")


def _ends(results: Results, place: str, name: str, arrived: int) -> list[str]:
    """A class's AP50 when it arrived and at the end, by method."""
    cells = []
    for method in results.methods():
        ends = [results.by_seed(method, g, place, [name]) for g in (arrived, results.last)]
        first, end = (spread(one.values()) for one in ends)
        arrow = bool(first and end) and arrived < results.last and method != JOINT.name
        cells.append(f"{first} → {end}" if arrow else end)
    return cells


def part_grid(results: Results) -> Grid:
    """Mean AP50 of all classes on the parts of the union test, after the last generation."""
    parts = results.part_names()
    rows = []
    for method in results.methods():
        cells = [spread(results.part_by_seed(method, results.last, part).values()) for part in parts]
        rows.append([results.title(method), *cells])
    title = "Mean AP50 of all classes after the last generation, by part of the union test"
    return Grid(["method", *parts], rows, title)


def step_grid(results: Results) -> Grid:
    """A row per method: steps of each generation, and all that the last one rests on, beside joint training's."""

    def steps(method: str, generation: int) -> list[tuple[float, float]]:
        found = [results.steps_of(method, seed, generation) for seed in results.seeds]
        return [one for one in found if one is not None]

    joint = [own for own, _ in steps(JOINT.name, results.last)]
    rows = []
    for method in results.methods():
        many = [steps(method, generation) for generation in range(1, results.last + 1)]
        if not any(many):
            continue
        last = [together for _, together in many[-1]]
        share = f"{100 * mean(last) / mean(joint):.0f} %" if last and joint else ""
        own = [f"{mean(own for own, _ in one):.0f}" if one else "" for one in many]
        rows.append([results.title(method), *own, f"{mean(last):.0f}" if last else "", share])
    headers = [f"generation {number + 1}" for number in range(results.last)]
    headers += ["the last with those it rests on", "of joint training on everything"]
    return Grid(["method", *headers], rows, "Optimiser steps")


def grids(results: Results) -> list[Grid]:
    """Of every place and of the parts of the union test."""
    found = [grid(results, place) for place in results.places() for grid in (old_grid, mean_grid, class_grid)]
    if results.part_names():
        found += [part_grid(results), class_part_grid(results)]
    steps = step_grid(results)
    return [*found, steps] if steps.rows else found


def notes(results: Results) -> list[str]:
    runs = list(results.runs.values())
    arrivals = zip(results.generations, results.classes, strict=True)
    order = "; ".join(
        f"{number}: {', '.join(names)} ({', '.join(new) or 'no new class'})"
        for number, (names, new) in enumerate(arrivals, 1)
    )
    lines = [
        f"{results.name}: {order}",
        f"{len(runs)} trainings, {len(results.seeds)} seed(s); hardware: {machines(runs)}",
        "AP50 in percent, mean ± standard deviation over the seeds; blank: not run",
        OLD_NOTE,
    ]
    if runs[0].get("union_of_val"):
        lines.append("union test: the validation images of all datasets together, taken for fully labelled")
    if runs[0].get("overrides"):
        lines.append(f"settings other than the config's, of all trainings: {', '.join(runs[0]['overrides'])}")
    for method in results.methods():
        mine = next(run for run in runs if run["method"] == method)
        lines += _settings(method, mine)
    return lines + _failures(results)


def _settings(method: str, run: Run) -> list[str]:
    lines = []
    if method in REPLAYING:
        weight = run.get("replay_weight") or 1
        drawn = "" if weight == 1 else f", each {weight:g} times as likely to be drawn as another image"
        share = run["share"]
        part = "all old images" if share == "1/1" else f"{share} of the old images, with each seed the next part"
        lines.append(f"{method} sees {part}{drawn}")
    if method in EXTENSIONS and run.get("extend_overrides"):
        lines.append(f"settings other than the config's, of {method}: {', '.join(run['extend_overrides'])}")
    return lines


def _failures(results: Results) -> list[str]:
    lines = []
    for (method, seed, generation), run in results.runs.items():
        title = f"{method}, generation {generation}, seed {seed}"
        if run.get("diverged"):
            lines.append(f"{title}, diverged: {run['diverged'].splitlines()[0]}")
        elif results.run(method, seed, generation) is None:
            lines.append(f"{title}: not counted, it started from weights of a training that diverged")
    return lines


def markdown(results: Results) -> str:
    """All tables."""
    head = [f"### Lifelong sequence {results.name}", "", *(f"- {note}" for note in notes(results)), ""]
    return "\n".join([*head, *markdown_lines(grids(results))])


def as_json(results: Results) -> dict[str, Any]:
    """Every seed's numbers, in points and ratios, not rounded."""
    return {
        "name": results.name,
        "generations": [list(names) for names in results.generations],
        "classes": [list(names) for names in results.classes],
        "places": {
            place: {"methods": {method: _of_method(results, method, place) for method in results.methods()}}
            for place in results.places()
        },
        "union_parts": {
            part: {
                method: {g: results.part_by_seed(method, g, part) for g in range(1, results.last + 1)}
                for method in results.methods()
            }
            for part in results.part_names()
        },
        "notes": notes(results),
    }


def _of_method(results: Results, method: str, place: str) -> dict[str, Any]:
    extensions = range(2, results.last + 1)

    def old(generation: int, unlabelled: bool) -> dict[int, Any]:
        found = results.old_classes(method, generation, place, unlabelled)
        return {seed: vars(one) | {"difference": one.difference} for seed, one in found.items()}

    def worst(generation: int) -> dict[str, Any] | None:
        found = worst_class(results.old_classes(method, generation, place))
        return None if found is None else {"class": found[0], "differences": found[1]}

    return {
        "old": {g: old(g, False) for g in extensions},
        "old_unlabelled": {g: old(g, True) for g in extensions},
        "worst_class": {g: worst(g) for g in extensions},
        "kept_to_end": results.kept_to_end(method, place) if method in EXTENSIONS else {},
        "share_of_joint": {g: results.of_joint(method, g, place) for g in extensions},
        "AP50": {
            name: {g: results.by_seed(method, g, place, [name]) for g in range(1, results.last + 1)}
            for name in results.known(results.last)
        },
    }
