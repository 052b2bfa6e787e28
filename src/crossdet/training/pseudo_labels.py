"""Trained detectors as teachers: what they find in images becomes labels of classes that their dataset lacks.

Confident detections become objects, uncertain ones AVOID regions of their class, and what is left of the background
may count as a negative. What a person labelled always wins: a detection on a labelled object of another class is
left out, since the object says that it is not that class, and an uncertain one takes no negatives from the object
(`Flag.TEACHER`). Who teaches is for others to say: `crossdet extend` has the detector that is extended, joint
training what `teachers.py` chooses.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray

from crossdet.data.cache import load_index, save_index
from crossdet.data.index import CANNOT_BE_READ, Index, Ragged
from crossdet.evaluation.arrays import Bools, DetectionArrays, Floats
from crossdet.evaluation.hits import iou_with_offset, pairs
from crossdet.evaluation.run import EvalSettings, Found, detect_folded
from crossdet.files import safe_names, writing
from crossdet.labels.folds import Folding
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.models.contract import Network
from crossdet.models.weights import with_room
from crossdet.types import REGION_FLAGS, Flag

TEACHER_FOLDER = "teacher_labels"
"""In the run directory: the training images' indexes with the teachers' labels."""
MOST_DETECTIONS = 1000
"""Of all its classes that a teacher may report per image. Where it reports as many, there may be more: the whole
image is then avoided for those that may have been cut."""
MOST_CANDIDATES = 10_000
"""Per level, before suppression."""
MOST_AVOIDED = 20
"""Where more classes than that may go on in a full picture, all of its background is avoided at once: a region of
each class is a row for every anchor."""
LEAST_SCORE = 0.01
"""What scores less is never looked at."""
SAME_BOX = 0.5
"""IoU from which on a detection and a labelled object are the same thing."""

Ids = NDArray[np.int64]
NO_IDS: Ids = np.zeros(0, np.int64)


def teacher_name(unified: str) -> str:
    """Under which own name of the dataset the teacher's labels of a class stand."""
    return f"{unified} (teacher)"


def classes_for_teachers(space: LabelSpace, dataset: str, known: Iterable[int]) -> list[int]:
    """Those of the `known` classes that a teacher labels in a dataset, rising.

    It labels what the dataset does not label at all and is not known not to contain.
    """
    row = space.dataset_index(dataset)
    wanted = space.avoid_array[row] & ~space.annotated_array[row]
    return [c for c in sorted(known) if wanted[c]]


def space_with_teachers(space: LabelSpace, by_teacher: Mapping[str, Sequence[int]], trust: bool) -> LabelSpace:
    """The label space of a training on the teacher's labels: they are classes of the dataset like its own.

    trust: the background that the teacher leaves is a negative for them; else it stays avoided.
    """
    sources = [dict(row) for row in space.sources]
    in_part = set(space.not_exhaustive_pairs)
    for dataset, classes in by_teacher.items():
        row = space.dataset_index(dataset)
        sources[row] |= {teacher_name(space.classes[c]): c for c in classes}
        if not trust:
            in_part |= {(row, c) for c in classes}
    return replace(space, sources=tuple(sources), not_exhaustive_pairs=frozenset(in_part))


def with_pseudo_labels(
    index: Index,
    class_ids: Ids,
    found: DetectionArrays,
    by_teacher: Sequence[int],
    names: Sequence[str],
    confident: Floats,
    uncertain: Floats,
    overlap: Bools,
    avoided: tuple[Ids, Ids] = (NO_IDS, NO_IDS),
    federated: bool = False,
) -> Index:
    """The index with the teacher's labels; its images, boxes and classes stay as they are, new ones come
    after.

    class_ids: `[K]` unified ids of the index's classes, or `DROPPED`. found: the detections, in original
    pixels. by_teacher: the classes to label (of a federated dataset each image counts as verified for them: the
    teacher has looked at all), names: unified names by id. confident, uncertain: `[C]` a score of
    at least `confident` is an object, one of at least `uncertain` an AVOID region. overlap: `[C, C]`, pairs that
    one box can show at once. avoided: pairs of an image and a class (-1: all), one array each, whose whole image is
    an AVOID region. federated: each image says what was verified in it, if only by its boxes.
    """
    lists = index.negatives
    if lists is None and federated:
        lists = Ragged(np.zeros(0, np.int64), np.zeros(len(index) + 1, np.int64))
    position = np.full(len(names), -1, np.int64)
    position[list(by_teacher)] = len(index.classes) + np.arange(len(by_teacher))
    labels = np.asarray(found.labels, np.int64)
    wanted = (position[labels] >= 0) & (found.scores >= uncertain[labels])
    wanted &= ~_on_labelled_objects(index, class_ids, found, overlap)
    kept = np.flatnonzero(wanted)
    labels, scores = labels[kept], found.scores[kept]
    flags = np.where(scores >= confident[labels], Flag.TEACHER, Flag.TEACHER | Flag.AVOID).astype(np.uint8)
    boxes = np.asarray(found.boxes, np.float32)[kept]
    whole_image, whole_class = avoided
    labels = np.concatenate([labels, whole_class])
    flags = np.concatenate([flags, np.full(len(whole_image), Flag.TEACHER | Flag.AVOID, np.uint8)])
    corner = np.asarray(index.sizes)[whole_image, ::-1]
    boxes = np.concatenate([boxes, np.concatenate([np.zeros_like(corner), corner], 1).astype(np.float32)])
    image = np.concatenate([index.image_of_box(), np.asarray(found.image_of_box, np.int64)[kept], whole_image])
    order = np.argsort(image, kind="stable")
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(np.bincount(image, minlength=len(index)), out=offsets[1:])

    def joined(own: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(own), more.astype(own.dtype)])[order]

    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return replace(
        index,
        classes=(*index.classes, *(teacher_name(names[c]) for c in by_teacher)),
        category_ids=np.concatenate(
            [index.category_ids, index.category_ids.max(initial=0) + 1 + np.arange(len(by_teacher))]
        ),
        box_offsets=offsets,
        boxes=joined(index.boxes, boxes),
        labels=joined(index.labels, np.where(labels < 0, -1, position[labels])),
        flags=joined(index.flags, flags),
        area=joined(index.area, area),
        columns={name: joined(own, np.zeros(len(labels), own.dtype)) for name, own in index.columns.items()},
        negatives=None if lists is None else _in_all(lists, position[list(by_teacher)]),
    )


