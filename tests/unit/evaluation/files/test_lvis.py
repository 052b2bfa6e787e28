"""`crossdet score lvis`: a case by hand, and what it says about wrong files.

The numbers of random sets are compared with the LVIS API in tests/parity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .helpers import curves, refused, scored

BOX = [10, 10, 20, 20]
LISTS = {"neg_category_ids": [], "not_exhaustive_category_ids": []}


def world(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A cat in image 1. Image 2 says that it has none, image 3 says nothing, in image 4 not all are labelled."""
    truth = {
        "images": [
            {"id": 1, **LISTS},
            {"id": 2, **LISTS, "neg_category_ids": [5]},
            {"id": 3, **LISTS},
            {"id": 4, **LISTS, "not_exhaustive_category_ids": [5]},
        ],
        "categories": [{"id": 5, "name": "cat", "frequency": "c"}, {"id": 6, "name": "axe", "frequency": "r"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 5, "bbox": BOX, "area": 400} for i in (1, 4)],
    }
    far = [200, 200, 20, 20]
    results = [
        {"image_id": image, "category_id": 5, "bbox": box, "score": score}
        for image, box, score in [
            (3, BOX, 0.99), (4, far, 0.95), (4, BOX, 0.9), (2, BOX, 0.85), (1, BOX, 0.8), (1, far, 0.7)
        ]
    ]  # fmt: skip
    for name, content in (("gt.json", {**truth, **changes}), ("dt.json", results)):
        (folder / name).write_text(json.dumps(content))
    return folder / "gt.json", folder / "dt.json"


def test_by_hand(tmp_path: Path) -> None:
    """Counted by falling score: right (image 4), wrong (image 2), right (image 1), wrong (image 1)."""
    record, printed = scored(tmp_path, "lvis", *world(tmp_path), "--curves", tmp_path / "curves")
    wanted = pytest.approx((51 + 50 * 2 / 3) / 101)
    assert [record[key] for key in ("AP", "AP50", "AP75", "APs", "APc")] == [wanted] * 5
    assert (record["APr"], record["APf"], record["AR"]) == (None, None, 1.0)
    assert record["per_class"]["cat"]["boxes"] == 2
    assert "LVIS, gt.json: 4 images, 6 detections" in printed
    assert curves(tmp_path / "curves")["gt", "lvis", "AP50"] == pytest.approx(record["AP50"])
    # one detection per image, the best: of image 4 it is the one that finds nothing
    assert scored(tmp_path, "lvis", *world(tmp_path), "--max-detections", 1)[0]["AP"] == pytest.approx(
        51 * 0.5 / 101
    )
    # COCO's rule: wrong, wrong, right, wrong, right, wrong
    record, printed = scored(tmp_path, "coco", *world(tmp_path))
    assert record["AP50"] == pytest.approx(2 / 5)
    assert "`crossdet score lvis` does" in printed


def test_without_frequencies(tmp_path: Path) -> None:
    record, printed = scored(tmp_path, "lvis", *world(tmp_path, categories=[{"id": 5, "name": "cat"}]))
    assert "APr" not in record
    assert "no category has a `frequency`" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1}, {"id": 4}]}, "no image has neg_category_ids"),
        (
            {"images": [{"id": 1, **LISTS}, {"id": 4, "neg_category_ids": 5}]},
            "images[1].neg_category_ids: 5, expected a list of whole numbers",
        ),
        (
            {"images": [{"id": 1, **LISTS}, {"id": 4, "neg_category_ids": []}]},
            "images[1].not_exhaustive_category_ids: missing key, expected a list of whole numbers",
        ),
        (
            {"categories": [{"id": 5, "name": "cat", "frequency": "often"}]},
            'categories[0].frequency: "often", expected one of r, c, f',
        ),
    ],
)
def test_a_wrong_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused("lvis", *world(tmp_path, **changes))
