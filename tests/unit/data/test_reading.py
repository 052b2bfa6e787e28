"""`read_split`: every format through one door, paths that do not exist, what the cache depends on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossdet.data.formats import FORMATS
from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.format import SplitFiles
from crossdet.data.formats.voc import write_voc
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.formats.wider_pedestrian import write_wider_pedestrian
from crossdet.data.formats.yolo import write_yolo
from crossdet.data.index import IndexBuilder
from crossdet.data.reading import fill_sizes, read_split
from crossdet.errors import AnnotationError, UserError

from .formats.helpers import assert_same, sample_index, save_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


def write_all(root: Path) -> dict[str, SplitFiles]:
    """The sample in every format."""
    images = root / "images" / "train"
    index, faces = sample_index(images), sample_index(images, ("face",))
    write_coco(index, root / "coco.json")
    write_voc(index, root, "train")
    write_wider_face(faces, root / "faces.txt")
    write_wider_pedestrian(index, root / "peds.txt", root / "ignore.txt", 2018)
    write_yolo(index, root, "train")
    return {
        "coco": SplitFiles((root / "coco.json",), (images,)),
        "voc": SplitFiles((root / "Annotations",), (images,), ("train",)),
        "wider_face": SplitFiles((root / "faces.txt",), (images,)),
        "wider_pedestrian": SplitFiles((root / "peds.txt",), (images,), ignore=(root / "ignore.txt",)),
        "yolo": SplitFiles((root / "data.yaml",)),
    }


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format(format: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_all(tmp_path)[format]
    images = tmp_path / "images" / "train"
    want = sample_index(images, ("face",) if format == "wider_face" else ("cat", "dog"))
    index = read_split(format, files)
    assert index.boxes.tolist() == want.boxes.tolist()
    assert index.sizes.tolist() == want.sizes.tolist()
    assert index.labels.tolist() == want.labels.tolist()
    assert all(index.path(i).is_file() for i in range(3))
    assert len(list(cache.iterdir())) == 1
    never = replace(FORMATS[format], read=lambda files: pytest.fail("read again"))
    monkeypatch.setitem(FORMATS, format, never)
    assert_same(read_split(format, files), index)
    monkeypatch.undo()


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_reads_what_it_writes(format: str, tmp_path: Path) -> None:
    index = sample_index(tmp_path / "images" / "val", ("face",) if format == "wider_face" else ("cat", "dog"))
    write = FORMATS[format].write
    assert write is not None
    again = read_split(format, write(index, tmp_path, "val"))
    assert again.boxes.tolist() == index.boxes.tolist()
    assert again.labels.tolist() == index.labels.tolist()
    assert [again.path(row) for row in range(3)] == [index.path(row) for row in range(3)]


def test_relative_paths_mean_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    files = write_all(tmp_path)["coco"]
    relative = SplitFiles((Path("coco.json"),), (Path("images/train"),))
    monkeypatch.chdir(tmp_path)
    assert read_split("coco", relative).root == str(files.images[0])


def touch(file: Path) -> None:
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("coco", "coco.json"),
        ("voc", "Annotations/b.xml"),
        ("voc", "ImageSets/Main/train.txt"),
        ("wider_face", "faces.txt"),
        ("wider_pedestrian", "peds.txt"),
        ("wider_pedestrian", "ignore.txt"),
        ("yolo", "data.yaml"),
        ("yolo", "labels/train/c.txt"),
    ],
)
def test_cache_depends_on(format: str, file: str, tmp_path: Path, cache: Path) -> None:
    files = write_all(tmp_path)[format]
    read_split(format, files)
    touch(tmp_path / file)
    read_split(format, files)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("format", ["voc", "wider_face", "wider_pedestrian", "yolo"])
@pytest.mark.parametrize("how", ["written over", "replaced", "kept"])
def test_sizes_follow_the_images(format: str, how: str, tmp_path: Path, cache: Path) -> None:
    """Pictures made smaller in place, with the annotations as they were; also in folders of their own."""
    files = write_all(tmp_path)[format]
    if format == "voc":
        for xml in (tmp_path / "Annotations").iterdir():
            xml.write_text(re.sub("<size>.*</size>", "", xml.read_text(), flags=re.DOTALL))
    if format == "wider_pedestrian":  # finds images by name, below their folder
        (tmp_path / "images/train/event").mkdir()
        (tmp_path / "images/train/b.png").rename(tmp_path / "images/train/event/b.png")
    assert read_split(format, files).sizes.tolist() == [[80, 100]] * 3
    image = next((tmp_path / "images").rglob("b.png"))
    if how == "written over":
        with image.open("r+b") as file:
            file.write(save_image(tmp_path / "small.png", 50, 40).read_bytes())
            file.truncate()
    elif how == "replaced":
        save_image(tmp_path / "small.png", 50, 40).replace(image)
    else:
        image.with_name("notes.txt").write_text("results beside the pictures change nothing")
    sizes = [[80, 100]] * 3 if how == "kept" else [[80, 100], [40, 50], [80, 100]]
    assert read_split(format, files).sizes.tolist() == sizes
    assert len(list(cache.iterdir())) == (1 if how == "kept" else 2)


def test_sizes_that_coco_does_not_tell_follow_the_pictures(tmp_path: Path, cache: Path) -> None:
    """Also those of an index in the cache; one whose annotations tell all sizes has one entry."""
    files = write_all(tmp_path)["coco"]
    read_split("coco", files)
    assert len(list(cache.iterdir())) == 1
    content = json.loads(files.annotations[0].read_text())
    for image in content["images"]:
        del image["width"]
    files.annotations[0].write_text(json.dumps(content))
    assert read_split("coco", files).sizes.tolist() == [[80, 100]] * 3
    save_image(tmp_path / "small.png", 50, 40).replace(next((tmp_path / "images").rglob("b.png")))
    for _ in range(2):
        assert read_split("coco", files).sizes.tolist() == [[80, 100], [40, 50], [80, 100]]
    assert len(list(cache.iterdir())) == 1 + 4  # the time of the folder counts for names, too


@pytest.mark.slow
def test_many_pictures_open_from_the_cache_at_once(tmp_path: Path) -> None:
    """As many as COCO's train2017 in a format whose pictures count; empty files, for only their state does."""
    images = tmp_path / "images"
    lines = []
    for number in range(118):
        (images / str(number)).mkdir(parents=True)
        for nth in range(1000):
            os.close(os.open(images / str(number) / f"{nth:012d}.jpg", os.O_CREAT))
            lines.append(f"{number}/{nth:012d}.jpg\n0\n")
    (tmp_path / "faces.txt").write_text("".join(lines))
    builder = IndexBuilder(images)
    for line in lines:
        builder.image(line.split("\n")[0], 80, 100)
    files = SplitFiles((tmp_path / "faces.txt",), (images,))
    with pytest.MonkeyPatch.context() as patch:
        faces = FORMATS["wider_face"]
        patch.setitem(FORMATS, "wider_face", replace(faces, read=lambda files: builder.build(["face"])))
        read_split("wider_face", files)
        patch.setitem(FORMATS, "wider_face", replace(faces, read=lambda files: pytest.fail("read again")))
        start = time.process_time()  # the machine may be busy with something else
        assert len(read_split("wider_face", files)) == 118_000
        assert time.process_time() - start < 2
    shutil.rmtree(images)  # pytest keeps the folders of the last three runs


