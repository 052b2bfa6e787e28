"""The demo's world: generated street pictures that know all their labels, written as datasets that know less.

Real benchmarks label some classes in some pictures. Here every picture knows all its objects, so the same
world can be written as three datasets that each leave something out (`faces`, `peds`, `objects`, each in its
own native format and with its own look), and as a test set that leaves nothing out (`union_test`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.data.formats.coco import write_coco
from crossdet.data.formats.wider_face import write_wider_face
from crossdet.data.formats.wider_pedestrian import write_wider_pedestrian
from crossdet.data.index import Index, IndexBuilder
from crossdet.demo import scene_backdrops, scene_composition, scene_drawing, scene_figures
from crossdet.demo.scene_composition import CLASSES, HEIGHT, LOOKS, WIDTH, Box, Scene, make_scene
from crossdet.errors import UserError
from crossdet.types import Flag

__all__ = ["CLASSES", "LOOKS", "MARKER", "Scene", "make_scene", "write_demo_datasets"]

SPLITS = ("train", "val", "union")
FOLDERS = ("faces", "peds", "objects", "full", "union_test")
MARKER = "demo_datasets.json"
EVENTS = ("0--Parade", "1--Handshaking", "4--Dancing", "13--Interview", "50--Celebration_Or_Party")
CATEGORY_IDS = {"person": 1, "car": 3, "sign": 13, "dog": 18, "face": 91}
"""Ids with gaps and out of order, as in COCO."""
OBJECT_CLASSES = ("person", "car", "dog", "sign")

Summary = dict[str, dict[str, int]]


@dataclass(frozen=True)
class _Picture:
    """One picture to be made: the seed that makes it, the folder its name is relative to, and the name."""

    look: str
    seed: tuple[int, ...]
    folder: Path
    name: str


@dataclass(frozen=True)
class _Labels:
    """What a finished picture shows."""

    picture: _Picture
    objects: list[tuple[str, Box]]
    crowds: list[Box]


def write_demo_datasets(
    root: Path | str,
    seed: int = 0,
    train_images: int = 300,
    val_images: int = 40,
    union_images: int = 100,
    workers: int | None = None,
) -> Summary:
    """Writes three datasets and a fully labelled test set below `root`; returns images and boxes of each.

    train_images, val_images: per dataset; union_images: per look. workers: processes, None = one per CPU
    core; the files do not depend on it. A second call with the same settings finds all in place and returns
    at once; an interrupted or damaged set, or one with other settings, is written anew.
    """
    root = Path(root)
    settings = {
        "seed": seed,
        "train_images": train_images,
        "val_images": val_images,
        "union_images": union_images,
        "code": _code_hash(),
    }
    marker = root / MARKER
    made = _read_marker(marker)
    if made is not None and made.get("settings") == settings and _intact(root, made):
        return dict(made["summary"])
    if made is None and (taken := [name for name in FOLDERS if (root / name).exists()]):
        raise UserError(
            f"{root} already holds {', '.join(taken)}, not written by the demo; give it a folder of its own"
        )
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"settings": None}))
    for name in FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
    pictures = {
        split: _plan(root, seed, split, count)
        for split, count in (("train", train_images), ("val", val_images), ("union", union_images))
    }
    labels = _render_all([p for split in pictures.values() for p in split], workers)
    parts = {split: [labels[p] for p in planned] for split, planned in pictures.items()}
    summary = _annotate(root, parts)
    hashes = {f.relative_to(root).as_posix(): _sha(f) for name in FOLDERS for f in _texts(root / name)}
    content = {"settings": settings, "summary": summary, "files": hashes, "images": len(labels)}
    staging = marker.with_suffix(".new")
    staging.write_text(json.dumps(content, indent=1))
    staging.replace(marker)
    return summary


# --------------------------------------------------------------------------------------------- pictures


def _plan(root: Path, seed: int, split: str, count: int) -> list[_Picture]:
    """The pictures of one split of all three looks: their seeds, folders and names."""
    number = SPLITS.index(split)
    pictures = []
    for look in LOOKS:
        for i in range(count):
            event = EVENTS[i % len(EVENTS)]
            folder, name = {
                "union": ("union_test/images", f"{look}_{i + 1:04d}.jpg"),
                "faces": ("faces/images", f"{event}/{event.replace('--', '_')}_{split}_{i + 1}.jpg"),
                "peds": (f"peds/images/{split}", f"img{i + 1:05d}.jpg"),
                "objects": (f"objects/images/{split}", f"{number * 100_000 + i + 1:012d}.jpg"),
            }["union" if split == "union" else look]
            pictures.append(_Picture(look, (seed, number, i), root / folder, name))
    return pictures


def _render(picture: _Picture) -> _Labels:
    scene = make_scene(picture.look, picture.seed)
    scene.image.save(picture.folder / picture.name, quality=90)
    return _Labels(picture, scene.objects, scene.crowds)


def _render_all(pictures: Sequence[_Picture], workers: int | None) -> dict[_Picture, _Labels]:
    """Makes and saves the pictures, in several processes where that is cheap and safe to do."""
    for folder in {(p.folder / p.name).parent for p in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    # Fork alone: any other way of starting needs an `if __name__ == "__main__"` in the caller's script.
    if workers < 2 or len(pictures) < 64 or "fork" not in multiprocessing.get_all_start_methods():
        return {p: _render(p) for p in pictures}
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, 16), mp_context=context) as pool:
        return dict(zip(pictures, pool.map(_render, pictures, chunksize=16), strict=True))


# ------------------------------------------------------------------------------------------ annotations


def _annotate(root: Path, parts: dict[str, list[_Labels]]) -> Summary:
    """Writes every annotation file; returns the images and boxes of each."""
    summary: Summary = {}

    def note(name: str, index: Index) -> None:
        regular = index.labels[index.flags == 0]
        counts = Counter(index.classes[label] for label in regular.tolist())
        summary[name] = {"images": len(index), **{c: counts[c] for c in index.classes}}

    for split in ("train", "val"):
        of_look = {look: [p for p in parts[split] if p.picture.look == look] for look in LOOKS}
        faces = _index(of_look["faces"], {"face": "face"})
        write_wider_face(faces, root / "faces" / f"wider_face_{split}_bbx_gt.txt")
        peds = _index(of_look["peds"], {"person": "pedestrian"}, crowd_flag=Flag.IGNORE_REGION)
        ignore = root / "peds" / f"pedestrian_ignore_part_{split}.txt"
        write_wider_pedestrian(peds, root / "peds" / f"{split}_annotations.txt", ignore, edition=2018)
        objects = _index(of_look["objects"], {name: name for name in OBJECT_CLASSES})
        write_coco(objects, root / "objects" / "annotations" / f"instances_{split}.json")
        for name, index in zip(LOOKS, (faces, peds, objects), strict=True):
            note(f"{name}/{split}", index)
    full = _index(parts["train"], {name: name for name in CLASSES}, root)
    write_coco(full, root / "full" / "train.json")
    note("full/train", full)
    union = _index(parts["union"], {name: name for name in CLASSES})
    write_coco(union, root / "union_test" / "annotations" / "all.json")
    note("union_test/all", union)
    for look in LOOKS:
        rows = [row for row, part in enumerate(parts["union"]) if part.picture.look == look]
        one = union.take(np.array(rows, np.int64))
        write_coco(one, root / "union_test" / "annotations" / f"{look}.json")
        note(f"union_test/{look}", one)
    return summary


def _index(
    parts: Sequence[_Labels], names: dict[str, str], folder: Path | None = None, crowd_flag: Flag = Flag.CROWD
) -> Index:
    """The labels of some classes only, under a dataset's own names; crowds where persons are labelled.

    folder: of all pictures, None = that of the first one.
    """
    classes = list(names)
    folder = folder or (parts[0].picture.folder if parts else Path())
    builder = IndexBuilder(folder)
    for row, part in enumerate(parts):
        name = (part.picture.folder / part.picture.name).relative_to(folder).as_posix()
        builder.image(name, HEIGHT, WIDTH, image_id=row + 1)
        for name, box in part.objects:
            if name in names:
                builder.box(box, classes.index(name))
        for box in part.crowds if "person" in names else []:
            label = classes.index("person") if crowd_flag == Flag.CROWD else -1
            builder.box(box, label, int(crowd_flag))
    return builder.build(list(names.values()), [CATEGORY_IDS[name] for name in classes])


# -------------------------------------------------------------------------------------- done already?


def _code_hash() -> str:
    """Changes when the drawing changes, so that a set of an older version is not taken for today's."""
    digest = hashlib.sha256()
    for module in (scene_drawing, scene_figures, scene_backdrops, scene_composition, sys.modules[__name__]):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _texts(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.txt"), *folder.glob("*.json"), *folder.glob("annotations/*.json")])


def _read_marker(marker: Path) -> dict[str, Any] | None:
    """What the marker says; None = there is none, empty = it cannot be read."""
    try:
        content = json.loads(marker.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _intact(root: Path, made: dict[str, Any]) -> bool:
    """Whether the annotation files are as they were written and no picture is missing."""
    pictures = sum(1 for name in FOLDERS for _ in (root / name).rglob("*.jpg"))
    return pictures == made["images"] and all(
        (root / file).is_file() and _sha(root / file) == sha for file, sha in made["files"].items()
    )
