"""Detections as Python users handle them: rows, printing, and the types of other packages."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from crossdet.errors import UserError
from crossdet.types import Detections

NAMES = ("face", "person", "face", "dog")


def some(names: tuple[str, ...] | None = NAMES, angles: bool = False) -> Detections:
    return Detections(
        torch.tensor([[1, 2, 11, 22], [0, 0, 5, 5.5], [3, 4, 8, 9], [2, 2, 4, 10]]),
        torch.tensor([0.925, 0.75, 0.5, 0.25]),
        torch.tensor([4, 0, 4, 2]),
        names,
        torch.tensor([90, -1, 0, -1]) if angles else None,
    )


def nothing(names: tuple[str, ...] | None = ()) -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), names)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        (2, [2]),
        (-1, [3]),
        (np.int64(1), [1]),
        (torch.tensor(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -2), [3, 1]),
        (slice(9, 12), []),
        ([3, 0, -2], [3, 0, 2]),
        ([], []),
        ((0, 1), [0, 1]),
        (torch.tensor([1, 1]), [1, 1]),
        (np.array([2, 3], np.uint8), [2, 3]),
        ([True, False, False, True], [0, 3]),
        (np.array([False, True, True, False]), [1, 2]),
        (some().scores > 0.6, [0, 1]),
        (some().scores > 2, []),
    ],
)
def test_rows_are_chosen_as_of_an_array(asked, rows):
    found, whole = some(angles=True)[asked], some(angles=True)
    assert isinstance(found, Detections)
    assert found.boxes.tolist() == [whole.boxes[row].tolist() for row in rows]
    assert found.scores.tolist() == [float(whole.scores[row]) for row in rows]
    assert found.labels.tolist() == [int(whole.labels[row]) for row in rows]
    assert found.names == tuple(NAMES[row] for row in rows)
    assert found.angles is not None
    assert found.angles.tolist() == [[90, -1, 0, -1][row] for row in rows]


def test_what_there_is_not_stays_away():
    found = some(None)[[1]]
    assert found.names is None
    assert found.angles is None
    assert [row.names for row in some()] == [(name,) for name in NAMES]
    assert list(nothing()) == []
    assert len(nothing()[[]]) == 0


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        (4, IndexError, "row 4 of 4 detections"),
        ([0, -5], IndexError, "row -5 of 4 detections"),
        ([True, False], IndexError, r"a mask of shape \[2\] for 4 detections; it needs \[4\]"),
        (True, IndexError, r"a mask of shape \[\] for 4"),
        (1.0, TypeError, "a number, a slice, a mask or a list of numbers, not by 1.0"),
        ("face", TypeError, "not by 'face'"),
        ([[0, 1]], TypeError, "not by"),
        (None, TypeError, "not by None"),
    ],
)
def test_rows_that_there_are_not(asked, error, told):
    with pytest.raises(error, match=told):
        some()[asked]


def test_printing_is_short():
    assert repr(some()) == "Detections(4: 2 face, 1 person, 1 dog; best score 0.93)"
    assert repr(some(None)) == "Detections(4: 2 class 4, 1 class 0, 1 class 2; best score 0.93)"
    assert repr(nothing()) == repr(nothing(None)) == "Detections(0)"
    many = Detections(torch.zeros(9, 4), torch.ones(9), torch.arange(9), tuple("abcdefghi"))
    assert repr(many).endswith("1 e, 1 f, and 3 more classes; best score 1.00)")


def test_coco_rows():
    rows = some().to_coco(image_id=7)
    assert rows[0] == {
        "image_id": 7,
        "category_id": 5,
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "score": some().scores[0].item(),
    }
    assert [row["category_id"] for row in rows] == [5, 1, 5, 3]
    rows = some().to_coco(7, {"person": 1, "face": 90})
    assert [(row["category_id"], row["score"]) for row in rows] == [
        (90, pytest.approx(0.925)),
        (1, 0.75),
        (90, 0.5),
    ]
    assert nothing().to_coco(1) == []
    assert len(some(None).to_coco(1)) == 4
    with pytest.raises(UserError, match="no class names"):
        some(None).to_coco(1, {"face": 1})


def test_pandas_gets_a_row_per_detection():
    pytest.importorskip("pandas")
    table = some(angles=True).to_pandas()
    assert list(table.columns) == ["class", "label", "score", "x1", "y1", "x2", "y2", "angle"]
    assert table["class"].tolist() == list(NAMES)
    assert table[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == some().boxes.tolist()
    assert table.query("score > 0.4").label.tolist() == [4, 0, 4]
    assert table.angle.tolist() == [90, -1, 0, -1]
    assert list(nothing(None).to_pandas().columns) == ["label", "score", "x1", "y1", "x2", "y2"]
    assert len(nothing().to_pandas()) == 0


def test_supervision_takes_it_as_its_own():
    supervision = pytest.importorskip("supervision")
    found = some(angles=True).to_supervision()
    assert isinstance(found, supervision.Detections)
    people = found[found.data["class_name"] == "face"]
    assert people.class_id.tolist() == [4, 4]
    assert people.data["angle"].tolist() == [90, 0]
    assert len(nothing().to_supervision()) == 0
    assert len(some(None).to_supervision().with_nms(0.5)) == 4


def test_what_the_other_packages_are_handed(monkeypatch):
    """As the two tests above, where these packages are not installed."""

    def keep(**arguments):
        return arguments

    stand_in = ModuleType("stand_in")
    stand_in.Detections = stand_in.DataFrame = keep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    given = some(angles=True).to_supervision()
    assert {name: value.dtype for name, value in given.items() if name != "data"} == {
        "xyxy": np.float32,
        "confidence": np.float32,
        "class_id": np.int64,
    }
    assert given["xyxy"].tolist() == some().boxes.tolist()
    assert given["class_id"].tolist() == [4, 0, 4, 2]
    assert {name: value.tolist() for name, value in given["data"].items()} == {
        "class_name": list(NAMES),
        "angle": [90, -1, 0, -1],
    }
    empty = nothing().to_supervision()
    assert empty["xyxy"].shape == (0, 4)
    assert empty["data"]["class_name"].shape == (0,)
    assert empty["data"]["class_name"].dtype.kind == "U"
    assert some(None).to_supervision()["data"] == {}


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        getattr(some(), f"to_{package}")()
    assert str(error.value) == f"to_{package} needs the package {package}: pip install 'crossdet[{package}]'"
