"""The report of a run as one HTML page: data and labels, curves, scores, thresholds, confusions, calibration, best
and worst pictures, and the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossdet.data.drawing import class_colour, draw_boxes
from crossdet.evaluation.arrays import Bools
from crossdet.evaluation.audit import AuditedSplit
from crossdet.evaluation.audit_page import AuditedRun, fewer_note, sections
from crossdet.evaluation.curves import shaping_points
from crossdet.evaluation.html import (
    COLOURS,
    Line,
    as_jpeg,
    figure,
    line_chart,
    of_class,
    table,
    table_row,
    write_document,
)
from crossdet.evaluation.insight import (
    PictureScore,
    Reliability,
    Taken,
    above_threshold,
    class_curves,
    confusions,
    picture_scores,
    reliability,
    worst_and_best,
)
from crossdet.evaluation.pictures import read_picture, side_by_side
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.tables import percent
from crossdet.labels.space import LabelSpace
from crossdet.labels.states import ABSENT, AVOIDED, LABELLED, NOT_EXHAUSTIVE, PER_IMAGE, state_of
from crossdet.models.card import Card

CURVE_POINTS = 200
PICTURE = 480
"""Longer side of a picture in pixels."""
SHOWN = 6
"""Worst pictures; half as many best ones."""
FILTER = """<p class=screen><label>Only classes with <input id=filter type=search placeholder='a part of the name'>
</label></p>"""
SCRIPT = """<script>
const filter = document.getElementById('filter')
filter.addEventListener('input', () => {
  const text = filter.value.toLowerCase()
  for (const one of document.querySelectorAll('[data-class]'))
    one.hidden = !one.dataset.class.toLowerCase().includes(text)
})
</script>"""


@dataclass(frozen=True)
class RunRecord:
    """What a run wrote. history: the records of its epochs, none of weights without a run; best_epoch: of the
    weights that are taken. steps: column of `steps.csv` -> its values. recipe: lines of `metrics.json`. warnings:
    of the guard in the whole training."""

    name: str
    card: Card
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    steps: Mapping[str, Sequence[float]]
    recipe: Sequence[str]
    warnings: Sequence[str] = ()

    @property
    def judged(self) -> Mapping[str, Any]:
        """The evaluation of the best weights, else the last one; empty where there was none."""
        found = [record for record in self.history if "metrics" in record]
        best = [record for record in found if record["epoch"] == self.best_epoch]
        metrics: Mapping[str, Any] = (best or found or [{"metrics": {}}])[-1]["metrics"]
        return metrics


@dataclass(frozen=True)
class Looked:
    """What a look at the validation pictures gave."""

    audited: AuditedRun
    confusions: list[Taken]
    reliability: Reliability

    @classmethod
    def of(cls, audited: AuditedRun, overlap: Bools) -> Looked:
        """overlap: `[C, C]` classes that may share a box."""
        splits, found = audited.splits, audited.audit
        return cls(audited, confusions(splits, found, overlap), reliability(found.judged))


Counts = Mapping[str, Mapping[str, tuple[int, int]]]
"""Dataset -> split -> pictures and boxes."""


def write_report(
    file: Path,
    run: RunRecord,
    counts: Counts,
    looked: Looked | None,
    against: RunRecord | None = None,
    against_looked: Looked | None = None,
) -> None:
    """looked: None = the pictures are left out, and all that needs detections."""
    runs = [run, *([against] if against else [])]
    body = [
        _head(runs),
        *([_warnings(run), _scores(runs), _training(runs)] if run.history else []),
        _data(run.card.space, counts),
        _labels(run.card.space),
        FILTER,
        *([_classes(runs)] if run.history else []),
    ]
    if looked is None:
        body.append("<p>Validation pictures were not looked at: no curves, confusions, calibration, audit.</p>")
    else:
        others = [(against.name, against_looked)] if against and against_looked else []
        body += [
            fewer_note([one.audited for one in (looked, against_looked) if one is not None]),
            _precision_recall([(run.name, looked), *others]),
            _confusions(looked),
            _calibration([(run.name, looked), *others]),
            _pictures(looked),
            "<section><h2>Audit: classes in datasets that do not label them</h2>",
            *(text.replace("<h2>", "<h3>").replace("</h2>", "</h3>") for text in sections([looked.audited])),
            "</section>",
        ]
    body += [_generations(run.card), SCRIPT]
    write_document(file, f"crossdet report: {escape(run.name)}", body)


def _named(number: int, run: RunRecord) -> str:
    return f"<b style='color:{COLOURS[number % len(COLOURS)]}'>{escape(run.name)}</b>"


def _head(runs: Sequence[RunRecord]) -> str:
    run = runs[0]
    mean = run.judged.get("mean")
    network, *more = run.card.settings.described(run.card.space.classes)
    size, square = run.card.input, run.card.settings.stretched_to
    shape = f"shorter side of the pictures {size.shorter}, longer at most {size.longer} pixels"
    if square is not None:
        shape = f"pictures are stretched to {square} x {square} pixels"
    lines = [
        f"Mean score over the datasets: <b>{'none was computed' if mean is None else percent(mean)}</b>",
        f"{escape(network)}; {shape}",
        *map(escape, more),
        *map(escape, run.recipe),
    ]
    beside = f"<p>Beside it: {_named(1, runs[1])}</p>" if len(runs) > 1 else ""
    return f"<h1>{escape(run.name)}</h1>{beside}<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _warnings(run: RunRecord) -> str:
    found = dict.fromkeys([*run.warnings, *(warning["sentence"] for warning in run.judged.get("warnings", ()))])
    if not found:
        return "<p>The guard found nothing to warn of.</p>"
    return f"<h2>The guard warns</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in found)}</ul>"


# ------------------------------------------------------------------------------------------ numbers


def _scores(runs: Sequence[RunRecord]) -> str:
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.judged.get("datasets", {})):
        for number, run in enumerate(runs):
            first = run.judged.get("datasets", {}).get(name)
            for record in [] if first is None else [first, *first.get("further", {}).values()]:
                shown = PROTOCOLS[record["protocol"]].columns(record)
                text = ", ".join(f"{escape(label)} <b>{percent(value)}</b>" for label, value in shown)
                who = [_named(number, run)] if len(runs) > 1 else []
                rows.append(
                    table_row(
                        escape(name),
                        *who,
                        escape(record["protocol"]),
                        str(first["images"]),
                        f"<td class=text>{text}</td>",
                    )
                )
    if not rows:
        return "<p>No dataset was judged.</p>"
    head = ["dataset", *(["run"] if len(runs) > 1 else []), "protocol", "pictures", "<th class=text>scores"]
    return f"<h2>Scores, every dataset by its own protocol</h2>{table(head, rows, last_below=True)}"


def _training(runs: Sequence[RunRecord]) -> str:
    charts = []
    known = ("step", "epoch", "lr", "gradient_norm", "images_per_second", "waiting")
    for term in [key for key in runs[0].steps if key not in known]:
        lines = [
            Line(run.name, run.steps["step"], run.steps[term], COLOURS[number], number > 0)
            for number, run in enumerate(runs)
            if term in run.steps
        ]
        charts.append(line_chart("loss" if term == "loss" else f"loss: {term}", lines, "step"))
    rate = [
        Line(run.name, run.steps["step"], run.steps["lr"], COLOURS[number], number > 0)
        for number, run in enumerate(runs)
        if "lr" in run.steps
    ]
    charts.append(line_chart("learning rate", rate, "step"))
    scored = [(run, [r for r in run.history if r.get("metrics", {}).get("mean") is not None]) for run in runs]
    means = [
        Line(
            run.name,
            [r["epoch"] for r in rows],
            [100 * r["metrics"]["mean"] for r in rows],
            COLOURS[number],
            number > 0,
        )
        for number, (run, rows) in enumerate(scored)
    ]
    charts.append(line_chart("mean score in percent", means, "epoch"))
    return f"<h2>Training</h2><div class=charts>{''.join(charts)}</div>"


def _data(space: LabelSpace, counts: Counts) -> str:
    splits = list(dict.fromkeys(split for of in counts.values() for split in of))
    rows = []
    for name in counts:
        cells = [counts[name].get(split) for split in splits]
        rows.append(
            table_row(escape(name), *("-" if cell is None else f"{cell[0]:,} / {cell[1]:,}" for cell in cells))
        )
    if not rows:
        return f"<h2>Data</h2><p>{', '.join(map(escape, space.datasets))}; the files were not read.</p>"
    head = ["dataset", *(f"{split}: pictures / boxes" for split in splits)]
    return f"<h2>Data</h2>{table(head, rows)}"


def _labels(space: LabelSpace) -> str:
    """Class by dataset: what its labels and its background say of the class."""
    words = {
        LABELLED: "<td>labelled</td>",
        NOT_EXHAUSTIVE: "<td class=many>labelled in part</td>",
        PER_IMAGE: "<td class=many>by image</td>",
        AVOIDED: "<td class=home>avoided</td>",
        ABSENT: "<td>absent</td>",
    }
    rows = [
        table_row(
            escape(name), *(words[state_of(space, k, c)] for k in range(len(space.datasets))), about=of_class(name)
        )
        for c, name in enumerate(space.classes)
    ]
    text = (
        "<p class=note>avoided: the dataset does not label the class, so its background is no negative for it. "
        "absent: declared not to occur, so it is one. labelled in part: its boxes count, its background does "
        "not. by image: every picture says which classes were looked for.</p>"
    )
    return f"<h2>Who labels what</h2>{table(['class', *map(escape, space.datasets)], rows)}{text}"


def _classes(runs: Sequence[RunRecord]) -> str:
    """Per class and dataset the protocol's numbers, then those at the threshold; runs below each other."""
    rows: dict[tuple[str, str], list[str]] = {}
    for number, run in enumerate(runs):
        operating = run.judged.get("operating", {})
        for dataset, record in run.judged.get("datasets", {}).items():
            for name, values in record["per_class"].items():
                point = operating.get(name, {})
                cells = [_cell(values, key) for key in ("AP", "AP50", "found_confidently")]
                cells += [_cell(point, key) for key in ("precision", "recall", "f1")]
                cells.append(f"{point['threshold']:.3f}" if "threshold" in point else "-")
                who = [_named(number, run)] if len(runs) > 1 else []
                row = (escape(name), escape(dataset), *who, str(values.get("boxes", "-")), *cells)
                rows.setdefault((dataset, name), []).append(table_row(*row, about=of_class(name)))
    head = ["class", "dataset", *(["run"] if len(runs) > 1 else []), "boxes", "AP", "AP50", "found at 0.3"]
    head += ["precision", "recall", "F1", "threshold"]
    text = (
        "<p class=note>In percent. Precision, recall and F1 are those of the class over all datasets that label "
        "it, at the threshold of best F1, by cross-fitting. AP is the protocol's own, where it has one per "
        "class.</p>"
    )
    return f"<h2>Classes</h2>{table(head, [row for of in rows.values() for row in of])}{text}"


