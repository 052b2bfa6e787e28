"""What an exported file costs: how far its answers are, scores before and after, time of both."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdet.config import Config
from crossdet.data.decoding import UnreadableImage, read_row
from crossdet.evaluation.protocols import PROTOCOLS, main_number
from crossdet.evaluation.run import EvalSettings
from crossdet.evaluation.splits import Split
from crossdet.export.about import About, Rules
from crossdet.export.detector import ExportedDetector, most_detections
from crossdet.export.parity import difference, milliseconds
from crossdet.export.resizing import Picture
from crossdet.export.sessions import open_session
from crossdet.inference import Detector
from crossdet.labels.space import DROPPED
from crossdet.runs.evaluate import score_splits

COMPARED_PICTURES, TIMED_PICTURES = 32, 8
COMPARED_SCORE = 0.05
"""Detections from this score on are compared."""
Measured = dict[str, Any]
"""`sets`, `ap` and `latency_ms` of a file."""


@dataclass(frozen=True)
class Data:
    """Validation splits in the classes of the detector. sources: their lists, for the protocols."""

    config: Config
    splits: dict[str, Split]
    lists: dict[str, Any]

    def pictures(self, most: int) -> Iterator[Picture]:
        """Of all splits together, evenly spread; unreadable ones are left out."""
        rows = [(split, row) for split in self.splits.values() for row in range(len(split.index))]
        for place in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)).tolist():
            split, row = rows[place]
            try:
                yield np.ascontiguousarray(read_row(split.index, row).permute(1, 2, 0).numpy())
            except UnreadableImage:
                continue


def most_looked_at(config: Config, dataset: str) -> int:
    """Detections per picture that the evaluation of a dataset looks at."""
    one = config.datasets[dataset]
    settings = EvalSettings.of(config.input, config.eval).of_dataset(one)
    return max(settings.limits(PROTOCOLS[name]).max_detections for name in one.protocol)


class Comparison:
    """A detector with files that were made of it, on validation pictures. most: of every split, for AP; None: all.
    tell: is given what is done now.

    What the detector itself finds in them is judged once.
    """

    def __init__(
        self, detector: Detector, about: About, data: Data, most: int | None, tell: Callable[[str], None]
    ) -> None:
        self.detector, self.about, self.data, self.most, self.tell = detector, about, data, most, tell

    def of(self, file: Path) -> Measured:
        count = sum(len(split.index) for split in self._splits.values())
        self.tell(f"comparing it with the detector: AP on {count} validation pictures (`--pictures` for fewer)")
        exported = ExportedDetector(open_session(file), file=file)
        names = [self.detector.classes[c] for c in self.about.rules.classes]
        some = list(self.data.pictures(COMPARED_PICTURES))
        tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in some]
        most = min(100, most_detections(self.about, exported.folding is not None))
        ours = [self.detector(tensor, names, COMPARED_SCORE, max_detections=most) for tensor in tensors]
        theirs = [exported(picture, names, COMPARED_SCORE, max_detections=most) for picture in some]
        return {
            "sets": asdict(difference(ours, theirs)),
            "ap": self._accuracy(exported),
            "latency_ms": _latency(self.detector, file, some[:TIMED_PICTURES]),
        }

    @functools.cached_property
    def _splits(self) -> dict[str, Split]:
        """Those that are judged, with the classes of the file."""
        rules, folding, splits = self.about.rules, self.detector.space.folding, {}
        reported = {c if folding is None else int(folding.of[c]) for c in rules.classes}
        for name, split in self.data.splits.items():
            ids = np.where(np.isin(split.class_ids, list(reported)), split.class_ids, DROPPED)
            members = rules.classes if split.members is None else sorted(set(split.members) & set(rules.classes))
            some = replace(split, class_ids=ids, members=tuple(members))
            if some.classes:
                count = len(split.index)
                rows = np.unique(np.linspace(0, count - 1, min(self.most or count, count)).astype(np.int64))
                splits[name] = some if self.most is None else some.take(rows)
        return splits

    @functools.cached_property
    def _before(self) -> dict[str, Any]:
        return self._scores(self.detector.model)

    def _scores(self, model: Any) -> dict[str, Any]:
        """As `crossdet eval` has them. Pictures come one by one, for how a batch is padded is not the file's
        business."""
        folding = self.detector.space.folding
        rules = self.about.rules
        config = _within(rules, self.data, 1 if folding is None else folding.at_once(rules.suppresses))
        given = (config, self._splits, self.data.lists, self.detector.settings, folding)
        scores: dict[str, Any] = score_splits(model, *given).metrics["datasets"]
        return scores

    def _accuracy(self, exported: ExportedDetector) -> dict[str, dict[str, Any]]:
        """Dataset -> protocol, number of images, the protocol's numbers before and after, and those of its further
        protocols."""
        found, scores = {}, self._scores(exported)
        for name in self._splits:
            before, after = self._before[name], scores[name]
            further = {
                protocol: _pair(record, after["further"][protocol])
                for protocol, record in before.get("further", {}).items()
            }
            found[name] = {"images": before["images"], **_pair(before, after), "further": further}
        return found


def lost(measured: Measured) -> float | None:
    """Most points that any protocol's score of any dataset lost; None where none is defined."""
    rows = [one for row in measured["ap"].values() for one in (row, *row["further"].values())]
    # rounded: 0.515 - 0.505 is a little more than a point in binary
    return max((round(100 * row["lost"], 9) for row in rows if row["lost"] is not None), default=None)


def _pair(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one protocol. lost: of its main number, 0..1; None: not defined."""
    columns = PROTOCOLS[before["protocol"]].columns
    lost = main_number(before) - main_number(after)
    numbers = {"before": dict(columns(before)), "after": dict(columns(after))}
    return {"protocol": before["protocol"], **numbers, "lost": None if math.isnan(lost) else lost}


def _within(rules: Rules, data: Data, largest: int) -> Config:
    """The data's config, evaluating picture by picture and as the file decides about overlaps and numbers."""
    limits = {"nms_iou": rules.nms_iou, "agnostic_nms": rules.agnostic_nms, "topk": rules.topk}
    capacity = rules.max_detections // largest
    datasets = dict(data.config.datasets)
    for name in data.splits:
        if most_looked_at(data.config, name) > capacity:
            datasets[name] = datasets[name].model_copy(update={"max_detections": capacity})
    looks = data.config.eval.model_copy(update={"batch_size": 1, **limits})
    return data.config.model_copy(update={"eval": looks, "datasets": datasets})


def _latency(detector: Detector, file: Path, pictures: list[Picture]) -> dict[str, float]:
    """Milliseconds for a picture, decoded but not resized, on one thread: median of the pictures, in turns."""
    exported = ExportedDetector(open_session(file, threads=1), file=file)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before, after = milliseconds([detector, exported], pictures)
    finally:
        torch.set_num_threads(threads)
    return {"torch": before, "exported": after}
