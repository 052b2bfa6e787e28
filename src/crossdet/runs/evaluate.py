"""Scoring a detector on the splits of a config: every dataset by its own protocols, in one record and one table. No
torch, unless the detector is a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossdet.config import Config, as_config
from crossdet.config.listed_only import listed_only_notes
from crossdet.config.sources import Sources, check_not_empty, check_split, open_sources
from crossdet.data.federated import verified_in_evaluation
from crossdet.data.index import Index
from crossdet.data.rotation import without_direction_classes
from crossdet.errors import UserError, some
from crossdet.evaluation.arrays import Verified
from crossdet.evaluation.curves import NamedCurve, write_run_curves
from crossdet.evaluation.operating import operating_point
from crossdet.evaluation.protocols import PROTOCOLS, main_number
from crossdet.evaluation.protocols.entry import write_predictions
from crossdet.evaluation.run import DatasetScores, EvalSettings, score_dataset
from crossdet.evaluation.splits import Split
from crossdet.evaluation.tables import percent
from crossdet.export.detector import ExportedDetector, check_fold
from crossdet.files import check_room, safe_names
from crossdet.labels.folds import NO_ANGLE, Folding
from crossdet.labels.reporting import Reporting
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.card import InputSettings
from crossdet.opening import load_detector
from crossdet.training.guard import of_detections

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from crossdet.inference import Detector
    from crossdet.models.contract import Network


@dataclass(frozen=True)
class Evaluation:
    """metrics: the record of all datasets. scores, splits: by dataset."""

    metrics: dict[str, Any]
    scores: dict[str, DatasetScores]
    splits: dict[str, Split]


def score_splits(
    model: Network | ExportedDetector,
    config: Config,
    splits: dict[str, Split],
    lists: Mapping[str, Any],
    size: Any,
    folding: Folding | None = None,
    workers: int = 0,
    **detect_options: Any,
) -> Evaluation:
    """Scores of all splits. lists: by dataset (`Protocol.lists`). size: of the network's input (`EvalSettings.of`).
    workers: of the loader.

    The record: `mean` over the datasets of the first protocol's headline, `datasets`, and `operating`: per class
    the point of best F1 over all datasets that label it, with precision, recall and F1 by cross-fitting; and
    `warnings`: what the detections say of a detector that failed (`training.guard`).
    """
    settings = EvalSettings.of(size, config.eval, workers)
    scores = {}
    for name, split in splits.items():
        dataset = config.datasets[name]
        protocols = [PROTOCOLS[protocol] for protocol in dataset.protocol]
        whole = replace(split, lists=lists.get(name), edition=dataset.edition)
        try:
            scores[name] = score_dataset(
                model, whole, settings.of_dataset(dataset), protocols, folding, **detect_options
            )
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None
    main = [main_number(s.record) for s in scores.values()]
    known = [number for number in main if number == number]
    metrics = {
        "mean": sum(known) / len(known) if known else float("nan"),
        "datasets": {name: s.record for name, s in scores.items()},
        "operating": _operating_points(splits, scores),
        "warnings": [
            finding.to_json()
            for name, s in scores.items()
            for finding in of_detections(name, splits[name], s.found.detections, s.judged)
        ],
    }
    return Evaluation(metrics, scores, splits)


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
    names = space.classes if folding is None else folding.names
    becomes = np.arange(len(space.classes)) if folding is None else folding.of
    return {name: _split(space, name, index, becomes, names, space) for name, index in sources.val.items()}


def splits_for_detector(
    sources: Sources,
    indexes: Mapping[str, Index],
    detector: Reporting,
    fold: bool = False,
    only_known: bool = False,
) -> dict[str, Split]:
    """The splits in the classes of a detector, found by their unified names.

    only_known: classes that the detector does not know are left out, with splits that have no other.

    fold: in its folded classes, where it has such. A class with directions or datasets that the detector does not
    tell apart is found by the name without them; the splits then say the directions, as with folded classes.

    Raises `UserError` for classes that the detector does not know.
    """
    space, known = sources.space, detector.space.reported if fold else detector.classes
    position = positions(space, detector, fold)
    used = sorted(
        {c for name, index in indexes.items() for c in space.ids(name, index.classes).tolist()} - {DROPPED}
    )
    unknown = [space.classes[c] for c in used if position[c] == DROPPED]
    if unknown and not only_known:
        raise UserError(
            f"the detector does not know the class(es) {', '.join(map(repr, unknown))}; it knows "
            f"{', '.join(known)}. Merge them to known names under `labels.merge`, or drop them"
        )
    becomes, theirs = np.array(position, np.int64), detector.space if fold else None
    splits = {name: _split(space, name, index, becomes, known, theirs) for name, index in indexes.items()}
    return {name: split for name, split in splits.items() if split.classes or not only_known}


def _split(
    space: LabelSpace,
    dataset: str,
    index: Index,
    becomes: NDArray[np.int64],
    names: Sequence[str],
    folded: LabelSpace | None,
) -> Split:
    """becomes: `[C]` position in `names` of every class of `space`. folded: the label space of the detector, whose
    classes are looked at in their folded form; None = they are not."""
    ids = space.ids(dataset, index.classes)
    verified = verified_in_evaluation(index, ids, space, space.dataset_index(dataset), becomes)
    angles, own = None, space.folding
    if own is not None and folded is not None:
        angles = np.array([NO_ANGLE if c == DROPPED else int(own.angles[c]) for c in ids.tolist()], np.int64)
    return Split(
        index,
        np.array([DROPPED if c == DROPPED else becomes[c] for c in ids.tolist()], np.int64),
        names,
        angles,
        None if verified is None else Verified(*verified),
        None if folded is None else _members(space, dataset, folded),
    )


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


def positions(space: LabelSpace, detector: Reporting, fold: bool) -> list[int]:
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
        if split.index.rotation is not None and split.index.rotation.degrees.any():
            layout = "coco"  # the others go by names of files, which stand for several turned pictures
        target = folder / "predictions" / folders[dataset]
        write_predictions(PROTOCOLS[layout], target, split, scores.found.detections)


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
        shown = PROTOCOLS[record["protocol"]].columns(record)
        cells = "  ".join(f"{label} {percent(value):>4}" for label, value in shown)
        lines.append(f"{name:<{width}}  {images:>6}  {record['protocol']:<{wide}}  {cells}")
    for name, row in metrics["datasets"].items():
        if "orientation" in row:
            lines.append(f"{name}: {_orientation(row['orientation'])}")
        if row["unreadable"]:
            which = some([str(line) for line in row["unreadable"]], 3, 2)
            lines.append(f"{name}: {len(row['unreadable'])} images could not be read and count as empty: {which}")
        lines += [f"{name}: {note}" for note in row.get("notes", ())]
    return "\n".join(lines)


def _orientation(found: dict[str, Any]) -> str:
    if not found["found"]:
        return f"direction: none of the {found['objects']} objects was found"
    accuracy, error = found["accuracy"], found["mean_error"]
    return (
        f"direction right for {percent(accuracy)} % of the {found['found']} objects found "
        f"(of {found['objects']}), mean error {'-' if error != error else format(error, '.0f')} degrees"
    )


def score_network(
    fabric: Fabric, config: Config, sources: Sources, model: Network, splits: dict[str, Split]
) -> Evaluation:
    """Scores of a network on validation splits, at the precision and by all processes of a training."""
    from crossdet.runs.building import loader_workers

    return score_splits(
        model,
        config,
        splits,
        sources.lists,
        config.input,
        sources.space.folding,
        loader_workers(config),
        autocast=fabric.autocast(),
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )


def _looking(
    detector: Detector | ExportedDetector, config: Config
) -> tuple[Network | ExportedDetector, InputSettings, int]:
    """What looks at the pictures, at which size, and with how many loader workers."""
    if isinstance(detector, ExportedDetector):
        return detector, detector.about.card.input, 0
    from crossdet.runs.building import loader_workers  # torch, which files do without

    return detector.model, detector.settings, loader_workers(config)


def evaluate(
    run_or_weights: str | Path | Detector | ExportedDetector,
    config: Config | str | Path,
    split: str = "val",
    output: str | Path | None = None,
    fold: bool = True,
    agnostic_nms: bool | None = None,
    last: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Scores a trained detector on every dataset of `config`, each by its protocols on the classes it labels.

    The detector's classes are found by their unified names, so the config may hold other datasets than those it
    was trained on; datasets that it was trained on mean what they meant, and the label rules may name them.

    split: whose pictures: val, test or train. output: a folder for precision-recall curves (PNG and data) and for
    the detections in each dataset's own layout.
    fold: the directions of a class, and its classes per dataset, are judged as one class (docs/orientation.md);
    False: each for itself.
    agnostic_nms: of several classes at one place the best is left, among the classes that a dataset labels; None =
    as the config's `eval` says.
    last: of a run directory its newest weights, not its best ones. device: of `load_detector`.

    The record has `label_rules_apart`, the reason, where the config contradicts what the weights were trained with
    and is read by itself: what they know of a dataset (what it labels in part) does not count then.

    Raises:
        UserError: unreadable weights or data, or classes that the detector does not know.
    """
    detector = run_or_weights
    if isinstance(detector, str | Path):
        detector = load_detector(detector, device, last=last)
    if isinstance(detector, Config):
        raise UserError("evaluate: got a config where the detector belongs; its weights or run come first")
    if isinstance(detector, ExportedDetector):
        check_fold(detector.about, fold, detector.file or "the file")
    config = as_config(config, detector.space.datasets).with_agnostic_nms(agnostic_nms)
    check_split(config, split)
    sources = open_sources(config, [split], detector=detector.space)
    check_not_empty(getattr(sources, split), split)
    splits = splits_for_detector(sources, getattr(sources, split), detector, fold)
    folding = detector.space.folding if fold else None
    if output is not None:
        check_room(Path(output))
    model, size, workers = _looking(detector, config)
    evaluation = score_splits(model, config, splits, sources.lists, size, folding, workers)
    for dataset, record in evaluation.metrics["datasets"].items():
        if record["unreadable"] and len(record["unreadable"]) == record["images"]:
            raise UserError(
                f"datasets.{dataset}.{split}: none of its {record['images']} pictures could be read, the first: "
                f"{record['unreadable'][0]}; is `images` the right folder?"
            )
    for dataset, note in listed_only_notes(sources.listed_only).items():
        evaluation.metrics["datasets"][dataset].setdefault("notes", []).append(note)
    if sources.apart:
        evaluation.metrics["label_rules_apart"] = sources.apart
    if output is not None:
        name = run_or_weights if isinstance(run_or_weights, str | Path) else "detector"
        write_evaluation(Path(output), evaluation, Path(name).stem)
    return evaluation.metrics
