"""Boxes of COCO's annotations: drawn from another corner, around masks, and masks that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from crossdet.data.formats.coco import read_coco
from crossdet.data.formats.coco_boxes import around_mask
from crossdet.data.index import FAR_OVER, NO_AREA, OUTSIDE, TURNED, Index
from crossdet.errors import AnnotationError
from crossdet.evaluation.files.coco import read_coco_truth

from .helpers import mistakes

SIZE = [80, 96]
RUNS = {"size": SIZE, "counts": [100, 50, 7530]}
"""Pixels 20 to 69 of the second column."""


def write(tmp_path: Path, *annotations: dict[str, Any]) -> Path:
    file = tmp_path / "instances.json"
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    boxes = [{"id": i, "image_id": 1, "category_id": 1} | one for i, one in enumerate(annotations)]
    content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(content))
    return file


def read(tmp_path: Path, *annotations: dict[str, Any]) -> Index:
    return read_coco(write(tmp_path, *annotations), tmp_path)


@pytest.mark.parametrize("bbox", [[43, 50, -29, -21], [14, 50, 29, -21], [43, 29, -29, 21]])
def test_a_box_drawn_from_another_corner_is_turned_round(bbox: list[int], tmp_path: Path) -> None:
    index = read(tmp_path, {"bbox": bbox})
    assert index.boxes.tolist() == [[14, 29, 43, 50]]
    assert index.area.tolist() == [29 * 21]
    assert index.skipped == {TURNED: [f"{tmp_path}/instances.json: annotations[0].bbox {json.dumps(bbox)}"]}


def test_what_is_told_of_a_turned_box(tmp_path: Path) -> None:
    """Its place beyond the border as well; a side of zero stays none, and marks for no box lie outside."""
    boxes = [[43, 50, 0, -21], [-1, -1, -1, -1], [20, 20, -40, -10], [5, 5, float("nan"), -3]]
    index = read(tmp_path, *({"bbox": box} for box in boxes))
    assert index.boxes.tolist() == [[0, 10, 20, 20]]
    of = {why: [text.split("annotations")[1][1] for text in places] for why, places in index.skipped.items()}
    assert of.pop("box with a coordinate that is no number") == ["3"]
    assert of == {NO_AREA: ["0"], OUTSIDE: ["1"], FAR_OVER: ["2"], TURNED: ["1", "2"]}


def test_score_takes_boxes_as_they_stand(tmp_path: Path) -> None:
    """As pycocotools does: its numbers are compared with others'."""
    truth = read_coco_truth(write(tmp_path, {"bbox": [43, 50, -29, -21]})).truth
    assert truth.boxes.tolist() == [[43, 50, -29, -21]]


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}])
@pytest.mark.parametrize("compressed", [False, True])
def test_without_a_box_it_is_around_the_mask(bbox: dict[str, Any], compressed: bool, tmp_path: Path) -> None:
    mask = RUNS
    if compressed:
        mask = pycoco.frPyObjects(RUNS, *SIZE)
        mask = {"size": SIZE, "counts": mask["counts"].decode()}
    index = read(tmp_path, {"segmentation": mask} | bbox)
    assert index.boxes.tolist() == [[1, 20, 2, 70]]
    assert index.skipped == {}


def test_a_polygon_without_a_box_that_is_cut(tmp_path: Path) -> None:
    index = read(tmp_path, {"segmentation": [[80, 10, 120, 10, 120, 30]]})
    assert index.boxes.tolist() == [[80, 10, 96, 30]]
    assert index.skipped == {FAR_OVER: [f"{tmp_path}/instances.json: annotations[0].bbox missing key"]}


sides = st.integers(1, 12)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0, 0.03, 0.2, 0.7, 1]))
def test_boxes_around_masks_are_pycocotools(height: int, width: int, seed: int, share: float) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < share
    encoded = pycoco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    flat = pixels.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    runs = [0, *runs] if flat[0] else runs
    wanted = pycoco.toBbox(encoded).tolist() if pixels.any() else None
    for counts in (runs, encoded["counts"].decode()):
        assert around_mask({"size": [height, width], "counts": counts}) == (wanted, (height, width))


