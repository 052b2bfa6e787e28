"""Anchor scales and ratios for a union of datasets (paper sec. 4.1.2, table 3), from the training boxes. No torch.

A dataset counts with the probability that an image drawn in training is one of its own, its boxes equally. The
objective of a setting is the mean of recall at IoU 0.5 and of the mean best IoU, both averaged over the datasets
in this way. Recall alone is flat where every box is reached, and is happy with boxes that just reach 0.5; the mean
IoU alone gives up rare sizes to fit the frequent ones a little better. Together they do neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdet.check.boxes import learnt_boxes
from crossdet.config import Config
from crossdet.config.schema import SPLITS
from crossdet.config.sources import open_sources
from crossdet.data.federated import repeat_factors
from crossdet.data.rotation import pictures
from crossdet.errors import UserError
from crossdet.models.retinanet.anchor_stats import best_anchor_iou, best_placed_iou, placed

RECALL_IOU, LOW_IOU = 0.5, 0.4
"""A box counts as reached from these IoUs on: RetinaNet's limits of a positive and of a negative anchor."""
MAX_SAMPLE = 5000
"""Boxes per dataset that the search looks at; what it finds is judged on all."""
MAX_SAMPLE_SUM = 40_000
"""The same for all datasets together, so that the time does not grow with their number."""
MAX_VALUES = 12
"""Most scales, and most ratios, that can be asked for."""
LEAST_GAIN = 0.005
"""A proposal that raises the objective by less is no reason to change a setting."""

SMALLEST_SCALE, LARGEST_SCALE, WIDEST_RATIO = 0.5, 8.0, 8.0
# Beyond these scales an anchor is a level off: smaller ones leave gaps between the positions of their level, and
# for larger ones the level has not seen enough of the picture, although the IoU would like its fine grid.


class AnchorSetting(NamedTuple):
    """The values of `model.anchors`: every scale with every ratio at each grid position."""

    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def per_position(self) -> int:
        """Anchors per grid position: outputs, memory and time of the head's last layers grow with it."""
        return len(self.scales) * len(self.ratios)


_OCTAVE = (4.0, 5.04, 6.35)
PAPER_SETTINGS = (
    AnchorSetting((2.0, 3.0, 4.0), (0.5, 1.0, 2.0)),
    AnchorSetting(_OCTAVE, (0.5, 1.0, 2.0)),
    AnchorSetting((2.0, 3.0), (1.25,)),
    AnchorSetting((2.0, 3.0), (1.25, 2.44)),
    AnchorSetting((2.0, 3.0, 4.0), (2.44,)),
    AnchorSetting((2.0, 3.0), (2.44,)),
)
"""Sec. 4.1.2 and table 3; the text writes 5.03 for 4 x 2^(1/3) = 5.04."""


