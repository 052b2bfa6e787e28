"""COCO and LVIS ground truth and results as their APIs take them: every box as it stands, nothing left out.

`area` of an annotation is its own (the box area where missing), `iscrowd` decides alone what is a crowd:
pycocotools overwrites `ignore`. Images rank by their id where scores are equal, then the results by their order.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import raise_if_any, read_bytes
from crossdet.data.formats.coco_values import LISTS, whole
from crossdet.errors import AnnotationError
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Ints, Verified
from crossdet.evaluation.files.lines import rows_of, source_class
from crossdet.evaluation.splits import Split
from crossdet.files import write_atomically

Items = list[dict[str, Any]]
NUMBER, BOX = "a finite number", "four finite numbers [x, y, width, height]"
FLOAT_MAX = 1.7976931348623157e308
FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: classes in 1-10, 11-100 and more images of LVIS' training split, as its files say."""


@dataclass(frozen=True)
class CocoFile:
    """truth: boxes x, y, width, height (`sized`), labels are category ids. names: category id -> name. files: image
    id -> file, of images that name one. notes: what was left out.
    """

    truth: GroundTruth
    names: dict[int, str]
    files: dict[int, str]
    notes: list[str]


def read_coco_truth(file: Path) -> CocoFile:
    """Reads an instances file. Annotations of unknown images or categories are left out, as in pycocotools.

    Raises `AnnotationError` with all mistakes of the file.
    """
    content = _load(file)
    coco = _instances(file, content)
    if any(LISTS[0] in image for image in content["images"]):
        coco.notes.append(
            "the images list the classes that they verify, as in LVIS; COCO's protocol does not look at that, "
            "`crossdet score lvis` does"
        )
    return coco


def _instances(file: Path, content: Any) -> CocoFile:
    if not isinstance(content, dict):
        wanted = "an object with `images`, `annotations` and `categories` (COCO instances file)"
        raise AnnotationError(f"{file}: the file holds {_kind(content)}, expected {wanted}")
    problems: list[str] = []
    sections = {key: _items(content.get(key), key, problems) for key in ("images", "annotations", "categories")}
    raise_if_any(file, problems)
    image_ids = _ids(sections["images"], "images", "id", problems)
    _report_duplicates(image_ids, "images", problems)
    category_ids = _ids(sections["categories"], "categories", "id", problems)
    _report_duplicates(category_ids, "categories", problems)
    boxes = sections["annotations"]
    images = _ids(boxes, "annotations", "image_id", problems)
    labels = _ids(boxes, "annotations", "category_id", problems)
    xywh = _boxes(boxes, "annotations", problems)
    crowd = _column(boxes, "annotations", "iscrowd", lambda v: _crowd(v) is not None, "0 or 1", problems)
    area = _column(boxes, "annotations", "area", lambda v: v is None or _is_finite(v), NUMBER, problems)
    raise_if_any(file, problems)
    rows = _rows(images, image_ids)
    known = (rows >= 0) & np.isin(labels, category_ids)
    given = np.array([math.nan if v is None else v for v in area], np.float64)
    truth = GroundTruth(
        image_ids=image_ids,
        boxes=xywh[known],
        labels=labels[known],
        crowd=np.array([_crowd(v) for v in crowd], bool)[known],
        area=np.where(np.isnan(given), xywh[:, 2] * xywh[:, 3], given)[known],
        image_of_box=rows[known],
    )
    notes = []
    if (rows < 0).any():
        notes.append(_left_out("annotations", "image_id", images[rows < 0], "images"))
    if (unknown := ~np.isin(labels, category_ids)).any():
        notes.append(_left_out("annotations", "category_id", labels[unknown], "categories"))
    given_files = zip(image_ids.tolist(), (image.get("file_name") for image in sections["images"]), strict=True)
    files = {number: name for number, name in given_files if isinstance(name, str)}
    return CocoFile(truth, _names(sections["categories"], category_ids), files, notes)