def test_a_large_mask_is_pycocotools() -> None:
    """Of counts that take several letters."""
    pixels = np.zeros((3000, 4000), np.uint8)
    pixels[1200:2900, 900:3100] = 1
    pixels[1500, 3500] = 1
    encoded = pycoco.encode(np.asfortranarray(pixels))
    around, size = around_mask({"size": [3000, 4000], "counts": encoded["counts"].decode()})
    assert around == pycoco.toBbox(encoded).tolist() == [900, 1200, 2601, 1700]
    assert size == (3000, 4000)


def test_no_pixel_of_a_mask_is_painted() -> None:
    side = 2**31 - 1
    assert around_mask({"size": [side, side], "counts": [5, 1, side * side - 6]})[0] == [0, 5, 1, 1]


BAD_MASKS = [
    ({"counts": [4]}, "`size` is null, expected [height, width] of a mask"),
    ({"size": [80], "counts": [80]}, "`size` is [80], expected [height, width] of a mask"),
    ({"size": [-80, -96], "counts": [7680]}, "`size` is [-80, -96], expected [height, width] of a mask"),
    ({"size": [2**31, 1], "counts": [2**31]}, "`size` is [2147483648, 1], expected [height, width] of a mask"),
    ({"size": SIZE}, "`counts` is null, expected the run lengths of a mask (or their text)"),
    ({"size": SIZE, "counts": [100, 50.0, 7530]},
     "`counts` is [100, 50.0, 7530], expected the run lengths of a mask (or their text)"),
    ({"size": SIZE, "counts": [100, -50, 7630]}, "a run length of -50 in `counts`"),
    ({"size": SIZE, "counts": [100, 50]}, "`counts` are of 150 pixels, and `size` [80, 96] has 7680"),
    ({"size": SIZE, "counts": [100, 10**30]},
     f"`counts` are of {10**30 + 100} pixels, and `size` [80, 96] has 7680"),
    ({"size": SIZE, "counts": "ü"}, '`counts` is "\\u00fc", expected a mask as pycocotools writes it'),
    ({"size": SIZE, "counts": "o" * 40},
     f'`counts` is "{"o" * 40}", expected a mask as pycocotools writes it'),
    ({"size": SIZE, "counts": "1o"}, '`counts` is "1o", which ends within a number'),
]  # fmt: skip


@pytest.mark.parametrize(("mask", "message"), BAD_MASKS)
def test_masks_that_are_none(mask: Any, message: str, tmp_path: Path) -> None:
    """One mistake of each; beside a box without area that is told instead."""
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, {"bbox": [1, 1, 2, 2]}, {"segmentation": mask})
    assert mistakes(error) == [
        f"annotations[1].segmentation: {message}; correct it, or write a `bbox` with an area"
    ]
    assert len(read(tmp_path, {"segmentation": mask, "bbox": [1, 1, 2, 2]}).boxes) == 1  # which is not asked for
    assert [*read(tmp_path, {"segmentation": mask, "bbox": [0, 0, 0, 0]}).skipped] == [NO_AREA]


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    mask = {"size": [40, 48], "counts": [100, 50, 1770]}
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, {"segmentation": mask})
    assert mistakes(error) == [
        "annotations[0].segmentation: a mask of 48x40 in a picture of 96x80; correct one of the sizes, or write a "
        "`bbox` with an area"
    ]


def test_an_empty_mask_is_no_box(tmp_path: Path) -> None:
    mask = {"size": SIZE, "counts": [7680]}
    assert list(read(tmp_path, {"bbox": [0, 0, 0, 0], "segmentation": mask}).skipped) == [NO_AREA]
    with pytest.raises(AnnotationError, match=r"annotations\[0\].bbox: missing key, expected four numbers"):
        read(tmp_path, {"segmentation": mask})
