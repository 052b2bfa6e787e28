"""YOLO datasets: folders, lists, polygons, empty images, every malformed case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from crossdet.data.decoding import UnreadableImage, read_row
from crossdet.data.formats.yolo import read_yolo, write_yolo
from crossdet.data.index import NO_LABELS, NO_PICTURE, OTHER_SPELLING, IndexBuilder
from crossdet.errors import AnnotationError, UserError
from crossdet.types import Flag

from .helpers import assert_same, mistakes, sample_index, save_image


def dataset(root: Path, labels: dict[str, str | None], **content: object) -> Path:
    """Images 100x80 in images/train with the label texts given (None = no file), and a data.yaml."""
    for name, text in labels.items():
        save_image(root / "images" / "train" / f"{name}.jpg")
        if text is not None:
            file = root / "labels" / "train" / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    content = {"path": ".", "train": "images/train", "names": {0: "one", 1: "two"}} | content
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def test_boxes(tmp_path: Path) -> None:
    polygon = "0 0.1 0.25 0.3 0.5 0.2 0.75\n"
    data = dataset(tmp_path, {"b": "1 0.5 0.5 1 1\n\n" + polygon, "a": "", "c": None})
    index = read_yolo(data, "train")
    assert index.classes == ("one", "two")
    assert index.root == str(tmp_path / "images" / "train")
    assert [index.names[i] for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert index.box_offsets.tolist() == [0, 0, 2, 2]  # empty and missing files: no objects
    np.testing.assert_allclose(index.boxes, [[0, 0, 100, 80], [10, 20, 30, 60]], rtol=1e-6)
    assert index.labels.tolist() == [1, 0]
    assert index.sizes.tolist() == [[80, 100]] * 3
    assert index.skipped == {NO_LABELS: [str(tmp_path / "images/train/c.jpg")]}


def test_pictures_are_upright(tmp_path: Path) -> None:
    """Labelling tools show them so, and the trainers that the labels are made for read them so."""
    data = dataset(tmp_path, {"a": "0 0.25 0.5 0.5 1", "b": "0 0.25 0.5 0.5 1"})
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[40:] = 255
    for name, mark in (("a", 6), ("b", 3)):  # a quarter clockwise, half a turn
        exif = Image.Exif()
        exif[0x0112] = mark
        Image.fromarray(pixels).save(tmp_path / f"images/train/{name}.jpg", exif=exif, quality=95)
    index = read_yolo(data, "train")
    assert index.sizes.tolist() == [[100, 80], [80, 100]]
    assert index.boxes.tolist() == [[0, 0, 40, 100], [0, 0, 50, 80]]
    quarter, half = read_row(index, 0), read_row(index, 1)
    assert quarter[:, :, :36].min() > 200  # what was below is to the left
    assert quarter[:, :, 44:].max() < 50
    assert half[:, :36].min() > 200  # and above
    assert half[:, 44:].max() < 50
    assert index.take(np.array([1])).upright


def test_a_label_file_is_of_one_picture(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"})
    save_image(tmp_path / "images" / "train" / "a.png")
    with pytest.raises(AnnotationError) as error:
        read_yolo(data, "train")
    (mistake,) = mistakes(error)
    train = tmp_path / "images/train"
    assert mistake.startswith(f"`train`: {tmp_path}/labels/train/a.txt is the label file of {train}/a.jpg and of")


def test_label_files_may_end_in_capitals(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5", "b": None})
    (tmp_path / "labels/train/b.TXT").write_text("1 .5 .5 .5 .5")
    (tmp_path / "labels/train/a.TXT").write_text("1 .5 .5 .5 .5")  # an older copy
    index = read_yolo(data, "train")
    assert index.labels.tolist() == [0, 1]
    assert NO_LABELS not in index.skipped


def test_the_folder_of_another_dataset(tmp_path: Path) -> None:
    """An export in the folder of another: Roboflow's `../train/images` is then that of the other."""
    inner = tmp_path / "cats"
    data = dataset(inner, {"a": "0 .5 .5 .5 .5"}, train="../images/train")
    assert len(read_yolo(data, "train")) == 1
    dataset(tmp_path, {"dog": "0 .5 .5 .5 .5", "dog2": None})
    with pytest.raises(AnnotationError) as error:
        read_yolo(data, "train")
    assert mistakes(error) == [
        f"`train`: '../images/train' is {tmp_path}/images/train, and {inner}/images/train is there, too; write the "
        "one that is meant"
    ]


