"""`crossdet score wider_pedestrian`: both metrics worked out by hand, and what it says about wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import curves, refused, scored, write

OLD = "a.jpg 1 10 10 20 40 2 100 10 20 40\nb.jpg\n"
NEW = "a.jpg 10 10 20 40 100 10 20 40\nb.jpg\nc.jpg 5 5 8 16\n"
PEDESTRIAN = "a.jpg 0.9 10 10 20 40\n"
HALF = 51 / 101
"""COCO's AP where half of the boxes are found without mistake: 51 of 101 recalls."""


def files(folder: Path, boxes: str, found: str, ignore: str | None = None) -> list[object]:
    arguments: list[object] = ["wider_pedestrian", write(folder / "val.txt", boxes), write(folder / "s.txt", found)]
    return arguments if ignore is None else [*arguments, "--ignore", write(folder / "ignore.txt", ignore)]


def test_both_metrics_join_the_classes(tmp_path: Path) -> None:
    record, printed = scored(tmp_path, *files(tmp_path, OLD, PEDESTRIAN, ""))
    assert record["challenge"] == {"AP": 0.5, "per_iou": [0.5] * 10, "edition": 2018, "boxes": 2, "detections": 1}
    assert record["coco_style"] == {
        "AP": pytest.approx(HALF),
        "AP50": pytest.approx(HALF),
        "AP75": pytest.approx(HALF),
        "cyclists": "join",
    }
    assert record["ignore_regions"] == 0
    assert "challenge 2018 AP " in printed
    assert "COCO-style AP, ignore regions as crowd, cyclists joined" in printed


def test_the_metrics_differ_in_their_boxes_and_in_equality(tmp_path: Path) -> None:
    """Width 15 of 20: IoU 0.75 plain, which COCO takes at .75; inclusive pixels make it 16 / 21."""
    record, _ = scored(tmp_path, *files(tmp_path, "a.jpg 1 10 10 20 40\n", "a.jpg 0.9 10 10 15 40\n"))
    assert record["challenge"]["per_iou"] == [1] * 6 + [0] * 4
    assert record["coco_style"]["AP"] == pytest.approx(0.6)
    record, _ = scored(tmp_path, *files(tmp_path, "a.jpg 1 10 10 19 39\n", "a.jpg 0.9 10 10 9 39\n"))
    assert record["challenge"]["per_iou"] == [0] * 10  # exactly 0.5 is not more than 0.5


def test_cyclists_can_be_ignored_in_the_coco_style_numbers(tmp_path: Path) -> None:
    """The cyclist is found at the higher score, which is then neither right nor wrong."""
    found = PEDESTRIAN + "a.jpg 0.95 100 10 20 40\na.jpg 0.96 102 12 10 20\n"
    record, printed = scored(tmp_path, *files(tmp_path, OLD, found), "--cyclists", "ignore")
    assert record["coco_style"]["AP"] == pytest.approx(1)
    assert record["coco_style"]["cyclists"] == "ignore"
    assert record["challenge"]["AP"] < 1
    assert "COCO-style AP, no ignore regions, cyclists ignored" in printed


def test_ignore_regions(tmp_path: Path) -> None:
    """A false detection inside a region, above the right one, and a box inside a region that none has found."""
    boxes = "a.jpg 1 10 10 20 40 1 210 10 20 40\nb.jpg\n"
    found = "b.jpg 0.99 10 10 20 40\n" + PEDESTRIAN
    ignore = "b.jpg 0 0 100 100\na.jpg 200 0 100 100\n"
    without, printed = scored(tmp_path, *files(tmp_path, boxes, found))
    assert without["challenge"]["AP"] == pytest.approx(0.25)
    assert without["coco_style"]["AP"] == pytest.approx(HALF / 2)
    assert "no ignore regions were used (--ignore FILE)" in printed
    record, printed = scored(tmp_path, *files(tmp_path, boxes, found, ignore))
    assert (record["challenge"]["AP"], record["challenge"]["boxes"], record["challenge"]["detections"]) == (1, 1, 1)
    assert record["coco_style"]["AP"] == pytest.approx(HALF)  # a box in a region stays a box
    assert record["ignore_regions"] == 2
    assert "2 ignore regions used" in printed


def test_ignore_regions_of_other_images_are_reported(tmp_path: Path) -> None:
    record, printed = scored(tmp_path, *files(tmp_path, OLD, PEDESTRIAN, "x.jpg 1 1 5 5 2 2 5 5\nb.jpg 1 1 5 5\n"))
    assert record["ignore_regions"] == 1
    assert f"2 ignore regions of images that are not in {tmp_path / 'val.txt'} left out" in printed


def test_the_edition_is_found_and_can_be_given(tmp_path: Path) -> None:
    arguments = files(tmp_path, NEW, PEDESTRIAN)
    record, printed = scored(tmp_path, *arguments)
    assert record["challenge"]["edition"] == 2019
    assert record["challenge"]["AP"] == pytest.approx(1 / 3)
    assert "COCO-style AP, no ignore regions " in printed  # nothing to say about cyclists
    assert scored(tmp_path, *arguments, "--edition", "2019")[0] == record
    assert "edition 2018 was asked for" in refused(*arguments, "--edition", "2018")
    assert "edition 2019 has no class ids" in refused(*arguments, "--cyclists", "ignore")
    assert "its edition is open" in refused(*files(tmp_path, "a.jpg\n", ""))