def read_lvis_truth(file: Path) -> tuple[CocoFile, dict[int, str]]:
    """Reads a federated instances file: each image lists the classes that are verified to be absent
    (`neg_category_ids`) and those it labels in part (`not_exhaustive_category_ids`).

    Returns:
        the file, with what its images verify; category id -> frequency, of the categories that have one.

    Raises `AnnotationError` with all mistakes of the file.
    """
    content = _load(file)
    coco = _instances(file, content)
    images, problems = content["images"], list[str]()
    if not any(LISTS[0] in image for image in images):
        raise AnnotationError(
            f"{file}: no image has {LISTS[0]}, so it does not say which classes its images verify; "
            "`crossdet score coco` is for files without"
        )
    negatives, in_part = (
        _column(images, "images", key, _is_ids, "a list of whole numbers", problems) for key in LISTS
    )
    categories = content["categories"]
    wanted = f"one of {', '.join(FREQUENCIES)}"
    given = _column(categories, "categories", "frequency", lambda f: f in (None, *FREQUENCIES), wanted, problems)
    raise_if_any(file, problems)
    present = zip(coco.truth.image_of_box.tolist(), coco.truth.labels.tolist(), strict=True)
    verified = {*present, *((row, c) for row, listed in enumerate(negatives) for c in _numbers(listed))}
    verified -= {(row, c) for row, listed in enumerate(in_part) for c in _numbers(listed)}
    pairs = np.array(sorted(verified), np.int64).reshape(-1, 2)
    known = Verified(np.zeros(0, np.int64), pairs[:, 0], pairs[:, 1])
    numbers = _numbers(c["id"] for c in categories)
    frequencies = {number: f for number, f in zip(numbers, given, strict=True) if f is not None}
    return replace(coco, truth=replace(coco.truth, verified=known)), frequencies


def read_coco_results(file: Path, coco: CocoFile) -> tuple[DetectionArrays, list[str]]:
    """Reads a results list, and says what was left out: results of unknown categories.

    Raises `AnnotationError` with all mistakes of the file, for results of images that the truth lacks, and where a
    result names another file or class than the truth has under its ids (`crossdet predict` without `--coco`).
    """
    content = _load(file)
    if not isinstance(content, list):
        wanted = "the COCO results list [{image_id, category_id, bbox, score}, ...]"
        raise AnnotationError(f"{file}: the file holds {_kind(content)}, expected {wanted}")
    problems: list[str] = []
    items = _items(content, "results", problems)
    raise_if_any(file, problems)
    images = _ids(items, "results", "image_id", problems)
    labels = _ids(items, "results", "category_id", problems)
    xywh = _boxes(items, "results", problems)
    scores = _column(items, "results", "score", _is_finite, NUMBER, problems)
    raise_if_any(file, problems)
    raise_if_any(file, _other_ids(items, images, labels, coco))
    rows = _rows(images, coco.truth.image_ids)
    if (rows < 0).any():
        first = int(np.flatnonzero(rows < 0)[0])
        raise AnnotationError(
            f"{file}: {int((rows < 0).sum())} of {len(rows)} results are of images that the ground truth does "
            f"not have, the first results[{first}].image_id {images[first]}; are the two of the same split?"
        )
    known = np.isin(labels, list(coco.names))
    notes = [] if known.all() else [_left_out("results", "category_id", labels[~known], "categories")]
    detections = DetectionArrays(xywh[known], np.array(scores, np.float64)[known], labels[known], rows[known])
    return detections, notes


def _other_ids(items: Items, images: Ints, labels: Ints, coco: CocoFile) -> list[str]:
    """The first image and the first category that the truth has under another id than the results."""
    problems = []
    for key, ids, names, plain in (
        ("file_name", images, coco.files, lambda text: Path(text).name),
        ("category_name", labels, coco.names, str.lower),
    ):
        known: dict[str, set[int]] = {}
        for number, name in names.items():
            known.setdefault(plain(name), set()).add(number)
        for row, item in enumerate(items):
            mine, number = item.get(key), int(ids[row])
            theirs = known.get(plain(mine), set()) if isinstance(mine, str) else set()
            if theirs and number not in theirs:
                problems.append(
                    f"results[{row}]: {mine} has the id {number}, and {min(theirs)} in the ground truth; `crossdet "
                    "predict --coco FILE` takes the ids of that file"
                )
                break
    return problems


