"""What is said of the choices of a recipe is what the settings of the network say."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from crossdet.config import Config
from crossdet.config.chosen import batch_norm_lines, open_lines, start_of
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.retinanet.settings import HEAD, SMALL_HEAD


def config(model: dict[str, Any], **train: Any) -> Config:
    return Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "model": model, "train": train})


@pytest.mark.parametrize(
    ("model", "train", "told"),
    [
        ({}, {}, "trained (8 pictures at once on a device)"),
        ({}, {"batch_size": 2}, "fixed (2 pictures at once on a device, to train it takes 4; "),
        ({}, {"accumulate": 8}, "fixed (1 picture at once on a device, to train it takes 4; "),
        ({}, {"recipe": "paper"}, "fixed (`train.recipe: paper`)"),
        ({"weights": "none"}, {"batch_size": 2}, "trained (its weights are random)"),
        ({"freeze_batch_norm": True}, {}, "fixed (`model.freeze_batch_norm: true`)"),
        ({"freeze_batch_norm": False}, {"recipe": "paper"}, "trained (`model.freeze_batch_norm: false`)"),
        ({"name": "dfine", "weights": "hf://own/dfine"}, {}, "fixed (it is that of a checkpoint)"),
    ],
)
def test_batch_norm_is_told_with_its_reason(model, train, told):
    (line,) = batch_norm_lines(config(model, **train), 1)
    assert line.startswith(f"batch norm of the backbone: {told}")


def test_every_process_has_its_share_of_the_pictures():
    assert "trained (4 pictures" in batch_norm_lines(config({}), 2)[0]
    assert "fixed (2 pictures" in batch_norm_lines(config({}), 4)[0]


def test_what_a_resumed_run_began_with_is_told():
    own = config({})
    settings = ARCHITECTURES["retinanet"].settings.of(own.model, own.loss, own.train.network_defaults(4))
    (line,) = batch_norm_lines(own, 1, settings)
    assert line == (
        "batch norm of the backbone: fixed (as this run began; a new one would have it trained: 8 pictures at once "
        "on a device)"
    )
    assert batch_norm_lines(own, 4, settings) == batch_norm_lines(own, 4)


@pytest.mark.parametrize("name", ["retinanet", "dfine", "rtdetr"])
def test_what_is_told_of_batch_norm_is_what_the_network_gets(name):
    kind = ARCHITECTURES[name].settings
    choices = product(("none", "imagenet"), (None, True, False), ("auto", "paper"), (2, 8))
    for weights, frozen, recipe, batch in choices:
        model = {"name": name, "backbone": "resnet18", "weights": weights, "freeze_batch_norm": frozen}
        own = config(model, recipe=recipe, batch_size=batch)
        settings = kind.of(own.model, own.loss, own.train.network_defaults(1))
        (line,) = batch_norm_lines(own, 1)
        told = "fixed" if settings.freeze_batch_norm else "trained"
        assert line.startswith(f"batch norm of the backbone: {told} (")


def test_a_network_without_batch_norm_says_nothing_of_it():
    assert batch_norm_lines(config({"name": "rfdetr"}), 1) == []


def test_the_head_and_the_numbers_that_auto_chooses_are_told():
    small, usual = (f"{channels} channels, {depth} convolutions" for channels, depth in (SMALL_HEAD, HEAD))
    rule = "behind a backbone of less than 15 million parameters, else"
    precision = "precision: bf16-mixed on a GPU that has it, else 32-true"
    assert open_lines(config({})) == [f"head: {small} {rule} {usual}; {precision}"]
    assert open_lines(config({"channels": 64, "head_depth": 1})) == [precision]
    half = open_lines(config({"channels": 64}, precision="32-true"))
    assert half == [f"head: 64 channels, 2 convolutions {rule} 64 channels, 4 convolutions"]
    assert open_lines(config({}, recipe="paper")) == [f"head: {usual}"]
    assert open_lines(config({"name": "rfdetr"}, recipe="paper")) == []


def test_the_backbone_of_a_detector_has_its_share_unless_it_is_frozen():
    def share(model: dict[str, str], extends: bool, **extend: str) -> float:
        given = {"datasets": {"a": {"format": "coco", "train": {"annotations": "a"}}}, "model": model}
        config = Config.from_dict({**given, **({"extend": extend} if extend else {})})
        return config.train.share_of_backbone(start_of(config, extends))

    dfine = {"name": "dfine"}
    assert share({**dfine, "weights": "someone/checkpoint"}, False) == 0.1
    assert share(dfine, True, mode="replay") == 0.1
    assert share(dfine, True, mode="frozen") == 1
    assert share({**dfine, "backbone": "mobilenetv2_100", "weights": "imagenet"}, False) == 1
    assert share({}, True) == 1
