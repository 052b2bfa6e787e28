"""WIDER FACE text annotations (`wider_face_train_bbx_gt.txt`) to and from an `Index` of the class "face".

Source: the WIDER FACE download. Per image a line with its name, one with the number of faces, and one per
face: `x y w h blur expression illumination invalid occlusion pose`, zero-based pixels; in the half-open index
the box is (x, y, x + w, y + h). An image with 0 faces is followed by a line of zeros, in some copies not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from crossdet.data.annotation_files import header_sizes, raise_if_any, read_lines
from crossdet.data.formats.format import ONE, Format, SplitFiles
from crossdet.data.formats.tree import Found, Refused, Tree, without_suffix
from crossdet.data.index import CANNOT_BE_READ, Index, IndexBuilder
from crossdet.errors import AnnotationError
from crossdet.types import REGION_FLAGS, Flag

ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
WIDTH = 4 + len(ATTRIBUTES)
ATTRIBUTE_RANGE = np.iinfo(np.int16)
MAX_DIGITS = 9  # of a number of faces


@dataclass
class _Image:
    name: str
    line: int
    rows: list[tuple[int, list[float]]] = field(default_factory=list)
    """(line, ten numbers) of each face."""


def read_wider_face(annotations: Path, images: Path) -> Index:
    """Reads one `*_bbx_gt.txt`; image sizes come from the image headers.

    Every annotated face is kept as it stands, not clipped: the protocol counts all of them. Those marked
    invalid, without area or wholly outside the image are flagged INVALID, so training ignores them.
    """
    problems: list[str] = []
    lines = [line.strip() for line in read_lines(annotations)]
    entries = _entries(lines, annotations, problems)
    raise_if_any(annotations, problems)
    builder = IndexBuilder(images)
    sizes = header_sizes([images / entry.name for entry in entries])
    for entry, size in zip(entries, sizes, strict=True):
        builder.image(entry.name, *(size or (0, 0)))
        if size is None:
            builder.skip(CANNOT_BE_READ, f"{annotations}:{entry.line}: {images / entry.name}")
        for number, (x, y, w, h, *rest) in entry.rows:
            attributes = dict(zip(ATTRIBUTES, (int(v) for v in rest), strict=True))
            with np.errstate(over="ignore"):  # as the index holds it: an area that float32 loses is no area
                left, top, right, bottom = np.array((x, y, x + w, y + h)).astype(np.float32).tolist()
            empty = right <= left or bottom <= top or right <= 0 or bottom <= 0
            if size is not None:
                empty = empty or left >= size[1] or top >= size[0]
            builder.box(
                (x, y, x + w, y + h),
                label=0,
                flags=int(Flag.INVALID) if empty or attributes["invalid"] else 0,
                area=max(w, 0.0) * max(h, 0.0),
                place=f"{annotations}:{number}",
                keep_invalid=True,
                **attributes,
            )
    index = builder.build(["face"])
    return index if index.columns else replace(index, columns=dict.fromkeys(ATTRIBUTES, np.zeros(0, np.int16)))


def write_wider_face(index: Index, path: Path) -> None:
    """Writes the text layout; columns that the index lacks are 0, `invalid` then comes from the flags.

    Region rows (CROWD, IGNORE_REGION, AVOID) are written as faces with invalid = 1.
    """
    columns = dict.fromkeys(ATTRIBUTES, np.zeros(len(index.boxes), np.int16))
    columns["invalid"] = ((index.flags & (REGION_FLAGS | Flag.INVALID)) != 0).astype(np.int16)
    columns |= index.columns
    attributes = np.stack([columns[name] for name in ATTRIBUTES], axis=1)
    lines: list[str] = []
    for row in range(len(index)):
        rows = index.rows(row)
        boxes = index.boxes[rows].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        lines += [index.names[row], str(len(boxes))]
        for box, values in zip(boxes.tolist(), attributes[rows].tolist(), strict=True):
            lines.append(" ".join([*(f"{v:.17g}" for v in box), *(str(v) for v in values)]))
        if not len(boxes):
            lines.append(" ".join("0" * WIDTH))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _entries(lines: Sequence[str], file: Path, problems: list[str]) -> list[_Image]:
    """The images of the file; after a mistake reading goes on with the next line that is a name."""
    entries: list[_Image] = []
    first: dict[str, int] = {}
    at = 0
    while at < len(lines):
        if not lines[at]:
            at += 1
            continue
        if _numbers(lines[at]) is not None:
            problems.append(
                f"{file}:{at + 1}: {lines[at]!r}, expected an image name; is the count of the image above right?"
            )
            at = _next_name(lines, at)
            continue
        image = _Image(lines[at], at + 1)
        if image.name in first:
            problems.append(
                f"{file}:{at + 1}: {image.name!r} is already listed on line {first[image.name]}; join the two"
            )
        first.setdefault(image.name, at + 1)
        entries.append(image)
        at = _read_faces(lines, at + 1, image, file, problems)
    return entries


def _read_faces(lines: Sequence[str], at: int, image: _Image, file: Path, problems: list[str]) -> int:
    """Reads the count line at `at` and the faces after it; returns the first line that is neither."""
    text = lines[at] if at < len(lines) else ""
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        given = repr(text) if at < len(lines) else "the end of the file"
        problems.append(
            f"{file}:{at + 1}: {given}, expected the number of faces of {image.name!r} (line {image.line})"
        )
        return _next_name(lines, at)
    count, at = int(text), at + 1
    if count == 0:
        numbers = _numbers(lines[at]) if at < len(lines) else None
        return at + 1 if numbers is not None and len(numbers) > 1 and not any(numbers) else at
    for nth in range(count):
        numbers = _numbers(lines[at]) if at < len(lines) and lines[at] else None
        if numbers is None and (at >= len(lines) or len(lines[at].split()) < WIDTH):
            given = repr(lines[at]) if at < len(lines) else "the end of the file"
            problems.append(
                f"{file}:{at + 1}: {given}, expected face {nth + 1} of {count} of {image.name!r} "
                f"(count on line {image.line + 1}); correct the count or add the missing lines"
            )
            return at
        if numbers is None or len(numbers) != WIDTH:
            problems.append(
                f"{file}:{at + 1}: {lines[at]!r}, expected {WIDTH} numbers: x y w h {' '.join(ATTRIBUTES)}"
            )
        elif not all(value.is_integer() for value in numbers[4:]):
            problems.append(f"{file}:{at + 1}: {lines[at]!r}, expected whole numbers after x y w h")
        elif not all(ATTRIBUTE_RANGE.min <= value <= ATTRIBUTE_RANGE.max for value in numbers[4:]):
            problems.append(
                f"{file}:{at + 1}: {lines[at]!r}, expected {' '.join(ATTRIBUTES)} as small numbers "
                f"({ATTRIBUTE_RANGE.min} to {ATTRIBUTE_RANGE.max}); is a number missing in between?"
            )
        else:
            image.rows.append((at + 1, numbers))
        at += 1
    return at


def _next_name(lines: Sequence[str], at: int) -> int:
    while at < len(lines) and (not lines[at] or _numbers(lines[at]) is not None):
        at += 1
    return at


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(v) for v in line.split()]
    except ValueError:
        return None


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    file = root / f"wider_face_{split}_bbx_gt.txt"
    write_wider_face(index, file)
    return SplitFiles((file,), (Path(index.root),), split=split)


def _find(tree: Tree) -> Iterator[Found | Refused]:
    for file in tree.files("_bbx_gt.txt"):
        problems: list[str] = []
        try:
            names = [entry.name for entry in _entries([line.strip() for line in read_lines(file)], file, problems)]
            raise_if_any(file, problems)
        except AnnotationError as error:
            yield Refused.of(file, error)
            continue
        images = tree.holding([(name,) for name in names], file)
        if images is None:
            yield Refused(file, f"none of its {len(names)} pictures was found")
            continue
        pictures = without_suffix(f"{images}/{name}" for name in names)
        yield Found(tree.home(file.parent), tree.split_of(file), SplitFiles((file,), (images,)), pictures)


FORMAT = Format(
    read=lambda files: read_wider_face(files.annotations[0], files.images[0]),
    keys={"annotations": ONE, "images": ONE},
    write=_write,
    tells_sizes=False,
    find=_find,
)
