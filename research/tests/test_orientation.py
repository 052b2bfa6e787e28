"""`crossdet-research orientation`: an upright detector that looks at every roll, what is found, and the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from crossdet.data.index import Index, IndexBuilder
from crossdet.data.rotation import rotated
from crossdet.data.rotation_geometry import equal_directions
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.splits import Split
from crossdet_research.orientation.measure import all_looks, found_objects, looked_all_around, per_roll
from crossdet_research.orientation.tables import difference_grid, grids, markdown, notes
from crossdet_research.tables import rich_tables

BOX_RULES = ("enclosing", "centred")


def upright_index(pictures: list[tuple[int, int]], boxes: list[tuple[int, float, float, float, float]]) -> Index:
    """pictures: (height, width). boxes: picture, and xyxy in shares of its sides."""
    builder = IndexBuilder(".")
    for number, (height, width) in enumerate(pictures):
        builder.image(f"{number}.png", height, width, image_id=number + 1)
        for image, x1, y1, x2, y2 in boxes:
            if image == number:
                builder.box((x1 * width, y1 * height, x2 * width, y2 * height), 0)
    return builder.build(["face"], [1])


def turned(index: Index, directions: tuple[int, ...], rule: str) -> Split:
    many = rotated(index, directions, rule, directions)
    return Split(many, np.zeros(len(directions), np.int64), ["face"], np.array(directions, np.int64))


def truth_at(split: Split, degrees: int, scores: float = 0.9) -> DetectionArrays:
    """What a detector finds that finds every object of one roll, and nothing at other rolls."""
    image = split.index.image_of_box()
    assert split.index.rotation is not None
    rows = np.flatnonzero(split.index.rotation.degrees[image] == degrees)
    return DetectionArrays(
        np.asarray(split.index.boxes)[rows], np.full(len(rows), scores), np.zeros(len(rows), np.int64), image[rows]
    )


CORNERS = ((0.02, 0.05, 0.4, 0.45), (0.55, 0.1, 0.95, 0.42), (0.1, 0.6, 0.45, 0.95))
"""Places of faces that hardly overlap at any roll, however their boxes grow."""


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 8, 12, 2]), st.sampled_from(BOX_RULES), st.data())
def test_a_perfect_upright_detector_is_right_at_every_roll(steps, rule, data):
    """It finds the objects of the upright pictures exactly, and nothing in turned ones."""
    directions = (0, 180) if steps == 2 else equal_directions(steps)
    sides = st.integers(20, 90)
    pictures = data.draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
    shown = [data.draw(st.integers(1, 3)) if steps in (2, 4) else 1 for _ in pictures]
    boxes = [(number, *CORNERS[place]) for number, many in enumerate(shown) for place in range(many)]
    split = turned(upright_index(pictures, boxes), directions, rule)
    row = looked_all_around(split, truth_at(split, 0), rule == "centred", 0.5)
    assert row is not None
    assert row["looks"] == len(directions)
    assert (row["AP"], row["AP50"]) == (pytest.approx(1), pytest.approx(1))
    assert {d: found["AP"] for d, found in row["rolls"].items()} == pytest.approx(dict.fromkeys(directions, 1))
    count = len(boxes) * len(directions)
    assert row["found"] == {"objects": count, "share": 1.0, "confident": 1.0}
    assert (row["orientation"]["found"], row["orientation"]["accuracy"]) == (count, 1.0)
    assert row["orientation"]["confident"]["accuracy"] == 1.0


@pytest.mark.parametrize("rule", BOX_RULES)
@pytest.mark.parametrize("steps", [4, 8])
def test_one_that_finds_what_lies_on_its_side_is_wrong_by_a_quarter(rule, steps):
    """It takes objects at 90 degrees for upright ones: found everywhere at multiples of 90, 90 degrees off."""
    split = turned(
        upright_index([(30, 40), (50, 31)], [(0, *CORNERS[0]), (1, *CORNERS[1])]), equal_directions(steps), rule
    )
    row = looked_all_around(split, truth_at(split, 90), rule == "centred", 0.5)
    assert row is not None
    quarters = {d: found["AP"] for d, found in row["rolls"].items() if d % 90 == 0}
    assert quarters == pytest.approx(dict.fromkeys((0, 90, 180, 270), 1))
    assert (row["orientation"]["accuracy"], row["orientation"]["mean_error"]) == (0, 90)


def test_every_roll_is_judged_by_itself():
    split = turned(upright_index([(30, 40)], [(0, *CORNERS[0])]), equal_directions(4), "enclosing")
    found = DetectionArrays(split.index.boxes[[0, 2]], np.array([0.9, 0.8]), np.zeros(2, int), np.array([0, 2]))
    rolls = per_roll(split, found)
    assert {d: row["AP50"] for d, row in rolls.items()} == pytest.approx({0: 1, 90: 0, 180: 1, 270: 0})


def test_looks_by_hand():
    """A 40x30 picture (30 high). A face found at 0 with 0.6, and the same face found at 90 with 0.8: it is one face
    after NMS, and the better look says its direction."""
    split = turned(upright_index([(30, 40)], [(0, 0.05, 0.1, 0.3, 8 / 30)]), equal_directions(4), "enclosing")
    assert split.index.boxes[0].tolist() == pytest.approx([2, 3, 12, 8])
    found = DetectionArrays(
        np.array([[2, 3, 12, 8], [3, 28, 8, 38], [20, 2, 30, 12]], np.float32),
        np.array([0.6, 0.8, 0.5]),
        np.array([0, 0, 0]),
        np.array([0, 1, 3]),
    )
    seen = all_looks(split.index, found, False, 0.5)
    assert seen is not None
    both, degrees = seen
    rows = sorted(zip(both.image_of_box.tolist(), both.scores.tolist(), degrees.tolist(), strict=True))
    # the third is found at 270, elsewhere in the picture
    assert rows == [
        (0, 0.5, 90), (0, 0.8, 270), (1, 0.5, 180), (1, 0.8, 0),
        (2, 0.5, 270), (2, 0.8, 90), (3, 0.5, 0), (3, 0.8, 180),
    ]  # fmt: skip
    first = both.boxes[(both.image_of_box == 0) & (both.scores == 0.8)]
    assert first.tolist() == [[2, 3, 12, 8]]
    upside = both.boxes[(both.image_of_box == 2) & (both.scores == 0.8)]
    assert upside.tolist() == [[28, 22, 38, 27]]
    # 20..30, 2..12 at 270 is turned back by 90: x = y of before, y = width 30 - x
    third = both.boxes[(both.image_of_box == 0) & (both.scores == 0.5)]
    assert third.tolist() == [[2, 0, 12, 10]]


def test_canvases_that_grew_twice():
    """At 45 degrees a 40x40 picture has a canvas of 57; turned on by 45 it would be 81, but is 40 at 90."""
    split = turned(upright_index([(40, 40)], [(0, 0.4, 0.4, 0.6, 0.6)]), equal_directions(8), "centred")
    seen = all_looks(split.index, truth_at(split, 45), True, 0.5)
    assert seen is not None
    middle = (seen[0].boxes[:, :2] + seen[0].boxes[:, 2:]) / 2
    assert np.allclose(middle, split.index.sizes[seen[0].image_of_box][:, ::-1] / 2, atol=1e-4)


def test_directions_without_all_looks():
    index = upright_index([(30, 40)], [(0, *CORNERS[0])])
    for directions in ((0, 90, 270), (90, 270), (0, 45), (0,)):
        split = turned(index, directions, "enclosing")
        assert looked_all_around(split, truth_at(split, directions[0]), False, 0.5) is None
    upright = Split(index, np.zeros(1, np.int64), ["face"])
    nothing = DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert looked_all_around(upright, nothing, False, 0.5) is None
    empty = all_looks(turned(index, (0, 180), "enclosing").index, nothing, False, 0.5)
    assert empty is not None
    assert len(empty[0].scores) == 0


def test_found_objects():
    """Two faces and a crowd: one is found weakly, twice; without objects nothing can be said."""
    builder = IndexBuilder(".")
    builder.image("a.png", 30, 40)
    builder.box((0, 0, 10, 10), 0)
    builder.box((20, 0, 30, 10), 0)
    builder.box((0, 15, 40, 30), 0, 1)
    split = Split(builder.build(["face"]), np.zeros(1, np.int64), ["face"])
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [25, 0, 35, 10], [0, 15, 40, 30]], float)
    found = DetectionArrays(boxes, np.array([0.2, 0.1, 0.9, 0.9]), np.zeros(4, int), np.zeros(4, int))
    assert found_objects(split, found) == {"objects": 2, "share": 0.5, "confident": 0.0}
    nothing = Split(IndexBuilder(".").build(["face"]), np.zeros(1, np.int64), ["face"])
    none = found_objects(nothing, found.take(np.zeros(0, int)))
    assert none["objects"] == 0
    assert np.isnan([none["share"], none["confident"]]).all()


# ------------------------------------------------------------------------------------------- tables


def rolls_row(ap: float, accuracy: float | None, **more: Any) -> dict[str, Any]:
    right = {"accuracy": accuracy, "mean_error": 10.0, "confident": {"accuracy": accuracy}}
    return {
        "AP": ap,
        "AP50": ap,
        "rolls": {"0": {"AP50": ap}, "90": {"AP50": ap / 2}},
        "found": {"objects": 8, "share": 0.75, "confident": 0.5},
        "orientation": None if accuracy is None else right,
        **more,
    }


def run_of(method: str, datasets: dict[str, Any] | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    config = {
        "seed": seed,
        "datasets": {"faces": {"directions": None if method == "upright" else [0, 90], "format": "coco"}},
        "labels": {"per_dataset": ["car"] if "per" in method else [], "open_members": method[-4:] == "open"},
        "train": {"lr": 0.01},
    }
    common = {"name": "x", "steps": 20, "diverged": None, "hardware": {"cpus": 2}, "config": config}
    return {"method": method, "seed": seed, "datasets": datasets, **common, **more}


def test_looks_are_a_line_of_their_own():
    looks = {"faces": rolls_row(0.6, 1.0, looks=2)}
    runs = [
        run_of("upright", {"faces": rolls_row(0.4, None)}, looks=looks),
        run_of("rotated", {"faces": rolls_row(0.5, None)}),
        run_of("directions", {"faces": rolls_row(0.5, 0.8)}),
    ]
    headers, lines, *_ = grids(runs)[0]
    assert [line[0] for line in lines] == [
        "upright pictures only", "upright, 2 looks (2 x inference)",
        "rotation as augmentation", "directions as classes",
    ]  # fmt: skip
    assert headers[2:] == [
        "AP", "AP50", "AP50 at 0°", "AP50 at 90°", "found %", "direction right, of found %", "mean error °",
        "found at 0.3 %", "direction right, of found at 0.3 %",
    ]  # fmt: skip
    assert lines[1] == [lines[1][0], "1", "60.0", "60.0", "60.0", "30.0", "75.0", "100.0", "10.0", "50.0", "100.0"]
    assert lines[0][6:] == ["75.0", "", "", "50.0", ""]
    assert len(grids([{**runs[0], "looks": {}}])[0].rows) == 1
    assert notes(runs) == (["Optimiser steps of every training: 20."], [])


def test_split_classes_have_columns_of_their_own():
    """The mean over all classes of `b` drowns `car`, the one class that is split; `a` labels no split class."""

    def rows(car: float) -> dict[str, Any]:
        per_class = {"car": {"AP": car, "AP50": car}, "dog": {"AP": 0.5, "AP50": None}}
        whole = {"AP": 0.5, "AP50": 0.5, "rolls": {}, "orientation": None}
        return {
            "a": {**whole, "per_class": {"dog": {"AP": 0.5, "AP50": 0.5}}},
            "b": {**whole, "per_class": per_class},
        }

    names = ("merged", "per_dataset", "per_dataset_open")
    runs = [run_of(m, rows(car), split_classes=["car"]) for m, car in zip(names, (0.1, 0.2, 0.3), strict=True)]
    headers, lines, *_ = grids(runs)[0]
    assert headers[4:] == ["a AP", "a AP50", "b AP", "b AP50", "b AP, split", "b AP50, split"]
    assert [line[-2:] for line in lines] == [["10.0"] * 2, ["20.0"] * 2, ["30.0"] * 2]
    assert [line[0] for line in lines][-1] == "the same, no negatives of each other"
    said, wrong = notes(runs)
    assert (said[0], wrong) == ("split: mean over the classes of `labels.per_dataset` alone (car).", [])


def test_methods_are_compared_seed_by_seed():
    runs = [
        run_of(method, {"faces": rolls_row(value, None)}, seed)
        for method, values in (
            ("upright", (0.4, 0.5, 0.6)),
            ("rotated", (0.5, 0.61, 0.72)),
            ("directions", (0.5, 0.6)),
        )
        for seed, value in enumerate(values)
    ]
    assert difference_grid(runs).rows == [
        ["rotated - upright", "AP50", "+11.0 ± 1.0", "3", "+8.5 to +13.5", "yes"],
        ["directions - rotated", "AP50", "-0.5 ± 0.7", "2 (of 2 and 3)", "", "2 seeds: not judged"],
    ]
    assert "| rotated - upright | AP50 | +11.0 ± 1.0 | 3 | +8.5 to +13.5 | yes |" in markdown(runs)


def test_what_does_not_compare_is_said_loudly():
    row = {"faces": rolls_row(0.4, None)}
    runs = [
        run_of("upright", row),
        run_of("rotated", row, steps=30),
        run_of("rotated", None, 1, steps=None, diverged="x"),
    ]
    [wrong] = notes(runs)[1]
    assert wrong == (
        "OPTIMISER STEPS DIFFER, the lines cannot be compared. 20: upright (seed 0); 30: rotated (seed 0)."
    )
    assert f"**{wrong}**" in markdown(runs)
    other = run_of("directions", row)
    other["config"]["train"]["lr"] = 0.02
    other["config"]["datasets"]["faces"]["directions"] = [0, 180]
    [wrong] = notes([run_of("rotated", row), other])[1]
    assert wrong.startswith("SETTINGS DIFFER between rotated (seed 0) and directions (seed 0), ")
    assert wrong.endswith(": datasets.faces.directions, train.lr.")
    console = Console(record=True, width=250)
    console.print(*rich_tables(grids(runs)))
    assert "rotation as augmentation" in console.export_text()
