"""Precision-recall curves as data and as figures: several runs or methods in one panel, AP in the legend, as
WIDER FACE publishes its results (the paper's fig. 5)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import UserError
from crossdet.evaluation.precision_recall import Curve
from crossdet.figures import line_look, new_figure, save_figure
from crossdet.jsonfiles import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "crossdet-curves/1"
DATA_FILE = "curves.json"
MAX_POINTS = 2000
LEGEND = 40
"""Characters of a method's name that fit into a panel."""


@dataclass(frozen=True)
class NamedCurve:
    """One curve of one protocol on one dataset; name: such as "easy", "AP50" or a class."""

    dataset: str
    protocol: str
    name: str
    curve: Curve


Method = tuple[str, Sequence[NamedCurve]]
"""Name of a run or method, and its curves."""


def write_run_curves(folder: Path, method: str, curves: Sequence[NamedCurve]) -> list[Path]:
    """Writes `curves.json` and a figure per dataset and protocol; returns the files."""
    write_curves(folder / DATA_FILE, method, curves)
    return [folder / DATA_FILE, *draw_curves(folder, [(method, curves)])]


def overlay(files: Sequence[tuple[str | None, Path]], folder: Path) -> list[Path]:
    """Draws the curves of several `curves.json` into shared figures.

    files: (name or None, file); without a name the stored one, with the name of its folder where two are equal.

    Raises:
        UserError: a file that is no such data, or no curve at all.
    """
    methods: list[Method] = []
    for given, file in files:
        stored, curves = read_curves(file / DATA_FILE if file.is_dir() else file)
        taken = {name for name, _ in methods}
        folder_name = (file if file.is_dir() else file.parent).resolve().name
        names = [given or stored, f"{given or stored}, {folder_name}"]
        names += [f"{names[1]} {number}" for number in range(2, len(files) + 2)]
        methods.append((next(name for name in names if name not in taken), curves))
    drawn = draw_curves(folder, methods)
    if not drawn:
        raise UserError(f"no curve with an AP in {', '.join(str(file) for _, file in files)}")
    return drawn


# ------------------------------------------------------------------------------------------ data


def write_curves(file: Path, method: str, curves: Sequence[NamedCurve]) -> None:
    """JSON; a curve of more than 2,000 points is thinned to those that shape it, its AP is that of all points."""
    rows = []
    for named in curves:
        kept = _shaping_points(named.curve)
        rows.append(
            {
                "dataset": named.dataset,
                "protocol": named.protocol,
                "name": named.name,
                "ap": named.curve.ap,
                "recall": named.curve.recall[kept].tolist(),
                "precision": named.curve.precision[kept].tolist(),
            }
        )
    write_json(file, {"format": FORMAT, "method": method, "curves": rows})


def _shaping_points(curve: Curve) -> NDArray[np.int64]:
    """Rows of at most `MAX_POINTS` points, evenly along the drawn length of the curve, with both ends."""
    count = len(curve.recall)
    if count <= MAX_POINTS:
        return np.arange(count)
    steps = np.abs(np.diff(curve.recall)) + np.abs(np.diff(curve.precision))
    length = np.concatenate([[0.0], np.cumsum(np.nan_to_num(steps))])
    wanted = np.linspace(0, length[-1], MAX_POINTS - 1)
    return np.unique(np.concatenate([np.searchsorted(length, wanted), [count - 1]]))


def read_curves(file: Path) -> tuple[str, list[NamedCurve]]:
    """(method, curves) of a file that `write_curves` wrote.

    Raises:
        UserError: names the file and what is wrong in it.
    """
    try:
        content = json.loads(file.read_text())
        if content.get("format") != FORMAT:
            raise UserError(f"{file}: no precision-recall curves (format {content.get('format')!r})")
        return str(content["method"]), [_curve(row) for row in content["curves"]]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: no precision-recall curves ({error!r})") from None


def _curve(row: dict[str, Any]) -> NamedCurve:
    recall, precision = (np.array(row[key], np.float64) for key in ("recall", "precision"))
    if recall.shape != precision.shape or recall.ndim != 1:
        raise ValueError(f"{row['name']!r} has {recall.shape} recalls and {precision.shape} precisions")
    ap = math.nan if row["ap"] is None else float(row["ap"])
    return NamedCurve(
        str(row["dataset"]), str(row["protocol"]), str(row["name"]), Curve(recall, precision, ap)
    )


# ------------------------------------------------------------------------------------------ figures


def draw_curves(folder: Path, methods: Sequence[Method]) -> list[Path]:
    """One PNG per dataset and protocol with a panel per curve name; curves without an AP are left out."""
    pairs = dict.fromkeys((c.dataset, c.protocol) for _, curves in methods for c in curves)
    files: list[Path] = []
    for dataset, protocol in pairs:
        figure = draw_figure(dataset, protocol, methods)
        if figure is None:
            continue
        name = re.sub(r"[^\w.-]+", "_", f"{dataset}_{protocol}")
        taken = {file.stem for file in files}
        number = next(n for n in range(1, len(files) + 2) if (name if n == 1 else f"{name}_{n}") not in taken)
        files.append(folder / f"{name if number == 1 else f'{name}_{number}'}.png")
        save_figure(figure, files[-1])
    return files


def draw_figure(dataset: str, protocol: str, methods: Sequence[Method]) -> Figure | None:
    """The figure of one dataset and protocol; None where no curve has an AP."""
    known = [
        (row, method, c)
        for row, (method, curves) in enumerate(methods)
        for c in curves
        if (c.dataset, c.protocol) == (dataset, protocol) and not math.isnan(c.curve.ap)
    ]
    names = list(dict.fromkeys(c.name for _, _, c in known))
    if not names:
        return None
    columns = len(names) if len(names) <= 4 else math.ceil(math.sqrt(len(names)))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(0.4 + 3.4 * columns, 0.5 + 3.3 * rows)
    figure.suptitle(f"{dataset}, {protocol}")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _draw_panel(panel, name, [(row, method, c.curve) for row, method, c in known if c.name == name])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    return figure


def _draw_panel(panel: Axes, name: str, lines: Sequence[tuple[int, str, Curve]]) -> None:
    """A method keeps its colour in all panels; the legend is ordered by AP."""
    for row, method, curve in sorted(lines, key=lambda line: -line[2].ap):
        panel.plot(
            curve.recall,
            curve.precision,
            linewidth=1.4,
            marker="." if len(curve.recall) == 1 else None,
            label=f"{method if len(method) <= LEGEND else method[: LEGEND - 3] + '...'} (AP {curve.ap:.3f})",
            **line_look(row),
        )
    panel.set(xlim=(0, 1.005), ylim=(0, 1.02), title=name, xlabel="recall", ylabel="precision")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower left", fontsize=7 if len(lines) <= 8 else 5, framealpha=0.7)