def test_new_yolo_image_is_seen(tmp_path: Path) -> None:
    files = write_all(tmp_path)["yolo"]
    assert len(read_split("yolo", files)) == 3
    save_image(tmp_path / "images" / "train" / "d.jpg")
    assert len(read_split("yolo", files)) == 4


def test_names_follow_pictures_that_come_or_are_renamed_later(tmp_path: Path, cache: Path) -> None:
    """The cache has the names that they had, and COCO's annotations do not change."""
    files = write_all(tmp_path)["coco"]
    for name in ("a.png", "A.PNG", "a.Png"):
        next((tmp_path / "images/train").glob("[aA]*")).rename(tmp_path / "images/train" / name)
        assert read_split("coco", files).names[0] == name


def test_names_follow_pictures_in_folders_below(tmp_path: Path, cache: Path) -> None:
    """Whose time the key does not have."""
    save_image(tmp_path / "images/below/A.png")
    content = {"images": [{"id": 1, "file_name": "below/a.png"}], "categories": [], "annotations": []}
    (tmp_path / "x.json").write_text(json.dumps(content))
    files = SplitFiles((tmp_path / "x.json",), (tmp_path / "images",))
    assert list(read_split("coco", files).names) == ["below/A.png"]
    (tmp_path / "images/below/A.png").rename(tmp_path / "images/below/a.png")
    assert list(read_split("coco", files).names) == ["below/a.png"]


