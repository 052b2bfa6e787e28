"""Teachers in joint training: experts, or the network itself, label what the datasets leave unlabelled.

A class has the teacher that finds it best on the validation data that label it, with the threshold of the best
F-beta there: an expert, once before the training, or the network in training, again and again, by an average of its
weights. What they find is kept in the run directory (`pseudo.label_images`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from crossdet.data.index import Index
from crossdet.data.rotation import rows_per_picture
from crossdet.errors import UserError, problem_list
from crossdet.evaluation.operating import OperatingPoint, best_f_beta, cross_fitted, f_beta, judge
from crossdet.evaluation.run import EvalSettings
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.export.network import ExportedNetwork
from crossdet.files import write_json
from crossdet.inference import Detector
from crossdet.labels.placeholders import numbered_warning
from crossdet.labels.space import LabelSpace
from crossdet.models.contract import Network
from crossdet.training.pseudo_labels import (
    LEAST_SCORE,
    TEACHER_FOLDER,
    Teacher,
    classes_for_teachers,
    find,
    label_folders,
    label_images,
    open_labelled,
    space_with_teachers,
    teacher_name,
)
from crossdet.training.state import DataOfEpoch, EpochData
from crossdet.types import Flag

TEACHERS_FILE = "taught.json"
"""Beside the indexes with the labels: who labelled what. Written last, so that with it they are complete."""
TEACHER_DECAY = 0.999
"""Of the averaged weights by which a network teaches itself where the config has no `train.ema` (Mean Teacher,
Tarvainen and Valpola 2017, has it after its ramp-up)."""


@dataclass(frozen=True)
class TeacherPlan:
    """What teachers label in a joint training, and how.

    train, splits: training images, and validation images that the thresholds are found on. settings: of the
    network in training as a teacher; others have their own input size. schedule: (epochs after which the network
    itself is the teacher for the first time, and after how many it is again); None: those of `sources`, paths or
    ids of the hub. beta: a threshold is that of the best F-beta. negative_weight: of the background that the
    teachers leave; 0: it stays avoided.
    """

    space: LabelSpace
    train: Mapping[str, Index]
    splits: Mapping[str, Split]
    settings: EvalSettings
    sources: Sequence[Path | str] = ()
    schedule: tuple[int, int] | None = None
    beta: float = 1.0
    uncertain_from: float = 0.25
    negative_weight: float = 1.0

    def wanted(self) -> set[int]:
        """Classes that teachers can label in some dataset."""
        known = range(len(self.space.classes))
        return {c for name in self.train for c in classes_for_teachers(self.space, name, known)}

    def check(self, teachable: Iterable[int]) -> None:
        """Raises `UserError` unless one of the classes is wanted and has validation data."""
        wanted = self.wanted() & set(teachable)
        if not wanted:
            raise UserError(
                "pseudo: no dataset leaves a class unlabelled that a teacher knows; remove the section, or name "
                "other teachers"
            )
        if not any(wanted & set(split.classes) for split in self.splits.values()):
            names = ", ".join(self.space.classes[c] for c in sorted(wanted))
            raise UserError(
                f"pseudo: the threshold of a class is found on validation images that label it, and there are none "
                f"of {names}; give a dataset that labels them a `val` split"
            )


@dataclass(frozen=True)
class TeacherLabels:
    """The training data with the teachers' labels: label space, indexes, and `[K, C]` weights of the background
    by dataset (None: all 1).
    """

    space: LabelSpace
    train: dict[str, Index]
    background_weight: Tensor | None


def known_ids(name: str, classes: Sequence[str], space: LabelSpace) -> dict[int, int]:
    """Class of `space` -> the teacher's own id, of the classes that it knows by their unified names; `UserError`
    without any."""
    ids = {space.id_of(c): own for own, c in enumerate(classes) if c in space.classes}
    if not ids:
        if unnamed := numbered_warning(classes):
            raise UserError(f"{name}: {unnamed}")
        raise UserError(
            f"{name} knows {', '.join(classes)}, none of the classes of this training ({', '.join(space.classes)})"
        )
    return ids


def as_teacher(name: str, detector: Detector, space: LabelSpace, settings: EvalSettings) -> Teacher:
    """A detector for the classes of `space` that it knows by their unified names; `UserError` without any."""
    if isinstance(detector.model, ExportedNetwork):
        raise UserError(f"{name} is an exported file, whose limits are fixed; name the weights that it was made of")
    own_ids = known_ids(name, detector.reported, space)
    shorter, longer = detector.settings.shorter, detector.settings.longer
    settings = replace(settings, shorter=shorter, longer=longer)
    return Teacher(name, detector.model, own_ids, settings, folding=detector.folding)


def open_teachers(plan: TeacherPlan, load: Callable[[Path | str], Detector]) -> list[Teacher]:
    """The detectors of `plan.sources`; none where the network in training teaches itself.

    Raises `UserError` that lists those that cannot be used, or where there is nothing to teach.
    """
    if plan.schedule is not None:
        plan.check(range(len(plan.space.classes)))
        return []
    teachers, problems = list[Teacher](), []
    for source in plan.sources:
        try:
            teachers.append(as_teacher(str(source), load(source), plan.space, plan.settings))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(problem_list(f"pseudo.teachers: {len(problems)} teacher(s) cannot be used", problems))
    plan.check(c for teacher in teachers for c in teacher.own_ids)
    return teachers


def label_by_teachers(
    fabric: Fabric, plan: TeacherPlan, teachers: Sequence[Teacher], folder: Path
) -> TeacherLabels:
    """Finds the thresholds, labels the training images, and keeps both in `folder`, for `read_teacher_labels`.

    A class that no teacher detects right on its validation data is not labelled and stays avoided.
    """
    chosen, points = _best_teachers(fabric, plan, teachers)
    train, by_teacher = label_images(fabric, chosen, plan.space, plan.train, plan.uncertain_from, folder)
    names = plan.space.classes
    if fabric.is_global_zero:
        for c in sorted(plan.wanted()):
            print(_told(names[c], *points[c]) if c in points else f"no teacher of {names[c]}", flush=True)
        content = {
            "teachers": [teacher.name for teacher in teachers],
            "classes": {names[c]: {"teacher": name, **vars(point)} for c, (name, point) in points.items()},
            "datasets": {
                name: {names[c]: _added(train[name], names[c]) for c in classes}
                for name, classes in by_teacher.items()
            },
        }
        write_json(folder / TEACHERS_FILE, content)
    fabric.barrier()
    return _as_teacher_labels(plan, train, by_teacher)


def read_teacher_labels(plan: TeacherPlan, folder: Path) -> TeacherLabels | None:
    """What `label_by_teachers` kept in a folder; None where it did not come to its end."""
    if not (folder / TEACHERS_FILE).exists():
        return None
    content = json.loads((folder / TEACHERS_FILE).read_text())["datasets"]
    by_teacher = {name: [plan.space.id_of(c) for c in classes] for name, classes in content.items()}
    folders = label_folders(folder, plan.train)
    train = {name: open_labelled(folders[name], i) if name in by_teacher else i for name, i in plan.train.items()}
    return _as_teacher_labels(plan, train, by_teacher)


def last_teacher_labels(run_dir: Path) -> dict[str, Any] | None:
    """Who labelled what, of the newest labels in a run directory; None without teachers."""
    files = list((run_dir / TEACHER_FOLDER).glob(f"**/{TEACHERS_FILE}"))
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    return None if newest is None else dict(json.loads(newest.read_text()))


def _best_teachers(
    fabric: Fabric, plan: TeacherPlan, teachers: Sequence[Teacher]
) -> tuple[list[Teacher], dict[int, tuple[str, OperatingPoint]]]:
    """Every class for the teacher with the best F-beta, the first of equal ones; class -> (teacher, point), with
    cross-fitted numbers where there can be some."""
    wanted, best = plan.wanted(), dict[int, tuple[int, OperatingPoint]]()
    honest = dict[int, OperatingPoint]()
    for number, teacher in enumerate(teachers):
        judged = []
        for split in plan.splits.values():
            classes = [c for c in split.classes if c in teacher.own_ids and c in wanted]
            if classes:
                found = find(fabric, teacher, split.index, dict.fromkeys(classes, LEAST_SCORE)).detections
                directions = rows_per_picture(split.index)
                judged.append(judge(ground_truth(split), found, classes, LEAST_SCORE, directions))
        for c in sorted(wanted & teacher.own_ids.keys()):
            point = best_f_beta(judged, c, plan.beta)
            if point is None:
                continue
            if c not in best or f_beta(point, plan.beta) > f_beta(best[c][1], plan.beta):
                best[c], honest[c] = (number, point), cross_fitted(judged, c, point, plan.beta)
    chosen = [
        replace(teacher, thresholds={c: point.threshold for c, (of, point) in best.items() if of == number})
        for number, teacher in enumerate(teachers)
    ]
    return chosen, {c: (teachers[number].name, honest[c]) for c, (number, _) in best.items()}


def _told(name: str, teacher: str, point: OperatingPoint) -> str:
    chosen_on = "" if point.cross_fitted else ", which the threshold was chosen on"
    return (
        f"teacher of {name}: {teacher}, objects from a score of {point.threshold:.2f} on (precision "
        f"{point.precision:.2f}, recall {point.recall:.2f} on {point.objects} validation objects{chosen_on})"
    )


def _added(index: Index, name: str) -> dict[str, int]:
    """How many objects and uncertain regions of a class a teacher added."""
    flags = np.asarray(index.flags)[np.asarray(index.labels) == index.classes.index(teacher_name(name))]
    uncertain = int(((flags & Flag.AVOID) != 0).sum())
    return {"objects": len(flags) - uncertain, "uncertain": uncertain}


def _as_teacher_labels(
    plan: TeacherPlan, train: dict[str, Index], by_teacher: Mapping[str, Sequence[int]]
) -> TeacherLabels:
    space = space_with_teachers(plan.space, by_teacher, trust=plan.negative_weight > 0)
    return TeacherLabels(space, train, background_weights(plan.space, by_teacher, plan.negative_weight))


def background_weights(space: LabelSpace, by_teacher: Mapping[str, Sequence[int]], weight: float) -> Tensor | None:
    """`[K, C]` float32: `weight` for the classes that teachers label in a dataset, else 1; None where that is 1,
    too, and where the weight is 0, since then the background is not trusted at all.
    """
    if weight in (0, 1) or not by_teacher:
        return None
    table = torch.ones(len(space.datasets), len(space.classes))
    for name, classes in by_teacher.items():
        table[space.dataset_index(name), list(classes)] = weight
    return table


def teacher_epochs(
    fabric: Fabric,
    plan: TeacherPlan,
    teachers: Sequence[Teacher],
    folder: Path,
    begun: bool,
    data: Callable[[TeacherLabels], EpochData],
) -> DataOfEpoch:
    """What each epoch trains on. teachers: they label now, unless the training has `begun` with their labels, which
    lie in `folder`; without `plan.schedule`. data: what is trained on labels.

    Raises `UserError` where labels that a resumed run needs are gone.
    """
    if not begun and fabric.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
    fabric.barrier()
    if plan.schedule is not None:
        return _epochs_by_itself(fabric, plan, plan.schedule, folder, data)
    by_teacher = read_teacher_labels(plan, folder) if begun else label_by_teachers(fabric, plan, teachers, folder)
    if by_teacher is None:
        raise _gone(folder)
    fixed = data(by_teacher)

    def data_of(_epoch: int, _step: int, _model: Network, _saved: int | None) -> EpochData:
        return fixed

    return data_of


def _gone(folder: Path) -> UserError:
    return UserError(f"{folder}: the labels that this run trains on are gone; start it anew with --overwrite")


def _epochs_by_itself(
    fabric: Fabric,
    plan: TeacherPlan,
    schedule: tuple[int, int],
    folder: Path,
    data: Callable[[TeacherLabels], EpochData],
) -> DataOfEpoch:
    """The network in training labels the images after `schedule[0]` epochs, and again after every `schedule[1]`.

    It does so by its averaged weights (`fit`), as in Mean Teacher and Unbiased Teacher: it was trained on the very
    images that it labels, and its newest weights repeat what they have just been told. Labels are found between two
    epochs, by weights that are in the resumable state, and kept in `folder/epoch_N` while they are in use, or would
    be where the saved state is resumed; so a resumed run finds or reads the same.
    """
    first, every = schedule

    def since_of(epoch: int) -> int:
        return epoch - (epoch - first) % every

    without_teachers = data(TeacherLabels(plan.space, dict(plan.train), None))
    made: dict[int, EpochData] = {}

    def data_of(epoch: int, step: int, model: Network, saved: int | None) -> EpochData:
        if epoch < first:
            return without_teachers
        since = since_of(epoch)
        if saved is not None and fabric.is_global_zero:
            for old in folder.glob("epoch_*"):
                if int(old.name.removeprefix("epoch_")) < since_of(saved):
                    shutil.rmtree(old, ignore_errors=True)
        if since in made:
            return made[since]
        place = folder / f"epoch_{since}"
        by_teacher = read_teacher_labels(plan, place)
        if by_teacher is None:
            if step or epoch > since:
                raise _gone(place)
            own_ids = {c: c for c in range(len(plan.space.classes))}
            teacher = Teacher(f"the network after {since} epochs", model, own_ids, plan.settings)
            by_teacher = label_by_teachers(fabric, plan, [teacher], place)
        made.clear()
        made[since] = data(by_teacher)
        return made[since]

    return data_of
