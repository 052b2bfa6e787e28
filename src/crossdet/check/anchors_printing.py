"""What `crossdet anchors` prints and draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossdet.check.anchors import LEAST_GAIN, LOW_IOU, RECALL_IOU, AnchorsReport, DatasetBoxes, SettingReport
from crossdet.check.printing import heading, show
from crossdet.evaluation.figures import new_figure, save_figure
from crossdet.evaluation.tables import lineless_table, percent
from crossdet.models.retinanet.anchor_stats import best_anchor_iou
from crossdet.models.retinanet.settings import PYRAMID_STRIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 3000
"""Boxes drawn per dataset."""


def print_anchors(report: AnchorsReport, console: Console) -> None:
    """The datasets, the settings, how each covers each dataset, and the proposal as `--set` takes it."""
    heading(console, "Training boxes at the network's input")
    show(console, _dataset_table(report))
    for name in report.without_boxes:
        console.print(Text(f"  {name}: no training boxes, left out"))
    heading(console, "Settings (means over the datasets by their share of the draws, %)")
    show(console, _setting_table(report))
    console.print(Text("  A, B, ...: of the paper (sec. 4.1.2, table 3)", style="dim"))
    for title, key in (
        (f"Boxes reached by an anchor, % (IoU >= {RECALL_IOU:g})", "recall"),
        (f"The same at IoU >= {LOW_IOU:g}, %", "recall_low"),
        ("Mean IoU with the best anchor, %", "mean_iou"),
    ):
        heading(console, title)
        show(console, _coverage_table(report, key))
    heading(console, "Proposal")
    for line in verdict(report):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    if "config" not in report.of("proposal").roles:
        text = "Weights keep their anchors when they are extended: name the datasets to come in this config, too."
        console.print(Padding(Text(text), (0, 0, 0, 2)))
        line = " ".join(f"--set '{value}'" for value in report.overrides)
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def verdict(report: AnchorsReport) -> list[str]:
    """What the tables say about the config's setting, in words."""
    config, proposal = report.of("config"), report.of("proposal")
    if config is proposal:
        return ["The config's own setting: nothing better with as many anchors was found."]
    gain = proposal.mean.objective - config.mean.objective
    cost = f"{proposal.setting.per_position} anchors per position, the config has {config.setting.per_position}"
    lines = [
        f"{_values(proposal.setting.scales)} x {_values(proposal.setting.ratios)}: {cost}. Objective (mean of "
        f"recall and mean IoU) {percent(proposal.mean.objective)}, config {percent(config.mean.objective)}."
    ]
    if gain < LEAST_GAIN and proposal.setting.per_position >= config.setting.per_position:
        lines.append("That is hardly better: no reason to leave the config's setting.")
    worse = [
        name
        for name, found in proposal.datasets.items()
        if found.recall < config.datasets[name].recall - LEAST_GAIN
    ]
    if worse:
        lines.append(f"It reaches fewer boxes than the config's setting in {', '.join(worse)}.")
    return lines


def _table(*columns: str, left: int = 1) -> Table:
    return lineless_table(*columns, left=left, no_wrap=left, header_style="dim", pad_edge=True)


def _dataset_table(report: AnchorsReport) -> Table:
    table = _table("dataset", "images", "boxes", "drawn", "side, px (10/50/90%)", "height / width")
    for d in report.datasets:
        sides = " / ".join(f"{v:.0f}" for v in d.sides)
        ratios = " / ".join(f"{v:.2f}" for v in d.ratios)
        table.add_row(Text(d.name), f"{d.images:,}", f"{d.boxes:,}", f"{d.share:.1%}", sides, ratios)
    return table


def _labels(report: AnchorsReport) -> Iterator[str]:
    """config, A, B, ..., proposal: short, so that datasets can be rows and there may be many of them."""
    letters = iter(ascii_uppercase)
    for row in report.settings:
        own = [role for role in row.roles if role != "paper"]
        yield "/".join(own) or next(letters)


def _setting_table(report: AnchorsReport) -> Table:
    table = _table("", "scales", "ratios", "anchors", "at .5", "at .4", "IoU", "objective", left=3)
    for label, row in zip(_labels(report), report.settings, strict=True):
        mean = row.mean
        numbers = (mean.recall, mean.recall_low, mean.mean_iou, mean.objective)
        shape = (_values(row.setting.scales), _values(row.setting.ratios), str(row.setting.per_position))
        style = "bold" if "proposal" in row.roles else ""
        table.add_row(label, *shape, *map(percent, numbers), style=style)
    return table


def _coverage_table(report: AnchorsReport, key: str) -> Table:
    table = _table("", *_labels(report))
    for d in report.datasets:
        cells = (percent(getattr(row.datasets[d.name], key)) for row in report.settings)
        table.add_row(Text(d.name), *cells)
    return table


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


# --------------------------------------------------------------------------------------------------- figure


def draw_anchors(file: Path, data: Sequence[DatasetBoxes], report: AnchorsReport) -> None:
    """One panel per dataset: size and aspect ratio of its boxes, and the shapes of the anchors at all levels.

    Boxes that no anchor of the proposal reaches are drawn in another colour.
    The format is that of the file's suffix.
    """
    columns = min(len(data), 3)
    rows = -(-len(data) // columns)
    figure = new_figure(0.6 + 4.2 * columns, 0.9 + 3.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, dataset in zip(panels, data, strict=False):
        _draw_panel(panel, dataset, report)
    for panel in panels[len(data) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(data) - columns) : len(data)]:  # with nothing below them
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel("side at the input (root of the area), px")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, markerscale=1.3)
    save_figure(figure, file)


def _draw_panel(panel: Axes, data: DatasetBoxes, report: AnchorsReport) -> None:
    proposal, own = report.of("proposal"), report.of("config")
    rows = np.random.default_rng(0).permutation(len(data.boxes))[:MAX_POINTS]
    boxes = data.boxes[rows]
    reached = best_anchor_iou(boxes, data.sizes[rows], *proposal.setting) >= RECALL_IOU
    width, height = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3).T
    for label, shown, colour in (
        ("box with an anchor of the proposal (IoU >= 0.5)", reached, "#56b4e9"),
        ("box without", ~reached, "#d55e00"),
    ):
        points = np.sqrt(width * height)[shown], (height / width)[shown]
        panel.scatter(*points, s=5, color=colour, alpha=0.5, linewidths=0, label=label, rasterized=True)
    marks: tuple[tuple[SettingReport, str, dict[str, Any]], ...] = (
        (own, "anchors of the config", {"marker": "o", "s": 26, "facecolors": "none", "edgecolors": "#777777"}),
        (proposal, "anchors of the proposal, all levels", {"marker": "+", "s": 46, "color": "#000000"}),
    )
    for row, label, style in marks:
        if row is own and own is proposal:
            continue
        sides = np.array([s * stride for stride in PYRAMID_STRIDES for s in row.setting.scales])
        x, y = np.meshgrid(sides, row.setting.ratios)
        panel.scatter(x, y, linewidths=1.0, label=label, **style)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    reach = proposal.datasets[data.name].recall
    panel.set_title(f"{data.name}: {reach:.1%} reached, config {own.datasets[data.name].recall:.1%}", fontsize=10)
    panel.set_ylabel("height / width")
    panel.label_outer()
