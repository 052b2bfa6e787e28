"""Class-agnostic NMS: of several classes at one place the best is left, wherever a detector is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_iou, nms

from crossdet import LabelSpace, evaluate, load_detector, predict
from crossdet.config import Config, load_config
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.inference import Detector
from crossdet.labels.folds import Fold
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings
from crossdet.models.contract import Limits
from crossdet.models.retinanet import network as retinanet
from crossdet.models.retinanet.settings import Adapter, Anchors, RetinaNetSettings
from crossdet.models.weights import load_weights, save_weights
from crossdet.runs.audit import audit_runs
from crossdet.runs.extend import with_settings_of

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False, prior=0.3,
)  # fmt: skip
CLASSES = 5
SPACE = LabelSpace.build({"a": ["car", "van", "dog"], "b": ["cat", "cow"]})
IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SIZES = torch.tensor([[64, 96], [50, 90]])
EVAL = {"topk": 200, "nms_iou": 0.5, "max_detections": 50, "score_threshold": None}


def made(*adapters: Adapter):
    torch.manual_seed(0)
    model = build_detector(SETTINGS.model_copy(update={"adapters": adapters}), CLASSES).eval()
    torch.nn.init.normal_(model.class_subnet.predict.weight, std=0.3)
    return model


@pytest.mark.parametrize("adapters", [(), (Adapter(2, 6, 2), Adapter(4, 4, 4))])
@pytest.mark.parametrize("entries", [1, 3_000, 10**9])
@pytest.mark.parametrize("classes", [None, [0, 3, 4]])
def test_find_and_decode_against_nms_of_all_boxes(monkeypatch, adapters, entries, classes):
    """However many classes are looked at together, and whichever box subnet their boxes come from."""
    monkeypatch.setattr(retinanet, "LOGITS_AT_ONCE", entries)
    model = made(*adapters)
    by_class = Limits(0.3, topk=300, nms_iou=0.4, max_detections=30)
    agnostic, wide = replace(by_class, agnostic_nms=True), replace(by_class, nms_iou=1.0, max_detections=10**6)
    with torch.inference_mode():
        outputs = model(IMAGES)
        decoded = model.decode(outputs, SIZES, classes, agnostic)
        found = model.find(IMAGES, SIZES, classes, agnostic)
        # nothing is suppressed at an IoU of 1
        everything = model.decode(outputs, SIZES, classes, wide)
        plainly = model.find(IMAGES, SIZES, classes, by_class)
    for one, other, whole, plain in zip(decoded, found, everything, plainly, strict=True):
        keep = nms(whole.boxes, whole.scores, 0.4)[:30]
        assert len(keep) == 30
        for got in (one, other):
            torch.testing.assert_close(got.boxes, whole.boxes[keep], rtol=0, atol=1e-4)
            torch.testing.assert_close(got.scores, whole.scores[keep], rtol=0, atol=1e-6)
            assert got.labels.tolist() == whole.labels[keep].tolist()
        assert len(set(one.labels.tolist())) > 1
        assert float(box_iou(other.boxes, other.boxes).fill_diagonal_(0).max()) <= 0.4
        assert float(box_iou(plain.boxes, plain.boxes).fill_diagonal_(0).max()) > 0.4  # by class as before


def test_a_detector_with_folds():
    """Of a class in two members and another one at the same place one is left, under its reported name."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    space = replace(SPACE, folds=(Fold("turned", (0, 3), (0, 90)),))
    model, size = made(), InputSettings(64, 96)
    folded = Detector(model, space, size, {"agnostic_nms": True}, fold=True)
    plain = Detector(model, SPACE, size)
    found = folded(picture, score_threshold=0.3, max_detections=40)
    wanted = plain(picture, score_threshold=0.3, max_detections=40, agnostic_nms=True)
    assert torch.equal(found.scores, wanted.scores)
    assert torch.equal(found.boxes, wanted.boxes)
    names = {"car": "turned", "cat": "turned"}
    assert found.names == tuple(names.get(name, name) for name in wanted.names or ())
    overlapping = folded(picture, score_threshold=0.3, max_detections=40, agnostic_nms=False)
    assert overlapping.names != found.names
    assert set(names.values()) < set(found.names or ())