def test_names_as_list_and_with_gaps(tmp_path: Path) -> None:
    assert read_yolo(dataset(tmp_path, {"a": "1 .5 .5 .1 .1"}, names=["x", "y"]), "train").classes == ("x", "y")
    index = read_yolo(dataset(tmp_path, {"a": "7 .5 .5 .1 .1"}, names={7: "seven", 2: "two"}), "train")
    assert index.classes == ("two", "seven")
    assert index.category_ids.tolist() == [2, 7]
    assert index.labels.tolist() == [1]


def test_where_images_and_labels_may_lie(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"})
    save_image(tmp_path / "flat" / "b.png")
    (tmp_path / "flat" / "b.txt").write_text("1 .5 .5 .5 .5")
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\nflat/b.png\n")
    content = yaml.safe_load(data.read_text())
    content |= {"list": "list.txt", "both": ["images/train", "flat"], "roboflow": "../images/train"}
    data.write_text(yaml.safe_dump(content))
    both = read_yolo(data, "both")
    assert both.root == str(tmp_path)
    assert [both.names[i] for i in range(2)] == ["images/train/a.jpg", "flat/b.png"]
    assert both.labels.tolist() == [0, 1]
    assert_same(read_yolo(data, "list"), both)
    (tmp_path / "list.txt").write_text(".\\images\\train\\a.jpg\nflat\\b.png\n")  # of Windows
    assert_same(read_yolo(data, "list"), both)
    assert len(read_yolo(data, "roboflow")) == 1


def test_the_folder_before_the_paths_of_cvat(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5", "b": "1 .5 .5 .5 .5"}, train="train.txt")
    (tmp_path / "train.txt").write_text("data/images/train/a.jpg\ndata/images/train/b.jpg\n")
    index = read_yolo(data, "train")
    assert index.root == str(tmp_path / "images/train")
    assert index.labels.tolist() == [0, 1]
    save_image(tmp_path / "data/images/train/a.jpg")  # as it is written it counts first
    assert read_yolo(data, "train").names[0] == "data/images/train/a.jpg"


def test_a_list_whose_pictures_are_not_there(tmp_path: Path) -> None:
    """Not the labels are to blame."""
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"}, train="train.txt")
    for line, told in (
        ("train/a.jpg", "images/train/a.jpg"),
        ("x/b.jpg", ""),
        ("data/a.jpg", "images/train/a.jpg"),
    ):
        (tmp_path / "train.txt").write_text(f"\n{line}\nnowhere.jpg\n")
        with pytest.raises(AnnotationError) as error:
            read_yolo(data, "train")
        where = f"; {tmp_path}/{told} is there: did the export write other paths?" if told else ""
        none = f"{tmp_path}/train.txt:2: {tmp_path}/{line} does not exist, nor does any other of its 2 pictures"
        assert mistakes(error) == [none + where]
    (tmp_path / "train.txt").write_text("images/train/a.jpg\nnowhere.jpg\n")
    assert len(read_yolo(data, "train")) == 2  # `check` tells the one that is missing


@pytest.mark.parametrize("path", ["/content/datasets/chess", "chess", "../chess", "."])
def test_the_path_of_another_machine(path: str, tmp_path: Path) -> None:
    """Where it is not there, the file's own folder has to do; Roboflow's `../` as well."""
    for split in ("images/train", "../images/train"):
        data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"}, path=path, train=split)
        index = read_yolo(data, "train")
        assert index.root == str(tmp_path / "images/train")
        assert len(index) == 1


def test_a_path_that_is_there_holds(tmp_path: Path) -> None:
    dataset(tmp_path, {"a": "0 .5 .5 .5 .5"})
    data = dataset(tmp_path / "other", {"b": "0 .5 .5 .5 .5", "c": None}, path="..")
    assert read_yolo(data, "train").root == str(tmp_path / "images/train")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    data = dataset(tmp_path / "set", {"a": "0 .5 .5 .5 .5"})
    save_image(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "set/images/train/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/images/train/back").symlink_to(tmp_path / "set/images")
    index = read_yolo(data, "train")
    assert [index.names[row] for row in range(len(index))] == ["a.jpg", "more/b.jpg"]


def test_a_picture_without_a_size_is_not_trained_without_its_boxes(tmp_path: Path) -> None:
    """It may be readable later; its objects would be background."""
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5", "b": "0 .5 .5 .5 .5"})
    (tmp_path / "images/train/b.jpg").unlink()
    (tmp_path / "images/train/b.jpg").symlink_to(tmp_path / "later.jpg")
    index = read_yolo(data, "train")
    assert index.box_offsets.tolist() == [0, 1, 1]
    save_image(tmp_path / "later.jpg")
    assert read_row(index, 0).shape == (3, 80, 100)
    with pytest.raises(UnreadableImage, match=r"b\.jpg: it could not be read when its labels were"):
        read_row(index, 1)


def test_the_size_of_a_picture_that_pillow_would_not_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    index = read_yolo(dataset(tmp_path, {"a": "0 .5 .5 .5 .5"}), "train")
    assert index.sizes.tolist() == [[80, 100]]
    assert len(index.boxes) == 1
    assert Image.MAX_IMAGE_PIXELS == 10


def test_no_advice_that_gives_two_splits_the_same_pictures(tmp_path: Path) -> None:
    data = dataset(tmp_path, {}, train="/kaggle/a/train/images", val="/kaggle/a/valid/images")
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        with pytest.raises(AnnotationError, match="correct it or `path`"):
            read_yolo(data, split)
    (tmp_path / "valid/images").mkdir(parents=True)
    with pytest.raises(AnnotationError, match="did you mean 'valid/images', beside the file"):
        read_yolo(data, "val")


def test_names_are_as_they_are_written(tmp_path: Path) -> None:
    for names in ("[yes, 08, 1e3, 2024-01-02, no]", "{0: yes, 1: 08, 2: 1e3, 3: 2024-01-02, 4: no}"):
        data = dataset(tmp_path, {"a": "4 .5 .5 .5 .5"})
        data.write_text(f"train: images/train\nnames: {names}\n")
        assert read_yolo(data, "train").classes == ("yes", "08", "1e3", "2024-01-02", "no")


def test_coco_is_told_from_yolo(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(AnnotationError, match="it looks like a file of COCO: `format: coco`"):
        read_yolo(tmp_path / "train.json", "train")


def test_keypoints_are_left_out(tmp_path: Path) -> None:
    row = "0 .5 .5 .5 .5 .1 .1 2 .2 .2 1"
    index = read_yolo(dataset(tmp_path, {"a": row}, kpt_shape=[2, 3]), "train")
    assert index.boxes.tolist() == [[25, 20, 75, 60]]


def test_unreadable_image_is_counted(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (tmp_path / "images/train/a.jpg").write_text("no image")
    index = read_yolo(data, "train")
    assert index.skipped == {"image cannot be read": [str(tmp_path / "images/train/a.jpg")]}
    assert len(index) == 1
    assert len(index.boxes) == 0


def test_round_trip(tmp_path: Path) -> None:
    index = sample_index(tmp_path / "images" / "val", integers=False)
    for split in ("val", "train"):
        write_yolo(index, tmp_path, split)
    assert_same(read_yolo(tmp_path / "data.yaml", "val"), index)
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "path": ".", "names": {0: "cat", 1: "dog"}, "val": "images/val", "train": "images/train"
    }  # fmt: skip


def test_written_without_regions(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path)
    builder.image("a.jpg", 80, 100)
    builder.box((0, 0, 50, 40), 0, Flag.CROWD)
    builder.box((0, 0, 50, 40), -1, Flag.IGNORE_REGION)
    builder.box((0, 0, 100, 80), 0, Flag.DIFFICULT)
    write_yolo(builder.build(["x"]), tmp_path, "train")
    assert (tmp_path / "labels/train/a.txt").read_text() == "0 0.5 0.5 1.0 1.0\n"
    with pytest.raises(UserError, match=r"data\.yaml: is there with other class names; write to another folder"):
        write_yolo(builder.build(["y"]), tmp_path, "train")


def test_two_pictures_of_one_name_are_not_written(tmp_path: Path) -> None:
    """They would share a file of labels, and one lose its boxes."""
    builder = IndexBuilder(tmp_path)
    for name in ("a.jpg", "a.png"):
        builder.image(name, 20, 20)
        builder.box((0, 0, 9, 9), 0)
    with pytest.raises(UserError, match=r"images 'a.jpg' and 'a.png': YOLO has one file of labels for both"):
        write_yolo(builder.build(["cat"]), tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()


def test_size_unknown_on_writing(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path)
    builder.image("a.jpg")
    builder.box((0, 0, 50, 40), 0)
    with pytest.raises(UserError, match="size unknown, so its boxes cannot be written relative to it"):
        write_yolo(builder.build(["x"]), tmp_path, "train")


LABEL_MISTAKES = [
    ("0 .5 .5 .5", "4 numbers, expected 5 (class cx cy w h) or a class and 3 or more points"),
    ("0 .5 .5 .5 .5 .9", "6 numbers, expected 5 (class cx cy w h) or a class and 3 or more points"),
    ("0 .5 x .5 .5", "'0 .5 x .5 .5', expected numbers: class cx cy w h"),
    ("2 .5 .5 .5 .5", "class 2 is not in `names`; its ids are 0..1"),
    ("0 320 .5 .5 .5",
     "320 .5 .5 .5 reaches outside 0..1; divide x and w by the image's width, y and h by its height"),
    ("0 nan .5 .5 .5",
     "nan .5 .5 .5 holds nan, which is no place in a picture; write the line anew, or remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), LABEL_MISTAKES)
def test_malformed_labels(line: str, message: str, tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": f"0 .5 .5 .5 .5\n{line}"})
    with pytest.raises(AnnotationError) as error:
        read_yolo(data, "train")
    assert str(error.value).startswith(f"{data}: 1 mistake(s)")
    assert mistakes(error) == [f"{tmp_path / 'labels/train/a.txt'}:2: {message}"]


YAML_MISTAKES = [
    ({"names": None}, "names: None, expected a list of class names or a map from id to name"),
    ({"names": {"a": "b"}}, "names: 'a', expected a class id 0, 1, ..."),
    ({"names": ["a", "b", "a"]}, "names[2]: 'a' is the name of another class too; rename one of them"),
    ({"nc": 3}, "nc: 3, but `names` has 2 classes; correct one of the two"),
    ({"train": None, "val": "x"},
     "missing key `train`; expected a folder of images, a list of folders or a .txt list of images "
     "(the file has val)"),
    ({"train": "imgs"},
     "`train`: 'imgs' is no folder and no file (looked for {root}/imgs); correct it or `path`"),
    ({"train": r"C:\data\chess\images\train"},
     r"`train`: 'C:\\data\\chess\\images\\train' is no folder and no file (looked for "
     r"{root}/C:\data\chess\images\train); "
     "did you mean 'images/train', beside the file?"),
    ({"train": "labels"},
     "`train`: the folder {root}/labels has no image "
     "(.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, .gif, .jfif, .avif, .mpo, .ppm, .pgm, .jp2, .tga)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), YAML_MISTAKES)
def test_malformed_yaml(change: dict[str, object], message: str, tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"}, **change)
    with pytest.raises(AnnotationError) as error:
        read_yolo(data, "train")
    assert mistakes(error) == [message.format(root=tmp_path)]


def test_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a, b\ntrain: x\n")
    with pytest.raises(AnnotationError, match=r"line 2 column 6: not valid YAML"):
        read_yolo(tmp_path / "data.yaml", "train")
    aliases = "".join(f"n{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 10)}]\n" for i in range(1, 30))
    (tmp_path / "data.yaml").write_text(f"n0: &n0 x\n{aliases}names: *n29\n")
    with pytest.raises(AnnotationError, match=r"line 1 column 1: not valid YAML \(its aliases repeat values"):
        read_yolo(tmp_path / "data.yaml", "train")
    (tmp_path / "data.yaml").write_text("text")
    with pytest.raises(AnnotationError, match="expected the keys `train`, `val` and `names`"):
        read_yolo(tmp_path / "data.yaml", "train")


def test_no_label_file_at_all(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": None, "b": None})
    with pytest.raises(AnnotationError) as error:
        read_yolo(data, "train")
    wanted = f"{tmp_path}/labels/train/a.txt or {tmp_path}/images/train/a.txt"
    assert mistakes(error) == [f"`train`: none of its 2 images has a label file, such as {wanted}"]


def test_accents_of_another_file_system(tmp_path: Path) -> None:
    """macOS writes two signs for one letter: a picture copied from there had no labels, and was background."""
    data = dataset(tmp_path, {"cafe\u0301": None, "b": "1 .5 .5 .5 .5"}, names=["one", "cafe\u0301"])
    (tmp_path / "labels/train/caf\u00e9.txt").write_text("0 .5 .5 .5 .5")
    index = read_yolo(data, "train")
    assert index.labels.tolist() == [1, 0]
    assert NO_LABELS not in index.skipped
    assert index.classes == ("one", "caf\u00e9")
    twice = dataset(tmp_path / "twice", {"a": ""}, names=["caf\u00e9", "cafe\u0301"])
    with pytest.raises(AnnotationError, match="is the name of another class too"):
        read_yolo(twice, "train")


def test_white_space_around_names_means_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path, {" a": "1 .5 .5 .5 .5", "a": None}, names=[" one", "two\n"])
    index = read_yolo(data, "train")
    assert index.classes == ("one", "two")
    assert np.diff(index.box_offsets).tolist() == [1, 0]  # of files it does mean something
    twice = dataset(tmp_path / "twice", {"a": ""}, names=["one", "one "])
    with pytest.raises(AnnotationError, match=r"names\[1\]: 'one' is the name of another class too"):
        read_yolo(twice, "train")


# ------------------------------------------------------------------------------------------ names of files


def test_a_list_whose_pictures_are_spelt_otherwise(tmp_path: Path) -> None:
    lines = ["images/train/cafe\u0301.jpg", ".\\images\\train\\B.JPG", "./images/train/c.jpg", "images/train/d.PNG"]
    data = dataset(tmp_path, dict.fromkeys(("caf\u00e9", "b", "c", "d"), "1 .5 .5 .5 .5"), train="list.txt")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    index = read_yolo(data, "train")
    train = tmp_path / "images/train"
    assert [index.path(row) for row in range(3)] == [train / "caf\u00e9.jpg", train / "b.jpg", train / "c.jpg"]
    assert np.diff(index.box_offsets).tolist() == [1, 1, 1, 0]
    assert index.skipped[OTHER_SPELLING] == [
        f"{tmp_path}/list.txt:1: images/train/cafe\u0301.jpg is {train}/caf\u00e9.jpg",
        f"{tmp_path}/list.txt:2: .\\images\\train\\B.JPG is {train}/b.jpg",
    ]


def test_label_files_in_other_capitals(tmp_path: Path) -> None:
    """As Windows and macOS find them; where two may be meant, or of two pictures, nobody can tell."""
    data = dataset(tmp_path, dict.fromkeys(("IMG_0", "b", "B", "two"), None))
    labels = tmp_path / "labels/train"
    labels.mkdir(parents=True)
    for name in ("img_0", "b", "Two", "tWo"):
        (labels / f"{name}.txt").write_text("1 .5 .5 .5 .5\n")
    index = read_yolo(data, "train")
    assert list(index.names) == ["B.jpg", "IMG_0.jpg", "b.jpg", "two.jpg"]
    assert np.diff(index.box_offsets).tolist() == [0, 1, 1, 0]
    train = tmp_path / "images/train"
    assert index.skipped == {
        OTHER_SPELLING: [f"the labels of {train}/IMG_0.jpg are {labels}/img_0.txt"],
        NO_PICTURE: [f"{labels}/Two.txt", f"{labels}/tWo.txt"],
        NO_LABELS: [f"{train}/B.jpg", f"{train}/two.jpg"],
    }
    assert index.skipped == read_yolo(data, "train").skipped


def test_a_label_file_is_of_the_picture_that_has_its_name(tmp_path: Path) -> None:
    """Which may be in another split."""
    labels = {"IMG": None, "img": "1 .5 .5 .5 .5\n", "other": "1 .5 .5 .5 .5\n"}
    data = dataset(tmp_path, labels, train="train.txt", val="val.txt")
    (tmp_path / "train.txt").write_text("./images/train/IMG.jpg\n./images/train/other.jpg\n")
    (tmp_path / "val.txt").write_text("./images/train/img.jpg\n")
    assert np.diff(read_yolo(data, "train").box_offsets).tolist() == [0, 1]
    assert len(read_yolo(data, "val").boxes) == 1


@pytest.mark.parametrize("beside", [False, True])
def test_label_files_without_a_picture(beside: bool, tmp_path: Path) -> None:
    """Their objects may be those of a picture that was renamed; not what is no label, or another split's."""
    data = dataset(tmp_path, dict.fromkeys(("0", "1", "img 2", "v0", "v1"), "0 .5 .5 .5 .5\n"), train="train.txt")
    (tmp_path / "train.txt").write_text("".join(f"images/train/{name}.jpg\n" for name in ("0", "1", "img 2")))
    labels = tmp_path / "labels/train"
    (labels / "img 2.txt").rename(labels / "2.txt")
    (labels / "v1.txt").rename(labels / "V1.txt")  # the other split finds it so
    for name, text in (
        ("classes", "one\ntwo\n"), ("list", f"{tmp_path}/images/train/0.jpg\n"), ("empty", ""),
        ("._0", "0 0 0 0 0"),
        ("polygon", "\n1 0.1 0.25 0.3 0.5 0.2 0.75\n"), ("note", "2 of 9 are by Ann\n"), ("numbers", "1 2 3\n"),
    ):  # fmt: skip
        (labels / f"{name}.txt").write_text(text)
    if beside:
        for file in labels.iterdir():
            file.rename(tmp_path / "images/train" / file.name)
        labels = tmp_path / "images/train"
    index = read_yolo(data, "train")
    assert index.skipped == {
        NO_PICTURE: [f"{labels}/2.txt", f"{labels}/polygon.txt"],
        NO_LABELS: [f"{tmp_path}/images/train/img 2.jpg"],
    }


def test_what_macos_leaves_beside_files_is_no_picture(tmp_path: Path) -> None:
    data = dataset(tmp_path, {"a": "0 .5 .5 .5 .5"})
    (tmp_path / "images/train/._a.jpg").write_bytes(b"\0\5\26\7")
    assert list(read_yolo(data, "train").names) == ["a.jpg"]
