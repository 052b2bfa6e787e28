"""What goes wrong in a step is a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from crossdet.errors import UserError
from crossdet.training.loop import _forward, _is_stuck
from crossdet.training.state import Progress

BATCH: Any = None
ASKED: Any = SimpleNamespace(unasked=False)


def test_batch_norm_of_a_single_cell_is_told():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(
        UserError, match=r"one picture at once .* `input.shorter`, or `model.freeze_batch_norm: true`"
    ):
        _forward(lambda _: norm(torch.zeros(1, 3, 1, 1)), BATCH, ASKED)
    assert _forward(lambda _: norm(torch.zeros(2, 3, 1, 1)), BATCH, ASKED) is not None


def test_other_errors_stay_what_they_are():
    def broken(_: Any) -> Any:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        _forward(broken, BATCH, ASKED)


@pytest.mark.parametrize(("best", "stuck"), [(None, True), (1, True), (2, False), (3, False)])
def test_patience_counts_from_the_best_evaluation_and_from_the_start_where_there_is_none(best, stuck):
    history = [{"epoch": epoch, "metrics": {}} for epoch in (1, 2, 3)]
    progress = Progress(best_epoch=best, history=history)
    assert _is_stuck(progress, 2) is stuck
    assert not _is_stuck(progress, None)
    assert not _is_stuck(Progress(best_epoch=best, history=[*history, {"epoch": 4}]), 2)
