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
from crossdet.evaluation.figures import in_legend, line_look, new_figure, save_figure
from crossdet.evaluation.precision_recall import Curve
from crossdet.files import safe_names, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "crossdet-curves/1"
OVERLAY = "crossdet-curves-overlay/1"
"""Several methods in one small file: what an overlay drew."""
DATA_FILE = "curves.json"
MAX_POINTS = 2000
OVERLAY_POINTS, OVERLAY_DIGITS = 300, 4
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


def overlay(
    files: Sequence[tuple[str | None, Path]], folder: Path, datasets: Sequence[str] = (), data: Path | None = None
) -> list[Path]:
    """Draws the curves of several `curves.json` into shared figures.

    files: (name or None, file); without a name the stored one, with the name of its folder where two are equal. A
        file may also be the `data` of an earlier overlay, with all its methods.
    datasets: draw only these. data: a small JSON with what was drawn (300 points per curve, 4 digits).

    Raises:
        UserError: a file that is no such data, an unknown dataset, or no curve at all.
    """
    methods: list[Method] = []
    if missing := [file for _, file in files if file.is_dir() and not (file / DATA_FILE).is_file()]:
        below = sorted(str(found.parent) for found in missing[0].rglob(DATA_FILE))
        hint = f"there are some in {', '.join(below)}" if below else "`crossdet eval RUN CONFIG` writes them"
        raise UserError(f"{missing[0]} holds no {DATA_FILE}; {hint}")
    for given, file in files:
        for stored, curves in read_methods(file / DATA_FILE if file.is_dir() else file):
            taken = {name for name, _ in methods}
            folder_name = (file if file.is_dir() else file.parent).resolve().name
            names = [given or stored, f"{given or stored}, {folder_name}"]
            names += [f"{names[1]} {number}" for number in range(2, len(files) + len(taken) + 2)]
            methods.append((next(name for name in names if name not in taken), curves))
    known = list(dict.fromkeys(c.dataset for _, curves in methods for c in curves))
    if strange := [name for name in datasets if name not in known]:
        raise UserError(
            f"--dataset {', '.join(strange)}: no curves of it; there are some of {', '.join(known) or 'none'}"
        )
    if datasets:
        methods = [(name, [c for c in curves if c.dataset in datasets]) for name, curves in methods]
    drawn = draw_curves(folder, methods)
    if not drawn:
        raise UserError(f"no curve with an AP in {', '.join(str(file) for _, file in files)}")
    if data is not None:
        rows = [
            {"method": name, "curves": _rows(curves, OVERLAY_POINTS, OVERLAY_DIGITS)} for name, curves in methods
        ]
        write_json(data, {"format": OVERLAY, "methods": rows})
    return drawn


# ------------------------------------------------------------------------------------------ data


def write_curves(file: Path, method: str, curves: Sequence[NamedCurve]) -> None:
    """JSON; a curve of more than 2,000 points is thinned to those that shape it, its AP is that of all points."""
    write_json(file, {"format": FORMAT, "method": method, "curves": _rows(curves, MAX_POINTS)})


def _rows(curves: Sequence[NamedCurve], points: int, digits: int | None = None) -> list[dict[str, Any]]:
    rows = []
    for named in curves:
        kept = shaping_points(named.curve, points)
        values = named.curve.recall[kept], named.curve.precision[kept]
        recall, precision = values if digits is None else (np.round(value, digits) for value in values)
        rows.append(
            {
                "dataset": named.dataset,
                "protocol": named.protocol,
                "name": named.name,
                "ap": named.curve.ap,
                "recall": recall.tolist(),
                "precision": precision.tolist(),
            }
        )
    return rows


def shaping_points(curve: Curve, points: int = MAX_POINTS) -> NDArray[np.int64]:
    """Rows of at most `points` points, evenly along the drawn length of the curve, with both ends."""
    count = len(curve.recall)
    if count <= points:
        return np.arange(count)
    steps = np.abs(np.diff(curve.recall)) + np.abs(np.diff(curve.precision))
    length = np.concatenate([[0.0], np.cumsum(np.nan_to_num(steps))])
    wanted = np.linspace(0, length[-1], points - 1)
    return np.unique(np.concatenate([np.searchsorted(length, wanted), [count - 1]]))


def read_methods(file: Path) -> list[tuple[str, list[NamedCurve]]]:
    """The methods, with their curves, of a file of `write_curves` (one) or of the data of `overlay`.

    Raises `UserError` that names the file and what is wrong in it.
    """
    try:
        content = json.loads(file.read_bytes())
        if content.get("format") not in (FORMAT, OVERLAY):
            raise UserError(f"{file}: no precision-recall curves (format {content.get('format')!r})")
        rows = content["methods"] if content["format"] == OVERLAY else [content]
        return [(str(row["method"]), [_curve(one) for one in row["curves"]]) for row in rows]
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: no precision-recall curves ({error!r})") from None


def _curve(row: dict[str, Any]) -> NamedCurve:
    recall, precision = (np.array(row[key], np.float64) for key in ("recall", "precision"))
    if recall.shape != precision.shape or recall.ndim != 1:
        raise ValueError(f"{row['name']!r} has {recall.shape} recalls and {precision.shape} precisions")
    ap = math.nan if row["ap"] is None else float(row["ap"])
    return NamedCurve(str(row["dataset"]), str(row["protocol"]), str(row["name"]), Curve(recall, precision, ap))


# ------------------------------------------------------------------------------------------ figures


def draw_curves(folder: Path, methods: Sequence[Method]) -> list[Path]:
    """One PNG per dataset and protocol with a panel per curve name; curves without an AP are left out."""
    pairs = dict.fromkeys((c.dataset, c.protocol) for _, curves in methods for c in curves)
    names = safe_names([re.sub(r"[^\w.-]+", "_", f"{dataset}_{protocol}") for dataset, protocol in pairs])
    files: list[Path] = []
    for (dataset, protocol), name in zip(pairs, names, strict=True):
        figure = draw_figure(dataset, protocol, methods)
        if figure is None:
            continue
        files.append(folder / f"{name}.png")
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


def _shortened(method: str) -> str:
    return method if len(method) <= LEGEND else method[: LEGEND - 3] + "..."


def _draw_panel(panel: Axes, name: str, lines: Sequence[tuple[int, str, Curve]]) -> None:
    """A method keeps its colour in all panels; the legend is ordered by AP."""
    for row, method, curve in sorted(lines, key=lambda line: -line[2].ap):
        panel.plot(
            curve.recall,
            curve.precision,
            linewidth=1.4,
            marker="." if len(curve.recall) == 1 else None,
            label=in_legend(f"{_shortened(method)} (AP {curve.ap:.3f})"),
            **line_look(row),
        )
    panel.set(xlim=(0, 1.005), ylim=(0, 1.02), title=name, xlabel="recall", ylabel="precision")
    panel.grid(alpha=0.3)
    panel.legend(loc="lower left", fontsize=7 if len(lines) <= 8 else 5, framealpha=0.7)
