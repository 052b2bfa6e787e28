"""What the tests of the readers share: tiny images, comparing and generating indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossdet.data.index import Index, IndexBuilder, Strings
from crossdet.errors import AnnotationError

ARRAYS = ("category_ids", "image_ids", "sizes", "box_offsets", "boxes", "labels", "flags", "area")


def save_image(path: Path, width: int = 100, height: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path


def assert_same(have: Index, want: Index, but: tuple[str, ...] = ()) -> None:
    """The same images, boxes and columns; `but` names arrays that may differ."""
    assert [have.names[i] for i in range(len(have))] == [want.names[i] for i in range(len(want))]
    assert have.classes == want.classes
    for name in set(ARRAYS) - set(but):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), err_msg=name)
        assert getattr(have, name).dtype == getattr(want, name).dtype, name
    assert have.columns.keys() == want.columns.keys()
    for name, column in want.columns.items():
        np.testing.assert_array_equal(have.columns[name], column, err_msg=name)
    for name in ("negatives", "not_exhaustive"):
        lists, wanted = getattr(have, name), getattr(want, name)
        assert (lists is None) == (wanted is None), name
        if lists is not None:
            np.testing.assert_array_equal(lists.values, wanted.values, err_msg=name)
            np.testing.assert_array_equal(lists.offsets, wanted.offsets, err_msg=name)


def mistakes(error: pytest.ExceptionInfo[AnnotationError]) -> list[str]:
    """The lines of the message after its heading, without their bullets."""
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


def sample_index(root: Path, classes: tuple[str, ...] = ("cat", "dog"), integers: bool = True) -> Index:
    """Three images (boxes of both classes, none, one box over the whole image), their files written."""
    builder = IndexBuilder(root)
    shift = 0.0 if integers else 0.25
    for name in ("a.png", "b.png", "c.png"):
        save_image(root / name)
        builder.image(name, 80, 100)
        if name == "a.png":
            builder.box((10 + shift, 20, 30, 60 + shift), 0)
            builder.box((0, 0, 5, 5), len(classes) - 1)
        if name == "c.png":
            builder.box((0, 0, 100, 80), 0)
    return builder.build(classes)


def generated_index(images: int, boxes: int, seed: int = 0) -> Index:
    """Random arrays of the given size, as COCO's train2017 has (118,000 and 860,000)."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 400, (boxes, 2))
    side = rng.integers(1, 80, (boxes, 2))
    offsets = np.zeros(images + 1, np.int64)
    np.cumsum(np.bincount(rng.integers(0, images, boxes), minlength=images), out=offsets[1:])
    return Index(
        classes=tuple(f"class {i}" for i in range(80)),
        category_ids=np.arange(1, 81, dtype=np.int64),
        root="images",
        names=Strings.pack(f"{i:012d}.jpg" for i in range(images)),
        image_ids=np.arange(images, dtype=np.int64),
        sizes=np.full((images, 2), 480, np.int32),
        box_offsets=offsets,
        boxes=np.hstack([corner, corner + side]).astype(np.float32),
        labels=rng.integers(0, 80, boxes).astype(np.int32),
        flags=np.zeros(boxes, np.uint8),
        area=side.prod(axis=1).astype(np.float32),
    )
