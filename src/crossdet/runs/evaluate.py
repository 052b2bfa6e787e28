"""Scoring a detector on the splits of a config: every dataset by its own protocols, in one record and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.config import Config, DatasetConfig
from crossdet.config.sources import Sources
from crossdet.data.federated import verified_in_evaluation
from crossdet.data.index import Index
from crossdet.data.rotation import without_direction_classes
from crossdet.errors import UserError
from crossdet.evaluation.arrays import Verified
from crossdet.evaluation.choosing import main_number
from crossdet.evaluation.curves import NamedCurve, write_run_curves
from crossdet.evaluation.operating import operating_point
from crossdet.evaluation.predictions import write_predictions
from crossdet.evaluation.protocols.base import Protocol, Split
from crossdet.evaluation.protocols.wider_face_lists import WiderFaceLists
from crossdet.evaluation.run import DatasetScores, EvalSettings, score_dataset
from crossdet.evaluation.tables import percent
from crossdet.files import safe_names
from crossdet.inference import Detector
from crossdet.labels.folds import NO_ANGLE, Folding
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.retinanet.network import RetinaNet

COLUMNS = {
    "coco": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"),
    "lvis": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR"),
    "voc": ("mAP_area", "mAP_11pt"),
    "wider_face": ("easy", "medium", "hard", "all"),
}
"""What the table shows of a protocol; WIDER Pedestrian's two metrics are named in full."""


@dataclass(frozen=True)
class Evaluation:
    """metrics: the record of all datasets. scores, splits: by dataset."""

    metrics: dict[str, Any]
    scores: dict[str, DatasetScores]
    splits: dict[str, Split]


def score_splits(
    model: RetinaNet,
    config: Config,
    splits: dict[str, Split],
    lists: Mapping[str, WiderFaceLists],
    shorter: int,
    longer: int,
    folding: Folding | None = None,
    **detect_options: Any,
) -> Evaluation:
    """Scores of all splits.

    The record: `mean` over the datasets of the first protocol's main number (COCO and LVIS AP, VOC mAP by area,
    the mean of WIDER FACE's settings, COCO-style AP on WIDER Pedestrian), `datasets`, and `operating`: per class
    the point of best F1 over all datasets that label it, with precision, recall and F1 by cross-fitting.
    """
    limits = config.eval
    settings = EvalSettings(
        shorter,
        longer,
        limits.score_threshold,
        limits.topk,
        limits.nms_iou,
        limits.max_detections,
        limits.batch_size,
        config.train.workers,
        limits.agnostic_nms,
    )
    scores = {}
    for name, split in splits.items():
        dataset = config.datasets[name]
        own = replace(settings, max_detections=dataset.max_detections or settings.max_detections)
        try:
            scores[name] = score_dataset(
                model, split, own, protocols_of(dataset, lists.get(name)), folding, **detect_options
            )
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None
    main = [main_number(s.record) for s in scores.values()]
    known = [number for number in main if number == number]
    metrics = {
        "mean": sum(known) / len(known) if known else float("nan"),
        "datasets": {name: s.record for name, s in scores.items()},
        "operating": _operating_points(splits, scores),
    }
    return Evaluation(metrics, scores, splits)


def protocols_of(dataset: DatasetConfig, lists: WiderFaceLists | None) -> list[Protocol]:
    return [
        Protocol(
            name,
            edition=dataset.edition if name == "wider_pedestrian" else None,
            lists=lists if name == "wider_face" else None,
        )
        for name in dataset.protocol
    ]


def _operating_points(splits: dict[str, Split], scores: dict[str, DatasetScores]) -> dict[str, Any]:
    """Class name -> operating point, for the classes with a right detection."""
    judged = [s.judged for s in scores.values()]
    names = next(iter(splits.values())).names if splits else ()
    classes = sorted({c for split in splits.values() for c in split.classes})
    points = {names[c]: operating_point(judged, c) for c in classes}
    return {name: vars(point) for name, point in points.items() if point is not None}


def judged_classes(splits: Mapping[str, Split]) -> dict[str, list[str]]:
    """Dataset -> the classes that its split judges."""
    return {name: [split.names[c] for c in split.classes] for name, split in splits.items()}


def splits_for_training(sources: Sources) -> dict[str, Split]:
    """The validation splits in the label space of the config itself; in folded classes where it has such."""
    space, folding = sources.space, sources.space.folding
    ids = {name: space.ids(name, index.classes) for name, index in sources.val.items()}
    if folding is None:
        same = np.arange(len(space.classes))
        return {
            name: Split(index, ids[name], space.classes, verified=_verified(space, name, index, same))
            for name, index in sources.val.items()
        }
    return {
        name: Split(
            index,
            np.where(ids[name] == DROPPED, DROPPED, folding.of[ids[name]]),
            folding.names,
            _angles(folding, ids[name].tolist()),
            _verified(space, name, index, folding.of),
            _members(space, name, space),
        )
        for name, index in sources.val.items()
    }


def splits_for_detector(
    sources: Sources, indexes: Mapping[str, Index], detector: Detector, fold: bool = False
) -> dict[str, Split]:
    """The splits in the classes of a detector, found by their unified names.

    fold: in its folded classes, where it has such. A class with directions or datasets that the detector does not
    tell apart is found by the name without them; the splits then say the directions, as with folded classes.

    Raises `UserError` for classes that the detector does not know.
    """
    space, known = sources.space, detector.space.reported if fold else detector.classes
    ids = {name: space.ids(name, index.classes).tolist() for name, index in indexes.items()}
    used = sorted({c for row in ids.values() for c in row} - {DROPPED})
    own, position = space.folding, positions(space, detector, fold)
    unknown = [space.classes[c] for c in used if position[c] == DROPPED]
    if unknown:
        raise UserError(
            f"the detector does not know the class(es) {', '.join(map(repr, unknown))}; it knows "
            f"{', '.join(known)}. Merge them to known names under `labels.merge`, or drop them"
        )
    becomes = np.array(position, np.int64)
    return {
        name: Split(
            index,
            np.array([DROPPED if c == DROPPED else position[c] for c in ids[name]], np.int64),
            known,
            _angles(own, ids[name]) if own is not None and fold else None,
            _verified(space, name, index, becomes),
            _members(space, name, detector.space) if fold else None,
        )
        for name, index in indexes.items()
    }


