"""What goes wrong in a step is a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crossdet.errors import UserError
from crossdet.training.loop import _forward

BATCH: Any = None


def test_batch_norm_of_a_single_cell_is_told():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(
        UserError, match=r"one picture at once .* `input.shorter`, or `model.freeze_batch_norm: true`"
    ):
        _forward(lambda _: norm(torch.zeros(1, 3, 1, 1)), BATCH)
    assert _forward(lambda _: norm(torch.zeros(2, 3, 1, 1)), BATCH) is not None


def test_other_errors_stay_what_they_are():
    def broken(_: Any) -> Any:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        _forward(broken, BATCH)
