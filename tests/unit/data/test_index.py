"""The columnar index: packing, checks, building; sizes from image headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdet.data.annotation_files import header_sizes
from crossdet.data.cache import load_index, save_index
from crossdet.data.index import Index, IndexBuilder, Ragged, Strings

from .formats.helpers import assert_same, sample_index, save_image


@given(st.lists(st.text()))
def test_strings(texts: list[str]) -> None:
    texts = [t.encode(errors="ignore").decode() for t in texts]
    packed = Strings.pack(texts)
    assert [packed[i] for i in range(len(packed))] == texts
    with pytest.raises(IndexError):
        packed[len(texts)]


@given(st.lists(st.lists(st.integers(0, 9))))
def test_ragged(rows: list[list[int]]) -> None:
    packed = Ragged.pack(rows)
    assert [packed[i].tolist() for i in range(len(rows))] == rows


def empty_index() -> Index:
    return IndexBuilder("nowhere").build(["x"], federated=True)


def test_save_and_load(tmp_path: Path) -> None:
    columns = {"blur": np.arange(3, dtype=np.int16)}
    index = replace(sample_index(tmp_path), columns=columns, skipped={"reason": ["file:1"]})
    save_index(index, tmp_path / "entry")
    loaded = load_index(tmp_path / "entry")
    assert_same(loaded, index)
    assert loaded.root == index.root
    assert loaded.skipped == index.skipped
    assert isinstance(loaded.boxes, np.memmap)
    with pytest.raises(ValueError):
        loaded.boxes[0] = 0


def test_empty_index(tmp_path: Path) -> None:
    save_index(empty_index(), tmp_path / "entry")
    assert_same(load_index(tmp_path / "entry"), empty_index())


def test_take(tmp_path: Path) -> None:
    index = sample_index(tmp_path)
    taken = index.take(np.array([2, 0]))
    assert [taken.names[i] for i in range(2)] == ["c.png", "a.png"]
    assert taken.boxes.tolist() == index.boxes[[2, 0, 1]].tolist()
    assert taken.rows(1) == slice(1, 3)
    assert taken.image_of_box().tolist() == [0, 1, 1]


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    index = sample_index(tmp_path)
    with pytest.raises(ValueError, match=r"Index\.labels: expected shape \(3,\), got \(2,\)"):
        replace(index, labels=index.labels[:2])
    with pytest.raises(ValueError, match=r"Index\.columns\['a'\]: expected shape \(3,\), got \(2,\)"):
        replace(index, columns={"a": index.labels[:2]})


def test_builder_skips_and_clips() -> None:
    builder = IndexBuilder("")
    builder.image("a", 80, 100)
    builder.box((-5, 70, 50, 90), 0, place="f:1")
    builder.box((10, 10, 10, 20), 0, place="f:2")
    builder.box((100, 10, 120, 20), 0, place="f:3")
    builder.box((float("inf"), 10, 120, 20), 0, place="f:4")
    builder.box((1000.00001, 10, 1000.00002, 20), 0, place="f:5")  # no width in float32
    builder.box((10, 10, 10, 20), 0, keep_invalid=True)
    index = builder.build(["x"])
    assert index.boxes.tolist() == [[0, 70, 50, 80], [10, 10, 10, 20]]
    assert index.skipped == {
        "box far over its image's border, cut": ["f:1: xyxy [-5, 70, 50, 90] in an image of 100x80"],
        "box without area": ["f:2: xyxy [10, 10, 10, 20]", "f:5: xyxy [1000, 10, 1000, 20]"],
        "box outside its image": ["f:3: xyxy [100, 10, 120, 20] in an image of 100x80"],
        "box with a coordinate that is no number": ["f:4: (inf, 10, 120, 20)"],
    }


def test_header_sizes(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    paths = [save_image(tmp_path / "a.png", 30, 20), tmp_path / "b.jpg", tmp_path / "missing.jpg"]
    assert header_sizes(paths) == [(20, 30), None, None]
