"""WIDER Pedestrian text annotations, 2018 and 2019 editions, to and from an `Index`.

Source: the WIDER challenge downloads; zero-based pixels, top-left corner and size, so a box is
(x, y, x + w, y + h) in the half-open index. One line per image: 2018 `name c x y w h c x y w h ...` with
c = 1 pedestrian, 2 cyclist; 2019 `name x y w h x y w h ...`. A name alone is an image without objects. Ignore
regions are `name x y w h ...` in both years. Sizes are left 0; `crossdet.data.reading` reads the headers.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from crossdet.data.annotation_files import files_below, is_number, raise_if_any, read_lines
from crossdet.data.formats.format import (
    ONE,
    OPTIONAL,
    Format,
    Needed,
    SplitFiles,
    annotations_and_images,
    given_files,
)
from crossdet.data.formats.tree import Found, Refused, Tree, without_suffix
from crossdet.data.index import STRAY_REGION, Index, IndexBuilder
from crossdet.errors import AnnotationError, UserError
from crossdet.types import REGION_FLAGS, Flag

CLASSES = {2018: ("pedestrian", "cyclist"), 2019: ("pedestrian",)}
LAYOUT = {2018: "class x y w h", 2019: "x y w h"}
NUMBERS_PER_BOX = {2018: 5, 2019: 4}
OTHERS_REGION = "ignore region of an image that is not in the split"


@dataclass(frozen=True)
class Line:
    """One image of a file: its name, the numbers after it as they stand, and the place ("file:line")."""

    name: str
    numbers: list[float]
    place: str


def read_wider_pedestrian(
    annotations: Path,
    images: Path,
    ignore: Path | None = None,
    image_list: Path | None = None,
    edition: int | None = None,
) -> Index:
    """Reads the boxes, with `ignore` the ignore regions (label -1), with `image_list` images without a line.

    edition: 2018 or 2019; None = the one layout that the whole file fits. The images of 2019 lie in several
    folders that the annotations do not name: a name that is no file in `images` is looked up below it.
    """
    lines, year = read_box_lines(annotations, edition)
    regions = read_ignore_lines(ignore) if ignore is not None else []
    listed = _listed(image_list) if image_list is not None else []
    # one file may call a picture im0.png and the other ad/im0.png
    files = _find_files([line.name for line in (*lines, *regions, *listed)], images)
    _refuse_repeats(annotations, lines, files)
    region_of: dict[str, list[Line]] = {}
    for region in regions:
        region_of.setdefault(files[region.name], []).append(region)
    known = {files[line.name] for line in lines}
    unlisted = {files[line.name]: line for line in listed if files[line.name] not in known}
    lines += unlisted.values()

    builder = IndexBuilder(images)
    step = NUMBERS_PER_BOX[year]
    for line in lines:
        builder.image(files[line.name])
        for at in range(0, len(line.numbers), step):
            *number, x, y, w, h = line.numbers[at : at + step]
            label = int(number[0]) - 1 if number else 0
            builder.box((x, y, x + w, y + h), label, place=line.place)
        for region in region_of.pop(files[line.name], []):
            for at in range(0, len(region.numbers), 4):
                x, y, w, h = region.numbers[at : at + 4]
                builder.box((x, y, x + w, y + h), -1, int(Flag.IGNORE_REGION), place=region.place)
    for rest in region_of.values():
        for line in rest:
            other = os.path.isfile(images / files[line.name])  # noqa: PTH113 - Path raises for too long a name
            builder.skip(OTHERS_REGION if other else STRAY_REGION, f"{line.place}: {line.name}")
    return builder.build(CLASSES[year])


def write_wider_pedestrian(index: Index, path: Path, ignore_path: Path, edition: int) -> None:
    """Writes boxes and ignore regions. Region and INVALID rows go to `ignore_path`; 2019 has no class ids.

    An image in a subfolder is written by its file name alone where that is unique, as in the download.
    """
    _check_edition(edition)
    if len(index.classes) > 2 and edition == 2018:
        raise UserError(
            f"WIDER Pedestrian 2018 has two classes (1 pedestrian, 2 cyclist), got {', '.join(index.classes)}"
        )
    plain = Counter(PurePosixPath(index.names[row]).name for row in range(len(index)))
    path.parent.mkdir(parents=True, exist_ok=True)
    ignore_path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as boxes_file, ignore_path.open("w", encoding="utf-8") as regions_file:
        for row in range(len(index)):
            rows = index.rows(row)
            name = PurePosixPath(index.names[row]).name
            objects, regions = [name if plain[name] == 1 else index.names[row]], []
            boxes = index.boxes[rows].astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            columns = (boxes.tolist(), index.labels[rows].tolist(), index.flags[rows].tolist())
            for box, label, flags in zip(*columns, strict=True):
                text = [f"{v:.17g}" for v in box]
                if flags & (REGION_FLAGS | Flag.INVALID):
                    regions += text
                else:
                    objects += [str(label + 1), *text] if edition == 2018 else text
            boxes_file.write(" ".join(objects) + "\n")
            if regions:
                regions_file.write(" ".join([objects[0], *regions]) + "\n")


def read_box_lines(file: Path, edition: int | None = None) -> tuple[list[Line], int]:
    """The images of an annotation file, all different, and its edition: as given, else as `read_wider_pedestrian`.

    Every line has whole boxes in the layout of the edition, 2018 with class ids 1 and 2. The numbers may be
    anything that `float` reads.
    """
    problems: list[str] = []
    lines = _lines(file, problems)
    first: dict[str, str] = {}
    for line in lines:
        if line.name in first:
            problems.append(f"{line.place}: {line.name!r} is already listed at {first[line.name]}; join the two")
        first.setdefault(line.name, line.place)
    raise_if_any(file, problems)
    return lines, _edition(lines, file, edition)


def read_ignore_lines(file: Path) -> list[Line]:
    """The ignore regions of a file, `x y w h` each; an image may have several lines."""
    problems: list[str] = []
    lines = _lines(file, problems)
    problems += [
        f"{line.place}: {len(line.numbers)} numbers after {line.name!r}, expected a multiple of 4 (x y w h)"
        for line in lines
        if len(line.numbers) % 4
    ]
    raise_if_any(file, problems)
    return lines


def _lines(file: Path, problems: list[str]) -> list[Line]:
    lines = []
    for number, text in enumerate(read_lines(file), start=1):
        name, *words = text.split() or [""]
        if not name:
            continue
        try:
            lines.append(Line(name, [float(word) for word in words], f"{file}:{number}"))
        except ValueError:
            bad = next(word for word in words if not is_number(word))
            layouts = f"{LAYOUT[2018]} (2018) or {LAYOUT[2019]} (2019)"
            problems.append(f"{file}:{number}: {bad!r} after {name!r} is no number; expected {layouts}")
    return lines


def _listed(image_list: Path) -> list[Line]:
    """A line without objects for each image of the list; its first column counts."""
    names = [text.split()[0] for text in read_lines(image_list) if text.strip()]
    return [Line(name, [], str(image_list)) for name in names]


def _refuse_repeats(file: Path, lines: list[Line], files: dict[str, str]) -> None:
    """Raises where two lines name one picture: the objects of either would be background of the other."""
    first: dict[str, Line] = {}
    problems = []
    for line in lines:
        before = first.setdefault(files[line.name], line)
        if before is not line:
            problems.append(
                f"{line.place}: {line.name!r} is the picture {files[line.name]} that {before.place} calls "
                f"{before.name!r}; join the two"
            )
    raise_if_any(file, problems)


def _mistake(line: Line, edition: int) -> str:
    """What in the line does not fit the edition's layout; "" = nothing."""
    step = NUMBERS_PER_BOX[edition]
    if len(line.numbers) % step:
        return (
            f"{line.place}: {len(line.numbers)} numbers after {line.name!r}, "
            f"expected a multiple of {step} ({LAYOUT[edition]})"
        )
    classes = line.numbers[::5] if edition == 2018 else []
    bad = [c for c in classes if c not in (1, 2)]
    return f"{line.place}: class id {bad[0]:g}, expected 1 (pedestrian) or 2 (cyclist)" if bad else ""


