"""Columns of COCO's lists of objects, and values of JSON in messages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGITS = re.compile("-?[0-9]{1,20}")
LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
Items = list[dict[str, Any]]


def own_ids(items: Items, section: str, problems: list[str]) -> NDArray[np.int64]:
    """The `id` of every item, all different."""
    ids = ids_of(items, section, "id", problems)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    problems += [
        f"{section}[{i}].id: {ids[i]} is already the id of {section}[{first[inverse[i]]}]; every one needs its own"
        for i in np.flatnonzero(first[inverse] != np.arange(len(ids))).tolist()
    ]
    return ids


def ids_of(items: Items, section: str, key: str, problems: list[str]) -> NDArray[np.int64]:
    values: list[Any] = [item.get(key) for item in items]
    if set(map(type, values)) - {int}:
        read = [whole(value) for value in values]
        problems += [
            f"{section}[{i}].{key}: {missing_or(items[i], key)}, expected a whole number"
            for i, number in enumerate(read)
            if number is None
        ]
        values = [] if None in read else read
    if not values:
        return np.arange(len(items), dtype=np.int64)
    if max(values) >= 2**63 or min(values) < -(2**63):
        problems.append(f"{section}[].{key}: {max(values, key=abs)} does not fit in 64 bits; number them anew")
        return np.arange(len(items), dtype=np.int64)
    return np.array(values, np.int64)


def column_of(
    items: Items, section: str, key: str, kind: type, wanted: str, problems: list[str]
) -> list[Any] | None:
    """`key` of every item, or None after noting the items where it is missing or of another type."""
    values = [item.get(key) for item in items]
    if set(map(type, values)) <= {kind}:
        return values
    for i, value in enumerate(values):
        if type(value) is not kind:
            problems.append(f"{section}[{i}].{key}: {missing_or(items[i], key)}, expected {wanted}")
    return None


def missing_or(item: dict[str, Any], key: str) -> str:
    """The value of a key for a message."""
    return show(item[key]) if key in item else "missing key"


def whole(value: Any) -> int | None:
    """The whole number that a value is, also as `7.0` or `"7"`; None for what is none."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int else None


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold (10**400 is none)."""
    if type(value) is not int:
        return type(value) is float
    return abs(value) <= sys.float_info.max


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written: JSON allows half a character, such as "\\ud800"."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (RecursionError, ValueError):  # nested too deeply
        text = f"{kind_of(value)} that cannot be shown"
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def used_categories(content: Mapping[str, Items]) -> set[int | None]:
    """Ids of the categories that a box or a list of an image (LVIS) has."""
    used = {whole(item.get("category_id")) for item in content["annotations"]}
    for key in LISTS:
        for item in content["images"]:
            listed = item.get(key)
            used |= {*map(whole, listed)} if isinstance(listed, list) else set()
    return used


def kept_categories(names: Sequence[str], ids: Sequence[int], used: Collection[int | None]) -> dict[str, list[int]]:
    """Name -> rows of the categories with it that are used, the last where none is.

    Roboflow writes a supercategory as a category of its own before the others, without a box, and it may have the
    name of a class. To leave it out takes nothing away: the name stays listed.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: [row for row in own if ids[row] in used] or own[-1:] for name, own in rows.items()}


def file_name(image: Mapping[str, Any]) -> Any:
    """`file_name` of an entry of `images`, or the end of its `coco_url` (LVIS: `train2017/000000391895.jpg`)."""
    name = image.get("file_name")
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if name is None and isinstance(url, str) and url.count("/") >= 2 else name