def _members(space: LabelSpace, dataset: str, detector: LabelSpace) -> tuple[int, ...] | None:
    """The members of merged classes that may be looked for in a dataset: those that it labels or that are absent
    from it, and all of a class that it labels as a whole. Another one that finds what is not labelled there is not
    wrong, and would count as wrong. None where nothing is merged."""
    folding = detector.folding
    if folding is None or not folding.merged:
        return None
    row = space.dataset_index(dataset)
    labelled = {space.classes[c] for c in np.flatnonzero(space.annotated_array[row])}
    trusted = {space.classes[c] for c in np.flatnonzero(~space.avoid_array[row])}
    whole = {fold.name for fold in detector.folds} & labelled
    return tuple(
        c
        for c, name in enumerate(detector.classes)
        if name in labelled | trusted or folding.names[folding.of[c]] in whole
    )


def _verified(space: LabelSpace, dataset: str, index: Index, becomes: NDArray[np.int64]) -> Verified | None:
    found = verified_in_evaluation(
        index, space.ids(dataset, index.classes), space, space.dataset_index(dataset), becomes
    )
    return None if found is None else Verified(*found)


def positions(space: LabelSpace, detector: Detector, fold: bool) -> list[int]:
    """For every class of `space` the detector's, by name, or DROPPED; of folded classes where `fold`.

    It is the class of that name, of the name that `space` folds it to, or (`fold`) what the detector folds it to.
    """
    known, own = detector.space.reported if fold else detector.classes, space.folding
    theirs = detector.space.folding if fold else None
    found = []
    for c, name in enumerate(space.classes):
        names = [name, *([own.names[own.of[c]]] if own else [])]
        if theirs is not None and name in detector.classes:
            names.append(theirs.names[theirs.of[detector.classes.index(name)]])
        found.append(next((known.index(n) for n in names if n in known), DROPPED))
    return found


def _angles(folding: Folding, ids: Sequence[int]) -> NDArray[np.int64]:
    return np.array([NO_ANGLE if c == DROPPED else int(folding.angles[c]) for c in ids], np.int64)


# ------------------------------------------------------------------------------------------ what is written


def write_evaluation(folder: Path, evaluation: Evaluation, method: str) -> None:
    """Precision-recall curves (`curves/`, PNG and data) and the detections in every dataset's own layout
    (`predictions/DATASET`), ready for `crossdet score` and other tools."""
    curves = [
        NamedCurve(dataset, protocol, name, curve)
        for dataset, scores in evaluation.scores.items()
        for protocol, name, curve in scores.curves
    ]
    write_run_curves(folder / "curves", method, curves)
    folders = dict(zip(evaluation.scores, safe_names(list(evaluation.scores)), strict=True))
    for dataset, scores in evaluation.scores.items():
        split, layout = evaluation.splits[dataset], scores.record["protocol"]
        if split.angles is not None and (split.angles != NO_ANGLE).any():
            split = replace(split, index=without_direction_classes(split.index))
        if split.index.turned is not None and split.index.turned.degrees.any():
            layout = "coco"  # the others go by names of files, which stand for several turned pictures
        write_predictions(folder / "predictions" / folders[dataset], split, scores.found.detections, layout)


def metrics_table(metrics: dict[str, Any]) -> str:
    """All datasets in one text table, a line per protocol, values in percent."""
    rows = [
        (name, record, row["images"])
        for name, row in metrics["datasets"].items()
        for record in (row, *row.get("further", {}).values())
    ]
    width = max([len("dataset"), *(len(name) for name, _, _ in rows)])
    wide = max([len("protocol"), *(len(record["protocol"]) for _, record, _ in rows)])
    lines = [f"{'dataset':<{width}}  images  {'protocol':<{wide}}  scores in percent"]
    for name, record, images in rows:
        cells = "  ".join(f"{label} {percent(value):>4}" for label, value in _shown(record))
        lines.append(f"{name:<{width}}  {images:>6}  {record['protocol']:<{wide}}  {cells}")
    for name, row in metrics["datasets"].items():
        if "orientation" in row:
            lines.append(f"{name}: {_orientation(row['orientation'])}")
        if row["unreadable"]:
            lines.append(f"{name}: {len(row['unreadable'])} images could not be read and count as empty")
        lines += [f"{name}: {note}" for note in row.get("notes", ())]
    return "\n".join(lines)


def _shown(record: dict[str, Any]) -> Sequence[tuple[str, float]]:
    if record["protocol"] == "wider_pedestrian":
        challenge, style = record["challenge"], record["coco_style"]
        shown = [(f"challenge {challenge['edition']} AP", challenge["AP"])]
        return [*shown, *((f"COCO-style {key}", value) for key, value in style.items())]
    return [(key, record[key]) for key in COLUMNS[record["protocol"]] if key in record]


def _orientation(found: dict[str, Any]) -> str:
    if not found["found"]:
        return f"direction: none of the {found['objects']} objects was found"
    accuracy, error = found["accuracy"], found["mean_error"]
    return (
        f"direction right for {percent(accuracy)} % of the {found['found']} objects found "
        f"(of {found['objects']}), mean error {'-' if error != error else format(error, '.0f')} degrees"
    )
