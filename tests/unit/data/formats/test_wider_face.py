"""WIDER FACE text annotations: attributes, invalid faces, the count-0 line, every malformed case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdet.data.formats.wider_face import ATTRIBUTES, read_wider_face, write_wider_face
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import AnnotationError
from crossdet.types import Flag

from .helpers import assert_same, mistakes, save_image

TEXT = """0--Parade/a.jpg
2
10 20 30 40 2 1 0 0 1 1
5 6 7 8 0 0 1 1 2 0
0--Parade/empty.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
3
0 0 100 80 0 0 0 0 0 0
50 50 0 12 0 0 0 0 0 0
90 70 30 30 0 0 0 0 0 0
"""


def read(text: str, tmp_path: Path, images: bool = True) -> Index:
    for name in ("0--Parade/a.jpg", "0--Parade/empty.jpg", "1--Handshaking/b.jpg") if images else ():
        save_image(tmp_path / "images" / name)
    (tmp_path / "gt.txt").write_text(text)
    return read_wider_face(tmp_path / "gt.txt", tmp_path / "images")


def test_fields(tmp_path: Path) -> None:
    index = read(TEXT, tmp_path)
    assert index.classes == ("face",)
    assert [index.names[i] for i in range(3)][1] == "0--Parade/empty.jpg"
    assert index.box_offsets.tolist() == [0, 2, 2, 5]
    assert index.sizes.tolist() == [[80, 100]] * 3
    assert index.boxes.tolist() == [
        [10, 20, 40, 60], [5, 6, 12, 14], [0, 0, 100, 80], [50, 50, 50, 62], [90, 70, 120, 100]
    ]  # fmt: skip
    assert index.flags.tolist() == [0, Flag.INVALID, 0, Flag.INVALID, 0]
    assert index.area.tolist() == [1200, 56, 8000, 0, 900]
    assert tuple(index.columns) == ATTRIBUTES
    assert index.columns["blur"].tolist() == [2, 0, 0, 0, 0]
    assert index.columns["invalid"].tolist() == [0, 1, 0, 0, 0]
    assert index.columns["occlusion"].tolist() == [1, 2, 0, 0, 0]
    assert index.skipped == {}


def test_count_zero_without_its_line(tmp_path: Path) -> None:
    text = TEXT.replace("0 0 0 0 0 0 0 0 0 0\n1--", "1--")
    assert_same(read(text, tmp_path), read(TEXT, tmp_path))
    assert len(read("0--Parade/empty.jpg\n0", tmp_path)) == 1
    assert read("0--Parade/empty.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n", tmp_path).columns.keys() == set(ATTRIBUTES)


def test_negative_size_and_outside_are_invalid(tmp_path: Path) -> None:
    rows = ["10 10 -3 5", "10 10 5 -3", "100 10 5 5", "10 200 5 5", "-20 10 5 5"]
    text = "0--Parade/a.jpg\n5\n" + "".join(f"{row} 0 0 0 0 0 0\n" for row in rows)
    index = read(text, tmp_path)
    assert set(index.flags.tolist()) == {Flag.INVALID}
    assert len(index.boxes) == 5  # kept: the protocol counts them


def test_an_area_that_float32_loses_is_none(tmp_path: Path) -> None:
    text = "0--Parade/a.jpg\n2\n0 2 1 1.1920928955078125e-07 0 0 0 0 0 0\n99.99999999 0 5 5 0 0 0 0 0 0\n"
    assert read(text, tmp_path).flags.tolist() == [Flag.INVALID] * 2


def test_unreadable_image_is_counted(tmp_path: Path) -> None:
    index = read(TEXT, tmp_path, images=False)
    assert index.sizes.tolist() == [[0, 0]] * 3
    assert len(index.boxes) == 5
    places = index.skipped["image cannot be read"]
    assert places[2] == f"{tmp_path / 'gt.txt'}:8: {tmp_path / 'images' / '1--Handshaking/b.jpg'}"


def test_round_trip(tmp_path: Path) -> None:
    index = read(TEXT, tmp_path)
    write_wider_face(index, tmp_path / "written.txt")
    assert (tmp_path / "written.txt").read_text() == TEXT
    assert_same(read_wider_face(tmp_path / "written.txt", tmp_path / "images"), index)


coordinates = st.one_of(st.integers(-5, 90), st.floats(-5, 90, width=16))
faces = st.tuples(*[coordinates] * 4, st.integers(0, 2), st.integers(0, 1))


@settings(max_examples=40, deadline=None)
@given(images=st.lists(st.lists(faces, max_size=4), max_size=4))
def test_round_trip_of_any_index(images: list[list[Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("faces")
    lines = []
    for number, rows in enumerate(images):
        lines += [f"{number}.jpg", str(len(rows))]
        lines += [f"{x} {y} {w} {h} {blur} 0 1 {bad} 0 0" for x, y, w, h, blur, bad in rows]
    (folder / "a.txt").write_text("\n".join(lines))
    index = read_wider_face(folder / "a.txt", folder)
    write_wider_face(index, folder / "b.txt")
    again = read_wider_face(folder / "b.txt", folder)
    assert_same(again, index, but=("area",))


def test_written_from_another_format(tmp_path: Path) -> None:
    builder = IndexBuilder(tmp_path)
    builder.image("a.jpg", 80, 100)
    builder.box((1, 2, 4, 6), 0)
    builder.box((1, 2, 4, 6.5), -1, Flag.IGNORE_REGION)
    write_wider_face(builder.build(["face"]), tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text() == "a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n1 2 3 4.5 0 0 0 1 0 0\n"


MALFORMED = [
    ("a.jpg\nb.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n",
     ["{file}:2: 'b.jpg', expected the number of faces of 'a.jpg' (line 1)"]),
    ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\nb.jpg\n0\n",
     ["{file}:4: 'b.jpg', expected face 2 of 2 of 'a.jpg' (count on line 2); "
      "correct the count or add the missing lines"]),
    ("a.jpg\n1\n",
     ["{file}:3: the end of the file, expected face 1 of 1 of 'a.jpg' (count on line 2); "
      "correct the count or add the missing lines"]),
    ("a.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n1 2 3 4 0 0 0 0 0 1\nb.jpg\n0\n",
     ["{file}:4: '1 2 3 4 0 0 0 0 0 1', expected an image name; is the count of the image above right?"]),
    ("a.jpg\n1\n1 2 3 4\n",
     ["{file}:3: '1 2 3 4', expected 10 numbers: "
      "x y w h blur expression illumination invalid occlusion pose"]),
    ("a.jpg\n1\n1 2 3 z 0 0 0 0 0 0\n",
     ["{file}:3: '1 2 3 z 0 0 0 0 0 0', expected 10 numbers: "
      "x y w h blur expression illumination invalid occlusion pose"]),
    ("a.jpg\n1\n1 2 3 4 0 0 0 0.5 0 0\n",
     ["{file}:3: '1 2 3 4 0 0 0 0.5 0 0', expected whole numbers after x y w h"]),
    ("a.jpg\n0\na.jpg\n0\n", ["{file}:3: 'a.jpg' is already listed on line 1; join the two"]),
    ("a.jpg\nx\nb.jpg\n-1\n",
     ["{file}:2: 'x', expected the number of faces of 'a.jpg' (line 1)",
      "{file}:3: 'b.jpg', expected the number of faces of 'x' (line 2)"]),
    ("a.jpg", ["{file}:2: the end of the file, expected the number of faces of 'a.jpg' (line 1)"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), MALFORMED)
def test_malformed(text: str, messages: list[str], tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as error:
        read(text, tmp_path, images=False)
    file = tmp_path / "gt.txt"
    assert str(error.value).startswith(f"{file}: ")
    assert mistakes(error)[: len(messages)] == [message.format(file=file) for message in messages]
