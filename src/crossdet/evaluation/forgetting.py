"""What an extended detector forgot: per class before, after and difference, and its way through the
generations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdet.evaluation.figures import line_look, new_figure, save_figure
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.models.card import Generation, Score

MARKERS = "os^Dvp"


@dataclass(frozen=True)
class Change:
    """One class on one dataset, 0..1. before: None for a class that the weights did not know, or without a
    number.
    """

    name: str
    dataset: str
    number: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """after - before; None where one of them is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


def main_numbers(metrics: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> list[Score]:
    """The main number of every class of every dataset, by the dataset's first protocol.

    metrics: the record of `score_splits`. names: dataset -> the classes that were looked at.
    """
    scores = []
    for dataset, record in metrics["datasets"].items():
        protocol = PROTOCOLS[record["protocol"]]
        for name in names[dataset]:
            value = protocol.class_number(record, name)
            defined = value is not None and value == value
            scores.append(Score(name, dataset, f"{protocol.name} {protocol.number}", value if defined else None))
    return scores


def changes(before: Sequence[Score], after: Sequence[Score]) -> list[Change]:
    """Pairs the scores by class and dataset, in the order of `after`."""
    known = {(score.name, score.dataset): score.value for score in before}
    return [Change(s.name, s.dataset, s.number, known.get((s.name, s.dataset)), s.value) for s in after]


def regressions(found: Sequence[Change], tolerance: float | None) -> list[Change]:
    """What fell by more than `tolerance` points (hundredths of the main number); None: nothing counts."""
    if tolerance is None:
        return []
    # rounded: 0.515 - 0.510 is a little more than half a point in binary
    return [c for c in found if c.difference is not None and round(-100 * c.difference, 9) > tolerance]


def unmeasured(found: Sequence[Change], old: Sequence[str]) -> list[str]:
    """Those of the `old` classes that no dataset has a number of before and after."""
    measured = {c.name for c in found if c.difference is not None}
    return [name for name in old if name not in measured]


def to_json(found: Sequence[Change], tolerance: float | None, old: Sequence[str] = ()) -> dict[str, Any]:
    """The report as plain values; ratios in 0..1, the tolerance in points. old: the classes known before."""
    return {
        "tolerance": tolerance,
        "unmeasured": unmeasured(found, old),
        "classes": [vars(c) | {"difference": c.difference} for c in found],
        "regressions": [f"{c.name} on {c.dataset}" for c in regressions(found, tolerance)],
    }


def report_text(found: Sequence[Change], old: Sequence[str]) -> str:
    """The report for people: a table, and what it cannot say."""
    lines = [f"before and after, in points:\n{changes_table(found)}"] if found else []
    if unknown := unmeasured(found, old):
        lines.append(f"not measured, no `val` split shows them: {', '.join(unknown)}")
    return "\n".join(lines)


def changes_table(found: Sequence[Change]) -> str:
    """One line per class and dataset, in points."""
    head = ("class", "dataset", "number", "before", "after", "difference")
    rows = [
        (c.name, c.dataset, c.number, _points(c.before), _points(c.after),
         _points(c.difference, "+.1f"))
        for c in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    form = "  ".join(f"{{:{'<' if column < 3 else '>'}{width}}}" for column, width in enumerate(widths))
    return "\n".join(form.format(*row).rstrip() for row in (head, *rows))


def _points(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(100 * value, form)


def warning_of(report: Mapping[str, Any]) -> str:
    """One sentence about the regressions of `to_json`."""
    lost = [
        f"{c['name']} on {c['dataset']} {_points(c['difference'], '+.1f')}"
        for c in report["classes"]
        if f"{c['name']} on {c['dataset']}" in report["regressions"]
    ]
    return f"forgotten more than the tolerance of {report['tolerance']:g} points: {', '.join(lost)}"


# ------------------------------------------------------------------------------------------- over generations


def histories(
    history: Sequence[Generation], before: Sequence[Score]
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(class, dataset) -> its points (generation, score).

    history: the last one with its scores. before: what its parent scored on today's data; a generation's own
    record counts more.
    """
    lines: dict[tuple[str, str], dict[int, float]] = {}
    parent = len(history) - 2
    found = [(parent, score) for score in before]
    found += [(number, score) for number, generation in enumerate(history) for score in generation.scores]
    for number, score in found:
        if score.value is not None:
            lines.setdefault((score.name, score.dataset), {})[number] = score.value
    return {key: sorted(points.items()) for key, points in lines.items()}


def draw_generations(path: Path, history: Sequence[Generation], before: Sequence[Score]) -> None:
    """A PNG: the main number of every class over the generations; none where there is no number at all.

    A class has one colour and line style, whatever generation it is drawn in; each dataset that judges it a marker.
    """
    lines = histories(history, before)
    if not lines:
        return
    classes = [name for generation in history for name in generation.classes]
    names = list(dict.fromkeys([*classes, *(name for name, _ in lines)]))
    datasets = list(dict.fromkeys(dataset for _, dataset in lines))
    figure = new_figure(max(6.0, 3 + 1.2 * len(history)), 4.2)
    axes = figure.subplots()
    for (name, dataset), points in sorted(lines.items(), key=lambda line: (names.index(line[0][0]), line[0])):
        axes.plot(
            [number for number, _ in points],
            [100 * value for _, value in points],
            marker=MARKERS[datasets.index(dataset) % len(MARKERS)],
            label=f"{name} ({dataset})",
            **line_look(names.index(name)),
        )
    axes.set_xticks(range(len(history)), [f"{n}: {generation.mode}" for n, generation in enumerate(history)])
    axes.set(ylim=(0, 102), xlabel="generation", ylabel="main number of the protocol, points")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save_figure(figure, path)
