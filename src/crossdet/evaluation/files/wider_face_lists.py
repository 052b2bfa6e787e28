"""The four .mat files of the WIDER FACE validation: which faces are easy, medium and hard.

Source: the released evaluation (eval_tools/ground_truth). Cell arrays, one row per event: `event_list` holds its
name, `file_list` the names of its images without extension, `face_bbx_list` the `[n, 4]` boxes x, y, w, h of
each image and, in the easy, medium and hard files, `gt_list` the 1-based numbers of the faces that count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import is_there, raise_if_any
from crossdet.errors import AnnotationError, UserError
from crossdet.evaluation.arrays import Bools, Floats, Ints, WiderFaceTruth

SETTINGS = ("easy", "medium", "hard")
ALL_FACES = "wider_face_val.mat"
FILE_OF = {setting: f"wider_{setting}_val.mat" for setting in SETTINGS}

Cells = NDArray[np.object_]


@dataclass(frozen=True)
class WiderFaceLists:
    """names: "event/image" without extension, of each image in the order of the files. truth: its rows."""

    names: tuple[str, ...]
    truth: WiderFaceTruth


@dataclass(frozen=True)
class _Images:
    """What all four files hold. counts: `[I]` faces of each image; boxes: `[M, 4]`, image after image."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    boxes: NDArray[np.float64]