# ------------------------------------------------------------------------------------------- commands, Python


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """`first`: weights whose classes overlap at every place, and `config.yaml` with two datasets."""
    monkeypatch.chdir(tmp_path)
    card = Card(SPACE, SETTINGS, InputSettings(64, 96), EVAL)
    save_weights(Path("first/model.safetensors"), made().state_dict(), card)
    datasets = {}
    for name, sources in zip(SPACE.datasets, SPACE.sources, strict=True):
        builder = IndexBuilder(tmp_path / name)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)
            file = tmp_path / name / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(file)
            builder.image(file.name, 64, 96, image_id=number + 1)
            for label in range(len(sources)):
                builder.box((20 * label, 5, 20 * label + 30, 40), label)
        write_coco(builder.build(list(sources)), tmp_path / f"{name}.json")
        datasets[name] = {"format": "coco", "val": {"images": name, "annotations": f"{name}.json"}}
    Path("config.yaml").write_text(yaml.safe_dump({"datasets": datasets, "train": {"workers": 0}}))
    return Path("first")


def most_overlap(rows) -> float:
    """The largest IoU of two detections of one picture."""
    boxes = torch.tensor(rows)
    return float(box_iou(boxes, boxes).fill_diagonal_(0).max())


def test_predict(run, command):
    detector = load_detector(run, "cpu")
    assert "agnostic_nms" not in detector.decoding  # weights from before there was the switch
    counts = {}
    for option in ((), ("--no-agnostic-nms",), ("--agnostic-nms",)):
        assert command("predict", run, "a", "-o", "out", "--score", 0.3, "--no-pictures", *option)[0] == 0
        images = json.loads(Path("out/predictions.json").read_text())["images"]
        counts[option] = images
        overlap = max(most_overlap([d["box_xyxy"] for d in image["detections"]]) for image in images)
        assert (overlap > 0.5) == (option != ("--agnostic-nms",))
    assert counts[()] == counts["--no-agnostic-nms",]
    (called,) = predict(detector, Path("a/0.png"), score_threshold=0.3, agnostic_nms=True)
    assert called.names == tuple(d["class"] for d in counts["--agnostic-nms",][0]["detections"])
    assert len(predict(run, "a/0.png", score_threshold=0.3)[0]) == len(counts[()][0]["detections"])


def test_the_weights_carry_the_setting(run, command):
    tensors, card = load_weights(run)
    config = Config.from_dict(plain_config(agnostic_nms=True))
    said = replace(card, decoding=config.eval.model_dump())
    save_weights(Path("second.safetensors"), tensors, said)
    detector = load_detector("second.safetensors", "cpu")
    assert detector.decoding["agnostic_nms"] is True
    found = detector("a/0.png", score_threshold=0.3)
    assert most_overlap(found.boxes.tolist()) <= 0.5
    assert most_overlap(detector("a/0.png", score_threshold=0.3, agnostic_nms=False).boxes.tolist()) > 0.5
    # an extension takes it over, unless its config says otherwise
    assert with_settings_of(said, Config.from_dict(plain_config())).eval.agnostic_nms is True
    other = Config.from_dict(plain_config(agnostic_nms=False))
    assert with_settings_of(said, other).eval.agnostic_nms is False
    assert with_settings_of(card, Config.from_dict(plain_config())).eval.agnostic_nms is False


def plain_config(**limits) -> dict:
    builder = IndexBuilder("/pictures")
    builder.image("a.png", 10, 10)
    builder.box((0, 0, 5, 5), 0)
    return {"datasets": {"new": {"train": builder.build(["sign"])}}, "eval": limits}


def test_eval_and_audit(run, command):
    """The command's option, the config's key and Python's argument are one switch; the option counts most."""
    boxes = {}
    for name, options in {
        "default": (),
        "config": ("--set", "eval.agnostic_nms=true"),
        "option": ("--agnostic-nms",),
        "off": ("--set", "eval.agnostic_nms=true", "--no-agnostic-nms"),
    }.items():
        assert command("eval", run, "config.yaml", "-o", name, *options)[0] == 0
        results = json.loads((Path(name) / "predictions/a/results.json").read_text())
        boxes[name] = [r["bbox"] for r in results]
        code, _ = command("audit", run, "config.yaml", "-o", f"audit_{name}", *options)
        assert code == 0
    assert boxes["default"] == boxes["off"]
    assert boxes["config"] == boxes["option"]
    assert boxes["config"] != boxes["default"]
    per_image = {name: json.loads(Path(f"audit_{name}/audit.json").read_text()) for name in boxes}
    assert per_image["default"] == per_image["off"] != per_image["config"] == per_image["option"]

    config = load_config("config.yaml")
    scores = {given: json.dumps(evaluate(run, config, agnostic_nms=given)) for given in (None, False, True)}
    assert scores[None] == scores[False] != scores[True]
    audited = audit_runs([run], config, Path("audit_python"), agnostic_nms=True)
    assert json.loads(Path("audit_python/audit.json").read_text()) == per_image["option"]
    assert audited.keys() == {"first"}
