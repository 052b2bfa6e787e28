"""`crossdet score wider_face`: the .mat lists, the prediction files, and numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from crossdet.errors import UserError
from crossdet.evaluation.files.wider_face_lists import read_wider_face_truth, write_wider_face_lists

from .helpers import curves, refused, scored, write

NAMES = ("0--Parade/p_1", "0--Parade/p_2", "1--Fair/f_1")
BOXES = np.array([[10, 10, 20, 20], [100, 10, 40, 40], [5, 5, 30, 30], [60, 60, 6, 0]])
IMAGES = np.array([0, 0, 1, 1])
KEPT = {
    "easy": np.array([False, True, False, False]),
    "medium": np.array([True, True, False, False]),
    "hard": np.array([True, True, True, True]),
}


def lists(folder: Path) -> Path:
    write_wider_face_lists(folder / "gt", NAMES, BOXES, IMAGES, KEPT)
    return folder / "gt"


def predictions(folder: Path, *texts: str | None) -> Path:
    for name, text in zip(NAMES, texts, strict=True):
        if text is not None:
            write(folder / "pred" / f"{name}.txt", text)
    return folder / "pred"


FIRST = "p_1\n2\n10 10 20 20 0.8\n100 10 40 40 0.8\n"
SECOND = "p_2\n1\n5 5 30 30 0.8\n"
NONE = "f_1\n0\n"


def test_faces_outside_the_setting_count_neither_way(tmp_path: Path) -> None:
    """All detections are right and score alike; hard has a fourth face, without area, that none has found."""
    record, printed = scored(tmp_path, "wider_face", lists(tmp_path), predictions(tmp_path, FIRST, SECOND, NONE))
    assert (record["easy"], record["medium"], record["hard"]) == (1, 1, pytest.approx(3 / 4))
    assert record["faces"] == {"easy": 1, "medium": 2, "hard": 4}
    assert (record["images"], record["missing"], record["unknown"]) == (3, [], [])
    rows = [line.split() for line in printed.splitlines()]
    assert ["hard", "75.00", "4"] in rows
    assert "all scores are equal: here every detection counts at the last threshold" in printed


def test_a_false_positive_above_all_others(tmp_path: Path) -> None:
    """Scaled to 1, the others to 0: precision 1/2, 2/3 and 3/4 once all count; recall of hard is 3/4."""
    wrong = "p_2\n2\n300 300 9 9 3.5\n5 5 30 30 0.8"
    record, _ = scored(tmp_path, "wider_face", lists(tmp_path), predictions(tmp_path, FIRST, wrong, NONE))
    assert record["easy"] == pytest.approx(1 / 2)
    assert record["medium"] == pytest.approx(2 / 3)
    assert record["hard"] == pytest.approx(3 / 4 * 3 / 4)


def test_the_matlab_arithmetic_takes_the_first_face_above_one_half(tmp_path: Path) -> None:
    """Faces kept: the second only. The detection overlaps the first by more than half, the second entirely."""
    boxes = np.array([[10, 10, 40, 40], [10, 10, 40, 50]])
    only = {key: np.array([False, True]) for key in KEPT}
    write_wider_face_lists(tmp_path / "gt", ["e/a"], boxes, np.array([0, 0]), only)
    write(tmp_path / "pred" / "e" / "a.txt", "a\n1\n10 10 40 50 0.9\n")
    double, _ = scored(tmp_path, "wider_face", tmp_path / "gt", tmp_path / "pred")
    integers, printed = scored(
        tmp_path, "wider_face", tmp_path / "gt", tmp_path / "pred", "--arithmetic", "matlab_int32"
    )
    assert (double["hard"], integers["hard"]) == (1, 0)
    assert "matlab_int32 arithmetic" in printed


def test_shuffled_lines_spaces_blanks_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    text = "p_1\n3\n10 10 20 20 0.8\n100 10 40 40 0.7\n200 0 5 5 .75\n"
    want, _ = scored(tmp_path, "wider_face", lists(tmp_path), predictions(tmp_path, text, SECOND, NONE))
    untidy = "\ufeff\r\n 3 \r\n200 0 5 5 .75 \r\n100  10 40\t40 0.7\r\n10 10 20 20 0.8  \r\n \r\n\r\n"
    have, _ = scored(tmp_path, "wider_face", lists(tmp_path), predictions(tmp_path, untidy, SECOND, NONE))
    assert have == want


def test_missing_and_unknown_files_are_listed(tmp_path: Path) -> None:
    folder = predictions(tmp_path, FIRST, None, None)
    write(folder / "0--Parade" / "p_9.txt", "not read")
    write(folder / "notes.txt", "not read")
    record, printed = scored(tmp_path, "wider_face", lists(tmp_path), folder)
    assert record["missing"] == ["0--Parade/p_2", "1--Fair/f_1"]
    assert record["unknown"] == ["0--Parade/p_9.txt", "notes.txt"]
    assert record["hard"] == pytest.approx(2 / 4)
    assert "2 of 3 images have no prediction file and count as without detections: 0--Parade/p_2" in printed
    assert "2 prediction file(s) of no image of the set left out: 0--Parade/p_9.txt, notes.txt" in printed


def test_no_detections_at_all_score_zero(tmp_path: Path) -> None:
    folder = predictions(tmp_path, "p_1\n0\n", "p_2\n0", NONE)
    record, printed = scored(tmp_path, "wider_face", lists(tmp_path), folder)
    assert (record["easy"], record["medium"], record["hard"]) == (0, 0, 0)
    assert "all scores are equal" not in printed


def test_a_setting_without_faces_has_no_number(tmp_path: Path) -> None:
    write_wider_face_lists(tmp_path / "gt", NAMES, BOXES, IMAGES, KEPT | {"easy": np.zeros(4, bool)})
    record, _ = scored(tmp_path, "wider_face", tmp_path / "gt", predictions(tmp_path, FIRST, SECOND, NONE))
    assert (record["easy"], record["faces"]["easy"]) == (None, 0)


def test_the_wrong_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    folder = predictions(tmp_path, FIRST, SECOND, NONE)
    message = refused("wider_face", lists(tmp_path), tmp_path)
    assert "no prediction file of any of the 3 images" in message
    assert f"The events lie in {folder}" in message
    write(tmp_path / "other" / "x.txt", "")
    message = refused("wider_face", lists(tmp_path), tmp_path / "other")
    assert "Its 1 .txt files belong to no image, such as x.txt" in message
    assert "cannot be listed" in refused("wider_face", lists(tmp_path), tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p_1\n3\n10 10 20 20 .8\n1 1 1 1 .1\n", "p_1.txt:2: the count is 3, but 2 line(s) follow"),
        ("p_1\n0\n10 10 20 20 .8\n", "p_1.txt:2: the count is 0, but 1 line(s) follow"),
        ("p_1\n2\n10 10 20 20 .8\n\n1 1 1 1 .1\n", "p_1.txt:2: the count is 2, but 3 line(s) follow"),
        ("p_1\n10 10 20 20 .8\n", "p_1.txt:2: '10 10 20 20 .8', expected the number of detections"),
        ("p_1\n", "p_1.txt:2: no line, expected the number of detections"),
        ("", "p_1.txt:2: no line, expected the number of detections"),
        ("p_1\n1\n10 10 20 20 nan\n", "p_1.txt:3: '10 10 20 20 nan', expected five finite numbers x y w h score"),
        ("p_1\n1\n10 10 inf 20 1\n", "p_1.txt:3: '10 10 inf 20 1', expected five finite numbers"),
        ("p_1\n1\n10 10 ten 20 1\n", "p_1.txt:3: '10 10 ten 20 1', expected five finite numbers"),
        ("p_1\n1\n10,10,20,20,1\n", "p_1.txt:3: '10,10,20,20,1', expected five finite numbers"),
        ("p_1\n2\n10 10 20 20\n1 1 1 1 1 .5\n", "p_1.txt:4: '1 1 1 1 1 .5', expected five finite numbers"),
    ],
)
def test_a_wrong_prediction_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused("wider_face", lists(tmp_path), predictions(tmp_path, text, SECOND, NONE))


def test_a_folder_in_place_of_a_file_and_other_encodings_are_named(tmp_path: Path) -> None:
    folder = predictions(tmp_path, None, SECOND, NONE)
    (folder / f"{NAMES[0]}.txt").mkdir(parents=True)
    (folder / f"{NAMES[1]}.txt").write_bytes(b"n\xe4me\n1\n1 1 1 1 \xe4\n")
    message = refused("wider_face", lists(tmp_path), folder)
    assert "p_1.txt: cannot be read (Is a directory)" in message
    assert "p_2.txt:3: '1 1 1 1 �', expected five finite numbers" in message


def test_a_curve_per_setting(tmp_path: Path) -> None:
    scored(tmp_path, "wider_face", lists(tmp_path), predictions(tmp_path, FIRST, SECOND, NONE),
           "--curves", tmp_path / "c")  # fmt: skip
    assert curves(tmp_path / "c") == {
        ("gt", "wider_face", "easy"): 1,
        ("gt", "wider_face", "medium"): 1,
        ("gt", "wider_face", "hard"): pytest.approx(3 / 4),
    }


# ------------------------------------------------------------------------------------------- .mat files


def test_the_lists_have_the_official_layout(tmp_path: Path) -> None:
    content = loadmat(lists(tmp_path) / "wider_hard_val.mat")
    assert [e.item() for e in content["event_list"][:, 0]] == ["0--Parade", "1--Fair"]
    assert [f.item() for f in content["file_list"][0, 0][:, 0]] == ["p_1", "p_2"]
    boxes = content["face_bbx_list"][0, 0][1, 0]
    assert boxes.tolist() == BOXES[2:].tolist()
    assert boxes.dtype == np.int32
    assert content["face_bbx_list"][1, 0][0, 0].shape == (0, 4)
    numbers = content["gt_list"][0, 0][0, 0]
    assert (numbers.tolist(), numbers.dtype) == ([[1], [2]], np.uint8)
    assert "gt_list" not in loadmat(tmp_path / "gt" / "wider_face_val.mat")


@given(data=st.data(), images=st.integers(1, 6), boxes=st.integers(0, 12), fractional=st.booleans())
@settings(max_examples=25, deadline=None)
def test_round_trip(
    data: st.DataObject, images: int, boxes: int, fractional: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    names = [f"{row // 2}--Event/image {row}" for row in range(images)]
    given_boxes = rng.integers(-5, 500, (boxes, 4)) + (0.25 if fractional else 0)
    rows = np.sort(rng.integers(0, images, boxes))
    kept = {key: rng.random(boxes) < 0.5 for key in KEPT}
    write_wider_face_lists(folder, names, given_boxes, rows, kept)
    found = read_wider_face_truth(folder)
    assert list(found.names) == names
    np.testing.assert_array_equal(found.truth.boxes, given_boxes)
    np.testing.assert_array_equal(found.truth.image_of_box, rows)
    assert list(found.truth.kept) == ["easy", "medium", "hard"]
    for key, mask in kept.items():
        np.testing.assert_array_equal(found.truth.kept[key], mask)


def test_images_come_back_event_by_event_with_their_own_boxes(tmp_path: Path) -> None:
    names, rows = ["a/1", "b/1", "a/2"], np.array([2, 0, 1, 2])
    write_wider_face_lists(tmp_path, names, BOXES, rows, KEPT)
    found = read_wider_face_truth(tmp_path)
    assert found.names == ("a/1", "a/2", "b/1")
    assert found.truth.boxes.tolist() == BOXES[[1, 0, 3, 2]].tolist()
    assert found.truth.kept["easy"].tolist() == [True, False, False, False]


def test_an_image_of_more_than_255_faces_keeps_all(tmp_path: Path) -> None:
    kept = {key: np.arange(300) >= 250 for key in KEPT}
    write_wider_face_lists(tmp_path, ["a/1"], np.full((300, 4), 9), np.zeros(300, int), kept)
    np.testing.assert_array_equal(read_wider_face_truth(tmp_path).truth.kept["hard"], kept["hard"])


def test_missing_lists_are_told_at_once(tmp_path: Path) -> None:
    folder = lists(tmp_path)
    (folder / "wider_face_val.mat").unlink()
    (folder / "wider_hard_val.mat").unlink()
    with pytest.raises(UserError, match=r"without wider_face_val\.mat, wider_hard_val\.mat; "):
        read_wider_face_truth(folder)
    with pytest.raises(UserError, match="no such folder"):
        read_wider_face_truth(tmp_path / "none")


def change(file: Path, **values: Any) -> None:
    content = {key: value for key, value in loadmat(file).items() if key[0] != "_"}
    savemat(file, {key: value for key, value in (content | values).items() if value is not None})


def gt_list(*cells: object) -> Any:
    inner = np.empty((2, 1), object)
    inner[0, 0], inner[1, 0] = np.empty((2, 1), object), np.empty((1, 1), object)
    inner[0, 0][0, 0], inner[0, 0][1, 0], inner[1, 0][0, 0] = cells
    return inner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gt_list": gt_list([[3]], [], [])}, "gt_list, 0--Parade/p_1: face 3, expected numbers in 1..2"),
        ({"gt_list": gt_list([], [[0]], [])}, "gt_list, 0--Parade/p_2: face 0, expected numbers in 1..2"),
        ({"gt_list": gt_list([], [], [[1]])}, "gt_list, 1--Fair/f_1: face 1, expected numbers in 1..0"),
        ({"gt_list": gt_list([[1.5]], [], [])}, "gt_list, 0--Parade/p_1: float64 values that are no whole"),
        ({"gt_list": gt_list([[1], [1]], [], [])}, "gt_list, 0--Parade/p_1: a face is listed more than once"),
        ({"gt_list": None}, "without the variable gt_list"),
        ({"gt_list": [[1, 2]]}, "gt_list is no cell array"),
        ({"gt_list": gt_list([], [], [])[:1]}, "gt_list has 1 events, event_list 2"),
        ({"event_list": gt_list([], [], [])}, "event_list[0] is no text"),
        (
            {"face_bbx_list": gt_list(BOXES[:2], BOXES[2:] + 1, np.zeros((0, 4)))},
            "other boxes than wider_face_val.mat in 1 images, the first 0--Parade/p_2",
        ),
        (
            {"face_bbx_list": gt_list(BOXES[:1], BOXES[2:], np.zeros((0, 4)))},
            "other boxes than wider_face_val.mat in 1 images, the first 0--Parade/p_1",
        ),
        (
            {"face_bbx_list": gt_list(BOXES[:, :3], BOXES, [])},
            "face_bbx_list, 0--Parade/p_1: int64 of shape [4, 3]",
        ),
        (
            {"face_bbx_list": gt_list(BOXES[:2], BOXES[2:] * np.nan, [])},
            "face_bbx_list, 0--Parade/p_2: a coordinate that is no finite number",
        ),
        ({"file_list": gt_list("p_1", "p_3", "f_1")}, "0--Parade/p_3 in place of 0--Parade/p_2"),
        ({"file_list": gt_list("p_1", "p_1", "f_1")}, "file_list has 0--Parade/p_1 more than once"),
    ],
)
def test_malformed_lists_are_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = lists(tmp_path)
    change(folder / "wider_medium_val.mat", **values)
    with pytest.raises(UserError) as error:
        read_wider_face_truth(folder)
    assert f"{folder / 'wider_medium_val.mat'}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no MATLAB", b"MATLAB 5.0 MAT-file" + bytes(300)])
def test_a_file_that_is_no_mat_is_named(content: bytes, tmp_path: Path) -> None:
    folder = lists(tmp_path)
    (folder / "wider_easy_val.mat").write_bytes(content)
    with pytest.raises(UserError, match="wider_easy_val"):
        read_wider_face_truth(folder)