def test_index_with_missing_images_is_not_kept(tmp_path: Path, cache: Path) -> None:
    files = write_all(tmp_path)["wider_face"]
    (tmp_path / "images/train/a.png").rename(tmp_path / "a.png")
    assert read_split("wider_face", files).sizes.tolist() == [[0, 0], [80, 100], [80, 100]]
    (tmp_path / "a.png").rename(tmp_path / "images/train/a.png")
    assert read_split("wider_face", files).sizes.tolist() == [[80, 100]] * 3


def test_sizes_are_filled_and_boxes_clipped(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"image_id": 2, "category_id": 1, "bbox": [500, 0, 9, 9]},
            {"image_id": 1, "category_id": 1, "bbox": [90, 0, 20, 20], "area": 5},
            {"image_id": 1, "category_id": 1, "bbox": [500, 0, 9, 9]},
            {"image_id": 1, "category_id": 1, "bbox": [80, 0, 40, 10]},
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    index = read_split("coco", SplitFiles((tmp_path / "x.json",), (tmp_path,)))
    assert index.sizes.tolist() == [[80, 100], [0, 0]]
    assert index.boxes.tolist() == [[90, 0, 100, 20], [80, 0, 100, 10], [500, 0, 509, 9]]
    assert index.box_offsets.tolist() == [0, 2, 3]
    assert index.area.tolist() == [5, 200, 81]  # the annotated area stays
    assert index.skipped == {
        "image cannot be read": [str(tmp_path / "b.png")],
        "box far over its image's border, cut": [f"{tmp_path / 'a.png'}: xyxy [80, 0, 120, 10]"],
        "box outside its image": [f"{tmp_path / 'a.png'}: xyxy [500, 0, 509, 9]"],
    }


def test_fill_sizes_leaves_known_images_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    builder = IndexBuilder(tmp_path)
    builder.image("nowhere.png", 50, 50)
    builder.box((10, 10, 70, 70), 0, keep_invalid=True)
    builder.image("a.png")
    builder.box((10, 10, 110, 70), 0)
    index = fill_sizes(builder.build(["x"]))
    assert index.boxes.tolist() == [[10, 10, 70, 70], [10, 10, 100, 70]]
    assert index.sizes.tolist() == [[50, 50], [80, 100]]


def test_voc_image_sets_by_name_or_path(tmp_path: Path) -> None:
    files = write_all(tmp_path)["voc"]
    path = tmp_path / "other.txt"
    path.write_text("a\n")
    assert len(read_split("voc", SplitFiles(files.annotations, files.images, (str(path),)))) == 1
    assert len(read_split("voc", SplitFiles(files.annotations, files.images))) == 3


def complaint(format: str, files: SplitFiles) -> list[str]:
    with pytest.raises(UserError) as error:
        read_split(format, files)
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()]


