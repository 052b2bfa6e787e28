"""`inspect` and the files of images: sizes, orientation, broken and double ones."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossdet.check import inspect
from crossdet.check.files import same_content
from crossdet.check.inspection import repeated_objects
from crossdet.check.near import thumbnails_of
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.decoding import read_image
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import IndexBuilder
from crossdet.errors import UserError
from crossdet.runs.building import check_trainable
from crossdet.types import Flag

from .made import BOX, configured, make, one_box, printed

# ---------------------------------------------------------------------------------------------- image files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_no_picture(tmp_path):
    """To read one is to wait for who writes into it."""
    index = make(tmp_path / "a", ("cat",), one_box(3))
    (tmp_path / "a/1.png").unlink()
    os.mkfifo(tmp_path / "a/1.png")
    report = inspect(configured({"a": {"train": index}}), decode=True)
    assert "a/1.png" in " ".join(report.splits[0].files.unreadable.first)
    assert thumbnails_of([tmp_path / "a/1.png"]).sum() == 0


def test_missing_broken_and_foreign_pictures(tmp_path):
    index = make(tmp_path / "a", ("cat",), one_box(6))
    (tmp_path / "a/0.png").unlink()
    (tmp_path / "a/1.png").write_bytes(b"no picture")
    Image.new("RGB", (48, 64)).save(tmp_path / "a/2.png")  # sideways, and nothing says so
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(tmp_path / "a/3.png", exif=exif)  # sideways, to be turned
    report = inspect(configured({"a": {"train": index}}))
    files = report.splits[0].files
    assert files.checked == 6
    assert files.missing.first == (str(tmp_path / "a/0.png"),)
    assert files.unreadable.first == (str(tmp_path / "a/1.png"),)
    assert files.contradicting.first == (
        f"{tmp_path / 'a/2.png'}: the picture is 48x64, its annotation says 64x48",
    )
    assert f"a train: 1 of 6 image files are missing, such as {tmp_path / 'a/0.png'}" in report.warnings
    assert len([w for w in report.warnings if "of 6 image files" in w]) == 3
    assert report.errors == ()
    assert "Image files: 3 of 6 cannot be used, see below." in printed(report)


def test_where_missing_pictures_probably_are(tmp_path):
    """COCO whose export names them below another folder; and one picture with another ending."""
    index = make(tmp_path / "a", ("cat",), one_box(6))
    write_coco(index, tmp_path / "all.json")
    (tmp_path / "a/3.png").rename(tmp_path / "a/3.jpg")
    (tmp_path / "a/4.png").rename(tmp_path / "a/4.PNG")  # which is found
    files = {"images": str(tmp_path / "a"), "annotations": str(tmp_path / "all.json")}
    config = {"datasets": {"a": {"format": "coco", "train": files}}, "model": {"weights": "none"}}
    assert (
        f"a train: 1 of 6 image files are missing, such as {tmp_path}/a/3.png; {tmp_path}/a/3.jpg is there: did "
        "the export write other names?"
    ) in inspect(Config.from_dict(config)).warnings
    assert f"is {tmp_path}/a/4.PNG" in printed(inspect(Config.from_dict(config)), 800)
    files["images"] = str(tmp_path)
    (error,) = inspect(Config.from_dict(config)).errors
    assert error == (
        f"datasets.a.train: none of its image files can be used (6 missing), such as {tmp_path}/0.png; "
        f"{tmp_path}/a/0.png is there: did the export write other paths? With `images: {tmp_path}/a` it is found"
    )


def marked(path: Path, size: tuple[int, int], orientation: int) -> str:
    """A picture of (width, height) with an EXIF mark; its place as the report tells it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return f"{path} (orientation {orientation})"


@pytest.mark.parametrize("seed", range(20))
def test_objects_that_are_there_twice_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    builder = IndexBuilder("/pictures")
    wanted, row = [], 0
    for image in range(4):
        builder.image(f"{image}.jpg", 10, 10)
        seen = set()
        for _ in range(rng.integers(0, 8)):
            x, y, label = *(rng.integers(0, 2, 2) * 0.5).tolist(), int(rng.integers(0, 2))
            crowd = bool(rng.random() < 0.2)
            builder.box((x, y, x + 3, y + 3), label, Flag.CROWD if crowd else 0)
            if not crowd and (label, x, y) in seen:
                wanted.append(row)
            seen |= set() if crowd else {(label, x, y)}
            row += 1
    assert repeated_objects(builder.build(("a", "b"))).tolist() == wanted