def _in_all(lists: Ragged, more: Ids) -> Ragged:
    """The lists of all images with some values more in each."""
    images = np.arange(len(lists.offsets) - 1)
    image = np.concatenate([np.repeat(images, np.diff(lists.offsets)), np.repeat(images, len(more))])
    values = np.concatenate([lists.values, np.tile(more.astype(lists.values.dtype), len(images))])
    return Ragged(
        values[np.argsort(image, kind="stable")], lists.offsets + len(more) * np.arange(len(lists.offsets))
    )


def _on_labelled_objects(index: Index, class_ids: Ids, found: DetectionArrays, overlap: Bools) -> Bools:
    """`[N]` whether a detection is the same box as a labelled object of a class that it cannot show as well."""
    own = np.asarray(index.labels, np.int64)
    unified = np.where(own >= 0, class_ids[np.maximum(own, 0)], DROPPED) if len(class_ids) else own
    objects = (unified != DROPPED) & ((np.asarray(index.flags) & int(REGION_FLAGS | Flag.INVALID)) == 0)
    truth, of = np.asarray(index.boxes, np.float64)[objects], unified[objects]
    boxes, labels = np.asarray(found.boxes, np.float64), np.asarray(found.labels, np.int64)
    on = np.zeros(len(boxes), bool)
    iou = iou_with_offset(0.0)
    for detection, object_ in pairs(found.image_of_box, index.image_of_box()[objects]):
        same = iou(boxes[detection], truth[object_]) >= SAME_BOX
        on[detection[same & ~overlap[labels[detection], of[object_]]]] = True
    return on


# ------------------------------------------------------------------------------------------ labelling images


@dataclass(frozen=True)
class Teacher:
    """A detector as a teacher.

    own_ids: unified class -> its own id, of the classes that it knows; a folded one where it has a `folding`.
    settings: of its input, and limits.
    thresholds: unified class -> score from which on a detection is an object; of others it labels nothing.
    """

    name: str
    model: Network
    own_ids: Mapping[int, int]
    settings: EvalSettings
    thresholds: Mapping[int, float] = field(default_factory=dict)
    folding: Folding | None = None


def label_images(
    fabric: Fabric,
    teachers: Sequence[Teacher],
    space: LabelSpace,
    train: Mapping[str, Index],
    uncertain_from: float,
    folder: Path,
    keep: bool = False,
) -> tuple[dict[str, Index], dict[str, list[int]]]:
    """The training splits with the teachers' labels, kept in `folder/DATASET`, and dataset -> the classes labelled.

    No two teachers have a threshold of the same class. A detection from `uncertain_from` times the threshold on is
    an AVOID region. keep: what lies in the folder is taken.
    """
    taken = {c: score for teacher in teachers for c, score in teacher.thresholds.items()}
    confident = np.full(len(space.classes), np.inf)
    confident[list(taken)] = list(taken.values())
    labelled, by_teacher = dict(train), {}
    folders = label_folders(folder, train)
    for name, index in train.items():
        classes = classes_for_teachers(space, name, taken)
        if not classes:
            continue
        by_teacher[name], place = classes, folders[name]
        if not (keep and place.exists()):
            floors = {c: max(LEAST_SCORE, uncertain_from * score) for c, score in taken.items()}
            parts, pairs_, unseen = [], [(NO_IDS, NO_IDS)], set[int]()
            for teacher in teachers:
                mine = {c: floors[c] for c in classes if c in teacher.thresholds}
                found = find(fabric, teacher, index, mine)
                parts.append(found.detections)
                pairs_ += [_cut(found.detections, mine), _everywhere(found.unseen, mine)]
                unseen.update(found.unseen)
            everywhere = np.unique([np.concatenate(column) for column in zip(*pairs_, strict=True)], axis=1)
            more = with_pseudo_labels(
                index,
                space.ids(name, index.classes),
                DetectionArrays.joined(parts),
                classes,
                space.classes,
                confident,
                uncertain_from * confident,
                space.overlap_array,
                (everywhere[0], everywhere[1]),
                space.dataset_index(name) in space.federated,
            )
            more = _not_to_be_read(more, unseen)
            if fabric.is_global_zero:
                shutil.rmtree(place, ignore_errors=True)
                with writing(place, with_room(folder.parent)):
                    save_index(more, place)
                added = more.flags[np.asarray(more.labels) >= len(index.classes)]
                uncertain = int(((added & Flag.AVOID) != 0).sum())
                print(f"teacher on {name}: {len(added) - uncertain} objects, {uncertain} uncertain", flush=True)
        fabric.barrier()
        labelled[name] = open_labelled(place, index)
    return labelled, by_teacher


