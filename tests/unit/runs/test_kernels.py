"""Which kernels torch takes: `train.deterministic`."""

from __future__ import annotations

import os

import pytest
import torch

from crossdet.config import Config
from crossdet.runs import building


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set here is taken away again
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_kernels_are_deterministic_where_that_is_asked_for_on_a_card(card, asked, monkeypatch):
    train = {"deterministic": asked}
    config = Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "train": train})
    monkeypatch.setattr(building, "on_gpu", lambda _config: card)
    building.choose_kernels(config)
    assert torch.are_deterministic_algorithms_enabled() is (card and asked)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if card and asked else None)
