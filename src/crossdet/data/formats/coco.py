"""COCO and LVIS instance annotations (one JSON per split) to and from an `Index`.

Source: the COCO "object detection" data format; `bbox` is `[x, y, width, height]` in zero-based pixels, which
is the half-open xyxy of the index after adding width and height. LVIS adds `neg_category_ids` and
`not_exhaustive_category_ids` to each image and may give `coco_url` in place of `file_name`.
"""

from __future__ import annotations

import gc
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdet.data.annotation_files import is_there, raise_if_any, read_bytes
from crossdet.data.formats.coco_boxes import ReadBoxes, read_boxes
from crossdet.data.formats.coco_values import (
    LISTS,
    Items,
    column_of,
    file_name,
    ids_of,
    is_number,
    is_text,
    kept_categories,
    kind_of,
    missing_or,
    own_ids,
    show,
    used_categories,
    whole,
)
from crossdet.data.formats.format import ONE, Format, SplitFiles
from crossdet.data.formats.tree import Found, Refused, Tree, variant, without_suffix
from crossdet.data.index import LEFT_OUT, OTHER_SPELLING, TURNED, Index, Ragged, Strings, clip_to_images, offsets
from crossdet.data.nearby import nearest, told
from crossdet.data.spellings import named_as_files
from crossdet.errors import AnnotationError
from crossdet.labels.patterns import class_name
from crossdet.types import Flag

YOLO = (".yaml", ".yml", ".txt")
MARKS = ("images", "annotations")
Floats = NDArray[np.float64]


def read_coco(annotations: Path, images: Path) -> Index:
    """Reads one COCO or LVIS file. Images keep the file's order, boxes too, classes that of `categories`."""
    with _no_collection():
        content = _sections(_parsed(annotations), annotations)
        return _index(content, annotations, images)


