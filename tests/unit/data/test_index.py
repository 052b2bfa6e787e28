"""The columnar index: packing, checks, cache hit, miss and damage, size and memory at COCO's scale."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdet.data.annotation_files import header_sizes
from crossdet.data.cache import cache_root, cached, fingerprint, load_index, save_index
from crossdet.data.index import Index, IndexBuilder, Ragged, Strings

from .formats.helpers import assert_same, generated_index, sample_index, save_image

IMAGES, BOXES = 118_000, 860_000


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
        "box without area": ["f:2: xyxy [10, 10, 10, 20]", "f:5: xyxy [1000, 10, 1000, 20]"],
        "box outside its image": ["f:3: xyxy [100, 10, 120, 20] in an image of 100x80"],
        "box with a coordinate that is no number": ["f:4: (inf, 10, 120, 20)"],
    }


def test_header_sizes(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    paths = [save_image(tmp_path / "a.png", 30, 20), tmp_path / "b.jpg", tmp_path / "missing.jpg"]
    assert header_sizes(paths) == [(20, 30), None, None]


# ---------------------------------------------------------------------------------------------- cache


class Reader:
    """Counts how often it is asked."""

    def __init__(self, index: Index) -> None:
        self.index, self.calls = index, 0

    def __call__(self) -> Index:
        self.calls += 1
        return self.index


def test_cache_hit_and_miss(tmp_path: Path) -> None:
    reader = Reader(sample_index(tmp_path / "images"))
    for _ in range(2):
        assert_same(cached("key", reader, tmp_path), reader.index)
    assert reader.calls == 1
    cached("other", reader, tmp_path)
    assert reader.calls == 2


def test_not_worth_keeping(tmp_path: Path) -> None:
    reader = Reader(sample_index(tmp_path / "images"))
    for _ in range(2):
        cached("key", reader, tmp_path, worth_keeping=lambda index: False)
    assert reader.calls == 2
    assert not (tmp_path / "index").exists()


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.write_bytes(b"[1, 2]" if file.suffix == ".json" else b"something else")


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "other"])
@pytest.mark.parametrize("name", ["boxes.npy", "names_offsets.npy", "meta.json"])
def test_damaged_entry_is_read_anew(name: str, how: str, tmp_path: Path) -> None:
    reader = Reader(sample_index(tmp_path / "images"))
    cached("key", reader, tmp_path)
    damage(tmp_path / "index" / "key" / name, how)
    assert_same(cached("key", reader, tmp_path), reader.index)
    assert reader.calls == 2
    assert_same(cached("key", reader, tmp_path), reader.index)
    assert reader.calls == 2


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reader = Reader(sample_index(tmp_path / "images"))
    assert cached("key", reader, tmp_path / "file") is reader.index


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CROSSDET_CACHE", raising=False)
    assert cache_root() == tmp_path / "crossdet"
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    key = fingerprint({"format": "coco"}, [file])
    assert fingerprint({"format": "coco"}, [file]) == key
    assert fingerprint({"format": "voc"}, [file]) != key
    os.utime(file, ns=(0, 0))
    assert fingerprint({"format": "coco"}, [file]) != key


# ---------------------------------------------------------------------------------------------- scale

WORKER = """
import os, sys
from pathlib import Path
import numpy as np
from crossdet.data.cache import _arrays, load_index

def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

def touch(index):
    return sum(float(array.sum(dtype=np.float64)) for array in _arrays(index).values())

index = load_index(Path(sys.argv[1]))
touch(index)
if os.fork() == 0:
    before = private_bytes()
    touch(index)
    [index.names[i] for i in range(0, len(index), 100)]
    print(private_bytes() - before, sum(a.nbytes for a in _arrays(index).values()), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "entry"
    save_index(generated_index(IMAGES, BOXES), folder)
    return folder


def test_large_index_opens_at_once(large: Path) -> None:
    start = time.perf_counter()
    index = load_index(large)
    assert index.names[IMAGES - 1] == f"{IMAGES - 1:012d}.jpg"
    assert len(index.boxes[index.rows(5)]) >= 0
    assert time.perf_counter() - start < 2
    assert len(index.boxes) == BOXES


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")
def test_forked_worker_shares_the_arrays(large: Path) -> None:
    run = subprocess.run([sys.executable, "-c", WORKER, str(large)], check=True, capture_output=True, text=True)
    growth, size = (int(v) for v in run.stdout.split())
    assert size > 20e6
    assert growth < 20e6
