"""Scores of federated images against the LVIS API (`lvis.LVISEval`) on random small worlds."""

import json
import math
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from crossdet import Config
from crossdet.commands.score import app
from crossdet.config.sources import open_sources
from crossdet.data.formats.coco import read_coco
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Verified
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.protocols.entry import best_per_image, score_split
from crossdet.evaluation.protocols.lvis import lvis_scores
from crossdet.runs.evaluate import splits_for_training

with pytest.MonkeyPatch.context() as patch:
    # only the API's drawing uses OpenCV, whose import needs libraries of a screen that a server may lack
    patch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    from lvis import LVIS, LVISEval, LVISResults

CLASSES = (1, 2, 5, 6)
IMAGES = 14


def federated_world(seed):
    """LVIS annotations of boxes of all sizes, and detections: near boxes, on nothing, and of classes that nobody
    looked for. Each image verifies some classes by boxes, some as negatives; some it labels in part."""
    rng = np.random.default_rng(seed)
    count, of = int(rng.integers(20, 60)), lambda n: rng.choice(CLASSES, n)
    low = rng.uniform(0, 300, (count, 2))
    size = rng.choice([14, 45, 130], (count, 1)) * rng.uniform(0.6, 1.8, (count, 2))
    boxes = np.concatenate([low, size], 1)
    image, label = rng.integers(1, IMAGES, count), of(count)
    images = []
    for number in range(1, IMAGES + 1):
        present = {int(c) for c in label[image == number]}
        absent = [c for c in CLASSES if c not in present]
        images.append(
            {
                "id": number,
                "height": 600,
                "width": 600,
                "neg_category_ids": [c for c in absent if rng.random() < 0.4],
                "not_exhaustive_category_ids": [c for c in sorted(present) if rng.random() < 0.3],
            }
        )
    near = rng.integers(0, count, 4 * count)
    jitter = rng.normal(0, 0.07, (len(near), 4)) * np.tile(boxes[near, 2:], 2)
    spread = rng.random(len(near)) < 0.4
    found = [
        {"image_id": int(i), "category_id": int(c), "bbox": box.tolist(), "score": float(score)}
        for i, c, box, score in zip(
            np.where(spread, rng.integers(1, IMAGES + 1, len(near)), image[near]),
            np.where(spread, of(len(near)), label[near]),
            np.abs(boxes[near] + jitter),
            np.round(rng.random(len(near)), 2 if seed % 2 else 6),
            strict=True,
        )
    ]
    annotations = [
        {"id": row + 1, "image_id": int(image[row]), "category_id": int(label[row]), "iscrowd": 0,
         "bbox": boxes[row].tolist(), "area": float(boxes[row, 2:].prod() * rng.uniform(0.5, 1))}
        for row in range(count)
    ]  # fmt: skip
    categories = [{"id": c, "name": str(c), "frequency": "rcff"[at]} for at, c in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def lvis_numbers(monkeypatch, tmp_path, world, found, limit):
    """What the LVIS API says. It is of 2019 and asks NumPy for `np.float`, which is gone: patched here alone."""
    monkeypatch.setattr(np, "float", float, raising=False)
    (tmp_path / "lvis.json").write_text(json.dumps(world))
    truth = LVIS(str(tmp_path / "lvis.json"))
    evaluation = LVISEval(truth, LVISResults(truth, json.loads(json.dumps(found)), max_dets=limit), "bbox")
    evaluation.run()
    return evaluation.get_results(), evaluation.eval["precision"]


def our_arrays(world, found):
    """The same world in arrays: boxes x, y, width, height."""

    def column(rows, key, kind=np.float64):
        return np.array([row[key] for row in rows], kind)

    rows = world["annotations"]
    verified = {
        (image["id"] - 1, c)
        for image in world["images"]
        for c in (
            {row["category_id"] for row in rows if row["image_id"] == image["id"]} | set(image["neg_category_ids"])
        )
        - set(image["not_exhaustive_category_ids"])
    }
    pairs = np.array(sorted(verified), np.int64).reshape(-1, 2)
    truth = GroundTruth(
        image_ids=np.arange(1, IMAGES + 1),
        boxes=column(rows, "bbox"),
        labels=column(rows, "category_id", np.int64),
        crowd=np.zeros(len(rows), bool),
        area=column(rows, "area"),
        image_of_box=column(rows, "image_id", np.int64) - 1,
        verified=Verified(np.zeros(0, np.int64), pairs[:, 0], pairs[:, 1]),
    )
    detections = DetectionArrays(
        column(found, "bbox"),
        column(found, "score"),
        column(found, "category_id", np.int64),
        column(found, "image_id", np.int64) - 1,
    )
    return truth, detections


def as_nan(value):
    return math.nan if value == -1 else value


def assert_same(ours, wanted, exact=1e-9):
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl")
    for name in names:
        theirs = wanted[f"{name}@300" if name.startswith("AR") else name]
        if name in ours or name not in ("APr", "APc", "APf"):
            assert ours[name] == pytest.approx(as_nan(theirs), abs=exact, nan_ok=True), name


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
@pytest.mark.parametrize("seed", range(25))
def test_equals_the_lvis_api(seed, monkeypatch, tmp_path):
    """AP by IoU, size, frequency and class; also where the limit of detections per image binds."""
    world, found = federated_world(seed)
    limit = 300 if seed % 3 else 8
    wanted, precision = lvis_numbers(monkeypatch, tmp_path, world, found, limit)
    truth, detections = our_arrays(world, found)
    kept = best_per_image(detections, limit)
    ours = lvis_scores(truth, kept, CLASSES, dict(zip(CLASSES, "rcff", strict=True)), sized=True)
    assert set(ours.scores) >= {"APr", "APc", "APf"}
    assert_same(ours.scores, wanted)
    for row, c in enumerate(CLASSES):
        known = precision[:, :, row, 0]
        expected = known[known > -1].mean() if (known > -1).any() else math.nan
        assert ours.per_class[c]["AP"] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    everything = replace(truth, verified=None)
    plain = coco_scores(everything, kept, CLASSES, limit, sized=True)
    assert plain.scores["AP"] < ours.scores["AP"]  # every world has detections that nobody can call wrong


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 3, 7, 8])
def test_files_in_a_run_and_in_score_give_the_numbers_of_the_lvis_api(seed, monkeypatch, tmp_path):
    """`protocol: lvis` of a dataset, and `crossdet score lvis`, from the annotation file on."""
    world, found = federated_world(seed)
    limit = 300 if seed % 3 else 8
    wanted, _ = lvis_numbers(monkeypatch, tmp_path, world, found, limit)
    for image in world["images"]:
        image["file_name"] = f"{image['id']}.png"
    (tmp_path / "lvis.json").write_text(json.dumps(world))
    (tmp_path / "results.json").write_text(json.dumps(found))
    options = ["--max-detections", str(limit), "--json", str(tmp_path / "scores.json")]
    arguments = ["lvis", str(tmp_path / "lvis.json"), str(tmp_path / "results.json"), *options]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    record = json.loads((tmp_path / "scores.json").read_text())
    assert_same({name: math.nan if value is None else value for name, value in record.items()}, wanted)

    index = read_coco(tmp_path / "lvis.json", tmp_path)
    config = Config.from_dict({"datasets": {"lvis": {"train": index, "val": index, "protocol": "lvis"}}})
    split = splits_for_training(open_sources(config))["lvis"]
    _, sized = our_arrays(world, found)
    corners = np.concatenate([sized.boxes[:, :2], sized.boxes[:, :2] + sized.boxes[:, 2:]], 1)
    labels = np.array([CLASSES.index(c) for c in sized.labels])
    detections = DetectionArrays(corners, sized.scores, labels, sized.image_of_box)
    protocol = PROTOCOLS["lvis"]
    scores = score_split(protocol, split, detections, limit)
    assert_same(scores.record, wanted)
    assert protocol.headline(scores.record) == pytest.approx(wanted["AP"], abs=1e-9)
    assert protocol.limits.max_detections == LVISResults.__init__.__defaults__[0] == 300