def _edition(lines: list[Line], file: Path, given: int | None) -> int:
    """The edition of the file, checked on every line."""
    mistakes = {e: [m for line in lines if (m := _mistake(line, e))] for e in CLASSES}
    if given is not None:
        _check_edition(given)
        other = 2019 if given == 2018 else 2018
        if mistakes[given] and not mistakes[other]:
            raise_if_any(
                file,
                [f"edition {given} was asked for, but the file has the layout of {other} ({LAYOUT[other]}); "
                 f"set edition: {other}", *mistakes[given]],
            )  # fmt: skip
        raise_if_any(file, mistakes[given])
        return given
    fitting = [e for e in CLASSES if not mistakes[e]]
    if len(fitting) == 2:
        # 20 numbers are 4 boxes of 2018 or 5 of 2019; class ids of 1 and 2 may also be coordinates
        why = "fits both editions" if any(line.numbers for line in lines) else "has no box"
        raise_if_any(file, [f"the file {why}, so its edition is open; set edition: 2018 or edition: 2019"])
    if not fitting:
        likely = min(CLASSES, key=lambda e: len(mistakes[e]))
        raise_if_any(file, [f"taken as edition {likely}, which most lines fit", *mistakes[likely]])
    return fitting[0]


def _check_edition(edition: int) -> None:
    if edition not in CLASSES:
        raise UserError(f"WIDER Pedestrian edition {edition!r} is unknown; set edition: 2018 or edition: 2019")