def label_folders(folder: Path, datasets: Iterable[str]) -> dict[str, Path]:
    """Dataset -> where its labels are kept, whatever it is called."""
    names = list(datasets)
    return {name: folder / file for name, file in zip(names, safe_names(names), strict=True)}


def open_labelled(place: Path, index: Index) -> Index:
    """What `label_images` kept of a split. index: the split without the labels; where its pictures are, and how
    they are turned, is said by the config and not in the folder.
    """
    kept = load_index(place)
    refused = set(kept.skipped.get(CANNOT_BE_READ, ()))  # places of then
    without_size = np.flatnonzero((np.asarray(kept.sizes) == 0).any(1)).tolist()
    unseen = [row for row in without_size if str(kept.path(row)) in refused]
    return _not_to_be_read(replace(kept, rotation=index.rotation, root=index.root, skipped=index.skipped), unseen)


def _cut(found: DetectionArrays, floors: Mapping[int, float]) -> tuple[Ids, Ids]:
    """Pairs of an image in which a teacher reports as much as it may, and a class of which more may be there: its
    floor is below the least score that is reported. What is left of the background may be such objects.

    Several finds that were folded to one count as one; as many as may be reported before that are at least as many
    as may be after it.
    """
    image = np.asarray(found.image_of_box, np.int64)
    pairs_ = [(NO_IDS, NO_IDS)]
    for full in np.flatnonzero(np.bincount(image) >= MOST_DETECTIONS).tolist():
        least = float(found.scores[image == full].min())
        pairs_.append(_everywhere([full], [c for c, floor in floors.items() if floor < least]))
    images, classes = (np.concatenate(column) for column in zip(*pairs_, strict=True))
    return images, classes


def _everywhere(images: Iterable[int], classes: Collection[int]) -> tuple[Ids, Ids]:
    """Pairs of every image with every class, or with all of them at once where they are many."""
    few = np.array(sorted(classes) if len(classes) <= MOST_AVOIDED else [-1], np.int64)
    rows = np.array(list(images), np.int64)
    return np.repeat(rows, len(few)), np.tile(few, len(rows))


def _not_to_be_read(index: Index, unseen: Collection[int]) -> Index:
    """No teacher saw these images. Where one can be read later, a region keeps its background out of the loss;
    where nobody knows how large that has to be, `annotated_size` refuses the image."""
    places = [str(index.path(row)) for row in sorted(unseen) if 0 in np.asarray(index.sizes)[row].tolist()]
    if not places:
        return index
    known = index.skipped.get(CANNOT_BE_READ, [])
    return replace(index, skipped=index.skipped | {CANNOT_BE_READ: list(dict.fromkeys([*known, *places]))})


def find(fabric: Fabric, teacher: Teacher, index: Index, floors: Mapping[int, float]) -> Found:
    """What a teacher finds, in unified ids. floors: unified classes that are looked for, with the least score of
    each."""
    own = [teacher.own_ids[c] for c in floors]
    settings = replace(teacher.settings, topk=MOST_CANDIDATES, max_detections=MOST_DETECTIONS)
    if not own:
        return Found(DetectionArrays.joined([]), ())
    lowest = np.full(1 + max(own), np.inf)
    lowest[own] = list(floors.values())
    if teacher.folding is not None:
        lowest = np.append(lowest, np.full(len(teacher.folding.names), np.inf))[teacher.folding.of]
    found = detect_folded(
        teacher.model,
        index,
        own,
        settings,
        teacher.folding,
        autocast=fabric.autocast(),
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        floors=lowest,
    )
    unified = np.zeros(1 + max(own), np.int64)
    unified[own] = list(floors)
    return replace(found, detections=replace(found.detections, labels=unified[found.detections.labels]))
