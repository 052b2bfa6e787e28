"""`crossdet demo`: what missing labels do to a detector, in a few minutes on a CPU.

Three generated datasets that label different things (faces, pedestrians, objects) and differ in look, as real
ones do. Two detectors are trained on them with the same budget: dataset-aware, and by naive concatenation. A
held-out set in all three looks carries all labels and shows what each of them really finds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console

from crossdet.config import Config, load_config
from crossdet.config.files import CONFIG_FILE, overridden
from crossdet.data.formats.wider_face import read_wider_face
from crossdet.demo.scenes import LOOKS, MARKER, write_demo_datasets
from crossdet.errors import UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.files.wider_face_lists import write_wider_face_lists
from crossdet.evaluation.operating import CONFIDENT, confident_share
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.run import EvalSettings, detect
from crossdet.evaluation.tables import lineless_table, percent
from crossdet.evaluation.union import UnionTest, compare, joined, of_images, open_union_test
from crossdet.files import write_json
from crossdet.inference import load_detector
from crossdet.runs.directory import is_finished
from crossdet.runs.train import train

METHODS = ("aware", "naive")
LABELLED_IN = {"face": {"faces"}, "person": {"peds", "objects"}}
"""Looks whose training pictures label the class; all other classes are labelled in `objects` only."""
FACE_HEIGHTS = {"easy": 24, "medium": 18, "hard": 0}
"""Least height in pixels of the faces that a setting counts."""
PICTURES_PER_LOOK = 4
TRAIN_IMAGES = 300


def demo_config(plain: bool, seed: int, steps: int | None = None) -> dict[str, Any]:
    """The config of both trainings, as it would stand in a YAML file beside the folder `data`."""
    return {
        "datasets": _demo_datasets(),
        "labels": {"merge": {"person": ["peds/pedestrian", "objects/person"]}, "drop": ["peds/cyclist"]},
        "model": {
            "backbone": "regnetx_002",
            "weights": "none",
            "channels": 64,
            "head_depth": 1,
            "anchors": {"scales": [2, 3], "ratios": [0.7, 1.2, 2.2]},
        },
        "input": {"shorter": 160, "longer": 224},
        "train": {
            "epochs": 4,
            "workers": 0,
            "accelerator": "cpu",
            "eval_every": 0,
            "log_every": 113,
            "canvases": 0,  # the documents' numbers are from before there were any
            "plain": plain,
            **({"max_steps": steps} if steps else {}),
        },
        "eval": {"batch_size": 16},
        "union_test": {
            "format": "coco",
            "images": "data/union_test/images",
            "annotations": "data/union_test/annotations/all.json",
        },
        "seed": seed,
    }


def full_config(seed: int, steps: int | None = None) -> dict[str, Any]:
    """The same recipe on the same pictures with all their labels: for `crossdet-research split`."""
    config = demo_config(False, seed, steps)
    test = config.pop("union_test")
    del config["labels"]
    streets = {
        "format": "coco",
        "train": {"images": "data", "annotations": "data/full/train.json"},
        "val": {key: test[key] for key in ("images", "annotations")},
    }
    return config | {"datasets": {"streets": streets}}


def _demo_datasets() -> dict[str, Any]:
    def faces(split: str, **more: str) -> dict[str, str]:
        annotations = f"data/faces/wider_face_{split}_bbx_gt.txt"
        return {"images": "data/faces/images", "annotations": annotations, **more}

    def peds(split: str) -> dict[str, str]:
        return {
            "images": f"data/peds/images/{split}",
            "annotations": f"data/peds/{split}_annotations.txt",
            "ignore": f"data/peds/pedestrian_ignore_part_{split}.txt",
        }

    def objects(split: str) -> dict[str, str]:
        annotations = f"data/objects/annotations/instances_{split}.json"
        return {"images": f"data/objects/images/{split}", "annotations": annotations}

    return {
        "faces": {
            "format": "wider_face",
            "train": faces("train"),
            "val": faces("val", lists="data/faces/ground_truth"),
            "protocol": "wider_face",
        },
        "peds": {
            "format": "wider_pedestrian",
            "edition": 2018,
            "train": peds("train"),
            "val": peds("val"),
            "protocol": "wider_pedestrian",
        },
        "objects": {"format": "coco", "train": objects("train"), "val": objects("val")},
    }


def write_demo_world(
    folder: Path,
    seed: int = 0,
    steps: int | None = None,
    images: int = TRAIN_IMAGES,
    test_images: int | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Writes the pictures and their labels into `folder/data` and the configs `aware.yaml`, `naive.yaml` and
    `full.yaml` beside it; returns the test pictures per look (test_images; None = a third of `images`).

    overrides: `a.b=value`, of all configs. Raises `ConfigError` where they are none, `UserError` where the folder
    is a run's or has configs of these names that no demo wrote; before anything is written.
    """
    configs = {method: demo_config(method == "naive", seed, steps) for method in METHODS}
    configs = {
        name: overridden(content, overrides)
        for name, content in (configs | {"full": full_config(seed, steps)}).items()
    }
    for content in configs.values():
        Config.from_dict(content, folder)  # a mistake in an override is told before anything is written
    foreign = [name for name in (CONFIG_FILE, *(f"{name}.yaml" for name in configs)) if (folder / name).exists()]
    if foreign and not (folder / "data" / MARKER).exists():
        taken = f"{folder} already holds {', '.join(foreign)}, not written by the demo"
        raise UserError(f"{taken}; give it a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    union = max(PICTURES_PER_LOOK, images // 3) if test_images is None else test_images
    write_demo_datasets(folder / "data", seed, images, max(2, images // 8), union)
    write_face_lists(folder / "data/faces")
    for name, content in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return union


def run_demo(
    folder: Path,
    console: Console,
    seed: int = 0,
    steps: int | None = None,
    images: int = TRAIN_IMAGES,
    test_images: int | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes pictures, two runs, tables and side-by-side pictures into `folder`; returns the numbers.

    steps: optimiser steps of each training; None = the whole schedule. images: training pictures per dataset.
    test_images: fully labelled pictures per look, None = a third of `images`. overrides: see `write_demo_world`.
    overwrite: delete the runs of an earlier call; else a finished one stands and an interrupted one goes on.

    Raises `UserError` where an earlier run in `folder` cannot go on, since it was asked for with other settings.
    """
    started = time.monotonic()
    console.print("[bold]1/4[/bold] three generated datasets and a fully labelled test set")
    union = write_demo_world(folder, seed, steps, images, test_images, overrides)
    console.print(
        "    faces: only faces are labelled; peds: only pedestrians; objects: persons, cars, dogs, signs, no faces"
    )
    found, test = {}, None
    for number, method in enumerate(METHODS, 2):
        what = "dataset-aware loss" if method == "aware" else "naive concatenation, same budget"
        console.print(f"[bold]{number}/4[/bold] training: {what}")
        config, run_dir = load_config(folder / f"{method}.yaml"), folder / "runs" / method
        if not overwrite and is_finished(run_dir, config):
            console.print("    done by an earlier call; --overwrite trains anew")
        else:
            begun = (run_dir / CONFIG_FILE).exists()
            train(config, output=run_dir, resume=begun and not overwrite, overwrite=overwrite)
        detector = load_detector(run_dir, "cpu", last=True)
        test = test or _union_test(folder / "data", detector.classes)
        settings = EvalSettings.of(detector.settings, score_threshold=0.02, batch_size=16)
        found[method] = detect(detector.model, test.index, None, settings).detections
    assert test is not None
    console.print(
        f"[bold]4/4[/bold] comparison on the union test: {union} pictures of each look, every object labelled\n"
    )
    result = {method: _measure(test, found[method]) for method in METHODS}
    _print_tables(result, test, console)
    pictures = write_comparisons(folder / "pictures", test, found)
    minutes = (time.monotonic() - started) / 60
    content = {"seed": seed, "steps": steps, "set": list(overrides), "minutes": minutes, "results": result}
    write_json(folder / "demo.json", content)
    console.print(f"pictures side by side: [bold]{pictures}[/bold]", highlight=False)
    console.print(
        f"configs to start from: {folder}/aware.yaml, naive.yaml, full.yaml; numbers: {folder}/demo.json; "
        f"{minutes:.1f} minutes",
        highlight=False,
    )
    runs = folder / "runs"
    console.print(
        f"what fires where nobody looks: crossdet audit {runs}/aware {folder}/aware.yaml --against {runs}/naive",
        highlight=False,
        soft_wrap=True,
    )
    return content


def write_face_lists(faces: Path) -> None:
    """Easy, medium and hard faces in the layout of WIDER FACE's evaluation; here by their height alone."""
    index = read_wider_face(faces / "wider_face_val_bbx_gt.txt", faces / "images")
    boxes = np.array(index.boxes, np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    kept = {setting: boxes[:, 3] >= least for setting, least in FACE_HEIGHTS.items()}
    names = [str(Path(index.names[row]).with_suffix("")) for row in range(len(index))]
    write_wider_face_lists(faces / "ground_truth", names, boxes, index.image_of_box(), kept)


def _union_test(data: Path, classes: tuple[str, ...]) -> UnionTest:
    folder = data / "union_test"
    return open_union_test(
        folder / "annotations/all.json",
        folder / "images",
        lambda name: next(look for look in LOOKS if name.startswith(look)),
        {look: frozenset(name for name in classes if not _foreign(name, look)) for look in LOOKS},
        classes,
    )


def _measure(test: UnionTest, found: DetectionArrays) -> dict[str, Any]:
    """AP50 per class and look, and how confidently the labelled objects are found."""
    result: dict[str, Any] = {}
    for look in ("all", *LOOKS):
        rows = np.flatnonzero((test.domain_of == look) | (look == "all"))
        truth, detections = of_images(test.truth, found, rows)
        scores = coco_scores(truth, detections, range(len(test.classes)))
        confident = confident_share(truth, detections, range(len(test.classes)))
        result[look] = {"mean": scores.scores["AP50"]} | {
            name: {
                "AP50": scores.per_class[c]["AP50"],
                "boxes": scores.per_class[c]["boxes"],
                "confident": confident[c],
            }
            for c, name in enumerate(test.classes)
        }
    return result


def _print_tables(result: dict[str, Any], test: UnionTest, console: Console) -> None:
    """AP50 and confidently found shares: a row per class, `aware / naive` in every look."""
    classes = sorted(test.classes, key=lambda name: (name != "face", name != "person"))
    looks = {"all": "all looks"} | {look: f"look: {look}" for look in LOOKS}
    for title, number, rows in (
        (
            "AP50, aware / naive (* = not labelled in the training pictures of this look)",
            "AP50",
            [*classes, "mean"],
        ),
        (f"share of the objects found with a score of at least {CONFIDENT}, aware / naive", "confident", classes),
    ):
        table = lineless_table("class", *looks.values(), title=title, no_wrap=1, padding=(0, 2))
        for name in rows:
            cells = []
            for look in looks:
                found = [result[method][look][name] for method in METHODS]
                if name == "mean":
                    cells.append(_pair(found, False))
                else:
                    cells.append(_pair([values[number] for values in found], _foreign(name, look)))
            table.add_row(name, *cells, style="bold" if name == "mean" else "")
        console.print(table)
        console.print()


def _foreign(name: str, look: str) -> bool:
    return look != "all" and look not in LABELLED_IN.get(name, {"objects"})


def _pair(values: list[float], foreign: bool) -> str:
    aware, naive = map(percent, values)
    return f"{'*' if foreign else ' '}{aware:>5} / {naive:>5}"


# ------------------------------------------------------------------------------------------ pictures


def write_comparisons(folder: Path, test: UnionTest, found: dict[str, DetectionArrays]) -> Path:
    """Pictures of every look: what is there, what the naive and what the aware detector see."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    by_title = [("naive concatenation", found["naive"]), ("dataset-aware", found["aware"])]

    def comparison(row: int) -> Image.Image:
        return compare(test, row, "all objects", by_title, CONFIDENT, factor=2)

    sheets = []
    for look in LOOKS:
        rows = np.flatnonzero(test.domain_of == look)[:PICTURES_PER_LOOK]
        joined([comparison(int(row)) for row in rows], upright=True).save(folder / f"{look}.png")
        sheets.append(comparison(_most_unlabelled(test, look)))
    joined(sheets, upright=True).save(folder / "overview.png")
    return folder


def _most_unlabelled(test: UnionTest, look: str) -> int:
    """The picture of a look with the most objects of classes that its training pictures do not label."""
    foreign = np.array([name not in test.labelled_in[look] for name in test.classes])[test.truth.labels]
    counts = np.bincount(test.truth.image_of_box[foreign & ~test.truth.crowd], minlength=len(test.domain_of))
    return int(np.where(test.domain_of == look, counts, -1).argmax())