def test_objects_that_are_there_twice_are_told(tmp_path):
    index = make(tmp_path, ("car",), [[(0, BOX, 0), (0, BOX, 0), (0, (1, 1, 9, 9), 0)]])
    report = inspect(configured({"street": {"train": index}}))
    (found,) = [text for text in report.warnings if "second time" in text]
    assert found.startswith("street train: 1 of 3 boxes are there a second time (same picture, class and box), ")
    assert f"{tmp_path}/0.png (car): both count" in found


def test_exif_that_the_size_does_not_decide(tmp_path):
    """Turned by half or mirrored, or any mark on a square picture: training reads it as stored, predict upright."""
    index = make(tmp_path / "a", ("cat",), one_box(9))
    half, mirrored, flipped = (marked(tmp_path / f"a/{n}.png", (64, 48), o) for n, o in ((0, 3), (1, 2), (2, 4)))
    marked(tmp_path / "a/3.png", (48, 64), 6)  # turned by a quarter, and the annotated size says so
    marked(tmp_path / "a/4.png", (64, 48), 6)  # as stored, and the annotated size says so
    marked(tmp_path / "a/5.png", (64, 48), 1)
    marked(tmp_path / "a/6.png", (64, 48), 77)  # means nothing
    Image.new("RGB", (48, 64)).save(tmp_path / "a/7.png")
    square = make(tmp_path / "b", ("cat",), one_box(2))
    square = replace(square, sizes=np.full((2, 2), 48, np.int32))
    turned = [marked(tmp_path / f"b/{n}.png", (48, 48), o) for n, o in ((0, 8), (1, 5))]
    report = inspect(configured({"a": {"train": index, "val": square}}))
    train, val = (split.files for split in report.splits)
    assert (train.exif_orientation.count, train.exif_orientation.first) == (3, (half, mirrored, flipped))
    assert (val.exif_orientation.count, val.exif_orientation.first) == (2, tuple(turned))
    assert train.contradicting.count == train.bad == 1
    (warning,) = (w for w in report.warnings if w.startswith("a train: EXIF"))
    assert f"3 of 9 image files, such as {half}" in warning
    assert "`predict` turns them upright" in warning
    assert [w for w in report.warnings if w.startswith("a val: EXIF would turn or mirror 2 of 2 image files")]
    told = json.loads(report.to_json())["splits"][0]["files"]["exif_orientation"]
    assert told == {"count": 3, "first": [half, mirrored, flipped]}
    # what the report says is what is read
    for row in (0, 1, 2):
        path = tmp_path / f"a/{row}.png"
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (48, 64, 3), np.uint8)).save(
            path, exif=Image.open(path).getexif()
        )
        assert not torch.equal(read_image(path, (48, 64)), read_image(path, (48, 64), upright=True))


def test_exif_of_a_quarter_where_the_sizes_are_those_of_the_files(tmp_path):
    """WIDER FACE tells no sizes, so what is stored decides nothing. YOLO's pictures are turned by any mark."""
    index = make(tmp_path / "images/train", ("face",), one_box(2))
    write_yolo(index, tmp_path, "train")
    write_wider_face(index, tmp_path / "faces.txt")
    told = marked(tmp_path / "images/train/0.png", (64, 48), 6)
    marked(tmp_path / "images/train/1.png", (64, 48), 3)
    faces = {"images": tmp_path / "images/train", "annotations": tmp_path / "faces.txt"}
    report = inspect(configured({"a": {"format": "wider_face", "train": faces}}))
    assert told in report.splits[0].files.exif_orientation.first
    report = inspect(configured({"a": {"format": "yolo", "train": {"annotations": tmp_path / "data.yaml"}}}))
    assert report.splits[0].files.exif_orientation.count == report.splits[0].files.bad == 0


