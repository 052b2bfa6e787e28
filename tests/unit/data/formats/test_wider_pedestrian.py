"""WIDER Pedestrian text annotations: both editions, telling them apart, ignore regions, malformed files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdet.data.formats.wider_pedestrian import read_wider_pedestrian, write_wider_pedestrian
from crossdet.data.index import Index
from crossdet.errors import AnnotationError, UserError
from crossdet.types import Flag

from .helpers import assert_same, mistakes, save_image

OLD = "img1.jpg 1 10 20 30 60 2 50 20 30 60\nimg2.jpg\nimg3.jpg 1 5 5 10 20\n"
NEW = "ad1.jpg 10 20 30 60 50 20 30 60\nad2.jpg\nsur3.jpg 5 5 10 20\n"


def read(text: str, tmp_path: Path, ignore: str = "", listed: str = "", edition: int | None = None) -> Index:
    files = {"boxes.txt": text, "ignore.txt": ignore, "list.txt": listed}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return read_wider_pedestrian(
        tmp_path / "boxes.txt",
        tmp_path / "images",
        tmp_path / "ignore.txt" if ignore else None,
        tmp_path / "list.txt" if listed else None,
        edition,
    )


def test_2018(tmp_path: Path) -> None:
    index = read(OLD, tmp_path, ignore="img2.jpg 1 2 3 4 5 6 7 8\nimg1.jpg 0 0 9 9")
    assert index.classes == ("pedestrian", "cyclist")
    assert [index.names[i] for i in range(3)] == ["img1.jpg", "img2.jpg", "img3.jpg"]
    assert index.box_offsets.tolist() == [0, 3, 5, 6]
    assert index.boxes[:4].tolist() == [[10, 20, 40, 80], [50, 20, 80, 80], [0, 0, 9, 9], [1, 2, 4, 6]]
    assert index.labels.tolist() == [0, 1, -1, -1, -1, 0]
    assert index.flags.tolist() == [0, 0] + [Flag.IGNORE_REGION] * 3 + [0]
    assert index.sizes.tolist() == [[0, 0]] * 3


def test_2019_with_list(tmp_path: Path) -> None:
    index = read(NEW, tmp_path, listed="ad2.jpg\nsur9.jpg\nad1.jpg\n", ignore="sur9.jpg 1 2 3 4")
    assert index.classes == ("pedestrian",)
    assert [index.names[i] for i in range(4)] == ["ad1.jpg", "ad2.jpg", "sur3.jpg", "sur9.jpg"]
    assert index.box_offsets.tolist() == [0, 2, 2, 3, 4]
    assert index.labels.tolist() == [0, 0, 0, -1]


def test_images_of_2019_lie_in_folders(tmp_path: Path) -> None:
    for name in ("ad_train/ad_01/ad1.jpg", "sur_train/sur3.jpg", "x/ad2.jpg", "y/ad2.jpg"):
        save_image(tmp_path / "images" / name)
    index = read(NEW, tmp_path)
    names = [index.names[i] for i in range(3)]
    assert names == ["ad_train/ad_01/ad1.jpg", "ad2.jpg", "sur_train/sur3.jpg"]  # ad2 is there twice
    write_wider_pedestrian(index, tmp_path / "b.txt", tmp_path / "i.txt", 2019)
    assert (tmp_path / "b.txt").read_text() == NEW


def test_one_picture_by_several_names_is_one(tmp_path: Path) -> None:
    for name in ("ad/img1.jpg", "ad/img2.jpg", "ad/img3.jpg"):
        save_image(tmp_path / "images" / name)
    listed = "ad/img1.jpg\n./ad/img3.jpg\nimg3.jpg\n"
    index = read("img1.jpg 1 2 3 4 5\nimg2.jpg\n", tmp_path, ignore="ad/img1.jpg 1 2 3 4", listed=listed)
    assert list(index.names) == ["ad/img1.jpg", "ad/img2.jpg", "ad/img3.jpg"]
    assert index.labels.tolist() == [0, -1]
    assert index.box_offsets.tolist() == [0, 2, 2, 2]
    assert not index.skipped
    with pytest.raises(AnnotationError) as raised:
        read("img1.jpg 1 2 3 4 5\nad//img1.jpg 1 2 3 4 5\n", tmp_path)
    boxes = tmp_path / "boxes.txt"
    told = f"{boxes}:2: 'ad//img1.jpg' is the picture ad/img1.jpg that {boxes}:1 calls 'img1.jpg'; join the two"
    assert told in str(raised.value)


def test_ignore_region_of_an_unknown_image_is_counted(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "img9.jpg")
    index = read(OLD, tmp_path, ignore="img9.jpg 1 2 3 4\nimg10.jpg 1 2 3 4")
    assert index.skipped == {
        "ignore region of an image that is not in the split": [f"{tmp_path / 'ignore.txt'}:1: img9.jpg"],
        "ignore region of a picture that is not there": [f"{tmp_path / 'ignore.txt'}:2: img10.jpg"],
    }


@pytest.mark.parametrize(("text", "edition"), [(OLD, 2018), (NEW, 2019)])
def test_round_trip(text: str, edition: int, tmp_path: Path) -> None:
    name = text.split()[0]
    index = read(text, tmp_path, ignore=f"{name} 1 2 3 4.5")
    write_wider_pedestrian(index, tmp_path / "b.txt", tmp_path / "i.txt", edition)
    assert (tmp_path / "b.txt").read_text() == text
    assert_same(read_wider_pedestrian(tmp_path / "b.txt", tmp_path / "images", tmp_path / "i.txt"), index)


boxes = st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(10, 90), st.floats(10, 90, width=16))


@settings(max_examples=40, deadline=None)
@given(
    images=st.lists(st.tuples(st.lists(boxes, max_size=6), st.lists(boxes, max_size=3)), max_size=5),
    edition=st.sampled_from([2018, 2019]),
)
def test_round_trip_of_any_index(
    images: list[tuple[list[tuple[float, ...]], list[tuple[float, ...]]]],
    edition: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("peds")
    head = "1 " if edition == 2018 else ""
    lines = ["first.jpg " + head + "900 5 10 20"]
    ignore = []
    for number, (objects, regions) in enumerate(images):
        texts = [" ".join(f"{v:.17g}" for v in box) for box in objects]
        lines.append(" ".join([f"{number}.jpg", *(head + text for text in texts)]))
        if regions:
            ignore.append(" ".join([f"{number}.jpg", *(f"{v:.17g}" for box in regions for v in box)]))
    (folder / "a.txt").write_text("\n".join(lines))
    (folder / "i.txt").write_text("\n".join(ignore))
    index = read_wider_pedestrian(folder / "a.txt", folder, folder / "i.txt")
    assert len(index.classes) == (2 if edition == 2018 else 1)
    write_wider_pedestrian(index, folder / "b.txt", folder / "j.txt", edition)
    assert_same(read_wider_pedestrian(folder / "b.txt", folder, folder / "j.txt"), index)


@pytest.mark.parametrize(
    ("text", "edition", "first"),
    [
        (OLD, 2019, "edition 2019 was asked for, but the file has the layout of 2018 (class x y w h); "
                    "set edition: 2018"),
        (NEW, 2018, "edition 2018 was asked for, but the file has the layout of 2019 (x y w h); "
                    "set edition: 2019"),
    ],
)  # fmt: skip
def test_the_other_edition_is_refused(text: str, edition: int, first: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read(text, tmp_path, edition=edition)
    assert mistakes(error)[0] == first
    assert mistakes(error)[1].startswith(f"{tmp_path / 'boxes.txt'}:1: ")


def line_of_20(first: int) -> str:
    """Four boxes of 2018, or five of 2019 where the class ids are coordinates."""
    return "a.jpg " + " ".join([f"{first} 30 40 10 20", "1 50 60 10 20", "1 70 80 10 20", "2 90 80 10 20"])


def test_twenty_numbers(tmp_path: Path) -> None:
    ambiguous = line_of_20(1)
    with pytest.raises(AnnotationError) as error:
        read(ambiguous, tmp_path)
    assert mistakes(error) == [
        "the file fits both editions, so its edition is open; set edition: 2018 or edition: 2019"
    ]
    assert len(read(ambiguous, tmp_path, edition=2018).boxes) == 4
    assert len(read(ambiguous, tmp_path, edition=2019).boxes) == 5
    assert len(read(f"{ambiguous}\nb.jpg 1 5 5 10 20", tmp_path).boxes) == 5  # another line decides
    assert len(read(line_of_20(3), tmp_path).boxes) == 5  # 3 is no class id: 2019
    with pytest.raises(AnnotationError, match="set edition: 2019"):
        read(line_of_20(3), tmp_path, edition=2018)


def test_no_box_at_all(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="the file has no box, so its edition is open; set edition: 2018"):
        read("a.jpg\nb.jpg", tmp_path)
    assert len(read("a.jpg\nb.jpg", tmp_path, edition=2018)) == 2


def test_malformed(tmp_path: Path) -> None:
    file = tmp_path / "boxes.txt"
    with pytest.raises(AnnotationError) as error:
        read("a.jpg 1 2 x 4 5\na.jpg\nb.jpg\nb.jpg", tmp_path)
    assert mistakes(error) == [
        f"{file}:1: 'x' after 'a.jpg' is no number; expected class x y w h (2018) or x y w h (2019)",
        f"{file}:4: 'b.jpg' is already listed at {file}:3; join the two",
    ]
    with pytest.raises(AnnotationError) as error:
        read(OLD + "c.jpg 1 2 3\nd.jpg 3 10 20 30 40", tmp_path)
    assert mistakes(error) == [
        "taken as edition 2018, which most lines fit",
        f"{file}:4: 3 numbers after 'c.jpg', expected a multiple of 5 (class x y w h)",
        f"{file}:5: class id 3, expected 1 (pedestrian) or 2 (cyclist)",
    ]
    with pytest.raises(AnnotationError) as error:
        read(OLD, tmp_path, ignore="img1.jpg 1 2 3 4 5")
    ignore = tmp_path / "ignore.txt"
    assert str(error.value).startswith(f"{ignore}: 1 mistake(s)")
    assert mistakes(error) == [f"{ignore}:1: 5 numbers after 'img1.jpg', expected a multiple of 4 (x y w h)"]


def test_unknown_edition(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="edition 2020 is unknown; set edition: 2018 or edition: 2019"):
        read(OLD, tmp_path, edition=2020)
