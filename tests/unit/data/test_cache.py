"""The cache of indexes: hit, miss and damage; size and memory at COCO's scale."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossdet.data.cache import _readers, cache_root, cached, fingerprint, load_index, save_index
from crossdet.data.index import Index

from .formats.helpers import assert_same, generated_index, sample_index

IMAGES, BOXES = 118_000, 860_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path))


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
        assert_same(cached("key", reader), reader.index)
    assert reader.calls == 1
    cached("other", reader)
    assert reader.calls == 2


def test_not_worth_keeping(tmp_path: Path) -> None:
    reader = Reader(sample_index(tmp_path / "images"))
    for _ in range(2):
        cached("key", reader, worth_keeping=lambda index: False)
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
    cached("key", reader)
    damage(tmp_path / "index" / "key" / name, how)
    assert_same(cached("key", reader), reader.index)
    assert reader.calls == 2
    assert_same(cached("key", reader), reader.index)
    assert reader.calls == 2


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    reader = Reader(sample_index(tmp_path / "images"))
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "file"))
    assert cached("key", reader) is reader.index


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CROSSDET_CACHE", raising=False)
    assert cache_root() == tmp_path / "crossdet"
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_another_code_of_the_readers_is_another_key(tmp_path: Path) -> None:
    for name in ("data/formats/coco.py", "types.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    keys = [_readers(tmp_path / "data")]
    for name in ("data/formats/coco.py", "types.py"):
        (tmp_path / name).write_text("2")
        _readers.cache_clear()
        keys.append(_readers(tmp_path / "data"))
    assert len(set(keys)) == 3
    assert _readers() not in keys


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    key = fingerprint({"format": "coco"}, [file])
    assert fingerprint({"format": "coco"}, [file]) == key
    assert fingerprint({"format": "voc"}, [file]) != key
    with monkeypatch.context() as patch:
        patch.setattr("crossdet.data.cache._readers", lambda: "the code of another version")
        assert fingerprint({"format": "coco"}, [file]) != key
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