def test_missing_paths(tmp_path: Path) -> None:
    write_all(tmp_path)
    wrong = SplitFiles((tmp_path / "cocoo.json",), (tmp_path / "imags" / "train",), split="val")
    assert complaint("coco", wrong) == [
        "files of the val split",
        f"images folder: {tmp_path / 'imags' / 'train'} does not exist: no 'imags' in {tmp_path}; "
        "did you mean 'images'?",
        f"annotations file: {tmp_path / 'cocoo.json'} does not exist; did you mean 'coco.json'?",
    ]
    swapped = SplitFiles((tmp_path / "images",), (tmp_path / "coco.json",))
    assert complaint("coco", swapped)[1:] == [
        f"images folder: {tmp_path / 'coco.json'} is a file, expected a folder",
        f"annotations file: {tmp_path / 'images'} is a folder, expected a file",
    ]
    voc = SplitFiles((tmp_path / "Annotations",), (tmp_path / "images",), ("trian",))
    assert complaint("voc", voc)[1:] == [
        f"image set: {tmp_path}/ImageSets/Main/trian.txt does not exist; did you mean 'train.txt'?"
    ]


def test_wrong_counts(tmp_path: Path) -> None:
    two = (tmp_path / "a", tmp_path / "b")
    assert complaint("coco", SplitFiles(two, ()))[1:] == [
        "`annotations` has 2 entries, coco takes exactly one",
        "`images` has 0 entries, coco takes exactly one",
    ]
    assert complaint("voc", SplitFiles(two, two[:1], ("train",)))[1:] == [
        "`images` has 1 entries, expected 2: one per annotations folder",
        "`image_set` has 1 entries, expected 2: one per annotations folder",
    ]
    assert complaint("yolo", SplitFiles(two[:1], two, edition=2018, classes=("a",)))[1:] == [
        "`images` has 2 entries, yolo takes none; leave it out",
        "`edition` is 2018, but yolo has no editions; leave it out",
        "`classes` is given, but yolo files name their classes; leave it out",
    ]
    assert complaint("wider_pedestrian", SplitFiles(two[:1], two[:1], ignore=two))[1:] == [
        "`ignore` has 2 entries, wider_pedestrian takes at most one"
    ]


def test_unknown_format() -> None:
    assert complaint("cocos", SplitFiles(())) == ["unknown format 'cocos'; did you mean 'coco'?"]


def test_no_torch() -> None:
    code = "import sys, crossdet.data.reading; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("format", ["wider_face", "wider_pedestrian", "yolo"])
def test_a_file_of_another_format_is_told_in_a_few_lines(format: str, tmp_path: Path) -> None:
    """A COCO file is one line of megabytes."""
    wrong = write_all(tmp_path)["coco"]
    content = json.loads(wrong.annotations[0].read_text())
    content["annotations"] *= 2000
    wrong.annotations[0].write_text(json.dumps(content))
    files = wrong if format != "yolo" else SplitFiles(wrong.annotations)
    with pytest.raises(UserError, match=r"file.* of .*`?format: coco`") as found:
        read_split(format, files)
    assert len(str(found.value)) < 30_000
    xml = next((tmp_path / "Annotations").glob("*.xml"))
    with pytest.raises(UserError, match="begins with '<', as files of `format: voc` do"):
        read_split("coco", SplitFiles((xml,), wrong.images))


@pytest.mark.parametrize("other", ["../train/a.png", "absolute", "./a.png"])
@pytest.mark.parametrize("format", ["coco", "wider_face"])
def test_a_picture_under_two_spellings_is_refused(format: str, other: str, tmp_path: Path) -> None:
    images = tmp_path / "train"
    save_image(images / "a.png")
    other = str(images / "a.png") if other == "absolute" else other
    lines = [f"{name}\n1\n{8 * i + 1} 2 8 8 0 0 0 0 0 0\n" for i, name in enumerate(("a.png", other))]
    (tmp_path / "f.txt").write_text("".join(lines))
    names = {"categories": [{"id": 1, "name": "face"}]}
    entries = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(("a.png", other))]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [9 * i, 2, 8, 8]} for i in range(2)]
    (tmp_path / "f.json").write_text(json.dumps({**names, "images": entries, "annotations": boxes}))
    file = tmp_path / ("f.json" if format == "coco" else "f.txt")
    told = "that of images[0] already" if (format, other) == ("coco", "./a.png") else f"{images / 'a.png'}; give it"
    with pytest.raises(AnnotationError, match=re.escape(told)):
        read_split(format, SplitFiles((file,), (images,)))
