"""From the files of a dataset split to its `Index`, through the cache: the entry point above the readers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import header_sizes
from crossdet.data.cache import cached, fingerprint, pictures_stamp
from crossdet.data.formats import voc, yolo
from crossdet.data.formats.coco import read_coco
from crossdet.data.formats.wider_face import read_wider_face
from crossdet.data.formats.wider_pedestrian import read_wider_pedestrian
from crossdet.data.index import Index, clip_to_images, short
from crossdet.errors import UserError, problem_list

IMAGE_REASONS = ("image cannot be read", "image not found")
"""Reasons in `Index.skipped` that may be gone at the next start, with the annotations unchanged."""


@dataclass(frozen=True)
class SplitFiles:
    """Where one split of a dataset lies; what each field means depends on the format (see `FORMATS`).

    annotations, images: files or folders; several only for voc (one pair per year).
    image_set: voc: one list of ids per year, a bare name is `<annotations>/../ImageSets/Main/<name>.txt`;
        wider_pedestrian: one list of image files; yolo: the key in data.yaml (default: `split`).
    ignore: wider_pedestrian's file of ignore regions. edition: its year, 2018 or 2019.
    classes: voc's class names in the wanted order.
    """

    annotations: tuple[Path, ...]
    images: tuple[Path, ...] = ()
    image_set: tuple[str, ...] = ()
    ignore: tuple[Path, ...] = ()
    split: str = "train"
    classes: tuple[str, ...] | None = None
    edition: int | None = None


def _coco(files: SplitFiles) -> Index:
    return read_coco(files.annotations[0], files.images[0])


def _voc(files: SplitFiles) -> Index:
    return voc.read_voc(files.annotations, files.images, _voc_sets(files), files.classes)


def _wider_face(files: SplitFiles) -> Index:
    return read_wider_face(files.annotations[0], files.images[0])


def _wider_pedestrian(files: SplitFiles) -> Index:
    ignore = files.ignore[0] if files.ignore else None
    image_list = Path(files.image_set[0]) if files.image_set else None
    return read_wider_pedestrian(files.annotations[0], files.images[0], ignore, image_list, files.edition)


def _yolo(files: SplitFiles) -> Index:
    return yolo.read_yolo(files.annotations[0], _yolo_key(files))


FORMATS: dict[str, Callable[[SplitFiles], Index]] = {
    "coco": _coco,
    "voc": _voc,
    "wider_face": _wider_face,
    "wider_pedestrian": _wider_pedestrian,
    "yolo": _yolo,
}


def read_split(format: str, files: SplitFiles, cache: bool = True) -> Index:
    """Reads a split, from the cache if its files are unchanged (see `_dependencies`).

    Sizes come from the image headers where the annotations give none. Paths may be relative to the working
    directory.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}{_suggestion(format, list(FORMATS))}")
    files = replace(
        files,
        annotations=_absolute(files.annotations),
        images=_absolute(files.images),
        ignore=_absolute(files.ignore),
    )
    if format == "wider_pedestrian":
        files = replace(files, image_set=tuple(str(Path(name).absolute()) for name in files.image_set))
    _check_counts(format, files)
    _check_exist(format, files)

    def read() -> Index:
        return fill_sizes(FORMATS[format](files))

    if not cache:
        return read()
    depends, extra = _dependencies(format, files)
    key = fingerprint({"format": format, "extra": extra, **asdict(files)}, depends)
    return cached(key, read, worth_keeping=lambda index: not any(r in index.skipped for r in IMAGE_REASONS))


def fill_sizes(index: Index) -> Index:
    """Reads the sizes that are unknown from the image headers and clips the boxes of those images.

    An image that cannot be read keeps size 0 and is counted under `skipped`.
    """
    unknown = np.flatnonzero((index.sizes == 0).any(axis=1))
    counted = any(reason in index.skipped for reason in IMAGE_REASONS)
    if not len(unknown) or counted:
        return index
    paths = [index.path(int(row)) for row in unknown]
    sizes = index.sizes.copy()
    skipped = {reason: list(places) for reason, places in index.skipped.items()}
    for row, path, size in zip(unknown, paths, header_sizes(paths), strict=True):
        if size is None:
            skipped.setdefault(IMAGE_REASONS[0], []).append(str(path))
        else:
            sizes[row] = size
    image_of_box = index.image_of_box()
    filled = sizes[image_of_box]
    filled[(index.sizes[image_of_box] != 0).all(axis=1)] = 0  # those the reader has clipped
    clipped, reason = clip_to_images(index.boxes.astype(np.float64), filled)
    for left_out in np.flatnonzero(reason != "").tolist():
        place = index.path(int(image_of_box[left_out]))
        skipped.setdefault(str(reason[left_out]), []).append(
            f"{place}: xyxy {short(index.boxes[left_out].tolist())}"
        )
    return _keep_boxes(index, reason == "", clipped, sizes, skipped)


def _keep_boxes(
    index: Index,
    keep: NDArray[np.bool_],
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int32],
    skipped: dict[str, list[str]],
) -> Index:
    offsets = np.zeros_like(index.box_offsets)
    np.cumsum(np.bincount(index.image_of_box()[keep], minlength=len(index)), out=offsets[1:])
    sides = boxes[:, 2:] - boxes[:, :2]
    before = (index.boxes[:, 2:] - index.boxes[:, :2]).prod(axis=1)
    # an annotated area (COCO's segmentation) stays, one that was the box's own follows the clipping
    area = np.where(np.isclose(index.area, before), sides.prod(axis=1), index.area).astype(np.float32)
    return replace(
        index,
        sizes=sizes,
        box_offsets=offsets,
        boxes=boxes[keep].astype(np.float32),
        labels=index.labels[keep],
        flags=index.flags[keep],
        area=area[keep],
        columns={name: column[keep] for name, column in index.columns.items()},
        skipped=skipped,
    )