def _cell(values: Mapping[str, Any], key: str) -> str:
    return percent(values[key]) if key in values else "-"


# ------------------------------------------------------------------------------------------ detections


def _precision_recall(runs: Sequence[tuple[str, Looked]]) -> str:
    lines: dict[str, list[Line]] = {}
    for number, (run, looked) in enumerate(runs):
        found = looked.audited.audit
        for c, curve in class_curves(found.judged, sorted(found.home)).items():
            kept = shaping_points(curve, CURVE_POINTS)
            name = f"{run}, AP50 {percent(curve.ap)}"
            line = Line(
                name, curve.recall[kept].tolist(), curve.precision[kept].tolist(), COLOURS[number], number > 0
            )
            lines.setdefault(found.classes[c], []).append(line)
    charts = [
        f"<div{of_class(name)}>{line_chart(name, of, 'recall', (0.0, 1.0), (0.0, 1.0))}</div>"
        for name, of in lines.items()
    ]
    text = (
        "<p class=note>At IoU 0.5, over all datasets that label the class; detections that score less than 0.05 "
        "are not looked at.</p>"
    )
    return f"<h2>Precision and recall</h2>{text}<div class=charts>{''.join(charts)}</div>"


def _confusions(looked: Looked) -> str:
    names, rows = looked.audited.audit.classes, []
    for taken in looked.confusions:
        if not taken.objects:
            continue
        others = sorted(taken.taken_for.items(), key=lambda pair: -pair[1])
        text = ", ".join(f"{escape(names[c])} {count}" for c, count in others)
        shares = [percent(count / taken.objects) for count in (taken.found, taken.missed)]
        name = names[taken.class_id]
        cells = (escape(taken.dataset), str(taken.objects), *shares, f"<td class=text>{text or '-'}</td>")
        rows.append(table_row(escape(name), *cells, about=of_class(name)))
    head = ["class", "dataset", "objects", "found, %", "missed, %", "<th class=text>taken for"]
    text = (
        "<p class=note>Every labelled object counts once: as found where its own class is found on it (IoU 0.5), "
        "else as what the best detection on it says, also of classes that its dataset does not label, else as "
        "missed.</p>"
    )
    return f"<h2>What is taken for what</h2>{table(head, rows)}{text}"


