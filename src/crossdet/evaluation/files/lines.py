"""Text files of detections, `image score a b c d` per line: reading them, and what all writers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import raise_if_any, read_bytes
from crossdet.errors import AnnotationError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.splits import Split
from crossdet.files import write_atomically


def text_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text, with or without byte order mark, stripped; `AnnotationError` if it is none."""
    content = read_bytes(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{file}:{line}: byte {error.start} of the file is not text in UTF-8; save the file as UTF-8"
        ) from None
    return [line.strip() for line in text.split("\n")]


def read_detection_lines(
    file: Path, row_of: Mapping[str, int], layout: str, images: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Image rows `[N]` and numbers `[N, 5]` of the lines `image score a b c d`; blank lines are left out.

    row_of: the known images. layout: the line in words, images: where the known images come from, for messages.

    Raises `AnnotationError` with every line that has another number of fields, a number that is none or not
    finite, or an image that is not known (once per image, with the count of its lines).
    """
    problems: list[str] = []
    unknown: dict[str, list[int]] = {}
    rows: list[int] = []
    values: list[list[float]] = []
    places: list[int] = []
    for number, line in enumerate(text_lines(file), start=1):
        if not line:
            continue
        name, *words = line.rsplit(None, 5)  # names may hold spaces
        row = row_of.get(name)
        if len(words) != 5 or (row is None and " " in name):
            fields = len(line.split())
            problems.append(f"{file}:{number}: {fields} field(s), expected 6: {layout}")
            continue
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            bad = next(word for word in words if not _is_number(word))
            problems.append(f"{file}:{number}: {bad!r} is no number, expected {layout}")
            continue
        if row is None:
            unknown.setdefault(name, []).append(number)
            continue
        rows.append(row)
        values.append(numbers)
        places.append(number)
    found = np.array(values, np.float64).reshape(-1, 5)
    for at in np.flatnonzero(~np.isfinite(found).all(1)).tolist():
        shown = " ".join(f"{v:g}" for v in values[at])
        problems.append(f"{file}:{places[at]}: {shown}: expected finite numbers")
    problems += _unknown_images(file, unknown, row_of, images)
    raise_if_any(file, problems)
    return np.array(rows, np.int64), found


def _unknown_images(
    file: Path, unknown: Mapping[str, list[int]], row_of: Mapping[str, int], images: str
) -> list[str]:
    if not unknown:
        return []
    by_stem = {_stem(name): name for name in row_of}
    problems = []
    for name, numbers in unknown.items():
        near = by_stem.get(_stem(name)) or by_stem.get(PurePosixPath(name).name)
        hint = f"; write it as {near!r}, with that folder and extension" if near else ""
        problems.append(
            f"{file}:{numbers[0]}: image {name!r} is not in {images} ({len(numbers)} line(s) name it){hint}"
        )
    return problems


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------- writing


def rows_of(detections: DetectionArrays) -> Iterator[tuple[list[float], float, int, int]]:
    """Corners, score, label and image row of every detection, as plain numbers."""
    return zip(
        detections.boxes.astype(np.float64).tolist(),
        detections.scores.astype(np.float64).tolist(),
        detections.labels.tolist(),
        detections.image_of_box.tolist(),
        strict=True,
    )


def source_class(split: Split) -> dict[int, int]:
    """Unified id -> the first class of the index that it stands for."""
    ids = split.class_ids.tolist()
    return {unified: ids.index(unified) for unified in split.classes}


def line_of(*values: str | float) -> str:
    """Nothing is rounded."""
    return " ".join(value if isinstance(value, str) else repr(value) for value in values)


def write_lines(file: Path, lines: Sequence[str]) -> None:
    write_atomically(file, "".join(f"{line}\n" for line in lines).encode())
