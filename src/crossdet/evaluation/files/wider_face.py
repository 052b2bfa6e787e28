"""WIDER FACE predictions: one text file per image, as the released evaluation reads them.

PRED_DIR/<event>/<image>.txt: a line with the name (not used), a line with the count n, then n lines
`x y w h score`, top-left corner and size in pixels of the original image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import raise_if_any, read_bytes
from crossdet.errors import AnnotationError, UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.files.lines import line_of, rows_of, write_lines
from crossdet.evaluation.splits import Split
from crossdet.files import safe_names, spellings

LAYOUT = "x y w h score"


@dataclass(frozen=True)
class WiderFacePredictions:
    """detections: boxes x, y, w, h; rows of the names. missing: images without a file (no detections).

    unknown: files below the folder that belong to none of the images.
    """

    detections: DetectionArrays
    missing: list[str]
    unknown: list[str]


def read_wider_face_predictions(folder: Path, names: Sequence[str]) -> WiderFacePredictions:
    """Reads the files of the images `names` ("event/image" without extension), also where `eval` had to name them
    otherwise (`safe_names`).

    Raises `UserError` where none of them has a file, `AnnotationError` with every malformed file.
    """
    below = _files(folder)
    files = {name: file for name in names if (file := _file_of(name, below)) is not None}
    missing = [name for name in names if name not in files]
    known = set(files.values())
    unknown = sorted(str(file.relative_to(folder)) for file in below.values() if file not in known)
    if len(missing) == len(names):
        raise UserError(_wrong_folder(folder, names, unknown))
    problems: list[str] = []
    rows, found = [], []
    for row, name in enumerate(names):
        if name in files:
            values = _read(files[name], problems)
            rows.append(np.full(len(values), row, np.int64))
            found.append(values)
    raise_if_any(folder, problems)
    values, images = np.concatenate(found), np.concatenate(rows)
    detections = DetectionArrays(values[:, :4], values[:, 4], np.zeros(len(values), np.int64), images)
    return WiderFacePredictions(detections, missing, unknown)


def _files(folder: Path) -> dict[str, Path]:
    """Path below the folder without `.txt` -> file, of the .txt files in the folder and in its subfolders."""
    try:
        entries = sorted(folder.iterdir())
        below = [file for entry in entries if entry.is_dir() for file in sorted(entry.iterdir())]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); expected a folder") from None
    return {
        file.relative_to(folder).as_posix().removesuffix(".txt"): file
        for file in (*entries, *below)
        if file.name.endswith(".txt")
    }


def _file_of(name: str, below: Mapping[str, Path]) -> Path | None:
    """By the name itself, else by what `safe_names` makes of its two parts."""
    if name in below:
        return below[name]
    event, slash, image = name.rpartition("/")
    folders = spellings(event) if event else [""]
    paths = (f"{folder}{slash}{stem}" for folder in folders for stem in spellings(image))
    return next((below[path] for path in paths if path in below), None)


def _wrong_folder(folder: Path, names: Sequence[str], unknown: Sequence[str]) -> str:
    wanted = f"such as {folder / names[0]}.txt" if names else "the lists have no image"
    text = f"{folder}: no prediction file of any of the {len(names)} images ({wanted}); wrong folder?"
    events = {name.rpartition("/")[0] for name in names}
    inner = [entry for entry in sorted(folder.iterdir()) if any((entry / event).is_dir() for event in events)]
    if inner:
        return f"{text} The events lie in {inner[0]}"
    return f"{text} Its {len(unknown)} .txt files belong to no image, such as {unknown[0]}" if unknown else text


def _read(file: Path, problems: list[str]) -> NDArray[np.float64]:
    """`[n, 5]` of one file; what is wrong with it goes to `problems`."""
    nothing = np.zeros((0, 5))
    try:
        lines = read_bytes(file).rstrip().split(b"\n")
    except AnnotationError as error:
        problems.append(str(error))
        return nothing
    rows = [line.split() for line in lines[2:]]
    try:
        count = int(lines[1])
    except (IndexError, ValueError):
        given = repr(_shown(lines[1])) if len(lines) > 1 else "no line"
        problems.append(f"{file}:2: {given}, expected the number of detections after the name on line 1")
        return nothing
    if count != len(rows):
        problems.append(f"{file}:2: the count is {count}, but {len(rows)} line(s) follow; correct one of the two")
        return nothing
    found = [_five_numbers(row) for row in rows]
    problems += [
        f"{file}:{number}: {_shown(lines[number - 1])!r}, expected five finite numbers {LAYOUT}"
        for number, values in enumerate(found, start=3)
        if values is None
    ]
    return nothing if None in found else np.array(found, np.float64).reshape(-1, 5)


def _five_numbers(row: list[bytes]) -> list[float] | None:
    try:
        values = [float(word) for word in row]
    except ValueError:
        return None
    return values if len(values) == 5 and all(map(math.isfinite, values)) else None


def _shown(line: bytes) -> str:
    return line.strip().decode(errors="replace")


def write_wider_face_predictions(folder: Path, split: Split, detections: DetectionArrays) -> None:
    """`EVENT/IMAGE.txt` of every image of the split."""
    lines: dict[int, list[str]] = defaultdict(list)
    for (x1, y1, x2, y2), score, _, image in rows_of(detections):
        lines[image].append(line_of(x1, y1, x2 - x1, y2 - y1, score))
    names = [PurePosixPath(split.index.names[image]) for image in range(len(split.index))]
    for image, (name, file) in enumerate(zip(names, _files_to_write(names), strict=True)):
        title = " ".join(name.stem.splitlines())  # the layout counts lines
        write_lines(folder / file, [title, str(len(lines[image])), *lines[image]])


def _files_to_write(names: Sequence[PurePosixPath]) -> list[Path]:
    """`EVENT/IMAGE.txt` of every image, all different."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name.parent.name, []).append(row)
    files = [Path()] * len(names)
    for event, folder in zip(rows, safe_names(list(rows)), strict=True):
        stems = safe_names([names[row].stem for row in rows[event]])
        for row, stem in zip(rows[event], stems, strict=True):
            files[row] = Path(folder if event else "", f"{stem}.txt")
    return files