def _calibration(runs: Sequence[tuple[str, Looked]]) -> str:
    lines = [Line("as it should be", (0.0, 1.0), (0.0, 1.0), "#888", True)]
    errors = []
    for number, (name, looked) in enumerate(runs):
        found = looked.reliability
        lines.append(Line(name, found.score.tolist(), found.precision.tolist(), COLOURS[number]))
        errors.append(f"{escape(name)}: {found.error:.3f}")
    chart = line_chart("precision of detections by their score", lines, "score", (0.0, 1.0), (0.0, 1.0))
    text = (
        f"<p>Expected calibration error, {'; '.join(errors)}. <span class=note>Below the line detections are right "
        "less often than their score says. Thresholds are chosen per class, so a shifted curve costs nothing but "
        "the meaning of the score.</span></p>"
    )
    return f"<h2>What a score means</h2><div class=charts>{chart}</div>{text}"


def _pictures(looked: Looked) -> str:
    splits = {split.name: split for split in looked.audited.splits}
    worst, best = worst_and_best(picture_scores(looked.audited.splits, looked.audited.audit), SHOWN)
    parts = []
    for title, pictures in (("Most mistakes", worst), ("No mistake, most objects", best[: SHOWN // 2])):
        figures = [_picture(splits[p.dataset], p, looked) for p in pictures]
        if figures:
            parts.append(f"<h3>{title}</h3><div class='crops wide'>{''.join(figures)}</div>")
    text = "<p class=note>Left what is labelled, right the detections of all classes at their thresholds.</p>"
    return f"<h2>Pictures</h2>{text}{''.join(parts)}"


def _picture(split: AuditedSplit, score: PictureScore, looked: Looked) -> str:
    name = split.index.names[score.image]
    caption = (
        f"{escape(split.name)}, {escape(name)}: {score.found} found, {score.missed} missed, {score.wrong} wrong of "
        "what the dataset labels"
    )
    picture = read_picture(split.index, score.image)
    if picture is None:
        return figure(None, caption)
    scale = min(1.0, PICTURE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    names, truth, d = looked.audited.audit.classes, split.truth, split.detections
    rows = np.flatnonzero((truth.image_of_box == score.image) & (truth.labels >= 0))
    labelled = draw_boxes(
        picture,
        (truth.boxes[rows] * scale).tolist(),
        [names[c] for c in truth.labels[rows].tolist()],
        [class_colour(c) for c in truth.labels[rows].tolist()],
        truth.crowd[rows].tolist(),
    )
    labels, scores = d.labels.astype(np.int64), d.scores.astype(np.float64)
    shown = np.flatnonzero((d.image_of_box == score.image) & above_threshold(looked.audited.audit, labels, scores))
    found = draw_boxes(
        picture,
        (d.boxes[shown] * scale).tolist(),
        [f"{names[c]} {s:.2f}" for c, s in zip(labels[shown].tolist(), scores[shown].tolist(), strict=True)],
        [class_colour(c) for c in labels[shown].tolist()],
    )
    return figure(as_jpeg(side_by_side([labelled, found])), caption)


def _generations(card: Card) -> str:
    rows = []
    for number, generation in enumerate(card.generations):
        trained = ", ".join(escape(name) for name in generation.datasets) or "-"
        classes = str(len(generation.classes))
        parent = "-" if generation.parent is None else generation.parent[:12]
        rows.append(
            table_row(
                str(number), escape(generation.mode), trained, classes, parent, escape(generation.when or "-")
            )
        )
    head = ["", "how", "trained on", "classes", "from weights", "when"]
    return f"<h2>Generations</h2>{table(head, rows)}"