@dataclass(frozen=True)
class DatasetBoxes:
    """The training boxes of one dataset, at the network's input.

    share: probability that an image drawn is of this dataset, among the datasets that have boxes; they sum to 1.
    boxes: `[M, 4]` xyxy pixels. sizes: `[M, 2]` (height, width) of the image of each box, before padding.
    """

    name: str
    images: int
    share: float
    boxes: NDArray[np.float64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How well a setting covers boxes, 0 to 1: shares of them whose best anchor reaches IoU 0.5 and 0.4, and the
    mean IoU with the best anchor."""

    recall: float
    recall_low: float
    mean_iou: float

    @property
    def objective(self) -> float:
        return (self.recall + self.mean_iou) / 2

    def to_json(self) -> dict[str, float]:
        return {**vars(self), "objective": self.objective}


@dataclass(frozen=True)
class SettingReport:
    """roles: of `config`, `paper`, `proposal`. mean: over the datasets by their shares."""

    setting: AnchorSetting
    roles: tuple[str, ...]
    datasets: dict[str, Coverage]
    mean: Coverage


@dataclass(frozen=True)
class DatasetSummary:
    """sides: root of the box area in pixels of the input, ratios: height / width; both at 10, 50 and 90 %."""

    name: str
    images: int
    boxes: int
    share: float
    sides: tuple[float, float, float]
    ratios: tuple[float, float, float]


@dataclass(frozen=True)
class AnchorsReport:
    """What `crossdet anchors` finds. without_boxes: datasets that have nothing to say."""

    datasets: tuple[DatasetSummary, ...]
    settings: tuple[SettingReport, ...]
    without_boxes: tuple[str, ...]

    def of(self, role: str) -> SettingReport:
        """The first setting with the role."""
        return next(row for row in self.settings if role in row.roles)

    @property
    def overrides(self) -> tuple[str, str]:
        """The proposal as values of `--set`."""
        scales, ratios = (",".join(f"{v:g}" for v in values) for values in self.of("proposal").setting)
        return f"model.anchors.scales=[{scales}]", f"model.anchors.ratios=[{ratios}]"

    def to_json(self) -> dict[str, object]:
        """Plain values; ratios 0 to 1, sizes in pixels of the network's input."""
        settings = [
            {
                "roles": row.roles,
                **row.setting._asdict(),
                "per_position": row.setting.per_position,
                "mean": row.mean.to_json(),
                "datasets": {name: coverage.to_json() for name, coverage in row.datasets.items()},
            }
            for row in self.settings
        ]
        datasets = {d.name: {k: v for k, v in vars(d).items() if k != "name"} for d in self.datasets}
        return {
            "datasets": datasets,
            "without_boxes": self.without_boxes,
            "settings": settings,
            "set": self.overrides,
        }


# --------------------------------------------------------------------------------------------------- boxes


def training_boxes(config: Config) -> tuple[list[DatasetBoxes], tuple[str, ...]]:
    """The boxes that the config trains on, after its resize (without scale jitter), and the datasets without any.

    Raises `UserError` if nothing can be read or no dataset has a training box.
    """
    complete = all(dataset.train is not None for dataset in config.datasets.values())
    # val files need not be here, unless label rules may speak of classes that only they name
    sources = open_sources(config, ("train",) if complete else SPLITS)
    if not sources.train:
        raise UserError("anchors are chosen from training boxes: no dataset of the config has a `train` split")
    found: dict[str, tuple[float, NDArray[np.float64], NDArray[np.int64]]] = {}
    for name, index in sources.train.items():
        dataset = config.datasets[name]
        ids = sources.space.ids(name, index.classes)
        as_region = dataset.difficult == "ignore"
        boxes, sizes = learnt_boxes(index, ids, config.input.shorter, config.input.longer, as_region)
        if len(boxes):
            # of several directions a draw takes one
            factors = repeat_factors(index.take(pictures(index)), ids, dataset.repeat_threshold, as_region)
            found[name] = (dataset.weight * float(factors.sum()), boxes, sizes)
    empty = [name for name in sources.train if name not in found]
    if not found:
        raise UserError(
            f"no training boxes in {', '.join(empty)}: there is nothing to choose anchors from; "
            "`crossdet check` shows what was read"
        )
    total = sum(drawn for drawn, *_ in found.values())
    rows = [
        DatasetBoxes(n, len(pictures(sources.train[n])), drawn / total, b, s) for n, (drawn, b, s) in found.items()
    ]
    return rows, tuple(empty)


# -------------------------------------------------------------------------------------------------- search


def coverage(data: Sequence[DatasetBoxes], setting: AnchorSetting) -> tuple[dict[str, Coverage], Coverage]:
    """Of every dataset, and their mean by share, on all boxes."""
    per_dataset = {}
    for dataset in data:
        best = best_anchor_iou(dataset.boxes, dataset.sizes, *setting)
        recall, recall_low = (float((best >= iou).mean()) for iou in (RECALL_IOU, LOW_IOU))
        per_dataset[dataset.name] = Coverage(recall, recall_low, float(best.mean()))
    shares = [dataset.share for dataset in data]
    means = {
        key: float(np.dot(shares, [getattr(c, key) for c in per_dataset.values()]))
        for key in ("recall", "recall_low", "mean_iou")
    }
    return per_dataset, Coverage(**means)


def propose(
    data: Sequence[DatasetBoxes], scales: int, ratios: int, known: Sequence[AnchorSetting] = ()
) -> AnchorSetting:
    """The setting of so many scales and ratios with the best objective found; deterministic.

    Coordinate descent on a sample of the boxes: one value after the other moves to the best of a logarithmic grid
    while all others stay, then of ever closer neighbours, until none moves. Starts are quantiles of the boxes'
    ratios with scales in an octave from 2 and from 4, and the `known` settings of this shape. Where the starts
    end is judged on all boxes, together with all `known` settings: none of them is better than the result. Every
    value that is tried has three significant digits, so the result is what was judged.

    known: settings with as many anchors per position. Raises `UserError` for counts out of 1..`MAX_VALUES`.
    """
    for option, count in (("scales", scales), ("ratios", ratios)):
        if not 1 <= count <= MAX_VALUES:
            raise UserError(f"--{option}: expected a number from 1 to {MAX_VALUES}, got {count}")
    sample = _Sample(data)
    starts = [sample.start(scales, ratios, smallest) for smallest in (2.0, 4.0)]
    starts += [s for s in known if (len(set(s.scales)), len(set(s.ratios))) == (scales, ratios)]
    ends = [_sorted(sample.descend(start)) for start in starts]
    candidates = list(dict.fromkeys([*known, *ends]))  # of equals the first: what is in use stays
    scores = [coverage(data, setting)[1].objective for setting in candidates]
    return candidates[int(np.argmax(scores))]


class _Sample:
    """Some boxes of every dataset, and their best IoU with each (scale, ratio) that was asked for, remembered."""

    def __init__(self, data: Sequence[DatasetBoxes]) -> None:
        most = max(1, min(MAX_SAMPLE, MAX_SAMPLE_SUM // len(data)))
        boxes, sizes, weights = [], [], []
        for number, dataset in enumerate(data):
            count = min(most, len(dataset.boxes))
            rows = np.random.default_rng(number).permutation(len(dataset.boxes))[:count]
            boxes.append(dataset.boxes[rows])
            sizes.append(dataset.sizes[rows])
            weights.append(np.full(count, dataset.share / count))
        self.weights = np.concatenate(weights).astype(np.float32)
        self.boxes = placed(np.concatenate(boxes), np.concatenate(sizes))
        self.ratios = np.maximum(self.boxes.height, 1e-6) / np.maximum(self.boxes.width, 1e-6)
        self._known: dict[tuple[float, float], NDArray[np.float32]] = {}

    def start(self, scales: int, ratios: int, smallest: float) -> AnchorSetting:
        order = np.argsort(self.ratios, kind="stable")
        reached = np.cumsum(self.weights[order], dtype=np.float64)
        marks = reached[-1] * (np.arange(ratios) + 0.5) / ratios
        quantiles = self.ratios[order][np.minimum(np.searchsorted(reached, marks), len(order) - 1)]
        limits = (1 / WIDEST_RATIO, WIDEST_RATIO)
        steps = (smallest * 2 ** (i / scales) for i in range(scales))
        return AnchorSetting(_distinct(steps), _distinct(np.clip(quantiles, *limits).tolist()))

    def best(self, setting: AnchorSetting) -> NDArray[np.float32]:
        """`[M]` IoU with the best anchor; 0 without anchors."""
        best = np.zeros(len(self.weights), np.float32)
        for scale in setting.scales:
            for ratio in setting.ratios:
                if (scale, ratio) not in self._known:
                    column = best_placed_iou(self.boxes, (scale,), (ratio,))
                    self._known[scale, ratio] = column.astype(np.float32)
                np.maximum(best, self._known[scale, ratio], out=best)
        return best

    def objective(self, best: NDArray[np.float32]) -> float:
        return float(self.weights @ (best + (best >= RECALL_IOU))) / 2

    def descend(self, setting: AnchorSetting) -> AnchorSetting:
        """Where coordinate descent ends from `setting`."""
        low, high = np.clip(np.quantile(self.ratios, [0.002, 0.998]), 1 / WIDEST_RATIO, WIDEST_RATIO)
        grids = (_grid(SMALLEST_SCALE, LARGEST_SCALE, 6), _grid(low, high, 4))
        setting = self._settle(setting, lambda axis, _: grids[axis])
        for parts in (8, 16, 32, 64):
            setting = self._settle(setting, partial(_neighbours, parts))
        return setting

    def _settle(self, setting: AnchorSetting, moves: Callable[[int, float], Sequence[float]]) -> AnchorSetting:
        """Moves one value after the other to the best of `moves(axis, value)` until none moves; axis 0: scales."""
        score = self.objective(self.best(setting))
        moved = True
        while moved:
            moved = False
            for axis in (0, 1):
                for position in range(len(setting[axis])):
                    value = setting[axis][position]
                    others = tuple(v for i, v in enumerate(setting[axis]) if i != position)
                    rest = self.best(_with(setting, axis, others))
                    for new in moves(axis, value):
                        if new in others or new == value:
                            continue
                        best = np.maximum(rest, self.best(_with(setting, axis, (new,))))
                        found = self.objective(best)
                        if found > score + 1e-7:  # float32 sums; also what makes it end
                            score, moved, value = found, True, new
                    own = (*setting[axis][:position], value, *setting[axis][position + 1 :])
                    setting = _with(setting, axis, own)
        return setting


def _with(setting: AnchorSetting, axis: int, values: tuple[float, ...]) -> AnchorSetting:
    return AnchorSetting(values, setting.ratios) if axis == 0 else AnchorSetting(setting.scales, values)


def _sorted(setting: AnchorSetting) -> AnchorSetting:
    return AnchorSetting(tuple(sorted(setting.scales)), tuple(sorted(setting.ratios)))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _distinct(values: Iterable[float]) -> tuple[float, ...]:
    """Rounded and made different: equal ones are spread by 10 % towards 1, so that they stay inside the limits."""
    found: list[float] = []
    for value in map(_rounded, values):
        factor = 1.1 if value < 1 else 1 / 1.1
        while value in found:
            value = _rounded(value * factor)
        found.append(value)
    return tuple(found)


def _grid(low: float, high: float, per_octave: int) -> list[float]:
    """Powers of 2^(1 / per_octave) that enclose low..high, rounded."""
    first, last = np.floor(np.log2(low) * per_octave), np.ceil(np.log2(high) * per_octave)
    return [_rounded(2 ** (step / per_octave)) for step in range(int(first), int(last) + 1)]


def _neighbours(parts: int, axis: int, value: float) -> list[float]:
    """The values a `parts`-th of an octave below and above that are inside the limits."""
    low, high = (SMALLEST_SCALE, LARGEST_SCALE) if axis == 0 else (1 / WIDEST_RATIO, WIDEST_RATIO)
    near = (_rounded(value * 2 ** (sign / parts)) for sign in (-1, 1))
    return [new for new in near if low <= new <= high]


# -------------------------------------------------------------------------------------------------- report


def configured(config: Config) -> AnchorSetting:
    """Raises `UserError` where the architecture has no anchors."""
    if not hasattr(config.model, "anchors"):
        raise UserError(f"model.name: {config.model.name} has no anchors")
    return AnchorSetting(config.model.anchors.scales, config.model.anchors.ratios)


def anchors_report(
    data: Sequence[DatasetBoxes],
    own: AnchorSetting,
    scales: int | None = None,
    ratios: int | None = None,
    without_boxes: tuple[str, ...] = (),
) -> AnchorsReport:
    """Coverage of the config's own setting, of the paper's, and of a proposal (`propose`).

    scales, ratios: how many to propose; None = as many as `own` has. With neither given the proposal is at least
    as good as every setting shown that has as many anchors; otherwise as those of the asked-for shape.

    Raises `UserError` for counts out of range.
    """
    shape = (len(own.scales) if scales is None else scales, len(own.ratios) if ratios is None else ratios)
    known = list(dict.fromkeys([_sorted(own), *PAPER_SETTINGS]))
    free = scales is None and ratios is None
    rivals = [
        s for s in known if (len(s.scales), len(s.ratios)) == shape or (free and s.per_position == own.per_position)
    ]
    proposal = propose(data, *shape, rivals)
    rows = []
    for setting in dict.fromkeys([*known, proposal]):
        holders = {"config": [_sorted(own)], "paper": PAPER_SETTINGS, "proposal": [proposal]}
        roles = tuple(role for role, settings in holders.items() if setting in settings)
        rows.append(SettingReport(setting, roles, *coverage(data, setting)))
    return AnchorsReport(tuple(map(_summary, data)), tuple(rows), without_boxes)


def _summary(data: DatasetBoxes) -> DatasetSummary:
    side = np.maximum(data.boxes[:, 2:] - data.boxes[:, :2], 1e-6)
    marks = [0.1, 0.5, 0.9]
    sides = np.quantile(np.sqrt(side.prod(1)), marks).tolist()
    ratios = np.quantile(side[:, 1] / side[:, 0], marks).tolist()
    return DatasetSummary(data.name, data.images, len(data.boxes), data.share, (*sides,), (*ratios,))
