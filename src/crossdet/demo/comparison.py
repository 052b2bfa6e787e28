"""`crossdet demo`: what missing labels do to a detector, in a few minutes on a CPU.

Three generated datasets that label different things (faces, pedestrians, objects) and differ in look, as real
ones do. Two detectors are trained on them with the same budget: dataset-aware, and by naive concatenation. A
held-out set in all three looks carries all labels and shows what each of them really finds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from crossdet.config import load_config
from crossdet.data.drawing import class_colour, draw_boxes
from crossdet.data.formats.format import SplitFiles
from crossdet.data.formats.wider_face import read_wider_face
from crossdet.data.index import Index
from crossdet.data.reading import read_split
from crossdet.demo.scenes import LOOKS, write_demo_datasets
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.files.wider_face_lists import write_wider_face_lists
from crossdet.evaluation.operating import CONFIDENT, confident_share
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.run import EvalSettings, detect
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.evaluation.tables import lineless_table, percent
from crossdet.files import write_json
from crossdet.inference import load_detector
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
            "group_norm": True,  # random weights learn several times faster with it
            "anchors": {"scales": [2, 3], "ratios": [0.7, 1.2, 2.2]},
        },
        "input": {"shorter": 160, "longer": 224},
        "train": {
            "epochs": 6,
            "steps": [4.5, 5.5],
            "batch_size": 8,
            "lr": 0.03,
            "warmup_epochs": 0.5,
            "clip_norm": 5.0,
            "workers": 0,
            "accelerator": "cpu",
            "eval_every": 0,
            "log_every": 113,
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


@dataclass(frozen=True)
class UnionTest:
    """The fully labelled pictures: all classes in all looks. look_of: `[I]` position in LOOKS per image."""

    index: Index
    truth: GroundTruth
    classes: tuple[str, ...]
    look_of: NDArray[np.int64]


def write_demo_world(
    folder: Path,
    seed: int = 0,
    steps: int | None = None,
    images: int = TRAIN_IMAGES,
    test_images: int | None = None,
) -> int:
    """Writes the pictures and their labels into `folder/data` and the configs `aware.yaml`, `naive.yaml` and
    `full.yaml` beside it; returns the test pictures per look (test_images; None = a third of `images`)."""
    folder.mkdir(parents=True, exist_ok=True)
    union = max(PICTURES_PER_LOOK, images // 3) if test_images is None else test_images
    write_demo_datasets(folder / "data", seed, images, max(2, images // 8), union)
    _write_face_lists(folder / "data/faces")
    configs = {method: demo_config(method == "naive", seed, steps) for method in METHODS}
    for name, content in (configs | {"full": full_config(seed, steps)}).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return union


def run_demo(
    folder: Path,
    console: Console,
    seed: int = 0,
    steps: int | None = None,
    images: int = TRAIN_IMAGES,
    test_images: int | None = None,
) -> dict[str, Any]:
    """Writes pictures, two runs, tables and side-by-side pictures into `folder`; returns the numbers.

    steps: optimiser steps of each training; None = the whole schedule. images: training pictures per dataset.
    test_images: fully labelled pictures per look, None = a third of `images`.
    """
    started = time.monotonic()
    console.print("[bold]1/4[/bold] three generated datasets and a fully labelled test set")
    union = write_demo_world(folder, seed, steps, images, test_images)
    console.print(
        "    faces: only faces are labelled; peds: only pedestrians; objects: persons, cars, dogs, signs, no faces"
    )
    found, test = {}, None
    for number, method in enumerate(METHODS, 2):
        what = "dataset-aware loss" if method == "aware" else "naive concatenation, same budget"
        console.print(f"[bold]{number}/4[/bold] training: {what}")
        config_file = folder / f"{method}.yaml"
        train(load_config(config_file), output=folder / "runs" / method, overwrite=True)
        detector = load_detector(folder / "runs" / method, "cpu", last=True)
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
    content = {"seed": seed, "steps": steps, "minutes": minutes, "results": result}
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


def _write_face_lists(faces: Path) -> None:
    """Easy, medium and hard faces in the layout of WIDER FACE's evaluation; here by their height alone."""
    index = read_wider_face(faces / "wider_face_val_bbx_gt.txt", faces / "images")
    boxes = np.array(index.boxes, np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    kept = {setting: boxes[:, 3] >= least for setting, least in FACE_HEIGHTS.items()}
    names = [str(Path(index.names[row]).with_suffix("")) for row in range(len(index))]
    write_wider_face_lists(faces / "ground_truth", names, boxes, index.image_of_box(), kept)


def _union_test(data: Path, classes: tuple[str, ...]) -> UnionTest:
    files = SplitFiles(
        annotations=(data / "union_test/annotations/all.json",), images=(data / "union_test/images",)
    )
    index = read_split("coco", files)
    class_ids = np.array([classes.index(name) for name in index.classes], np.int64)
    names = [index.names[row] for row in range(len(index))]
    look_of = np.array([next(i for i, look in enumerate(LOOKS) if n.startswith(look)) for n in names])
    return UnionTest(index, ground_truth(Split(index, class_ids, classes)), classes, look_of)


def _measure(test: UnionTest, found: DetectionArrays) -> dict[str, Any]:
    """AP50 per class and look, and how confidently the labelled objects are found."""
    result: dict[str, Any] = {}
    for look in ("all", *LOOKS):
        chosen = np.ones(len(test.look_of), bool) if look == "all" else test.look_of == LOOKS.index(look)
        truth, detections = _images(test.truth, found, chosen)
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


def _images(
    truth: GroundTruth, found: DetectionArrays, chosen: NDArray[np.bool_]
) -> tuple[GroundTruth, DetectionArrays]:
    """Truth and detections of the chosen images, rows renumbered."""
    new_row = np.cumsum(chosen) - 1
    t, d = chosen[truth.image_of_box], chosen[found.image_of_box]
    return (
        GroundTruth(
            image_ids=truth.image_ids[chosen],
            boxes=truth.boxes[t],
            labels=truth.labels[t],
            crowd=truth.crowd[t],
            area=truth.area[t],
            image_of_box=new_row[truth.image_of_box[t]],
        ),
        DetectionArrays(
            boxes=found.boxes[d],
            scores=found.scores[d],
            labels=found.labels[d],
            image_of_box=new_row[found.image_of_box[d]],
        ),
    )


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
    sheets = []
    for number, look in enumerate(LOOKS):
        rows = np.flatnonzero(test.look_of == number)[:PICTURES_PER_LOOK]
        sheet = _joined([_comparison(test, found, int(row)) for row in rows], across=False)
        sheet.save(folder / f"{look}.png")
        sheets.append(_comparison(test, found, _most_unlabelled(test, look)))
    _joined(sheets, across=False).save(folder / "overview.png")
    return folder


def _most_unlabelled(test: UnionTest, look: str) -> int:
    """The picture of a look with the most objects of classes that its training pictures do not label."""
    foreign = np.array([_foreign(name, look) for name in test.classes])[test.truth.labels]
    counts = np.bincount(test.truth.image_of_box[foreign & ~test.truth.crowd], minlength=len(test.look_of))
    return int(np.where(test.look_of == LOOKS.index(look), counts, -1).argmax())


def _comparison(test: UnionTest, found: dict[str, DetectionArrays], row: int) -> Image.Image:
    with Image.open(test.index.path(row)) as opened:
        picture = opened.convert("RGB").resize((2 * opened.width, 2 * opened.height), Image.Resampling.LANCZOS)
    truth = test.truth
    mine = np.flatnonzero((truth.image_of_box == row) & ~truth.crowd)
    panels = [_panel(picture, "all objects", test.classes, truth.boxes[mine], truth.labels[mine], None)]
    for method in ("naive", "aware"):
        d = found[method]
        mine = np.flatnonzero((d.image_of_box == row) & (d.scores >= CONFIDENT))
        title = f"{'naive concatenation' if method == 'naive' else 'dataset-aware'}, score >= {CONFIDENT}"
        panels.append(_panel(picture, title, test.classes, d.boxes[mine], d.labels[mine], d.scores[mine]))
    return _joined(panels, across=True)


def _panel(
    picture: Image.Image,
    title: str,
    classes: tuple[str, ...],
    boxes: NDArray[Any],
    labels: NDArray[Any],
    scores: NDArray[Any] | None,
) -> Image.Image:
    texts = [classes[label] for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    doubled = [(2 * x1, 2 * y1, 2 * x2, 2 * y2) for x1, y1, x2, y2 in boxes.tolist()]
    drawn = draw_boxes(picture, doubled, texts, [class_colour(label) for label in labels.tolist()])
    panel = Image.new("RGB", (drawn.width, drawn.height + 22), "white")
    panel.paste(drawn, (0, 22))
    ImageDraw.Draw(panel).text((4, 3), title, fill="black", font=ImageFont.load_default(14))
    return panel


def _joined(parts: list[Image.Image], across: bool) -> Image.Image:
    """The pictures, all of one size, beside each other (across) or below each other."""
    width, height = parts[0].size
    step = (width + 8, 0) if across else (0, height + 8)
    last = len(parts) - 1
    sheet = Image.new("RGB", (width + last * step[0], height + last * step[1]), "white")
    for number, part in enumerate(parts):
        sheet.paste(part, (number * step[0], number * step[1]))
    return sheet
