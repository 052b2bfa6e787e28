"""The figure of a lifelong sequence: AP50 of every class over the generations, a panel per class."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from crossdet.errors import UserError
from crossdet.evaluation.figures import COLOURS, check_image_file, new_figure, save_figure
from crossdet_research.lifelong.plan import JOINT, METHODS
from crossdet_research.lifelong.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDER = tuple(method.name for method in METHODS)
"""A method has the same colour in all figures."""
COLUMNS = 6
ALL = "mean of all so far"


def class_lines(results: Results, place: str, name: str) -> dict[str, dict[int, list[float]]]:
    """Method -> generation -> AP50 of the seeds, in points. name: a class, or `ALL`. Of joint training only what
    was trained for it: the first generation is everybody's."""
    lines = {}
    for method in results.methods():
        points = {}
        for generation in range(2 if method == JOINT.name else 1, results.last + 1):
            names = results.known(generation) if name == ALL else [name]
            if values := list(results.by_seed(method, generation, place, names).values()):
                points[generation] = values
        if points:
            lines[method] = points
    return lines


def draw_generations(results: Results, file: Path, place: str | None = None) -> None:
    """A panel per class and one for their mean; a line per method, a band of one standard deviation over the seeds.

    place: `val` or `union`; None: the union test where there is one. Raises `UserError` without any number there.
    """
    check_image_file(file)
    known = results.places()
    if not known or (place is not None and place not in known):
        raise UserError(
            f"{results.name}: nothing was measured on {place or 'any test'}; it has: {', '.join(known)}"
        )
    chosen = place or known[0]
    panels = [(name, class_lines(results, chosen, name)) for name in [ALL, *results.known(results.last)]]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(0.8 + 2.5 * columns, 1.0 + 2.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel, (name, methods) in zip(axes.ravel(), panels, strict=False):
        for method, points in methods.items():
            _draw(panel, points, method, results.title(method))
        panel.set_title(name, fontsize=9)
        panel.set_xticks(range(1, results.last + 1))
        panel.grid(alpha=0.3)
        panel.set_ylim(0, 102)
    for panel in axes.ravel()[len(panels) :]:
        panel.set_axis_off()
    figure.supxlabel(f"generation ({'; '.join(', '.join(names) for names in results.generations)})", fontsize=9)
    figure.supylabel(f"AP50, {chosen}", fontsize=9)
    handles = {
        label: handle
        for panel in axes.ravel()
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=min(5, len(handles)), fontsize=8
    )
    save_figure(figure, file)


def _draw(panel: Axes, points: dict[int, list[float]], method: str, label: str) -> None:
    x = sorted(points)
    middle = np.array([mean(points[at]) for at in x])
    width = np.array([stdev(points[at]) if len(points[at]) > 1 else 0.0 for at in x])
    colour = COLOURS[ORDER.index(method) % len(COLOURS)]
    style, marker = ("--", "D") if method == JOINT.name else ("-", ".")
    panel.plot(x, middle, style, color=colour, marker=marker, markersize=5, linewidth=1.4, label=label)
    panel.fill_between(x, middle - width, middle + width, color=colour, alpha=0.15, linewidth=0)
