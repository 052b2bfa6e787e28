"""What an extended detector forgot: per class before, after and difference, and its way through the
generations.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.bootstrap import paired_bootstrap
from crossdet.evaluation.figures import in_legend, line_look, new_figure, save_figure
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.labels.placeholders import used
from crossdet.models.card import Generation, Score

MARKERS = "os^Dvp"
RESAMPLES = 400
"""Draws of the pictures for an interval."""

Intervals = Mapping[tuple[str | None, str], tuple[float, float]]
"""(class, dataset) -> ends of the difference's 95 % interval, 0..1; None stands for the mean of the classes."""


@dataclass(frozen=True)
class Change:
    """One class on one dataset, 0..1. before: None for a class that the weights did not know, or without a
    number. low, high: 95 % interval of the difference over other choices of the dataset's pictures, where known.
    """

    name: str
    dataset: str
    number: str
    before: float | None
    after: float | None
    low: float | None = None
    high: float | None = None

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


def intervals(
    splits: Mapping[str, Split], before: Mapping[str, DetectionArrays], after: Mapping[str, DetectionArrays]
) -> Intervals:
    """Of the differences in COCO AP, by a paired bootstrap over the pictures of every split; nothing for classes
    without objects. before, after: the detections that are judged, by dataset."""
    found: dict[tuple[str | None, str], tuple[float, float]] = {}
    for dataset in before.keys() & after.keys():
        split = splits[dataset]
        truth, pair = ground_truth(split), (before[dataset], after[dataset])
        drawn = paired_bootstrap(truth, *pair, split.classes, RESAMPLES, max_detections=sys.maxsize)
        found |= {(split.names[c], dataset): numbers["AP"].interval for c, numbers in drawn.per_class.items()}
        found[None, dataset] = drawn.mean["AP"].interval
    return {key: pair for key, pair in found.items() if not math.isnan(pair[0])}


def changes(before: Sequence[Score], after: Sequence[Score], known: Intervals | None = None) -> list[Change]:
    """Pairs the scores by class and dataset, in the order of `after`. known: see `intervals`."""
    values = {(score.name, score.dataset): score.value for score in before}
    nothing = (None, None)
    return [
        Change(s.name, s.dataset, s.number, values.get((s.name, s.dataset)), s.value,
               *(known or {}).get((s.name, s.dataset), nothing))
        for s in after
    ]  # fmt: skip


def means(found: Sequence[Change], known: Intervals | None = None) -> list[Change]:
    """Of every dataset the mean of its classes that have a number before and after, where these are several."""
    rows = []
    for dataset in dict.fromkeys(c.dataset for c in found):
        own = [c for c in found if c.dataset == dataset and c.difference is not None]
        if len(own) > 1:
            before, after = (
                fmean(v for c in own if (v := getattr(c, key)) is not None) for key in ("before", "after")
            )
            ends = (known or {}).get((None, dataset), (None, None))
            rows.append(Change(f"mean of {len(own)} classes", dataset, own[0].number, before, after, *ends))
    return rows


def regressions(found: Sequence[Change], tolerance: float | None) -> list[Change]:
    """What fell by more than `tolerance` points (hundredths of the main number); None: nothing counts."""
    if tolerance is None:
        return []
    # rounded: 0.515 - 0.510 is a little more than half a point in binary
    return [c for c in found if c.difference is not None and round(-100 * c.difference, 9) > tolerance]


def certain(found: Sequence[Change]) -> list[Change]:
    """Of changes those that other pictures of the same kind would have shown, too: whose interval does not hold 0,
    and those without an interval, of which nobody knows better."""
    return [c for c in found if c.low is None or c.high is None or not c.low <= 0 <= c.high]


def unmeasured(found: Sequence[Change], old: Sequence[str]) -> list[str]:
    """Those of the `old` classes that no dataset has a number of before and after."""
    measured = {c.name for c in found if c.difference is not None}
    return [name for name in used(old) if name not in measured]


def to_json(
    found: Sequence[Change], tolerance: float | None, old: Sequence[str] = (), mean: Sequence[Change] = ()
) -> dict[str, Any]:
    """The report as plain values; ratios in 0..1, the tolerance in points. old: the classes known before. mean: of
    `means`. `certain`: what of `regressions`, or which mean beyond the tolerance, is not chance."""
    lost = regressions(found, tolerance)
    return {
        "tolerance": tolerance,
        "unmeasured": unmeasured(found, old),
        "classes": [vars(c) | {"difference": c.difference} for c in found],
        "means": [vars(c) | {"difference": c.difference} for c in mean],
        "regressions": [f"{c.name} on {c.dataset}" for c in lost],
        "certain": [f"{c.name} on {c.dataset}" for c in certain([*lost, *regressions(mean, tolerance)])],
    }


def report_text(found: Sequence[Change], old: Sequence[str], mean: Sequence[Change] = ()) -> str:
    """The report for people: a table, and what it cannot say."""
    lines = [f"before and after, in points:\n{changes_table([*found, *mean])}"] if found else []
    if any(c.low is not None for c in found):
        lines.append("95 % interval: of the difference, if other pictures of the same kind had been judged")
    if unknown := unmeasured(found, old):
        lines.append(f"not measured, no `val` split shows them: {', '.join(unknown)}")
    return "\n".join(lines)


def changes_table(found: Sequence[Change]) -> str:
    """One line per class and dataset, in points."""
    head: tuple[str, ...] = ("class", "dataset", "number", "before", "after", "difference")
    rows: list[tuple[str, ...]] = [
        (c.name, c.dataset, c.number, _points(c.before), _points(c.after), _points(c.difference, "+.1f"))
        for c in found
    ]
    if any(c.low is not None for c in found):
        head = (*head, "95 % interval")
        rows = [(*row, _between(c.low, c.high)) for row, c in zip(rows, found, strict=True)]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    form = "  ".join(f"{{:{'<' if column < 3 else '>'}{width}}}" for column, width in enumerate(widths))
    return "\n".join(form.format(*row).rstrip() for row in (head, *rows))


def _points(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(100 * value, form)


def _between(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{_points(low, '+.1f')} to {_points(high, '+.1f')}"


def warning_of(report: Mapping[str, Any]) -> str:
    """One sentence about the regressions of `to_json`."""
    named = [*report["regressions"], *report["certain"]]
    lost = [
        f"{name} {_points(c['difference'], '+.1f')}{_chance(c['low'], c['high'])}"
        for c in [*report["classes"], *report["means"]]
        if (name := f"{c['name']} on {c['dataset']}") in named
    ]
    return f"forgotten more than the tolerance of {report['tolerance']:g} points: {', '.join(lost)}"


def _chance(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" (95 % interval {_between(low, high)}{', so it may be chance' if low <= 0 <= high else ''})"


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
            label=in_legend(f"{name} ({dataset})"),
            **line_look(names.index(name)),
        )
    axes.set_xticks(range(len(history)), [f"{n}: {generation.mode}" for n, generation in enumerate(history)])
    axes.set(ylim=(0, 102), xlabel="generation", ylabel="main number of the protocol, points")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save_figure(figure, path)