def write_coco(index: Index, path: Path) -> None:
    """Writes the index as COCO JSON; `read_coco` gives the same index back.

    COCO knows crowds and (by custom) `ignore`: IGNORE_REGION, INVALID and AVOID rows get `ignore: 1`, a
    region of no class one row per class, DIFFICULT is lost.
    """
    lists = dict(zip(LISTS, (index.negatives, index.not_exhaustive), strict=True))
    images = []
    for row in range(len(index)):
        height, width = (int(v) for v in index.sizes[row])
        image: dict[str, Any] = {"id": int(index.image_ids[row]), "file_name": index.names[row]}
        image |= {"height": height, "width": width}
        for key, classes in lists.items():
            if classes is not None:
                image[key] = index.category_ids[classes[row]].tolist()
        images.append(image)
    content = {
        "images": images,
        "annotations": _annotation_dicts(index),
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(index.category_ids.tolist(), index.classes, strict=True)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _annotation_dicts(index: Index) -> Items:
    image_of_box = index.image_of_box()
    repeats = np.where(index.labels < 0, len(index.classes), 1)
    rows = np.repeat(np.arange(len(index.boxes)), repeats)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    labels = np.where(index.labels[rows] < 0, nth, index.labels[rows])
    boxes = index.boxes[rows].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    flags = index.flags[rows]
    crowd = (flags & Flag.CROWD) != 0
    ignore = (flags & (Flag.IGNORE_REGION | Flag.INVALID | Flag.AVOID)) != 0
    columns = {
        "id": np.arange(1, len(rows) + 1),
        "image_id": index.image_ids[image_of_box[rows]],
        "category_id": index.category_ids[labels],
        "bbox": boxes,
        "area": index.area[rows].astype(np.float64),
        "iscrowd": crowd.astype(int),
        "ignore": ignore.astype(int),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    dicts = [dict(zip(columns, row, strict=True)) for row in values]
    return [row if row["ignore"] else {k: v for k, v in row.items() if k != "ignore"} for row in dicts]


# ------------------------------------------------------------------------------------------- JSON -> arrays


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage collection off: walking millions of fresh dicts again and again doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parsed(annotations: Path) -> Any:
    content: Any = None
    try:
        content = json.loads(read_bytes(annotations))
    except json.JSONDecodeError as error:
        what = f"line {error.lineno} column {error.colno}: not valid JSON ({error.msg})"
        yolo = "it looks like a file of YOLO: `format: yolo`, and no `images`"
        other = "is the file complete, and is it the annotation file?"
        raise_if_any(annotations, [f"{what}; {yolo if annotations.suffix in YOLO else other}"])
    except UnicodeDecodeError as error:
        raise_if_any(annotations, [f"byte {error.start}: not text in UTF-8; is it the annotation file?"])
    except RecursionError:
        raise_if_any(annotations, ["not usable JSON (nested too deeply); is it the annotation file?"])
    except ValueError as error:  # a number of thousands of digits
        raise_if_any(annotations, [f"not usable JSON ({error}); is it the annotation file?"])
    return content


def _sections(content: Any, annotations: Path) -> dict[str, Items]:
    """The JSON with its three sections checked to be lists of objects."""
    if not isinstance(content, dict):
        wanted = "an object with the keys `images`, `annotations` and `categories`"
        raise_if_any(annotations, [f"the file holds {kind_of(content)}, expected {wanted}"])
    problems = []
    for section in ("images", "annotations", "categories"):
        items = content.get(section)
        if section not in content:
            problems.append(f"missing key `{section}`; expected a list of objects (COCO instances file)")
        elif not isinstance(items, list):
            problems.append(f"{section}: is {kind_of(items)}, expected a list of objects")
        elif set(map(type, items)) - {dict}:
            problems += [
                f"{section}[{i}]: {show(item)} is {kind_of(item)}, expected an object"
                for i, item in enumerate(items)
                if type(item) is not dict
            ]
    raise_if_any(annotations, problems)
    return content


def _index(content: dict[str, Items], annotations: Path, images: Path) -> Index:
    problems: list[str] = []
    image_items, box_items = content["images"], content["annotations"]
    category_ids, classes = _categories(content, problems)
    image_ids = own_ids(image_items, "images", problems)
    names = _file_names(image_items, problems, images)
    sizes = _sizes(image_items, problems)
    federated = any(LISTS[0] in item for item in image_items)
    alone = [i for i, item in enumerate(image_items) if not federated and item.get(LISTS[1])]
    if alone:
        text = f"without `{LISTS[0]}` in any image; LVIS has both: add it (`[]` where there are none)"
        problems.append(f"images[{alone[0]}].{LISTS[1]}: {text}")
    lists = [_class_lists(image_items, key, category_ids, problems) if federated else None for key in LISTS]
    read = read_boxes(box_items, problems)
    area, flags = _areas(box_items, problems), _flags(box_items, problems)
    image_rows = _rows_of(box_items, "image_id", image_ids, "images", problems)
    labels = _rows_of(box_items, "category_id", category_ids, "categories", problems)
    raise_if_any(annotations, problems)
    raise_if_any(annotations, _masks_of_other_sizes(read, sizes[image_rows]))

    names, otherwise = named_as_files(names, images)
    boxes = read.xywh
    with np.errstate(invalid="ignore"):  # inf - inf; such a box is left out later
        boxes[:, 2:] += boxes[:, :2]
    clipped, reason = clip_to_images(boxes, sizes[image_rows])
    skipped: dict[str, list[str]] = {}
    for row, said in otherwise.items():
        place = f"{annotations}: images[{row}].file_name {show(said)} is {images / names[row]}"
        skipped.setdefault(OTHER_SPELLING, []).append(place)
    reasons = [(i, str(reason[i])) for i in np.flatnonzero(reason != "").tolist()]
    for i, why in chain(reasons, ((i, TURNED) for i in read.turned)):
        place = f"{annotations}: annotations[{i}].bbox {missing_or(box_items[i], 'bbox')}"
        skipped.setdefault(why, []).append(place)
    keep = np.flatnonzero(~np.isin(reason, LEFT_OUT))
    keep = keep[np.argsort(image_rows[keep], kind="stable")]
    clipped, area = clipped[keep], area[keep]
    own_area = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    return Index(
        classes=classes,
        category_ids=category_ids,
        root=str(images),
        names=Strings.pack(names),
        image_ids=image_ids,
        sizes=sizes,
        box_offsets=offsets(np.bincount(image_rows[keep], minlength=len(names))),
        boxes=clipped.astype(np.float32),
        labels=labels[keep].astype(np.int32),
        flags=flags[keep],
        area=np.where(np.isnan(area), own_area, area).astype(np.float32),
        negatives=lists[0],
        not_exhaustive=lists[1],
        skipped=skipped,
    )


def _categories(content: dict[str, Items], problems: list[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Ids and names, without those that `kept_categories` leaves out."""
    items = content["categories"]
    ids = own_ids(items, "categories", problems)
    names = column_of(items, "categories", "name", str, "a text", problems)
    names = [class_name(name) for name in names or ()]
    problems += [
        f"categories[{i}].name: {show(name)} holds half a character; write the name anew"
        for i, name in enumerate(names)
        if not is_text(name)
    ]
    if len({*names}) == len(names):
        return ids, tuple(names)
    kept: list[int] = []
    for name, (first, *others) in kept_categories(names, ids.tolist(), used_categories(content)).items():
        kept.append(first)
        problems += [
            f"categories[{i}].name: {name!r} is already the name of categories[{first}]; "
            "rename one of the two or give their boxes one category_id"
            for i in others
        ]
    kept.sort()
    return ids[kept], tuple(names[i] for i in kept)


def _file_names(items: Items, problems: list[str], images: Path | None = None) -> list[str]:
    """Below `images`, with `/` for the `\\` of Windows where no file has that in its name."""
    names: list[str] = []
    for i, item in enumerate(items):
        name = file_name(item)
        if not name or not is_text(name) or "\0" in name:
            problems.append(
                f"images[{i}].file_name: {show(item.get('file_name'))}, expected the image's path below "
                "the images folder (or a `coco_url`)"
            )
            name = ""
        if "\\" in name and images is not None and not is_there(images / name):
            name = name.replace("\\", "/")
        names.append(name)
    paths = [posixpath.normpath(name) if name else "" for name in names]
    if len(set(paths)) < len(names):
        first: dict[str, int] = {}
        for i, name in enumerate(paths):
            if name and first.setdefault(name, i) != i:  # the objects of either would be background of the other
                problems.append(
                    f"images[{i}].file_name: {names[i]!r} is that of images[{first[name]}] already; give the "
                    "picture one entry, and its annotations that entry's id"
                )
    return names


def _sizes(items: Items, problems: list[str]) -> NDArray[np.int32]:
    """`[I, 2]` (height, width); 0 where the file gives none."""
    sizes = np.zeros((len(items), 2), np.int32)
    for column, key in enumerate(("height", "width")):
        values = [item.get(key) or 0 for item in items]
        if str in set(map(type, values)):
            values = [value if (number := whole(value)) is None else number for value in values]
        bad = [i for i, v in enumerate(values) if type(v) not in (int, float) or not 0 <= v < 2**31]
        for i in bad:
            problems.append(
                f"images[{i}].{key}: {show(values[i])}, expected the {key} in pixels "
                "(leave the key out and it is read from the image)"
            )
            values[i] = 0
        sizes[:, column] = values
    sizes[(sizes == 0).any(axis=1)] = 0
    return sizes


def _class_lists(items: Items, key: str, category_ids: NDArray[np.int64], problems: list[str]) -> Ragged:
    position = {number: i for i, number in enumerate(category_ids.tolist())}
    rows: list[list[int]] = []
    for i, item in enumerate(items):
        numbers = item.get(key, [])
        if not isinstance(numbers, list):
            problems.append(f"images[{i}].{key}: {show(numbers)}, expected a list of category ids")
            numbers = []
        numbers = [n if (number := whole(n)) is None else number for n in numbers]
        unknown = [n for n in numbers if not isinstance(n, int) or n not in position]
        if unknown:
            problems.append(
                f"images[{i}].{key}: {show(unknown)} not among the ids of `categories`; add them there or "
                "remove them here"
            )
        rows.append([position[n] for n in numbers if n not in unknown])
    return Ragged.pack(rows)


def _flags(items: Items, problems: list[str]) -> NDArray[np.uint8]:
    flags = np.zeros(len(items), np.uint8)
    for key, flag in (("iscrowd", Flag.CROWD), ("ignore", Flag.IGNORE_REGION)):
        values = [0 if (value := item.get(key)) is None else value for item in items]
        if str in set(map(type, values)):
            values = [value if (number := whole(value)) is None else number for value in values]
        try:
            bad = set(values) - {0, 1}
        except TypeError:  # a list or an object
            bad = {None}
        if bad:
            problems += [
                f"annotations[{i}].{key}: {show(items[i][key])}, expected 0 or 1"
                for i, value in enumerate(values)
                if value not in (0, 1)
            ]
        else:
            flags[np.array(values, bool)] |= np.uint8(flag)
    return flags


def _masks_of_other_sizes(read: ReadBoxes, sizes: NDArray[np.int32]) -> list[str]:
    """sizes: `[M, 2]` of each annotation's picture. A box around such a mask would lie elsewhere in the picture."""
    return [
        f"annotations[{i}].segmentation: a mask of {width}x{height} in a picture of {sizes[i, 1]}x{sizes[i, 0]}; "
        "correct one of the sizes, or write a `bbox` with an area"
        for i, (height, width) in read.masks.items()
        if sizes[i].any() and sizes[i].tolist() != [height, width]
    ]


def _areas(items: Items, problems: list[str]) -> Floats:
    """NaN = not given."""
    areas = [item.get("area") for item in items]
    if set(map(type, areas)) <= {int, float, type(None)}:
        with suppress(OverflowError):
            return np.array(areas, np.float64)
    problems += [
        f"annotations[{i}].area: {show(area)}, expected a number (leave the key out for the box's area)"
        for i, area in enumerate(areas)
        if area is not None and not is_number(area)
    ]
    return np.full(len(items), np.nan)


def _rows_of(
    items: Items, key: str, known: NDArray[np.int64], section: str, problems: list[str]
) -> NDArray[np.int64]:
    """Position in `known` of the id that each annotation names."""
    before = len(problems)
    wanted = ids_of(items, "annotations", key, problems)
    if len(problems) > before or not len(wanted):
        return np.zeros(len(items), np.int64)
    if not len(known):
        problems.append(f"annotations[0].{key}: {wanted[0]} is unknown: `{section}` is empty")
        return np.zeros(len(items), np.int64)
    order = np.argsort(known, kind="stable")
    found = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    rows = order[found]
    wrong = np.flatnonzero(known[rows] != wanted)
    strange, first, count = np.unique(wanted[wrong], return_index=True, return_counts=True)
    for k in np.argsort(first).tolist():  # an id at its first annotation: a category left out has thousands
        which = "the annotation" if count[k] == 1 else f"the {count[k]} annotations that name it"
        problems.append(
            f"annotations[{wrong[first[k]]}].{key}: {strange[k]} is not the id of any of `{section}`; "
            f"add it to `{section}` or remove {which}"
        )
    return rows


def _write(index: Index, root: Path, split: str) -> SplitFiles:
    file = root / "annotations" / f"instances_{split}.json"
    write_coco(index, file)
    return SplitFiles((file,), (Path(index.root),), split=split)


def _find(tree: Tree) -> Iterator[Found | Refused]:
    for file in tree.files(".json"):
        problems: list[str] = []
        try:
            with _no_collection():
                content = _parsed(file)
                if isinstance(content, dict) and not any(mark in content for mark in MARKS):
                    continue  # JSON of anything
                names = _file_names(_sections(content, file)["images"], problems)
            raise_if_any(file, problems)
        except AnnotationError as error:
            yield Refused.of(file, error)
            continue
        spelt = [(name, name.replace("\\", "/")) for name in names]
        images = tree.holding(spelt, file) if names else None
        if images is None:
            yield Refused(file, _not_found(names, tree, file))
            continue
        pictures = without_suffix(f"{images}/{name}" for _, name in spelt)
        files = SplitFiles((file,), (images,))
        yield Found(tree.home(file.parent), tree.split_of(file), files, pictures, variant(file.stem))


def _not_found(names: list[str], tree: Tree, file: Path) -> str:
    such = f", such as {names[0]}," if names else ""
    folders = sorted(tree.folders, key=lambda folder: not folder.is_relative_to(file.parent))  # first those near
    found = nearest(names[0], {folder: tree.folders[folder] for folder in folders}) if names else None
    return f"none of its {len(names)} pictures{such} was found{told(names[0], found) if found else ''}"


FORMAT = Format(
    read=lambda files: read_coco(files.annotations[0], files.images[0]),
    keys={"annotations": ONE, "images": ONE},
    write=_write,
    depends=lambda files: [*files.annotations, *files.images],  # of the folder its time: names are looked up in it
    depends_on_images=False,  # they are many and may lie on a slow disk, and sizes stand in the file
    find=_find,
    marks=MARKS,
)
