"""Running a detector over the validation split of a dataset and scoring it by the dataset's protocols. No torch,
unless the detector is a network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.data.rotation import rows_per_picture
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.folding import fold_detections, orientation_scores
from crossdet.evaluation.operating import Judged, confident_share, judge
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, score_split
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.export.detector import ExportedDetector
from crossdet.labels.folds import Folding

if TYPE_CHECKING:
    from crossdet.models.contract import Network


@dataclass(frozen=True)
class EvalSettings:
    """How a detector looks at the pictures of a split. shorter, longer: network input. The others: see
    `Limits`.

    score_threshold, max_detections: None = as each protocol has it.
    """

    shorter: int
    longer: int
    score_threshold: float | None = None
    topk: int = 1000
    nms_iou: float = 0.5
    max_detections: int | None = None
    batch_size: int = 8
    workers: int = 0
    agnostic_nms: bool = False

    @classmethod
    def of(cls, size: Any, given: Any = None, workers: int = 0, **other: Any) -> EvalSettings:
        """size: has `shorter` and `longer`, such as the config's `input` or a detector's settings. given: has some
        of the other settings under their names, such as the config's `eval`. other: settings that count more.
        """
        names = [field.name for field in fields(cls) if hasattr(given, field.name)]
        values = {name: getattr(given, name) for name in names} | {"workers": workers} | other
        return cls(size.shorter, size.longer, **values)

    def of_dataset(self, dataset: Any) -> EvalSettings:
        """dataset: has `max_detections`, which counts more where it says one, such as a config's."""
        return replace(self, max_detections=dataset.max_detections or self.max_detections)

    def limits(self, protocol: Protocol) -> ProtocolLimits:
        own = protocol.limits
        return ProtocolLimits(
            own.max_detections if self.max_detections is None else self.max_detections,
            own.score_threshold if self.score_threshold is None else self.score_threshold,
        )


@dataclass(frozen=True)
class Found:
    """What a detector found in a split. unreadable: images that could not be read; they count as empty.

    degrees: `[N]` direction of each where folded classes have some. unseen: the rows of `unreadable` in the index,
    rising.
    """

    detections: DetectionArrays
    unreadable: tuple[str, ...]
    degrees: NDArray[np.int64] | None = None
    unseen: tuple[int, ...] = ()


def detect(
    model: Network | ExportedDetector,
    index: Index,
    classes: Sequence[int] | None,
    settings: EvalSettings,
    **options: Any,
) -> Found:
    """Detections of the unified `classes` (None = all) in all images of `index`, in original pixels.

    Limits that `settings` leaves open are COCO's. options: see `of_network.detect`; an exported file
    has its own.
    """
    if isinstance(model, ExportedDetector):
        from crossdet.evaluation import of_file

        return of_file.detect(model, index, classes, settings)
    from crossdet.evaluation import of_network  # torch, which files do without

    return of_network.detect(model, index, classes, settings, **options)


@dataclass(frozen=True)
class DatasetScores:
    """record: the numbers as they go into `metrics.json`.

    curves: (protocol, curve name, curve). judged: the detections at home, for the operating points.
    """

    record: dict[str, Any]
    curves: list[tuple[str, str, Curve]]
    judged: Judged
    found: Found


def detect_folded(
    model: Network | ExportedDetector,
    index: Index,
    classes: Sequence[int] | None,
    settings: EvalSettings,
    folding: Folding | None,
    among: Collection[int] | None = None,
    **options: Any,
) -> Found:
    """`detect`, in folded ids where there is a `folding`: all members are looked for (or those in `among`), and
    where one object may be found as several members so many more detections are kept before they are folded."""
    if folding is None:
        return detect(model, index, classes, settings, **options)
    assert settings.max_detections is not None
    more = replace(settings, max_detections=settings.max_detections * folding.at_once(model.suppresses))
    members = None if classes is None else folding.members(classes)
    if members is not None and among is not None:
        members = [member for member in members if member in among]
    found = detect(model, index, members, more, nms_groups=folding.nms_groups, **options)
    folded, degrees = fold_detections(found.detections, folding, settings.nms_iou, model.suppresses)
    return replace(found, detections=folded, degrees=degrees if folding.has_angles else None)


def score_dataset(
    model: Network | ExportedDetector,
    split: Split,
    settings: EvalSettings,
    protocols: Sequence[Protocol] = (PROTOCOLS["coco"],),
    folding: Folding | None = None,
    **detect_options: Any,
) -> DatasetScores:
    """Scores of one dataset on the classes that it labels, by each of its protocols.

    The record is flat for the first protocol and has the others under "further". Its `per_class` holds the
    protocol's own numbers per class and `found_confidently`, the share of the boxes found with a score of at
    least 0.3. The images are looked at once, with the widest limits; each protocol then takes what it may have.

    folding: of the model's classes; the ids of the split are then folded ones. Where its classes have directions
    the record gets `orientation` (`orientation_scores`).
    """
    limits = [settings.limits(protocol) for protocol in protocols]
    floor = min(limit.score_threshold for limit in limits)
    widest = replace(settings, score_threshold=floor, max_detections=max(limit.max_detections for limit in limits))
    found = detect_folded(model, split.index, split.classes, widest, folding, split.members, **detect_options)
    parts = [
        score_split(protocol, split, found.detections.above(limit.score_threshold), limit.max_detections)
        for protocol, limit in zip(protocols, limits, strict=True)
    ]
    truth = ground_truth(split)
    record = dict(parts[0].record)
    per_class = record.setdefault("per_class", {})
    for class_id, share in confident_share(truth, found.detections, split.classes).items():
        per_class.setdefault(split.names[class_id], {})["found_confidently"] = share
    record |= {"images": len(split.index), "unreadable": list(found.unreadable)}
    if found.degrees is not None and (directions := orientation_scores(split, found.detections, found.degrees)):
        record["orientation"] = directions
    if notes := dict.fromkeys(note for part in parts for note in part.notes):
        record["notes"] = list(notes)
    if len(parts) > 1:
        record["further"] = {part.record["protocol"]: part.record for part in parts[1:]}
    curves = [
        (p.name, name, curve)
        for p, part in zip(protocols, parts, strict=True)
        for name, curve in part.curves.items()
    ]
    judged = judge(truth, found.detections, split.classes, floor, rows_per_picture(split.index))
    return DatasetScores(record, curves, judged, found)
