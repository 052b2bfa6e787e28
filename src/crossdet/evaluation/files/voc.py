"""PASCAL VOC ground truth (one XML per image) and results (one text per class), as the development kit has them.

Boxes are 1-based with both corners inside, in both; nothing is rounded or shifted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from crossdet.data.annotation_files import is_there, raise_if_any
from crossdet.data.formats.voc import list_entries, parse_xml
from crossdet.errors import UserError, problem_list
from crossdet.evaluation.arrays import DetectionArrays, VocTruth
from crossdet.evaluation.files.lines import line_of, read_detection_lines, rows_of, source_class, write_lines
from crossdet.evaluation.splits import Split
from crossdet.files import safe_name, safe_names, spellings
from crossdet.labels.patterns import class_name

LAYOUT = "image score xmin ymin xmax ymax"
KIT_NAME = re.compile(r"comp\d+(?:_[^_]+)?_det_[^_]+_(?P<name>.+)")
"""comp4_det_test_dog, also with py-faster-rcnn's salt. The class is all that follows the set: a name that merely
ends in "_dog" may be another class, such as hot_dog, of which the ground truth has no object."""


@dataclass(frozen=True)
class VocFiles:
    """truth: labels are positions in `classes`, image rows positions in `images`. source: the list of images."""

    truth: VocTruth
    images: tuple[str, ...]
    classes: tuple[str, ...]
    source: Path


@dataclass(frozen=True)
class VocResults:
    """detections: rows and labels of the truth. missing: classes without a file. unknown: files without a class."""

    detections: DetectionArrays
    missing: list[str]
    unknown: list[str]


def read_voc_truth(folder: Path, image_set: str | None = None) -> VocFiles:
    """Reads Annotations/*.xml below `folder`; the classes are those of the objects, sorted.

    image_set: a file, or the name of one in ImageSets/Main, of the images to take; None = every XML.

    Raises `AnnotationError` with every mistake of the XMLs and of the image set.
    """
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        raise UserError(f"{annotations}: no such folder; VOC_DIR is the folder with Annotations and ImageSets")
    listed = None if image_set is None else _image_set(folder, image_set)
    problems: list[str] = []
    entries = list_entries([annotations], [] if listed is None else [listed], problems)
    parsed = [parse_xml(entry.xml, problems) for entry in entries]
    for item in (item for image in parsed for item in image.objects):
        if not np.isfinite(item.corners).all():
            shown = " ".join(f"{v:g}" for v in item.corners)
            problems.append(f"{item.place}: <bndbox> of {item.name!r} is {shown}, expected finite numbers")
    raise_if_any(folder, problems)
    if not entries:
        raise UserError(f"{listed or annotations}: no image; expected {'image ids' if listed else '*.xml files'}")
    items = [(row, item) for row, image in enumerate(parsed) for item in image.objects]
    classes = sorted({item.name for _, item in items})
    position = {name: i for i, name in enumerate(classes)}
    truth = VocTruth(
        images=len(entries),
        boxes=np.array([item.corners for _, item in items], np.float64).reshape(-1, 4),
        labels=np.array([position[item.name] for _, item in items], np.int64),
        difficult=np.array([item.difficult for _, item in items], bool),
        image_of_box=np.array([row for row, _ in items], np.int64),
    )
    return VocFiles(truth, tuple(entry.name for entry in entries), tuple(classes), listed or annotations)


def _image_set(folder: Path, given: str) -> Path:
    file, sets = Path(given), folder / "ImageSets" / "Main"
    if is_there(file) and not file.is_dir():
        return file
    names = sorted(path.stem for path in sets.glob("*.txt")) if sets.is_dir() else []
    if given in names:
        return sets / f"{given}.txt"
    have = f"; the image sets there are {', '.join(names[:20])}" if names else ""
    raise UserError(f"image set {given!r}: neither the file {file} nor a set of that name in {sets}{have}")


def read_voc_results(folder: Path, files: VocFiles) -> VocResults:
    """Reads the results of each class: `<class>.txt`, or the kit's `comp4_det_test_<class>.txt`; of a class whose
    name can be no file's also what `eval` writes for it (`safe_names`).

    Raises `UserError` where a class has several files or none has one, `AnnotationError` for malformed lines.
    """
    by_class, unknown = _files(folder, files.classes)
    several = [f"{name}: {', '.join(f.name for f in found)}" for name, found in by_class.items() if len(found) > 1]
    if several:
        raise UserError(problem_list(f"{folder}: several files for one class; keep one of them", several))
    if files.classes and not any(by_class.values()):
        name = safe_name(files.classes[0])
        wanted = f"{name}.txt or comp4_det_test_{name}.txt"
        have = f"; its files, such as {unknown[0]}, are of no class of the ground truth" if unknown else ""
        raise UserError(f"{folder}: no results of any class (such as {wanted}){have}; wrong folder?")
    row_of = {name: row for row, name in enumerate(files.images)}
    problems: list[str] = []
    rows, numbers, labels = [np.zeros(0, np.int64)], [np.zeros((0, 5))], [np.zeros(0, np.int64)]
    for label, name in enumerate(files.classes):
        for file in by_class[name]:
            try:
                images, values = read_detection_lines(file, row_of, LAYOUT, str(files.source))
            except UserError as error:
                problems.append(str(error))
                continue
            rows.append(images)
            numbers.append(values)
            labels.append(np.full(len(images), label, np.int64))
    if problems:
        raise UserError("\n".join(problems))
    together = np.concatenate(numbers)
    detections = DetectionArrays(together[:, 1:], together[:, 0], np.concatenate(labels), np.concatenate(rows))
    return VocResults(detections, [name for name, found in by_class.items() if not found], unknown)


def _files(folder: Path, classes: Sequence[str]) -> tuple[dict[str, list[Path]], list[str]]:
    """Class -> its files, and the names of the other .txt files."""
    try:
        texts = sorted(file for file in folder.iterdir() if file.name.endswith(".txt"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); expected a folder") from None
    by_class: dict[str, list[Path]] = {name: [] for name in classes}
    class_of = {one: name for name in classes for one in spellings(name)} | {name: name for name in classes}
    unknown = []
    for file in texts:
        stem = file.name.removesuffix(".txt")
        kit = KIT_NAME.fullmatch(stem)
        written = kit["name"] if kit and stem not in class_of else stem
        name = class_of.get(written, class_of.get(class_name(written)))
        if name is not None:
            by_class[name].append(file)
        else:
            unknown.append(file.name)
    return by_class, unknown


def write_voc_results(folder: Path, split: Split, detections: DetectionArrays) -> None:
    """`CLASS.txt` of every class. A picture goes by its stem, or where several have that one by its path."""
    paths = [PurePosixPath(split.index.names[row]) for row in range(len(split.index))]
    count = Counter(path.stem for path in paths)
    stems = [path.stem if count[path.stem] == 1 else str(path.with_suffix("")) for path in paths]
    source = source_class(split)
    lines: dict[int, list[str]] = {label: [] for label in split.classes}
    for (x1, y1, x2, y2), score, label, image in rows_of(detections):
        lines[label].append(line_of(stems[image], score, x1 + 1, y1 + 1, x2, y2))
    names = safe_names([split.index.classes[source[label]] for label in lines])
    for name, found in zip(names, lines.values(), strict=True):
        write_lines(folder / f"{name}.txt", found)