def read_wider_face_truth(folder: Path) -> WiderFaceLists:
    """Reads wider_face_val.mat and wider_{easy,medium,hard}_val.mat; boxes as they stand, none left out.

    Raises `AnnotationError` where files are missing, malformed, or do not describe the same faces.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the one with {ALL_FACES} and the lists beside it")
    missing = [name for name in (ALL_FACES, *FILE_OF.values()) if not is_there(folder / name)]
    if missing:
        raise AnnotationError(
            f"{folder}: without {', '.join(missing)}; they come with WIDER FACE's eval_tools (ground_truth)"
        )
    images, _ = _read(folder / ALL_FACES)
    kept: dict[str, Bools] = {}
    for setting, name in FILE_OF.items():
        own, lists = _read(folder / name, with_list=True)
        _compare(folder / name, own, images)
        kept[setting] = _masks(folder / name, lists, images)
    rows = np.repeat(np.arange(len(images.names)), images.counts)
    return WiderFaceLists(images.names, WiderFaceTruth(len(images.names), images.boxes, rows, kept))


def write_wider_face_lists(
    folder: Path, names: Sequence[str], boxes: Floats, image_of_box: Ints, kept: Mapping[str, Bools]
) -> None:
    """Writes the four files; reading gives the images back event by event, in the order of the first of each.

    names: "event/image" of `I` images, all different. boxes: `[M, 4]` x, y, w, h, stored as int32 where they are
    whole numbers. image_of_box: `[M]` rows of `names`. kept: easy, medium and hard -> `[M]`.
    """
    from scipy.io import savemat

    by_event: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        by_event.setdefault(name.rpartition("/")[0], []).append(row)
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    integers = given.astype(np.int32)
    stored = integers if (integers == given).all() else given
    order = np.argsort(image_of_box, kind="stable")
    bounds = np.searchsorted(np.asarray(image_of_box)[order], np.arange(len(names) + 1))
    rows_of = [order[bounds[row] : bounds[row + 1]] for row in range(len(names))]
    content: dict[str, Any] = {
        "event_list": _cell(list(by_event)),
        "file_list": _cell([_cell([names[r].rpartition("/")[2] for r in rows]) for rows in by_event.values()]),
        "face_bbx_list": _cell([_cell([stored[rows_of[r]] for r in rows]) for rows in by_event.values()]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / ALL_FACES, content, do_compression=True)
    for setting, name in FILE_OF.items():
        mask = np.asarray(kept[setting], bool)
        lists = [_cell([_numbers_of(mask[rows_of[r]]) for r in rows]) for rows in by_event.values()]
        savemat(folder / name, content | {"gt_list": _cell(lists)}, do_compression=True)


def _numbers_of(mask: Bools) -> NDArray[np.unsignedinteger[Any]]:
    """`[k, 1]` 1-based numbers in the smallest type, as the official files have them."""
    numbers = np.flatnonzero(mask)[:, None] + 1
    return numbers.astype(np.uint8 if len(mask) < 256 else np.uint16)


def _cell(items: Sequence[Any]) -> Cells:
    cell = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        cell[row, 0] = item
    return cell


# ------------------------------------------------------------------------------------------- .mat -> arrays


def _read(file: Path, with_list: bool = False) -> tuple[_Images, list[NDArray[Any]]]:
    """The images of one file and, with `with_list`, their cells of `gt_list`."""
    keys = ["event_list", "file_list", "face_bbx_list", *(["gt_list"] if with_list else [])]
    content = _load(file, keys)
    events = [_text(cell, f"{file}: event_list[{i}]") for i, cell in enumerate(_cells(content, keys[0], file))]
    inner = {key: _cells(content, key, file) for key in keys[1:]}
    names: list[str] = []
    images: dict[str, list[NDArray[Any]]] = {key: [] for key in keys[2:]}
    problems: list[str] = []
    for key, cells in inner.items():
        if len(cells) != len(events):
            problems.append(f"{file}: {key} has {len(cells)} events, event_list {len(events)}")
    raise_if_any(file, problems)
    for row, event in enumerate(events):
        files = _cells(inner["file_list"][row], f"file_list[{row}]", file)
        names += [f"{event}/{_text(c, f'{file}: file_list[{row}][{i}]')}" for i, c in enumerate(files)]
        for key, found in images.items():
            cells = _cells(inner[key][row], f"{key}[{row}]", file)
            if len(cells) != len(files):
                problems.append(f"{file}: {key}[{row}] has {len(cells)} images, file_list {len(files)} ({event})")
            found += [np.asarray(cell) for cell in cells]
    if len(set(names)) != len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        problems.append(f"{file}: file_list has {', '.join(twice[:5])} more than once")
    raise_if_any(file, problems)
    boxes = [_boxes(cell, f"{file}: face_bbx_list, {name}", problems)
             for cell, name in zip(images["face_bbx_list"], names, strict=True)]  # fmt: skip
    raise_if_any(file, problems)
    counts = np.array([len(b) for b in boxes], np.int64)
    together = np.concatenate([np.zeros((0, 4)), *boxes])
    return _Images(tuple(names), counts, together), images.get("gt_list", [])


def _load(file: Path, keys: list[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is told below
            content: dict[str, Any] = loadmat(str(file), variable_names=keys, appendmat=False)
    except Exception as error:  # on a damaged file scipy raises almost anything
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise AnnotationError(
            f"{file}: cannot be read as a MATLAB 5 file ({reason}); replace it by the one of the download"
        ) from None
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise AnnotationError(f"{file}: without the variable {', '.join(lacking)}; is it the list it is named as?")
    return content


def _cells(parent: Any, key: str, file: Path) -> list[Any]:
    """The contents of a cell array: the variable `key`, or the cell `parent` itself, whose place is `key`."""
    value = parent[key] if isinstance(parent, dict) else parent
    if isinstance(value, np.ndarray) and not value.size:
        return []
    if not isinstance(value, np.ndarray) or value.dtype != object:
        raise AnnotationError(f"{file}: {key} is no cell array, as WIDER FACE's lists have it")
    return list(value.ravel(order="F"))


def _text(cell: Any, place: str) -> str:
    value = np.asarray(cell)
    if value.dtype.kind != "U" or value.size != 1 or not str(value.item()):
        raise AnnotationError(f"{place} is no text, expected a name")
    return str(value.item())


def _boxes(cell: NDArray[Any], place: str, problems: list[str]) -> NDArray[np.float64]:
    if not cell.size and cell.dtype != object:
        return np.zeros((0, 4))
    if cell.dtype.kind not in "iuf" or cell.ndim != 2 or cell.shape[1] != 4:
        problems.append(f"{place}: {cell.dtype} of shape {list(cell.shape)}, expected boxes x, y, w, h")
    elif not np.isfinite(cell).all():
        problems.append(f"{place}: a coordinate that is no finite number")
    else:
        return cell.astype(np.float64)
    return np.zeros((0, 4))


def _compare(file: Path, own: _Images, images: _Images) -> None:
    """Raises where a list describes other images or boxes than `wider_face_val.mat`."""
    fix = f"take {file.name} and {ALL_FACES} from the same download"
    if own.names != images.names:
        rows = [(a, b) for a, b in zip(own.names, images.names, strict=False) if a != b]
        first = f"{rows[0][0]} in place of {rows[0][1]}" if rows else "one has more"
        counts = f"{len(own.names)} and {len(images.names)} images"
        raise AnnotationError(f"{file}: other images than {ALL_FACES} ({counts}, {first}); {fix}")
    other = own.counts != images.counts
    if not other.any():
        different = (own.boxes != images.boxes).any(1)
        other[np.repeat(np.arange(len(other)), own.counts)[different]] = True
    if other.any():
        first = own.names[int(np.flatnonzero(other)[0])]
        raise AnnotationError(
            f"{file}: other boxes than {ALL_FACES} in {int(other.sum())} images, the first {first}; {fix}"
        )


def _masks(file: Path, lists: list[NDArray[Any]], images: _Images) -> NDArray[np.bool_]:
    """`[M]` the faces whose 1-based numbers are listed."""
    mask, start, problems = np.zeros(len(images.boxes), bool), 0, []
    for name, count, cell in zip(images.names, images.counts.tolist(), lists, strict=True):
        numbers = cell.ravel()
        place = f"{file}: gt_list, {name}"
        if not numbers.size:
            pass
        elif numbers.dtype.kind not in "iuf" or (numbers != np.floor(numbers)).any():
            problems.append(f"{place}: {numbers.dtype} values that are no whole numbers, expected 1..{count}")
        elif numbers.min() < 1 or numbers.max() > count:
            bad = int(numbers.max() if numbers.max() > count else numbers.min())
            problems.append(f"{place}: face {bad}, expected numbers in 1..{count} (the faces of the image)")
        elif len(np.unique(numbers)) != len(numbers):
            problems.append(f"{place}: a face is listed more than once")
        else:
            mask[start + numbers.astype(np.int64) - 1] = True
        start += count
    raise_if_any(file, problems)
    return mask