def test_boxes_are_kept_as_they_stand(tmp_path: Path) -> None:
    """A box of no width is found by an equal detection in the challenge's inclusive pixels."""
    record, _ = scored(tmp_path, *files(tmp_path, "a.jpg 1 10 10 0 40 1 50 10 -3 40\n", "a.jpg 0.9 10 10 0 40\n"))
    assert record["challenge"]["boxes"] == 2
    assert record["challenge"]["AP"] == pytest.approx(0.5)


def test_no_detections_score_zero_and_no_boxes_have_no_number(tmp_path: Path) -> None:
    record, _ = scored(tmp_path, *files(tmp_path, OLD, "\n"))
    assert (record["challenge"]["AP"], record["coco_style"]["AP"]) == (0, 0)
    record, _ = scored(tmp_path, *files(tmp_path, "a.jpg\n", PEDESTRIAN), "--edition", "2018")
    assert (record["challenge"]["AP"], record["coco_style"]["AP"]) == (None, None)


def test_shuffled_lines_blanks_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    lines = ["a.jpg 0.9 10 10 20 40", "a.jpg 0.8 12 10 20 40", "b.jpg 0.95 1 1 9 9"]
    want, _ = scored(tmp_path, *files(tmp_path, OLD, "\n".join(lines)))
    assert 0 < want["challenge"]["AP"] < 0.5
    untidy = "\ufeff" + "\r\n".join([lines[1], "", f"{lines[2]}  ", lines[0], ""])
    assert scored(tmp_path, *files(tmp_path, OLD, untidy))[0] == want


def test_equal_scores_keep_the_order_of_the_file(tmp_path: Path) -> None:
    wrong = "b.jpg 0.9 10 10 20 40\n"
    first, _ = scored(tmp_path, *files(tmp_path, OLD, PEDESTRIAN + wrong))
    last, _ = scored(tmp_path, *files(tmp_path, OLD, wrong + PEDESTRIAN))
    assert (first["challenge"]["AP"], last["challenge"]["AP"]) == (0.5, 0.25)


@pytest.mark.parametrize("name", ["a.png", "a", "val/a.jpg", "val\\a.jpg"])
def test_an_unknown_image_is_named_with_a_hint(name: str, tmp_path: Path) -> None:
    message = refused(*files(tmp_path, OLD, f"{PEDESTRIAN}{name} 0.9 1 1 2 2\n{name} 0.8 1 1 2 2\n"))
    assert f"s.txt:2: image {name!r} is not in {tmp_path / 'val.txt'} (2 line(s) name it)" in message
    assert "write it as 'a.jpg', with that folder and extension" in message


def test_an_image_that_is_like_no_other_gets_no_hint(tmp_path: Path) -> None:
    assert refused(*files(tmp_path, OLD, "z.jpg 0.9 1 1 2 2\n")).endswith("(1 line(s) name it)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg nan 1 1 2 2", "s.txt:2: nan 1 1 2 2: expected finite numbers"),
        ("a.jpg 0.9 1 -inf 2 2", "s.txt:2: 0.9 1 -inf 2 2: expected finite numbers"),
        ("a.jpg 0.9 1 1 2", "s.txt:2: 5 field(s), expected 6: name score x y w h"),
        ("a.jpg 1 0.9 1 1 2 2", "s.txt:2: 7 field(s), expected 6: name score x y w h"),
        ("a.jpg 0.9 1 1 2 w", "s.txt:2: 'w' is no number, expected name score x y w h"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    assert message in refused(*files(tmp_path, OLD, f"{PEDESTRIAN}{line}\n"))


def test_wrong_ground_truth_is_named(tmp_path: Path) -> None:
    assert "val.txt:2: a coordinate of 'b.jpg' is no finite number" in refused(
        *files(tmp_path, "a.jpg 1 1 1 2 2\nb.jpg 1 1 nan 2 2\n", "")
    )
    assert "val.txt:2: 'a.jpg' is already listed at" in refused(*files(tmp_path, "a.jpg\na.jpg\n", ""))
    assert "ignore.txt:1: 3 numbers after 'a.jpg', expected a multiple of 4" in refused(
        *files(tmp_path, OLD, "", "a.jpg 1 2 3\n")
    )
    assert "ignore.txt:1: a coordinate of 'a.jpg' is no finite number" in refused(
        *files(tmp_path, OLD, "", "a.jpg 1 2 3 inf\n")
    )


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    _, boxes, found = files(tmp_path, OLD, PEDESTRIAN)
    assert f"{tmp_path}: cannot be read" in refused("wider_pedestrian", boxes, tmp_path)
    assert "none.txt: cannot be read" in refused("wider_pedestrian", tmp_path / "none.txt", found)
    (tmp_path / "s.txt").write_bytes(b"a.jpg 0.9 1 1 2 2\n\xff\xfe\n")
    assert "s.txt:2: byte 18 of the file is not text in UTF-8" in refused("wider_pedestrian", boxes, found)


def test_curves_of_both_metrics(tmp_path: Path) -> None:
    scored(tmp_path, *files(tmp_path, OLD, PEDESTRIAN), "--curves", tmp_path / "c")
    challenge, style = "wider_pedestrian challenge 2018", "wider_pedestrian coco-style"
    assert curves(tmp_path / "c") == {
        ("val", challenge, "IoU .50"): 0.5,
        ("val", challenge, "IoU .75"): 0.5,
        ("val", style, "AP50"): pytest.approx(HALF),
        ("val", style, "AP75"): pytest.approx(HALF),
    }
