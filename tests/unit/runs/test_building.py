"""What a config means on a machine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from crossdet import Config
from crossdet.runs import building


@pytest.mark.parametrize(
    ("train", "gpu", "bf16", "numbers"),
    [
        ({}, True, True, "bf16-mixed"),
        ({}, True, False, "32-true"),
        ({}, False, True, "32-true"),
        ({"accelerator": "cpu"}, True, True, "32-true"),
        ({"precision": "32-true"}, True, True, "32-true"),
        ({"precision": "16-mixed"}, True, True, "16-mixed"),
        ({"recipe": "paper"}, True, True, "32-true"),
    ],
)
def test_auto_computes_in_bfloat16_on_a_card_that_has_it(monkeypatch, train, gpu, bf16, numbers):
    given = {}

    def fabric(**options):
        given.update(options)
        return SimpleNamespace(launch=lambda: None, strategy=SimpleNamespace(launcher=None))

    monkeypatch.setattr(building, "Fabric", fabric)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: bf16 or emulated)
    config = Config.from_dict(
        {"datasets": {"a": {"format": "coco", "train": {}}}, "train": {"loggers": [], **train}}
    )
    building.build_fabric(config)
    on_card = gpu and train.get("accelerator") != "cpu"
    assert (given["precision"], given["accelerator"]) == (numbers, "cuda" if on_card else "cpu")