def _find_files(names: list[str], images: Path) -> dict[str, str]:
    """Name in the files -> path below `images`, one for each picture; a name not found stays as it is."""
    below: dict[str, list[str]] = {}
    for file in files_below(images) if images.is_dir() else ():
        below.setdefault(PurePosixPath(file).name, []).append(file)
    found = {}
    for name in names:
        path = posixpath.normpath(name)
        there = below.get(path, [])
        found[name] = there[0] if len(there) == 1 else path
    return found


def _image_list(files: SplitFiles) -> list[Path]:
    return [Path(name).absolute() for name in files.image_set]


def _read(files: SplitFiles) -> Index:
    ignore, image_list = next(iter(files.ignore), None), next(iter(_image_list(files)), None)
    return read_wider_pedestrian(files.annotations[0], files.images[0], ignore, image_list, files.edition)


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    boxes, ignore = root / f"{split}_annotations.txt", root / f"{split}_ignore.txt"
    write_wider_pedestrian(index, boxes, ignore, edition=2018)
    return SplitFiles((boxes,), (Path(index.root),), ignore=(ignore,), split=split, edition=2018)


def _find(tree: Tree) -> Iterator[Found | Refused]:
    for file in tree.files(".txt"):
        if not re.fullmatch(r"(train|val)_(annotations|bbox)\w*", file.stem):
            continue
        try:
            names = {line.name for line in read_box_lines(file)[0]}
        except AnnotationError as error:
            yield Refused.of(file, error)
            continue
        home, split = tree.home(file.parent), tree.split_of(file)
        near = [f for f, there in tree.folders.items() if f.is_relative_to(home) and not names.isdisjoint(there)]
        if not near:
            yield Refused(file, f"none of its {len(names)} pictures was found")
            continue
        images = Path(os.path.commonpath([f for f in near if tree.split_of(f) == split] or near))
        beside = [other for other in tree.files(".txt") if other.parent == file.parent]
        ignore = tuple(other for other in beside if "ignore" in other.name and tree.split_of(other) == split)[:1]
        files = SplitFiles((file,), (images,), ignore=ignore, split=split)
        pictures = without_suffix(f"{images}/{path}" for path in _find_files(sorted(names), images).values())
        yield Found(home, split, files, pictures)


FORMAT = Format(
    read=_read,
    keys={"annotations": ONE, "images": ONE, "image_set": OPTIONAL, "ignore": OPTIONAL, "edition": OPTIONAL},
    write=_write,
    tells_sizes=False,
    needs=lambda files: [*annotations_and_images(files), *(Needed("image list", p) for p in _image_list(files))],
    depends=lambda files: [*given_files(files), *_image_list(files)],
    find=_find,
)
