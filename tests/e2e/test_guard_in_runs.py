"""The guard in trainings: caused failures are named, a healthy training is not, and nothing is changed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import World, changed, draw_split

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "models"))

from tiny import TINY

from crossdet import RunError, extend, train
from crossdet.config import Config
from crossdet.data.formats.coco import write_coco
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.weights import load_state
from crossdet.training import watch
from crossdet.training.log import RunLog, Step


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    """One dataset, 24 pictures to train on and 16 to validate with: enough for every judgement."""
    folder = tmp_path_factory.mktemp("cars")
    rng = np.random.default_rng(5)
    for split, count in (("train", 24), ("val", 16)):
        index = draw_split(rng, folder, [f"{split}_{i}.png" for i in range(count)], "car")
        write_coco(index, folder / f"{split}.json")
    for i in range(16):  # the pictures of `noise.json`
        pixels = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"noise_{i}.png")
    (folder / "noise.json").write_text((folder / "val.json").read_text().replace("val_", "noise_"))
    content = json.loads((folder / "train.json").read_text())
    boxes = [a["bbox"] for a in content["annotations"]]
    for annotation, box in zip(content["annotations"], boxes[7:] + boxes[:7], strict=True):
        annotation["bbox"] = box
    (folder / "shuffled.json").write_text(json.dumps(content))
    return folder


def settings(world: World, cars: Path, changes: dict[str, Any], val: str = "val", train: str = "train") -> Config:
    values = changed(world.settings(), {"datasets": {}, "model": {"name": "tiny", "width": 16, "weights": "none"}})
    values["datasets"] = {
        "cars": {
            "format": "coco",
            "train": {"images": str(cars), "annotations": str(cars / f"{train}.json")},
            "val": {"images": str(cars), "annotations": str(cars / f"{val}.json")},
        }
    }
    usual = {"train.epochs": 30, "train.eval_every": 10, "train.lr": 0.01, "train.log_every": 50}
    values = changed(values, {**usual, "train.clip_norm": 5.0, "train.warmup_epochs": 1.0, **changes})
    return Config.from_dict(values)


def warnings(run: Path) -> list[dict[str, Any]]:
    return [w for epoch in json.loads((run / "metrics.json").read_text())["epochs"] for w in epoch["warnings"]]


def test_a_healthy_training_is_not_warned(world, cars, tmp_path, capsys):
    record = train(settings(world, cars, {}), output=tmp_path / "run")  # 180 steps, three evaluations
    assert record["metrics"]["datasets"]["cars"]["AP50"] > 0.3
    assert warnings(tmp_path / "run") == []
    assert "warning" not in capsys.readouterr().out
    guard = load_state(tmp_path / "run" / "state.pt")["progress"]["guard"]
    assert guard["newest"] != guard["start"]  # it did look


def test_an_absurd_rate_is_named_early_and_at_the_end(world, cars, tmp_path, capsys):
    changes = {"train.lr": 0.3, "train.clip_norm": 1.0, "train.warmup_epochs": 0.1, "train.epochs": 12}
    train(settings(world, cars, changes), output=tmp_path / "run")
    found = warnings(tmp_path / "run")
    (first, *_) = [w for w in found if w["kind"] == "dead_features"]
    assert first["numbers"]["step"] == 50
    assert first["numbers"]["variation"] < 0.02
    printed = capsys.readouterr().out
    head, tail = printed.split("seen in this training (docs/guard.md):\n")
    assert f"warning: {first['sentence']}" in head
    assert head.index("warning: after step 50") < head.index("evaluation, epoch 10")  # not only at evaluations
    assert tail.count("warning: after step") == 1


def test_a_rate_of_nothing_stands_still(world, cars, tmp_path, crossdet, capsys):
    config = settings(world, cars, {"train.lr": 1e-9, "train.epochs": 40, "train.eval_every": 5})
    train(config, output=tmp_path / "run")
    printed = capsys.readouterr().out.splitlines()
    told = [line for line in printed if "no detection scores above" in line]
    assert [line.split(": ")[0] for line in told] == ["warning", *["warning, as before"] * 5, "warning"]
    assert ["train longer" in line for line in told] == [True, *[False] * 5, True]  # advice once, and at the end
    epochs = json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"]
    kinds = [{w["kind"] for w in epoch["warnings"]} for epoch in epochs]
    assert not any(kinds[:13])  # an evaluation after 10 of 40 epochs may be low
    assert kinds[14] == {"low_scores"}  # 90 steps are too few to judge the loss
    assert kinds[-1] == {"low_scores", "flat_loss"}
    assert all("warnings" not in epoch.get("metrics", {}) for epoch in epochs)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    done = crossdet("eval", tmp_path / "run", path, "--json", tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr
    assert "warning: cars: no detection scores above 0.1" in done.stdout
    assert [w["kind"] for w in json.loads((tmp_path / "eval.json").read_text())["warnings"]] == ["low_scores"]


def test_labels_that_do_not_lie_on_the_objects(world, cars, tmp_path):
    train(
        settings(world, cars, {"train.epochs": 15, "train.eval_every": 15}, train="shuffled"),
        output=tmp_path / "run",
    )
    assert "low_scores" in {w["kind"] for w in warnings(tmp_path / "run")}


def test_validation_pictures_of_noise(world, cars, tmp_path, capsys):
    changes = {"train.epochs": 1, "train.max_steps": 1}
    train(settings(world, cars, changes, val="noise"), output=tmp_path / "run")
    (found,) = [w for w in warnings(tmp_path / "run") if w["kind"] == "foreign_validation"]
    assert found["numbers"]["dataset"] == "cars"
    printed = capsys.readouterr().out
    assert printed.index("look like no training set") < printed.index("epoch 1 step 1/")
    train(settings(world, cars, changes), output=tmp_path / "own")
    assert [w for w in warnings(tmp_path / "own") if w["kind"] == "foreign_validation"] == []
    noise = settings(world, cars, {"datasets.cars.train": None, "train.max_steps": 1}, val="noise")
    values = noise.model_dump(mode="json", exclude_unset=True)
    old, new = values["datasets"]["cars"], {"train": settings(world, cars, {}).datasets["cars"].train}
    both = {"cars": old, "more": {"format": "coco", **new}}
    more = Config.from_dict({**values, "datasets": both, "labels": {"merge": {"car": ["cars/car", "more/car"]}}})
    extend(tmp_path / "own", more, output=tmp_path / "extended")  # what it learnt from need not be here
    assert [w for w in warnings(tmp_path / "extended") if w["kind"] == "foreign_validation"] == []


def test_a_class_that_is_never_where_its_boxes_are(world, cars, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        content = json.loads((cars / f"{split}.json").read_text())
        content["categories"].append({"id": 99, "name": "truck"})
        for number, image in enumerate(content["images"]):
            box = [int(rng.integers(40)), int(rng.integers(24)), 16, 16]
            truck = {"id": 1000 + number, "image_id": image["id"], "category_id": 99, "bbox": box}
            content["annotations"].append({**truck, "area": 256, "iscrowd": 0})
        (cars / f"trucks_{split}.json").write_text(json.dumps(content))
    config = settings(world, cars, {"train.eval_every": 30}, train="trucks_train", val="trucks_val")
    train(config, output=tmp_path / "run")
    (found,) = warnings(tmp_path / "run")
    assert (found["kind"], found["numbers"]["objects"]) == ("unfound_classes", {"truck": 16})
    assert f"warning: {found['sentence']}" in capsys.readouterr().out


def test_a_detector_of_what_all_pictures_show_alike(world, cars, tmp_path, capsys):
    """A watermark, labelled as the car in all training pictures."""
    mark = [24, 16, 16, 16]
    (cars / "marked").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        content = json.loads((cars / f"{split}.json").read_text())
        for image in content["images"]:
            pixels = rng.integers(90, 110, (image["height"], image["width"], 3)).astype(np.uint8)
            pixels[16:32, 24:40] = 255
            image["file_name"] = f"marked/{image['file_name']}"
            Image.fromarray(pixels).save(cars / image["file_name"])
        for annotation in content["annotations"] if split == "train" else ():
            annotation |= {"bbox": mark, "area": 256}
        (cars / f"marked_{split}.json").write_text(json.dumps(content))
    config = settings(world, cars, {"train.eval_every": 30}, train="marked_train", val="marked_val")
    train(config, output=tmp_path / "run")
    (found,) = [w for w in warnings(tmp_path / "run") if w["kind"] == "constant_detections"]
    assert found["numbers"]["share"] > 0.9 > 0.5 > found["numbers"]["share_of_labels"]
    assert f"warning: {found['sentence']}" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ it only looks

LIVELY = {"train.epochs": 2, "train.ema": 0.9, "augment.scale_jitter": [0.8, 1.2], "model.freeze_batch_norm": False}


def nothing(self: watch.Watch, run: Any, *rest: Any, **_options: Any) -> None:
    if rest and "epoch" in rest[-1]:
        rest[-1].get("metrics", {}).pop("warnings", None)


def test_looking_changes_no_weight(world, tmp_path, monkeypatch):
    """Random state, modes and batch norm statistics are what they would be: weights are equal byte by byte."""
    monkeypatch.setattr(watch, "is_due", lambda step: True)
    train(world.config(LIVELY), output=tmp_path / "watched")
    for method in ("begin", "step", "epoch", "end"):
        monkeypatch.setattr(watch.Watch, method, nothing)
    train(world.config(LIVELY), output=tmp_path / "alone")
    for name in ("model.safetensors", "best.safetensors"):
        assert (tmp_path / "watched" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    a, b = (load_state(tmp_path / run / "state.pt") for run in ("watched", "alone"))
    assert torch.equal(a["random"][0][0], b["random"][0][0])
    assert a["progress"]["guard"]["newest"]
    assert not b["progress"]["guard"]


def test_a_resumed_run_remembers_what_it_saw(world, cars, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "is_due", lambda step: True)
    changes = {"train.lr": 0.3, "train.clip_norm": 1.0, "train.epochs": 3, "train.eval_every": 1}
    config = settings(world, cars, changes)
    log_step = RunLog.step

    def ctrl_c(self: RunLog, at: Step, *arguments: Any) -> None:
        log_step(self, at, *arguments)
        if at.step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", ctrl_c)
        with pytest.raises(RunError, match="interrupted after step 9"):
            train(config, output=tmp_path / "run")
    train(config, output=tmp_path / "run", resume=True)
    train(config, output=tmp_path / "reference")
    assert warnings(tmp_path / "run")
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()
    a, b = (load_state(tmp_path / run / "state.pt")["progress"] for run in ("run", "reference"))
    for progress in (a, b):
        progress["clock"] |= {"spent": 0.0, "evaluated": 0.0}
    assert repr(a["guard"]) == repr(b["guard"])
