"""What `crossdet check` says of anchors: how many boxes of every dataset the config's anchors reach. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from crossdet.check.boxes import learnt_boxes
from crossdet.config import Config
from crossdet.config.schema import SPLITS
from crossdet.config.sources import Sources
from crossdet.data.index import Index
from crossdet.evaluation.tables import lineless_table
from crossdet.models.retinanet.anchor_stats import best_anchor_iou
from crossdet.models.retinanet.settings import PYRAMID_STRIDES

LOW_RECALL = 0.9
"""Below it boxes are missed by the anchors often enough to cost accuracy: a warning."""

SMALL, LARGE = 32**2, 96**2
"""COCO's limits of box area, here in pixels of the network's input, where the anchors are."""


@dataclass(frozen=True)
class AnchorReport:
    """Share of a dataset's boxes that some anchor reaches with `model.positive_iou`; None without boxes.

    small, medium, large: area at the network's input below 32^2, between, above 96^2 pixels. hint: what the
    boxes that are not reached have in common, and what to change; "" if nothing is to be done.
    """

    dataset: str
    split: str
    boxes: int
    recall: float | None
    small_boxes: int
    small: float | None
    medium_boxes: int
    medium: float | None
    large_boxes: int
    large: float | None
    hint: str = ""

    @property
    def low(self) -> bool:
        return self.recall is not None and self.recall < LOW_RECALL


@dataclass(frozen=True)
class AnchorCoverage:
    """The finding; `crossdet.check.report.NetworkFinding` says what its methods are for."""

    positive_iou: float
    datasets: tuple[AnchorReport, ...]

    def warnings(self) -> Iterator[str]:
        for a in self.datasets:
            if a.recall is not None and a.low:
                yield (
                    f"{a.dataset} {a.split}: anchors reach only {int(a.recall * 100)}% of the boxes with IoU >= "
                    f"{self.positive_iou:g} (`model.positive_iou`); of the others {a.hint}"
                )

    def to_json(self) -> dict[str, object]:
        return {"positive_iou": self.positive_iou, "anchors": [asdict(a) for a in self.datasets]}

    def table(self) -> tuple[str, Table]:
        columns = ("dataset", "boxes", "all", "small, < 32x32 px", "medium", "large, > 96x96 px")
        table = lineless_table(*columns, header_style="dim", pad_edge=True)
        for a in self.datasets:
            parts = ((a.recall, 0), (a.small, a.small_boxes), (a.medium, a.medium_boxes), (a.large, a.large_boxes))
            table.add_row(Text(f"{a.dataset} {a.split}"), f"{a.boxes:,}", *(_share(*part) for part in parts))
        return f"Boxes reached by an anchor (IoU >= {self.positive_iou:g}; sizes at the network's input)", table


def _share(recall: float | None, count: int) -> Text:
    """`97% of 1,204`; red where the anchors do not do. Rounded down, so that 100% means all."""
    if recall is None:
        return Text("-")
    style = "red" if recall < LOW_RECALL else ""
    return Text.assemble((f"{int(recall * 100)}%", style), (f" of {count:,}" if count else "", "dim"))


def anchor_coverage(config: Config, sources: Sources, extends: bool = False) -> AnchorCoverage | None:
    """The boxes of every dataset's training split, of its val split where there is no other.

    None for a network without anchors. extends: they are those of the weights, and stay.
    """
    if not hasattr(config.model, "anchors"):
        return None
    reports = [
        _anchor_report(config, sources, (name, split), indexes[name], extends)
        for name in config.datasets
        for split, indexes in ((split, getattr(sources, split)) for split in SPLITS)
        if name in indexes and (split == "train" or name not in sources.train)
    ]
    return AnchorCoverage(config.model.positive_iou, tuple(reports))


def _anchor_report(
    config: Config, sources: Sources, split: tuple[str, str], index: Index, extends: bool
) -> AnchorReport:
    ids, as_region = sources.space.ids(split[0], index.classes), config.datasets[split[0]].difficult == "ignore"
    boxes, sizes = learnt_boxes(index, ids, config.input.shorter, config.input.longer, as_region)
    anchors = config.model.anchors
    reached = best_anchor_iou(boxes, sizes, anchors.scales, anchors.ratios) >= config.model.positive_iou
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    everything = np.ones(len(boxes), bool)
    parts = (everything, area < SMALL, (area >= SMALL) & (area <= LARGE), area > LARGE)
    shares: list[Any] = [[int(part.sum()), float(reached[part].mean()) if part.any() else None] for part in parts]
    report = AnchorReport(*split, *chain(*shares))
    return replace(report, hint=_hint(config, boxes[~reached], extends)) if report.low else report


def _hint(config: Config, missed: NDArray[np.float64], extends: bool) -> str:
    """What most boxes without an anchor have in common, and what to do. missed: `[N, 4]`, N > 0."""
    scales, ratios = config.model.anchors.scales, config.model.anchors.ratios
    side = missed[:, 2:] - missed[:, :2]
    length = np.sqrt(side.prod(1))
    ratio = side[:, 1] / side[:, 0]
    smallest, largest = min(scales) * PYRAMID_STRIDES[0], max(scales) * PYRAMID_STRIDES[-1]
    small, large = length < smallest, length > largest
    kinds = {
        "small": small,
        "large": large,
        "high": ~(small | large) & (ratio > 1.3 * max(ratios)),
        "wide": ~(small | large) & (ratio < min(ratios) / 1.3),
    }
    kinds["between"] = ~np.logical_or.reduce(list(kinds.values()))
    kind, mask = max(kinds.items(), key=lambda item: int(item[1].sum()))
    shape, ratios_key = f"height / width about {np.median(ratio[mask]):.2g}", "add that to `model.anchors.ratios`"
    scale = "scale to `model.anchors.scales`, or"
    now = f"`input.shorter` (now {config.input.shorter})"
    what, cure = {
        "small": (f"smaller than the smallest anchor, {smallest:g} px", f"add a smaller {scale} raise {now}"),
        "large": (f"larger than the largest anchor, {largest:g} px", f"add a larger {scale} lower {now}"),
        "high": (f"too tall for the anchors, {shape}", ratios_key),
        "wide": (f"too wide for the anchors, {shape}", ratios_key),
        "between": ("between two anchors", f"add scales to `model.anchors.scales`, or raise {now}"),
    }[kind]
    return f"{mask.mean():.0%} are {what}: {_OF_WEIGHTS[config.model.low_quality_matches] if extends else cure}"


_ANEW = (
    "train anew on old and new data together, with anchors that `crossdet anchors` proposes for a config of both"
)
_OF_WEIGHTS = {
    True: "anchors and input size are those of the weights and stay. Each such box is learnt from its best anchor "
    f"all the same (`model.low_quality_matches`); if its class is found badly, {_ANEW}",
    False: "anchors and input size are those of the weights and stay, and without `model.low_quality_matches` such "
    f"boxes are not learnt: {_ANEW}",
}
