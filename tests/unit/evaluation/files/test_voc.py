"""`crossdet score voc`: numbers worked out by hand, both layouts of results, and what it says about wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import curves, refused, scored, write

CAT = "cat", (1, 1, 10, 10)


def xml(*objects: tuple[str, tuple[object, ...]], difficult: bool | None = False) -> str:
    flag = "" if difficult is None else f"<difficult>{int(difficult)}</difficult>"
    text = ""
    for name, corners in objects:
        box = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        text += f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox></object>"
    return f"<annotation>{text}</annotation>"


def dataset(folder: Path, **results: str) -> tuple[Path, Path]:
    """Image a: cats at (1, 1, 10, 10) and (101, 1, 110, 10); image b: a dog; image c: nothing."""
    voc = folder / "VOC2007"
    write(voc / "Annotations" / "a.xml", xml(CAT, ("cat", (101, 1, 110, 10))))
    write(voc / "Annotations" / "b.xml", xml(("dog", (5, 5, 50, 60)), difficult=None))
    write(voc / "Annotations" / "c.xml", xml())
    write(voc / "ImageSets" / "Main" / "test.txt", "a\nb\nc\n")
    for name, text in results.items():
        write(folder / "dets" / f"{name}.txt", text)
    return voc, folder / "dets"


RIGHT_WRONG_RIGHT = "a 0.9 1 1 10 10\na 0.8 300 300 320 320\na 0.7 101 1 110 10\n"


def test_ap_by_area_and_by_eleven_points(tmp_path: Path) -> None:
    """Recall .5 .5 1, precision 1 .5 2/3: area .5 + .5 * 2/3; of eleven points six at 1 and five at 2/3."""
    paths = dataset(tmp_path, cat=RIGHT_WRONG_RIGHT, dog="b .3 5 5 50 60\n")
    record, printed = scored(tmp_path, "voc", *paths)
    assert record["per_class"]["cat"]["area"] == pytest.approx(5 / 6)
    assert record["per_class"]["cat"]["11pt"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert record["per_class"]["dog"] == {"area": 1, "11pt": 1, "objects": 1}
    assert record["mAP_area"] == pytest.approx((5 / 6 + 1) / 2)
    assert record["mAP_11pt"] == pytest.approx(((6 + 5 * 2 / 3) / 11 + 1) / 2)
    assert (record["iou"], record["inclusive"]) == (0.5, True)
    rows = [line.split() for line in printed.splitlines()]
    assert ["cat", "83.33", "84.85", "2"] in rows
    assert ["mAP", "91.67", "92.42", "3"] in rows


def test_shuffled_lines_blanks_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    want, _ = scored(tmp_path, "voc", *dataset(tmp_path, cat=RIGHT_WRONG_RIGHT))
    lines = RIGHT_WRONG_RIGHT.splitlines()
    shuffled = "\ufeff" + "\r\n".join([f" {lines[2]} ", lines[0], "", lines[1], "  ", ""])
    assert scored(tmp_path, "voc", *dataset(tmp_path, cat=shuffled))[0] == want


def test_equal_scores_keep_the_order_of_the_file(tmp_path: Path) -> None:
    wrong, right = "a .5 300 300 320 320\n", "a .5 1 1 10 10\na .5 101 1 110 10\n"
    first, _ = scored(tmp_path, "voc", *dataset(tmp_path, cat=right + wrong))
    last, _ = scored(tmp_path, "voc", *dataset(tmp_path, cat=wrong + right))
    assert first["per_class"]["cat"]["area"] == 1
    assert last["per_class"]["cat"]["area"] == pytest.approx(2 / 3)


def test_strict_wants_more_than_the_threshold(tmp_path: Path) -> None:
    """A box of 10 x 5 pixels in one of 10 x 10, corners inside: IoU 0.5 exactly."""
    paths = dataset(tmp_path, cat="a .9 1 1 10 5\na .8 101 1 110 10\n")
    inclusive, printed = scored(tmp_path, "voc", *paths)
    strict, printed_strict = scored(tmp_path, "voc", *paths, "--strict")
    assert inclusive["per_class"]["cat"]["area"] == 1
    assert strict["per_class"]["cat"]["area"] == pytest.approx(0.25)
    assert strict["inclusive"] is False
    assert "IoU >= 0.5" in printed
    assert "IoU > 0.5" in printed_strict


def test_the_threshold_can_be_set(tmp_path: Path) -> None:
    paths = dataset(tmp_path, cat="a .9 1 1 10 5\n")
    assert scored(tmp_path, "voc", *paths, "--iou", 0.6)[0]["per_class"]["cat"]["area"] == 0
    assert "IoU threshold: expected a number in (0, 1], got 0.0" in refused("voc", *paths, "--iou", 0)


def test_difficult_objects_do_not_count_and_parts_are_no_objects(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="a .9 1 1 10 10\nb .8 5 5 50 60\n")
    head = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    text = xml(("cat", (5.0, "5.5", 50, 60)), difficult=True).replace("</object>", f"{head}</object>")
    write(voc / "Annotations" / "b.xml", text)
    record, _ = scored(tmp_path, "voc", voc, dets)
    assert record["per_class"] == {"cat": {"area": 0.5, "11pt": pytest.approx(6 / 11), "objects": 2}}


def test_a_class_of_difficult_objects_only_has_no_number(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat=RIGHT_WRONG_RIGHT)
    write(voc / "Annotations" / "b.xml", xml(("dog", (5, 5, 50, 60)), difficult=True))
    record, _ = scored(tmp_path, "voc", voc, dets)
    assert record["per_class"]["dog"] == {"area": None, "11pt": None, "objects": 0}
    assert record["mAP_area"] == pytest.approx(5 / 6)


def test_a_box_without_area_is_kept_as_it_stands(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="a .9 9 9 9 9\n")
    write(voc / "Annotations" / "a.xml", xml(("cat", (9, 9, 9, 9)), ("cat", (20, 20, 10, 10))))
    record, _ = scored(tmp_path, "voc", voc, dets)
    assert record["per_class"]["cat"]["objects"] == 2
    assert record["per_class"]["cat"]["area"] == 0.5


def test_the_kits_own_file_names_are_found_with_their_whole_class_name(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, comp4_det_test_cat="a 1 1 1 10 10\n", comp4_det_test_wild_cat="b 1 5 5 50 60\n")
    write(voc / "Annotations" / "b.xml", xml(("wild_cat", (5, 5, 50, 60))))
    record, _ = scored(tmp_path, "voc", voc, dets)
    assert {name: row["area"] for name, row in record["per_class"].items()} == {"cat": 0.5, "wild_cat": 1}


@pytest.mark.parametrize("other", ["wild_cat", "comp4_det_test_wild_cat", "comp3_salt_det_val_wild_cat"])
def test_a_file_whose_name_only_ends_in_a_class_is_of_another_class(other: str, tmp_path: Path) -> None:
    """No wild_cat is in the ground truth; its detections must not count as those of cat."""
    voc, dets = dataset(tmp_path, **{other: "a 1 1 1 10 10\n", "comp4_a1-b2_det_test_dog": "b 1 5 5 50 60\n"})
    record, printed = scored(tmp_path, "voc", voc, dets)
    assert {name: row["area"] for name, row in record["per_class"].items()} == {"cat": 0, "dog": 1}
    assert f"left out: {other}.txt" in printed
    write(dets / "cat.txt", RIGHT_WRONG_RIGHT)
    assert scored(tmp_path, "voc", voc, dets)[0]["per_class"]["cat"]["area"] == pytest.approx(5 / 6)


def test_two_files_for_one_class_are_refused(tmp_path: Path) -> None:
    message = refused("voc", *dataset(tmp_path, cat="", comp4_det_test_cat=""))
    assert "several files for one class" in message
    assert "cat: cat.txt, comp4_det_test_cat.txt" in message


def test_classes_without_a_file_and_files_without_a_class_are_reported(tmp_path: Path) -> None:
    record, printed = scored(tmp_path, "voc", *dataset(tmp_path, cat=RIGHT_WRONG_RIGHT, cow="x"))
    assert record["per_class"]["dog"] == {"area": 0, "11pt": 0, "objects": 1}
    assert record["mAP_area"] == pytest.approx(5 / 12)
    assert "1 class(es) without a file count as not detected: dog" in printed
    assert "1 file(s) of no class of the ground truth left out: cow.txt" in printed


def test_empty_results_score_zero(tmp_path: Path) -> None:
    record, _ = scored(tmp_path, "voc", *dataset(tmp_path, cat="", dog="\n"))
    assert (record["mAP_area"], record["mAP_11pt"]) == (0, 0)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    message = refused("voc", *dataset(tmp_path, cow=""))
    assert "no results of any class (such as cat.txt or comp4_det_test_cat.txt)" in message
    assert "such as cow.txt" in message
    voc, dets = dataset(tmp_path)
    assert "cannot be listed" in refused("voc", voc, tmp_path / "none")
    assert "cannot be listed" in refused("voc", voc, dets / "cow.txt")


def test_an_image_set_limits_the_images(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat=RIGHT_WRONG_RIGHT)
    own = write(tmp_path / "own.txt", "a\n")
    assert scored(tmp_path, "voc", voc, dets, "--image-set", own)[0]["per_class"].keys() == {"cat"}
    assert scored(tmp_path, "voc", voc, dets, "--image-set", "test")[0]["per_class"].keys() == {"cat", "dog"}
    message = refused("voc", voc, dets, "--image-set", "val")
    assert "image set 'val': neither the file val nor" in message
    write(tmp_path / "notes.txt", "")
    message = refused("voc", voc, dets, "--image-set", tmp_path / "gone.txt")
    assert "image sets there are test" in message
    assert "notes" not in message
    assert "the image sets there are test" in message


def test_detections_outside_the_image_set_are_refused_with_their_count(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="a .5 1 1 2 2\nb .5 1 1 2 2\nb .4 1 1 2 2\n", dog="a.jpg .5 1 1 2 2\n")
    own = write(tmp_path / "own.txt", "a\n")
    assert f"{dets / 'cat.txt'}:2: image 'b' is not in {own} (2 line(s) name it)" in refused(
        "voc", voc, dets, "--image-set", own
    )
    message = refused("voc", voc, dets)
    assert f"{dets / 'dog.txt'}:1: image 'a.jpg' is not in {voc / 'Annotations'} (1 line(s) name it)" in message
    assert "write it as 'a'" in message


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="")
    own = write(tmp_path / "own.txt", "a\nb\na\n")
    assert f"{own}:3: 'a' is already listed on line 1" in refused("voc", voc, dets, "--image-set", own)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a nan 1 1 2 2", "cat.txt:2: nan 1 1 2 2: expected finite numbers"),
        ("a .5 1 1 inf 2", "cat.txt:2: 0.5 1 1 inf 2: expected finite numbers"),
        ("a .5 1 1 2", "cat.txt:2: 5 field(s), expected 6: image score xmin ymin xmax ymax"),
        ("a .5 1 1 2 2 3", "cat.txt:2: 7 field(s), expected 6: image score xmin ymin xmax ymax"),
        ("a .5 1 one 2 2", "cat.txt:2: 'one' is no number, expected image score xmin ymin xmax ymax"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    text = f"a .5 1 1 2 2\n{line}\n"
    assert message in refused("voc", *dataset(tmp_path, cat=text))


def test_all_wrong_lines_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    message = refused("voc", *dataset(tmp_path, cat="a\nz .5 1 1 2 2\n", dog="a b c d e f\n"))
    assert all(part in message for part in ("cat.txt:1:", "cat.txt:2:", "dog.txt:1:"))


def test_image_names_may_hold_spaces(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="my cat .9 1 1 10 10\n")
    write(voc / "Annotations" / "my cat.xml", xml(CAT))
    assert scored(tmp_path, "voc", voc, dets)[0]["per_class"]["cat"]["area"] == pytest.approx(1 / 3)


def test_wrong_ground_truth_is_named(tmp_path: Path) -> None:
    voc, dets = dataset(tmp_path, cat="")
    write(voc / "Annotations" / "a.xml", xml(("cat", (1, "nan", 2, 2)), ("cat", (1, 1, 2, "x"))))
    message = refused("voc", voc, dets)
    assert "a.xml:1: <bndbox> of 'cat' is 1 nan 2 2, expected finite numbers" in message
    assert "a.xml:1: <bndbox> of 'cat' has ymax 'x'" in message
    assert "VOC_DIR is the folder with Annotations" in refused("voc", voc / "Annotations", dets)
    (dets / "cat.txt").write_bytes(b"a .5 1 1 2 2\n\xff\n")
    write(voc / "Annotations" / "a.xml", xml(CAT))
    assert "cat.txt:2: byte 13 of the file is not text in UTF-8" in refused("voc", voc, dets)


def test_an_empty_set_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    assert "no image; expected *.xml files" in refused("voc", tmp_path / "voc", tmp_path)


def test_one_curve_per_class(tmp_path: Path) -> None:
    paths = dataset(tmp_path, cat=RIGHT_WRONG_RIGHT, dog="")
    scored(tmp_path, "voc", *paths, "--curves", tmp_path / "c")
    assert curves(tmp_path / "c") == {("VOC2007", "voc", "cat"): pytest.approx(5 / 6), ("VOC2007", "voc", "dog"): 0}
