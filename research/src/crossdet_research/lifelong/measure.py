"""What a generation of a lifelong sequence is judged by: AP of every class, and what the old ones lost against the
weights that the generation started from.

Detections are of all classes at once: the best 300 of an image are looked for, the best 100 per image and class
count. On `val` a class is judged on the images of the datasets that label it, together; on `union` on all images of
the union test, or on the `val` images of all datasets where these are taken for one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.index import Index
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Verified
from crossdet.evaluation.bootstrap import Paired, paired_bootstrap
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.run import detect
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.evaluation.union import of_images
from crossdet.inference import Detector, load_detector
from crossdet.labels.space import DROPPED
from crossdet.models.card import file_digest
from crossdet.models.retinanet.growth import ADAPTERS, BIAS, WEIGHT, by_class
from crossdet.models.weights import load_weights
from crossdet.runs.audit import open_union_test
from crossdet.runs.evaluate import splits_for_detector
from crossdet_research.ablation.measure import eval_settings
from crossdet_research.lifelong.plan import UNION, VAL, UnionImages

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Place:
    """Images on which detectors are judged together. parts: name -> split, whose images follow each other. truth:
    of all parts. strata: `[I]` number of the part. classes: the ids that are labelled in some part. full: every
    class is judged in all parts, else in those that label it."""

    parts: dict[str, Split]
    truth: GroundTruth
    strata: NDArray[np.int64]
    classes: list[int]
    full: bool = False


def place_of(parts: dict[str, Split], full: bool = False) -> Place:
    """Joins splits."""
    truths = [ground_truth(split) for split in parts.values()]
    counts = [len(split.index) for split in parts.values()]
    starts = np.concatenate([[0], np.cumsum(counts)])[: len(counts)]
    columns = {
        name: np.concatenate([getattr(truth, name) for truth in truths])
        for name in ("boxes", "labels", "crowd", "area")
    }
    images = np.concatenate([t.image_of_box + start for t, start in zip(truths, starts, strict=True)])
    truth = GroundTruth(
        np.arange(sum(counts)), image_of_box=images, verified=_verified_in(parts, starts), **columns
    )
    classes = sorted({c for split in parts.values() for c in split.classes})
    return Place(parts, truth, np.repeat(np.arange(len(counts)), counts), classes, full)


def _verified_in(parts: dict[str, Split], starts: NDArray[np.int64]) -> Verified | None:
    """What the images of several splits verify. starts: number of the first image of each."""
    if all(split.verified is None for split in parts.values()):
        return None
    none, image, label = np.zeros(0, np.int64), [], []
    for split, start in zip(parts.values(), starts, strict=True):
        verified = split.verified or Verified(np.array(split.classes, np.int64), none, none)
        rows, classes = verified.pairs(len(split.index))
        image.append(rows + start)
        label.append(classes)
    return Verified(none, np.concatenate(image), np.concatenate(label))


def union_place(union: UnionImages, detector: Detector) -> Place | None:
    """Where all images are fully labelled; None without such images, or where the detector knows none of their
    classes. Classes that it does not know are left out."""
    if union.vals is not None:
        sources = open_sources(union.vals, ["val"])
        known = [detector.classes.index(c) if c in detector.classes else DROPPED for c in sources.space.classes]
        ids = np.array([*known, DROPPED], np.int64)  # DROPPED = -1 finds the last
        splits = {
            name: Split(index, ids[sources.space.ids(name, index.classes)], detector.classes)
            for name, index in sources.val.items()
        }
        return place_of(splits, full=True)
    if union.index is None or not set(union.index.classes) & set(detector.classes):
        return None
    return place_of({f"/{UNION}": open_union_test(union.index, detector)})  # no dataset's name holds a slash


class Looker:
    """Runs detectors over splits; what the same weights found in a split is remembered."""

    def __init__(self, limits: Any) -> None:
        self.limits = limits
        self._found: dict[tuple[str, str], DetectionArrays] = {}

    def look(self, detector: Detector, digest: str, place: Place) -> DetectionArrays:
        """Detections of a place, image rows as in its truth; of each part those of classes judged there."""
        found, start = [], 0
        for name, split in place.parts.items():
            judged = np.array(place.classes if place.full else split.classes, np.int64)
            mine = self._in(detector, digest, name, split.index).of_classes(judged)
            found.append(replace(mine, image_of_box=mine.image_of_box + start))
            start += len(split.index)
        return DetectionArrays.joined(found)

    def _in(self, detector: Detector, digest: str, name: str, index: Index) -> DetectionArrays:
        key = (digest, name)
        if key not in self._found:
            settings = eval_settings(detector, self.limits)
            self._found[key] = detect(detector.model, index, None, settings).detections
        return self._found[key]


def measure_generation(
    weights: Path,
    parent: Path | None,
    config: Config,
    union: UnionImages,
    looker: Looker,
    newest: Sequence[str] = (),
) -> dict[str, Any]:
    """The numbers of one weights file.

    parent: the weights that it was extended from; None: none. config: of all datasets so far. union: fully
    labelled images. newest: the datasets that arrived in this generation.

    Returns:
        `datasets` (per dataset AP, AP50), `val` and `union` (AP and AP50 of every class and their mean; None
        where there is no such test, or none of its classes is known yet), `union_parts` (the same of parts of the
        union test), and of an extension `old` (per place the old classes before and after, with the interval of
        the difference, their mean, that of the classes which `newest` does not label, and the class that lost
        most) and `old_weights_unchanged`.
    """
    detector = load_detector(weights)
    sources = open_sources(config, ["val"], detector=detector.space)
    splits = splits_for_detector(sources, sources.val, detector)
    places = {VAL: place_of(splits)} if splits else {}
    if (full := union_place(union, detector)) is not None:
        places[UNION] = full
    digest = file_digest(weights)
    found = {name: looker.look(detector, digest, place) for name, place in places.items()}
    result: dict[str, Any] = {"classes": list(detector.classes), VAL: None, UNION: None}
    for name, place in places.items():
        result[name] = _scores(place.truth, found[name], place.classes, detector.classes)
    if full is not None:
        result["union_parts"] = {
            name: _scores(
                *of_images(full.truth, found[UNION], np.array(rows, np.int64)), full.classes, detector.classes
            )
            for name, rows in union.parts.items()
        }
    result["datasets"] = {}
    for name, split in splits.items():
        mine = looker.look(detector, digest, place_of({name: split}))
        scores = coco_scores(ground_truth(split), mine, split.classes, per_class=False).scores
        result["datasets"][name] = {key: scores[key] for key in ("AP", "AP50")}
    if parent is not None:
        old = load_detector(parent)
        before = {name: looker.look(old, file_digest(parent), place) for name, place in places.items()}
        rows = sources.space.annotated_array[[sources.space.dataset_index(name) for name in newest]]
        labelled = {name for c, name in enumerate(sources.space.classes) if rows[:, c].any()}
        result["old"] = {
            name: _old_classes(place, before[name], found[name], detector.classes, len(old.classes), labelled)
            for name, place in places.items()
        }
        result["old_weights_unchanged"] = unchanged(parent, weights)
    return result


def _scores(
    truth: GroundTruth, found: DetectionArrays, classes: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    scores = coco_scores(truth, found, classes)
    return {
        "images": len(truth.image_ids),
        "AP": scores.scores["AP"],
        "AP50": scores.scores["AP50"],
        "per_class": {names[c]: dict(row) for c, row in scores.per_class.items()},
    }


def _old_classes(
    place: Place,
    before: DetectionArrays,
    after: DetectionArrays,
    names: Sequence[str],
    known: int,
    labelled: Collection[str],
) -> dict[str, Any]:
    """The first `known` classes before and after, and the 95 % interval of the difference. labelled: classes of the
    newest datasets. With new labels and images a class gains what the others lose, so the rest has a mean of its
    own."""
    classes = [c for c in place.classes if c < known]
    rest = [c for c in classes if names[c] not in labelled]
    result = paired_bootstrap(place.truth, before, after, classes, strata=place.strata, subsets={UNLABELLED: rest})
    lost = {c: row["AP50"].difference for c, row in result.per_class.items()}
    judged = [c for c in classes if not np.isnan(lost[c])]
    worst = min(judged, key=lambda c: lost[c], default=None)
    return {
        "classes": {names[c]: _plain(row) for c, row in result.per_class.items()},
        "mean": _plain(result.mean),
        UNLABELLED: {"classes": [names[c] for c in rest], "mean": _plain(result.subsets[UNLABELLED])},
        "worst": None if worst is None else names[worst],
    }


def _plain(row: dict[str, Paired]) -> dict[str, dict[str, float]]:
    return {key: asdict(paired) | {"difference": paired.difference} for key, paired in row.items()}


def unchanged(parent: Path, weights: Path) -> bool:
    """Whether all that the parent's classes are computed from is the same bit for bit."""
    (old, before), (new, after) = load_weights(parent), load_weights(weights)
    known, all_classes = len(before.space.classes), len(after.space.classes)
    shapes = len(old[BIAS]) // known
    added = {name for name in new if name not in old and name.startswith(ADAPTERS)}
    if old.keys() != new.keys() - added or len(new[BIAS]) != shapes * all_classes:
        return False
    bias, weight = (by_class(new[name], shapes)[:, :known] for name in (BIAS, WEIGHT))
    width = old[WEIGHT].shape[1]
    return (
        torch.equal(bias, by_class(old[BIAS], shapes))
        and torch.equal(weight[:, :, :width], by_class(old[WEIGHT], shapes))
        and not weight[:, :, width:].any()  # what adapters add to these rows
        and all(torch.equal(new[name], old[name]) for name in old if name not in (WEIGHT, BIAS))
    )