def write_coco_results(folder: Path, split: Split, detections: DetectionArrays) -> None:
    """`results.json`, with the image and category ids of the index."""
    index, source = split.index, source_class(split)
    rows = [
        {
            "image_id": int(index.image_ids[image]),
            "category_id": int(index.category_ids[source[label]]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label, image in rows_of(detections)
    ]
    write_atomically(folder / "results.json", json.dumps(rows).encode())


def _left_out(section: str, key: str, ids: NDArray[np.int64], known: str) -> str:
    some = ", ".join(str(i) for i in np.unique(ids)[:5])
    return f"{len(ids)} {section} left out: their {key} ({some}) is not among the ground truth's {known}"


def _names(items: Items, ids: NDArray[np.int64]) -> dict[int, str]:
    """Names by id, in the order of the file; a name that several have gets the id appended."""
    found = {number: str(item.get("name", "")) for number, item in zip(ids.tolist(), items, strict=True)}
    while max((counts := Counter(found.values())).values(), default=0) > 1:  # also of a name that was made
        found = {n: f"{name} ({n})" if counts[name] > 1 else name for n, name in found.items()}
    return found


# ------------------------------------------------------------------------------------------- JSON -> columns


def _load(file: Path) -> Any:
    data = read_bytes(file)
    collecting = gc.isenabled()
    gc.disable()  # walking millions of fresh dicts again and again doubles the time
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        place = f"{file}:{error.lineno}: column {error.colno}"
        raise AnnotationError(f"{place}: not valid JSON ({error.msg}); is the file complete?") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: byte {error.start}: not text in UTF-8; is it the JSON file?") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise AnnotationError(f"{file}: not usable JSON ({error})") from None
    finally:
        if collecting:
            gc.enable()


def _items(content: Any, section: str, problems: list[str]) -> Items:
    """A list of objects."""
    if not isinstance(content, list):
        what = "missing key" if content is None else _kind(content)
        problems.append(f"{section}: {what}, expected a list of objects")
        return []
    problems += [
        f"{section}[{i}]: {_kind(item)}, expected an object"
        for i, item in enumerate(content)
        if type(item) is not dict
    ]
    return content


def _column(
    items: Items, section: str, key: str, good: Callable[[Any], bool], wanted: str, problems: list[str]
) -> list[Any]:
    """`key` of every item; those that are not good go to `problems`."""
    values = [item.get(key) for item in items]
    for i, value in enumerate(values):
        if not good(value):
            given = "missing key" if key not in items[i] else _show(value)
            problems.append(f"{section}[{i}].{key}: {given}, expected {wanted}")
    return values


def _ids(items: Items, section: str, key: str, problems: list[str]) -> NDArray[np.int64]:
    before = len(problems)
    values = _column(items, section, key, _is_id, "a whole number", problems)
    return np.zeros(len(items), np.int64) if len(problems) > before else np.array([*map(whole, values)], np.int64)


def _boxes(items: Items, section: str, problems: list[str]) -> NDArray[np.float64]:
    """`[N, 4]` x, y, width, height."""
    before = len(problems)
    values = _column(items, section, "bbox", _is_box, BOX, problems)
    if len(problems) > before:
        return np.zeros((len(items), 4))
    return np.array(values, np.float64).reshape(-1, 4)


def _report_duplicates(ids: NDArray[np.int64], section: str, problems: list[str]) -> None:
    if problems:
        return
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    problems += [
        f"{section}[{i}].id: {ids[i]} is already the id of {section}[{first[inverse[i]]}]"
        for i in np.flatnonzero(first[inverse] != np.arange(len(ids))).tolist()
    ]


def _rows(wanted: Ints, ids: Ints) -> NDArray[np.int64]:
    """Positions in `ids`, -1 for what is not there."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids)
    rows = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
    return np.where(ids[rows] == wanted, rows, -1)


def _is_id(value: Any) -> bool:
    return (number := whole(value)) is not None and abs(number) < 2**63


def _crowd(value: Any) -> bool | None:
    """Whether it says crowd; None for what is neither 0 nor 1, true nor false, nor missing."""
    known = value in (0, 1) if isinstance(value, bool) else whole(value) in (0, 1)
    return bool(whole(value) or value is True) if known or value is None else None


def _numbers(listed: Iterable[Any]) -> list[int]:
    """Of ids, which may be written as texts."""
    return [number for number in map(whole, listed) if number is not None]


def _is_ids(value: Any) -> bool:
    return type(value) is list and all(map(_is_id, value))


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT_MAX  # false for NaN


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(_is_finite, value))


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