# ------------------------------------------------------------------------------------------- what is needed

_COUNTS: dict[str, dict[str, tuple[int, int]]] = {
    "coco": {"annotations": (1, 1), "images": (1, 1), "image_set": (0, 0), "ignore": (0, 0)},
    "voc": {"ignore": (0, 0)},
    "wider_face": {"annotations": (1, 1), "images": (1, 1), "image_set": (0, 0), "ignore": (0, 0)},
    "wider_pedestrian": {"annotations": (1, 1), "images": (1, 1), "image_set": (0, 1), "ignore": (0, 1)},
    "yolo": {"annotations": (1, 1), "images": (0, 0), "image_set": (0, 1), "ignore": (0, 0)},
}
"""Format -> field -> least and most entries; voc's further rules are in `_check_counts`."""


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path.absolute() for path in paths)


def _check_counts(format: str, files: SplitFiles) -> None:
    problems = []
    for name, (least, most) in _COUNTS[format].items():
        count = len(getattr(files, name))
        if not least <= count <= most:
            wanted = "none" if most == 0 else "exactly one" if least == most else "at most one"
            problems.append(f"`{name}` has {count} entries, {format} takes {wanted}")
    if format == "voc":
        years = len(files.annotations)
        if not years:
            problems.append("`annotations` is empty, voc takes one or more folders of XML files")
        for name, allowed in (("images", {years}), ("image_set", {0, years})):
            if (count := len(getattr(files, name))) not in allowed:
                problems.append(f"`{name}` has {count} entries, expected {years}: one per annotations folder")
    if files.edition is not None and format != "wider_pedestrian":
        problems.append(f"`edition` is {files.edition}, but {format} has no editions; leave it out")
    if files.classes is not None and format != "voc":
        problems.append(f"`classes` is given, but {format} files name their classes; leave it out")
    if problems:
        raise UserError(problem_list(f"files of the {files.split} split", problems))


def _check_exist(format: str, files: SplitFiles) -> None:
    folders = [("images folder", path) for path in files.images]
    plain = [("ignore file", path) for path in files.ignore]
    if format == "voc":
        folders += [("annotations folder", path) for path in files.annotations]
        plain += [("image set", path) for path in _voc_sets(files)]
    else:
        plain += [("annotations file", path) for path in files.annotations]
    if format == "wider_pedestrian":
        plain += [("image list", Path(name)) for name in files.image_set]
    problems = [text for what, path in folders if (text := _missing(what, path, folder=True))]
    problems += [text for what, path in plain if (text := _missing(what, path, folder=False))]
    if problems:
        raise UserError(problem_list(f"files of the {files.split} split", problems))


def _missing(what: str, path: Path, folder: bool) -> str:
    """What is wrong with the path, "" if nothing."""
    if path.is_dir() if folder else path.is_file():
        return ""
    if path.exists():
        return f"{what}: {path} is a {'file, expected a folder' if folder else 'folder, expected a file'}"
    parent = path.parent
    if not parent.is_dir():
        there = next((p for p in parent.parents if p.is_dir()), parent)
        gone = parent.relative_to(there).parts[0] if there != parent else ""
        siblings = [entry.name for entry in there.iterdir()]
        return f"{what}: {path} does not exist: no {gone!r} in {there}{_suggestion(gone, siblings)}"
    names = [entry.name for entry in parent.iterdir() if entry.is_dir() == folder]
    return f"{what}: {path} does not exist{_suggestion(path.name, names)}"


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def _voc_sets(files: SplitFiles) -> tuple[Path, ...]:
    return tuple(_voc_set(name, i, files) for i, name in enumerate(files.image_set))


def _voc_set(name: str, year: int, files: SplitFiles) -> Path:
    if "/" in name or "\\" in name or Path(name).suffix:
        return Path(name).absolute()
    folder = files.annotations[year] if year < len(files.annotations) else files.annotations[0]
    return folder.parent / "ImageSets" / "Main" / f"{name}.txt"


def _yolo_key(files: SplitFiles) -> str:
    return files.image_set[0] if files.image_set else files.split


def _dependencies(format: str, files: SplitFiles) -> tuple[Iterator[Path | str], list[str]]:
    """Every file that the index depends on, and texts whose change also changes it.

    Where sizes come from the image headers the pictures count too. COCO's sizes stand in its file, so its
    pictures, which are many and may lie on a slow disk, are not looked at.
    """
    if format == "yolo":
        found = yolo.list_files(files.annotations[0], _yolo_key(files))
        labels = [label for label in found.labels if label is not None]
        return iter([*files.annotations, *found.lists, *labels, *found.images]), []
    stamps = [] if format == "coco" else [pictures_stamp(folder) for folder in files.images]
    if format == "voc":
        sets = _voc_sets(files)
        entries = voc.list_entries(files.annotations, sets)
        return iter([*sets, *(entry.xml for entry in entries)]), stamps
    lists = [Path(name) for name in files.image_set]
    return iter([*files.annotations, *files.ignore, *lists]), stamps
