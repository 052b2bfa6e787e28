"""Weights files that somebody has changed, or a training has spoilt: told with the file, and by nobody used."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from crossdet import LabelSpace, load_detector
from crossdet.errors import UserError
from crossdet.inference import Detector
from crossdet.models.building import build_detector
from crossdet.models.card import FORMAT, Card, InputSettings
from crossdet.models.retinanet.settings import RetinaNetSettings


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    space = LabelSpace.build(datasets={"a": ["x", "y"]})
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1)
    return Detector(build_detector(settings, 2), space, InputSettings(64, 128))


@pytest.fixture
def stored(detector, tmp_path):
    """A weights file with something changed: (tensors, metadata) -> its path."""
    card = Card(detector.space, detector.model.settings, detector.settings, {}, None)

    def write(change):
        tensors = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
        metadata = {"format": FORMAT, **card.to_metadata()}
        change(tensors, metadata)
        save_file(tensors, tmp_path / "w.safetensors", metadata)
        return tmp_path / "w.safetensors"

    assert load_detector(write(lambda _tensors, _metadata: None)).classes == ("x", "y")
    return write


def test_weights_that_are_no_numbers(stored):
    name = "class_subnet.tower.0.weight"

    def change(tensors, _metadata):
        tensors[name][0, 0, 0, 0] = torch.nan

    with pytest.raises(UserError, match=rf"w\.safetensors holds values that are no numbers, first in {name}"):
        load_detector(stored(change))


def test_tensors_of_other_shapes_than_described(stored):
    def change(tensors, _metadata):
        tensors["class_subnet.predict.bias"] = torch.zeros(7)

    with pytest.raises(UserError, match=r"class_subnet\.predict\.bias is \[7\], and by the description \[18\]"):
        load_detector(stored(change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "{"), ("labels", "[]"), ("input", "[]"), ("input", "{"), ("eval", "[]1"), ("eval", "3"),
        ("operating", '{"x": 3}'), ("operating", '{"x": {"threshold": "high"}}'), ("labels", "{}"),
    ],
)  # fmt: skip
def test_a_description_that_somebody_has_changed(key, value, stored):
    def change(_tensors, metadata):
        metadata[key] = value

    with pytest.raises(UserError, match=r"weights .*w\.safetensors: "):
        load_detector(stored(change))