@pytest.mark.parametrize(("suffix", "differ"), [("jpg", True), ("png", True), ("webp", True), ("tif", False)])
def test_exif_counts_in_formats_that_training_and_predict_read_differently(suffix, differ, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / f"0.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    assert torch.equal(read_image(path), read_image(path, upright=True)) is not differ
    builder = IndexBuilder(tmp_path)
    builder.image(path.name, 48, 64)
    builder.box(BOX, 0)
    report = inspect(configured({"a": {"train": builder.build(("cat",))}}))
    assert report.splits[0].files.exif_orientation.count == differ


def test_a_yolo_image_that_cannot_be_read_is_named_once(tmp_path):
    index = make(tmp_path / "images/train", ("cat",), one_box(3))
    write_yolo(index, tmp_path, "train")
    (tmp_path / "images/train/1.png").write_bytes(b"")
    report = inspect(configured({"a": {"format": "yolo", "train": {"annotations": tmp_path / "data.yaml"}}}))
    assert report.splits[0].skipped == {}
    assert report.splits[0].files.unreadable.count == 1


def test_images_without_label_files_are_told(tmp_path):
    index = make(tmp_path / "images/train", ("cat",), one_box(3))
    write_yolo(index, tmp_path, "train")
    (tmp_path / "labels/train/1.txt").unlink()
    report = inspect(configured({"a": {"format": "yolo", "train": {"annotations": tmp_path / "data.yaml"}}}))
    (warning,) = report.warnings
    assert warning.startswith(
        f"a train: 1 images have no label file, such as {tmp_path}/images/train/1.png, and count"
    )
    assert "left out" not in printed(report)


def test_label_files_without_a_picture_are_told(tmp_path):
    """A note where their pictures were taken away, a warning where one may be of a renamed one."""
    write_yolo(make(tmp_path / "images/train", ("cat",), one_box(8)), tmp_path, "train")
    for name in (0, 1):
        (tmp_path / f"images/train/{name}.png").unlink()
    config = configured({"a": {"format": "yolo", "train": {"annotations": tmp_path / "data.yaml"}}})
    report = inspect(config)
    assert report.warnings == ()
    note = f"a train, 2 x label file without an image, such as {tmp_path}/labels/train/0.txt"
    assert note in printed(report, 400)
    (tmp_path / "images/train/2.png").rename(tmp_path / "images/train/img 2.png")
    (warning,) = inspect(config).warnings
    assert warning == (
        f"a train: 1 images have no label file, such as {tmp_path}/images/train/img 2.png, and count as pictures "
        f"without any object. 3 label files have no picture, such as {tmp_path}/labels/train/0.txt: are they of "
        "these pictures, by names of before? Then their objects are background; give a picture and its label file "
        "one name. If nobody has labelled them, take them out"
    )
    assert "label file without" not in printed(inspect(config), 400)


def test_nothing_usable_is_an_error(tmp_path):
    index = make(tmp_path / "a", ("cat",), one_box(2))
    for number in range(2):
        (tmp_path / f"a/{number}.png").unlink()
    report = inspect(configured({"a": {"train": index}}))
    first = tmp_path / "a/0.png"
    assert report.errors == (f"datasets.a.train: none of its image files can be used (2 missing), such as {first}",)
    assert not [w for w in report.warnings if "missing" in w]
    assert "1 error(s)" in printed(report)
    assert "training would fail" in printed(report)


def test_swapped_annotations_are_named(tmp_path):
    train, val = (make(tmp_path / split, ("cat",), one_box(2)) for split in ("train", "val"))
    for number in range(2):
        (tmp_path / f"val/{number}.png").rename(tmp_path / f"val/v{number}.png")
    val = replace(val, names=type(val.names).pack(["v0.png", "v1.png"]))
    swapped = {"train": replace(val, root=train.root), "val": replace(train, root=val.root)}
    for split, error in zip(("val", "train"), inspect(configured({"a": swapped})).errors, strict=True):
        expected = f"it lies in the folder of `datasets.a.{split}`: are the annotations or the images swapped?"
        assert error.endswith(expected)


@pytest.mark.parametrize("flags", [0, int(Flag.CROWD)])
def test_a_class_that_training_pictures_do_not_show(tmp_path, flags):
    """Its boxes lie in `val`, or are regions; elsewhere it is learnt."""
    people = {"train": make(tmp_path / "p", ("person",), one_box(2))}
    cars = [[(0, BOX, 0)], [(1, BOX, flags)] if flags else []]
    street = {"train": make(tmp_path / "s", ("car", "person"), cars, 1)}
    if not flags:
        street["val"] = make(tmp_path / "v", ("car", "person"), one_box(1, 1), 2)
    labels = {"merge": {"same_names": True}}
    config = configured({"people": people, "street": street}, labels=labels)
    told = (
        "street train: no object of person, which other datasets teach, and its background is a negative for it; "
        "if its pictures show it, say `labels.not_exhaustive: {street: [person]}`"
    )
    assert told in inspect(config).warnings
    answered = configured(
        {"people": people, "street": street}, labels={**labels, "not_exhaustive": {"street": ["person"]}}
    )
    assert not [text for text in inspect(answered).warnings if "which other datasets teach" in text]


def test_no_box_at_all_is_an_error(tmp_path):
    """As `train` says it."""
    index = make(tmp_path / "a", ("cat",), one_box(2))
    crowds = replace(index, flags=np.full(len(index.boxes), int(Flag.CROWD), np.uint8))
    for empty in (make(tmp_path / "a", ("cat",), [[], []]), crowds):
        config = configured({"a": {"train": empty}})
        (error,) = inspect(config).errors
        assert error.startswith("the training splits hold no object (crowds and other regions are none), so")
        with pytest.raises(UserError, match=re.escape(error)):
            check_trainable(open_sources(config))


def test_no_images_and_no_boxes(tmp_path):
    empty = make(tmp_path / "a", ("cat",), [])
    bare = make(tmp_path / "b", ("dog",), [[], []])
    report = inspect(configured({"a": {"train": empty}, "b": {"train": bare, "val": bare}}))
    assert "datasets.a.train: no images" in report.errors
    assert "datasets.b.train: no boxes; it only gives negatives from its background" in report.warnings
    assert "b val: no boxes, so it gives no score" in report.warnings
    assert all(anchors.recall is None for anchors in report.network.datasets)
    assert printed(report)


def test_a_limit_on_the_files(tmp_path):
    index = make(tmp_path / "a", ("cat",), one_box(9))
    report = inspect(configured({"a": {"train": index}}), max_images=3)
    assert report.splits[0].files.checked == 3
    assert "a train: only 3 of 9 image files were looked at" in report.notes


# ------------------------------------------------------------------------------------------------ duplicates


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def test_leaks_and_shared_pictures(tmp_path):
    a = make(tmp_path / "a", ("cat",), one_box(4))
    a_val = make(tmp_path / "a_val", ("cat",), one_box(3), seed=1)
    b = make(tmp_path / "b", ("dog",), one_box(4), seed=2)
    copy(tmp_path / "a/1.png", tmp_path / "b/2.png")  # train and train
    copy(tmp_path / "b/0.png", tmp_path / "a_val/0.png")  # train and another dataset's val
    copy(tmp_path / "a/0.png", tmp_path / "a_val/1.png")  # train and its own val, twice
    copy(tmp_path / "a/0.png", tmp_path / "a_val/2.png")
    report = inspect(configured({"a": {"train": a, "val": a_val}, "b": {"train": b}}))
    found = {(d.one, d.other): d for d in report.duplicates}
    leak = found[("a", "train"), ("a", "val")]
    assert (leak.leak, leak.pictures) == (True, 1)
    assert leak.files == ((str(tmp_path / "a/0.png"), str(tmp_path / "a_val/1.png")),)
    assert found[("a", "val"), ("b", "train")].leak
    assert not found[("a", "train"), ("b", "train")].leak
    assert found[("a", "val"), ("a", "val")].pictures == 1
    assert len(found) == 4
    assert [d.leak for d in report.duplicates] == [True, True, False, False]
    leaks = [w for w in report.warnings if w.startswith("LEAK")]
    assert leaks[0].startswith(
        "LEAK: 1 picture of a val is also in a train, so scores on a val say little; such as"
    )
    assert leaks[1].startswith("LEAK: 1 picture of a val is also in b train")
    assert any(n.startswith("1 picture is in a train and in b train, such as") for n in report.notes)
    assert any(n.startswith("1 picture is more than once in a val, such as") for n in report.notes)
    assert "LEAK: 1 picture of a val" in printed(report)


def test_the_same_files_in_train_and_val(tmp_path):
    index = make(tmp_path / "a", ("cat",), one_box(2))
    (duplicate,) = inspect(configured({"a": {"train": index, "val": index}})).duplicates
    assert (duplicate.leak, duplicate.pictures) == (True, 2)
    assert duplicate.files[0] == (str(tmp_path / "a/0.png"),) * 2


def test_equal_size_and_middle_are_not_enough(tmp_path):
    """Files that agree in size, and in the part that is looked at first, but not at the end; empty files."""
    contents = {"a": bytes(20_000), "b": bytes(19_999) + b"x", "c": bytes(20_000), "d": b"", "e": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in [*contents, "gone"]]
    assert same_content(paths) == [[str(tmp_path / "a"), str(tmp_path / "c")]]
