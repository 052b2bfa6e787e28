"""Opening a dataset, and what a loader worker pays for it in memory, against pycocotools on the same file.

    python benchmarks/index.py [--full] [--workers 2] [--rounds 3] [--json FILE]

Generates a COCO JSON (with segmentation polygons, to be as large as the real one), reads it once, opens it
again from the cache and forks workers that look at the annotations of every image, as a loader worker does within
an epoch. pycocotools: `COCO(file)`, which every start of a program pays anew, and the same for its workers. Opening
takes turns; medians. By default a tenth of COCO; `--full` has train2017's 118,000 images and 860,000 boxes and
takes some minutes and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from crossdet.data.cache import load_index, save_index
from crossdet.data.formats.coco import read_coco
from crossdet.data.index import Index

POLYGON_POINTS = 22


@contextmanager
def timed(results: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    results[name] = round(time.perf_counter() - start, 4)


def write_generated_coco(path: Path, images: int, boxes: int, seed: int = 0) -> None:
    """A COCO instances file with random boxes, written piece by piece."""
    rng = np.random.default_rng(seed)
    owners = rng.integers(0, images, boxes).tolist()
    classes = rng.integers(1, 81, boxes).tolist()
    corners = rng.integers(0, 400, (boxes, 2))
    rows = np.hstack([corners, rng.integers(1, 80, (boxes, 2))]).tolist()
    with path.open("w") as file:
        file.write('{"images": [')
        for i in range(images):
            image = {"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640}
            file.write((", " if i else "") + json.dumps(image))
        file.write('], "annotations": [')
        for i, (owner, label, box) in enumerate(zip(owners, classes, rows, strict=True)):
            polygon = [round(box[k % 2] + 0.37 * k, 2) for k in range(2 * POLYGON_POINTS)]
            row = {"id": i, "image_id": owner, "category_id": label, "bbox": box, "iscrowd": 0}
            row |= {"area": box[2] * box[3] * 0.6, "segmentation": [polygon]}
            file.write((", " if i else "") + json.dumps(row))
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def touch(index: Index) -> float:
    arrays = (index.boxes, index.labels, index.flags, index.area, index.sizes, index.box_offsets)
    return float(sum(array.sum(dtype=np.float64) for array in (*arrays, index.names.blob)))


def touch_coco(coco: COCO) -> int:
    """What `CocoDetection` does for every image: its annotations by id."""
    return sum(len(coco.loadAnns(coco.getAnnIds(imgIds=image))) for image in coco.imgs)


def worker_growth(look: Callable[[], object], workers: int) -> list[int]:
    """Bytes by which each forked worker's private memory grows when it looks at all annotations."""
    look()
    growths = []
    for _ in range(workers):
        reader, writer = os.pipe()
        if os.fork() == 0:
            before = private_bytes()
            look()
            os.write(writer, str(private_bytes() - before).encode())
            os._exit(0)
        os.wait()
        growths.append(int(os.read(reader, 64)))
        os.close(reader)
        os.close(writer)
    return growths


def measure(images: int, boxes: int, workers: int, rounds: int, folder: Path) -> dict[str, float]:
    results: dict[str, float] = {"images": images, "boxes": boxes}
    annotations, entry = folder / "instances.json", folder / "entry"
    write_generated_coco(annotations, images, boxes)
    results["json_mb"] = round(annotations.stat().st_size / 1e6, 1)
    with timed(results, "first_read_s"):
        index = read_coco(annotations, folder)
    with timed(results, "save_s"):
        save_index(index, entry)
    results["cache_mb"] = round(sum(f.stat().st_size for f in entry.iterdir()) / 1e6, 1)
    del index
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    coco = None
    for turn in range(rounds):
        with timed(ours, str(turn)):
            opened = load_index(entry)
        coco = None  # else two of them are in memory
        with timed(theirs, str(turn)), redirect_stdout(None):
            coco = COCO(str(annotations))
    results["open_s"] = statistics.median(ours.values())
    results["pycocotools_open_s"] = statistics.median(theirs.values())
    results["open_ratio"] = statistics.median(b / a for a, b in zip(ours.values(), theirs.values(), strict=True))
    results["first_read_ratio"] = results["pycocotools_open_s"] / results["first_read_s"]
    if coco is None or len(coco.anns) != len(opened.boxes) + sum(map(len, opened.skipped.values())):
        raise SystemExit("not the same number of boxes")
    if Path("/proc/self/smaps_rollup").exists():
        results["worker_growth_mb"] = round(max(worker_growth(lambda: touch(opened), workers)) / 1e6, 2)
        grown = max(worker_growth(lambda: touch_coco(coco), workers))
        results["pycocotools_worker_growth_mb"] = round(grown / 1e6, 2)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=11_800)
    parser.add_argument("--boxes", type=int, default=86_000)
    parser.add_argument("--full", action="store_true", help="118,000 images and 860,000 boxes")
    parser.add_argument("--quick", action="store_true", help="a few images: does it run?")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of opening, both sides in turns")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.boxes = 600, 4_000
    if arguments.full:
        arguments.images, arguments.boxes = 118_000, 860_000
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.images, arguments.boxes, arguments.workers, arguments.rounds, Path(folder))
    for name, value in results.items():
        print(f"{name:30} {value:g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
