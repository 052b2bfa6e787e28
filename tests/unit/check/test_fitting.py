"""What `check` tests besides the data: names, weights, devices, whole pictures; and what it did not look at."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from crossdet.check import inspect, print_report
from crossdet.check.report import Report
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import UserError
from crossdet.labels.space import LabelSpace
from crossdet.models.backbone_names import ALIASES, backbone_names, backbone_problem
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings
from crossdet.models.detr import building
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import save_weights
from crossdet.runs.train import train

from ..models.detr.made import tiny


@pytest.fixture
def index(tmp_path: Path) -> Index:
    builder = IndexBuilder(tmp_path / "a")
    (tmp_path / "a").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.jpg")
        builder.image(f"{number}.jpg", 48, 64)
        builder.box((10, 10, 40, 40), 0, 0)
    return builder.build(("x",))


def checked(index: Index, decode: bool = False, **sections: Any) -> Report:
    values = {"datasets": {"a": {"train": index}}, "input": {"shorter": 48, "longer": 80}, **sections}
    return inspect(Config.from_dict(values), decode=decode)


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    return console.file.getvalue()


def test_a_picture_that_ends_in_the_middle(index, tmp_path):
    file = tmp_path / "a" / "2.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    report = checked(index)
    assert report.warnings == ()
    assert "Not looked at: pictures beyond their headers and thumbnails (--decode reads" in printed(report)
    report = checked(index, decode=True)
    (warning,) = report.warnings
    assert warning.startswith(f"a train: 1 of 4 image files are damaged\n  - {file}: image file is truncated")
    assert "--decode" not in printed(report)
    file.unlink()
    missing = checked(index, decode=True)  # told once, as missing
    assert [text for text in missing.warnings if str(file) in text] == [
        f"a train: 1 of 4 image files are missing, such as {file}"
    ]


def test_whole_pictures_are_said_to_be(index):
    assert "all 4 looked at are there and have the annotated size and can be decoded" in printed(
        checked(index, True)
    )


def test_the_names_are_those_of_timm():
    """Read from its source, without importing it; `timm` here is the reference."""
    names, real = backbone_names(), set(timm.list_models())
    assert real <= names
    assert all(timm.is_model(name) for name in names - set(ALIASES))


def test_a_backbone_that_is_none(index):
    (error,) = checked(index, model={"backbone": "resnet5"}).errors
    assert error.startswith("model.backbone: 'resnet5' is no timm model; did you mean resnet5")
    assert "timm.list_models() names them" in str(backbone_problem("%%%"))
    known = ("resnet50", "resnet50.a1_in1k", "mobilenetv2", "hf-hub:some/body", "tv_resnet50")
    assert [backbone_problem(name) for name in known] == [None] * 5


def test_weights_of_another_model(index, tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, file)
    (error,) = checked(index, model={"backbone": "test_efficientnet", "weights": str(file)}).errors
    assert f"model.weights: {file} does not fit the backbone" in error
    torch.save(timm.create_model("test_efficientnet").state_dict(), file)
    assert checked(index, model={"backbone": "test_efficientnet", "weights": str(file)}).errors == ()


def test_pictures_of_a_union_test_are_looked_at(index, tmp_path):
    """What is trained on says nothing there; what is also validated on is usual."""
    lost = IndexBuilder(tmp_path / "b")
    lost.image("0.jpg", 48, 64)
    lost.box((10, 10, 40, 40), 0)
    (none,) = checked(index, union_test=lost.build(("x",))).warnings  # its folder is not there
    assert none.startswith("union_test: none of its image files can be used (1 missing), such as")
    (tmp_path / "b").mkdir()
    lost.image("../a/1.jpg", 48, 64)
    leak, missing = checked(index, union_test=lost.build(("x",))).warnings
    assert leak.startswith("LEAK: 1 picture of union_test pictures is also in a train, so scores on union_test")
    assert missing.startswith(f"union_test: 1 of 2 image files are missing, such as {tmp_path / 'b/0.jpg'}")
    values = {"datasets": {"a": {"train": index, "val": "1/2"}}, "input": {"shorter": 48, "longer": 80}}
    val = open_sources(Config.from_dict(values)).val["a"]
    report = inspect(Config.from_dict({**values, "union_test": val}))
    assert not report.warnings
    assert not any("union_test" in text for text in report.notes)


def test_a_trained_detector_as_weights_of_a_backbone(index, tmp_path):
    """Who goes on from a detector of ours looks for `extend`."""
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1)
    space = LabelSpace.build({"a": ["x"]})
    card = Card(space, settings, InputSettings(48, 80), {})
    run = tmp_path / "first"
    save_weights(run / "model.safetensors", build_detector(settings, 1).state_dict(), card)
    for given, what in ((run, "is a folder"), (run / "model.safetensors", "does not fit the backbone")):
        wrong = {"backbone": "test_efficientnet", "weights": str(given)}
        (error,) = checked(index, model=wrong).errors
        assert error.startswith(f"model.weights: {given} {what}")
        assert error.endswith(f"{given} is a trained detector: `crossdet extend {given} CONFIG` goes on from it")
        with pytest.raises(UserError, match=r"is a trained detector: `crossdet extend .*` goes on from it"):
            train(Config.from_dict({"datasets": {"a": {"train": index}}, "model": wrong}), tmp_path / "run")
    (error,) = checked(index, model={"name": "dfine", "weights": str(run)}).errors
    assert f"{run} is no directory with config.json" in error
    assert "goes on from it" in error


@pytest.mark.parametrize(
    ("kind", "say"),
    [
        ("dfine", "`model.name: dfine`"),
        ("rtdetr v1", "`model.name: rtdetr`, `model.version: 1`"),
        ("rtdetr v2", "`model.name: rtdetr`"),
    ],
)
def test_a_checkpoint_without_a_name_of_the_architecture(kind, say, index, tmp_path):
    """Then the config asks for another one, whose weights are no folders."""
    zoo = tmp_path / "zoo"
    network = tiny(kind, square=64)
    building.write(network, ("a", "b", "c", "d"), zoo)
    name = network.settings.name
    text = (
        f"model.weights: {zoo} is a checkpoint of {name}, and `model.name` is retinanet; say {say} to begin from "
        f"it, or `crossdet extend {zoo} CONFIG` to keep its classes"
    )
    model = {"weights": str(zoo)}
    assert checked(index, model=model).errors == (text,)
    with pytest.raises(UserError, match=f"^{re.escape(text)}$"):
        train(Config.from_dict({"datasets": {"a": {"train": index}}, "model": model}), tmp_path / "run")


def test_a_device_that_is_not_there(index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (error,) = checked(index, train={"accelerator": "cuda"}).errors
    assert error == "train.accelerator: cuda, but torch sees no GPU here; use auto or cpu"


def test_more_devices_than_there_are(index, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for kind in ("cuda", "auto"):
        (error,) = checked(index, train={"accelerator": kind, "devices": 2}).errors
        assert error == "train.devices: 2, but torch sees 1 GPU here; use 1"
    assert not checked(index, train={"accelerator": "cpu", "devices": 2}).errors


def test_a_union_test_that_cannot_be_read(index, tmp_path):
    given = {"format": "coco", "images": str(tmp_path), "annotations": str(tmp_path / "none.json")}
    (warning,) = checked(index, union_test=given).warnings
    assert warning.startswith("union_test: ")
    assert "none.json" in warning


def test_a_teacher_that_would_never_label(index):
    pseudo = {"teachers": "self", "from_epoch": 100}
    error, *_ = checked(index, pseudo=pseudo).errors  # four pictures: 100 epochs
    assert error.startswith("`pseudo.from_epoch`: expected less than 100, since with 4 training pictures")


def test_what_would_stop_nothing_and_extend_nothing(index):
    patience, extend = checked(index, train={"patience": 3}, extend={"mode": "frozen"}).warnings
    assert patience.startswith("`train.patience`: no dataset has a `val` split")
    assert extend.startswith("`extend`: this section is for `crossdet extend WEIGHTS CONFIG`")


def test_fewer_pictures_than_micro_batches(index):
    (error,) = checked(index, train={"accumulate": 8}).errors
    assert error.startswith("4 training images are too few for 8 processes x accumulation steps; lower")
    assert not checked(index, train={"accumulate": 4}).errors


def test_what_was_not_looked_at(index):
    report = checked(index, decode=True)
    assert report.not_looked_at == (
        "whether boxes and pictures fit (--pictures draws training batches)",
        "whether the ImageNet weights can be fetched",
        "memory and time of the training",
    )
    assert printed(report).rstrip().splitlines()[-3].startswith("Not looked at: whether boxes")
