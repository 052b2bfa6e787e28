"""Figures of the ablation: learning curves and the conflict sweep (from the JSONs), and pictures of two runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from crossdet.errors import UserError
from crossdet.evaluation.figures import PICTURES, check_image_file, line_look, new_figure, save_figure
from crossdet.files import write_atomically
from crossdet_research.ablation.methods import FURTHER, METHODS
from crossdet_research.ablation.results import UNION_AP, Results, all_levels, sweep_key
from crossdet_research.ablation.tables import SWEPT
from crossdet_research.tables import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crossdet.evaluation.arrays import DetectionArrays
    from crossdet.evaluation.union import UnionTest
    from crossdet_research.ablation.queue import SplitFolder

ORDER = tuple(method.name for method in (*METHODS, *FURTHER))
"""A method has the same colour in all figures."""
SIDE = 420
"""Pixels to which the shorter side of a picture is enlarged, so that text has room."""

Points = Mapping[float, Sequence[float]]
"""x -> values of the seeds."""


def _draw_line(panel: Axes, points: Points, method: str, label: str, marker: str | None = None) -> None:
    """The mean over the seeds, with a band of one standard deviation where there are several."""
    x = sorted(points)
    middle = np.array([mean(points[at]) for at in x])
    width = np.array([stdev(points[at]) if len(points[at]) > 1 else 0.0 for at in x])
    style = line_look(ORDER.index(method) if method in ORDER else len(ORDER))
    panel.plot(x, middle, label=label, linewidth=1.6, marker=marker or ("." if len(x) == 1 else None), **style)
    if len(x) > 1:
        panel.fill_between(x, middle - width, middle + width, color=style["color"], alpha=0.15, linewidth=0)
    elif width[0]:
        panel.errorbar(x, middle, width, color=style["color"], capsize=3)


def draw_learning_curves(results: Results, file: Path) -> None:
    """A panel per part: AP of its own classes over the optimiser steps, a line per method. Raises `UserError` where
    no run was evaluated."""
    check_image_file(file)
    parts = list(results.summary["parts"])
    lines = {
        (part, method): points
        for part in parts
        for method in [*results.methods(), *results.experts()]
        if (points := curve_points(results.runs.get(method, {}), part))
    }
    if not lines:
        raise UserError(f"{results.name}: no run was evaluated, there is no learning curve")
    figure = new_figure(0.6 + 4.6 * len(parts), 4.0)
    figure.suptitle(f"{results.name}: AP of each part's own classes, mean and standard deviation over the seeds")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for panel, part in zip(panels, parts, strict=True):
        row = results.summary["parts"][part]
        for (of, method), points in lines.items():
            if of == part:
                count = max(map(len, points.values()))
                _draw_line(panel, points, method, f"{results.title(method)} ({count} seed{'s' * (count > 1)})")
        panel.set(title=f"{part}: {', '.join(row['classes'])}; look {row['look']}", xlabel="steps", ylabel="AP, %")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize=7, framealpha=0.7)
    save_figure(figure, file)


def curve_points(runs: Mapping[int, Run], part: str) -> dict[float, list[float]]:
    """Steps -> AP in percent of the seeds."""
    points: dict[float, list[float]] = {}
    for run in runs.values():
        for row in run["curve"]:
            if row["datasets"].get(part) is not None:
                points.setdefault(float(row["step"]), []).append(100 * row["datasets"][part])
    return points


def draw_sweep(splits: Sequence[Results], file: Path) -> None:
    """Union AP over the share of images in conflict: a panel per set of looks (and of parts and sizes). Raises
    `UserError` without a single union AP."""
    check_image_file(file)
    panels: dict[tuple[str, ...], list[Results]] = {}
    for one in all_levels(splits):
        if any(UNION_AP.values(one.of(method)) for method in SWEPT):
            panels.setdefault(sweep_key(one), []).append(one)
    if not panels:
        raise UserError("no split with a union AP; `crossdet-research ablation run` measures it")
    figure = new_figure(0.6 + 4.6 * len(panels), 4.2)
    figure.suptitle("union AP (all classes, all looks) over the share of images that show an unlabelled object")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, many in zip(axes, panels.values(), strict=True):
        for method in SWEPT:
            if points := sweep_points(many, method):
                _draw_line(panel, points, method, many[0].title(method), marker="o")
        panel.set(title=_sweep_title(many[0]), xlabel="images in conflict, %", ylabel="union AP, %", xlim=(-3, 103))
        panel.grid(alpha=0.3)
        panel.legend(loc="best", fontsize=8, framealpha=0.7)
    save_figure(figure, file)


def sweep_points(splits: Sequence[Results], method: str) -> dict[float, list[float]]:
    """Conflict in percent -> union AP of the seeds in percent."""
    points: dict[float, list[float]] = {}
    for one in splits:
        if values := list(UNION_AP.values(one.of(method)).values()):
            points.setdefault(round(100 * float(one.summary["conflict"]), 1), []).extend(values)
    return points


def _sweep_title(results: Results) -> str:
    parts = results.summary["parts"].values()
    looks = "the same look" if len(results.looks) == 1 else f"looks: {', '.join(results.looks)}"
    images = sorted({p["images"] for p in parts})
    classes = " | ".join(", ".join(p["classes"]) for p in parts)
    title = f"{looks}\n{'-'.join(map(str, images))} images per part"
    return f"{title}\n{classes}" if len(classes) <= 40 else title


def draw_pictures(
    split: SplitFolder, runs: Sequence[tuple[str, Path]], file: Path, score: float, image: int | None = None
) -> None:
    """A row per look with the same test picture: all objects, and what each run finds with at least `score`.

    runs: (title, run directory). image: number of the test picture, from 0; None: the one with the most objects of
    classes that are not labelled in some look.

    Raises `UserError` for unreadable runs or pictures, or a number beyond the last picture.
    """
    from crossdet.evaluation.union import compare, joined
    from crossdet_research.ablation.measure import open_test

    check_image_file(file, PICTURES)
    test = open_test(split.folder, split.parts)
    rows = _rows_of_picture(test, image)
    found = [(title, _found(split, run, test, rows)) for title, run in runs]
    lines = []
    for row in rows:
        look = str(test.domain_of[row])
        home = ", ".join(c for c in test.classes if c in test.labelled_in[look])
        height, width = (int(side) for side in test.index.sizes[row])
        title = f"look {look} (labelled here: {home}): all objects"
        lines.append(compare(test, row, title, found, score, SIDE / min(height, width)))
    buffer = io.BytesIO()
    joined(lines, upright=True).save(buffer, "JPEG" if file.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    write_atomically(file, buffer.getvalue())


def _rows_of_picture(test: UnionTest, image: int | None) -> list[int]:
    """The rows of one test picture in all looks. The test set has the same pictures in every look, in one order."""
    looks = list(dict.fromkeys(test.domain_of.tolist()))
    rows = np.stack([np.flatnonzero(test.domain_of == look) for look in looks])  # [looks, pictures]
    if image is None:
        foreign = np.array([any(c not in test.labelled_in[look] for look in looks) for c in test.classes])
        chosen = foreign if foreign.any() else ~foreign
        objects = chosen[test.truth.labels] & ~test.truth.crowd
        counts = np.bincount(test.truth.image_of_box[objects], minlength=len(test.domain_of))
        image = int(counts[rows].sum(axis=0).argmax())
    if not 0 <= image < rows.shape[1]:
        raise UserError(f"--image {image}: expected 0 to {rows.shape[1] - 1}")
    return [int(row) for row in rows[:, image]]


def _found(split: SplitFolder, run: Path, test: UnionTest, rows: Sequence[int]) -> DetectionArrays:
    """What the run finds in these pictures of the test, as the test counts it."""
    from crossdet.config.schema import EvalConfig
    from crossdet.evaluation.protocols.entry import best_per_image
    from crossdet.evaluation.run import detect
    from crossdet.inference import load_detector
    from crossdet_research.ablation.measure import MOST_COUNTED, eval_settings, folded, union_ids

    detector = load_detector(run, last=True)
    ids = union_ids(detector.classes, test.classes, split.parts)
    limits = EvalConfig(**{"nms_iou": 0.5, **{k: v for k, v in detector.decoding.items() if k != "max_detections"}})
    pictures = test.index.take(np.array(rows, np.int64))
    detections = detect(detector.model, pictures, None, eval_settings(detector, limits)).detections
    best = best_per_image(folded(detections, ids, limits.nms_iou), MOST_COUNTED)
    return replace(best, labels=ids[best.labels], image_of_box=np.array(rows, np.int64)[best.image_of_box])
