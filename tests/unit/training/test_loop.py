"""What goes wrong in a step is a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from crossdet.errors import Diverged, UserError
from crossdet.training.compiling import Compiling
from crossdet.training.loop import StepLosses, _batches, _forward, _forward_and_back, _is_stuck, _stop_with
from crossdet.training.recipe import Recipe
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


class Layer(nn.Module):
    """Whose first calls run out of memory: forward, or behind the gradient of its weight."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__()
        self.weight, self.broken = nn.Parameter(torch.ones(2)), broken
        self.weight.register_post_accumulate_grad_hook(lambda _: self._run_out("backward"))

    def _run_out(self, where: str) -> None:
        if self.broken[:1] == [where]:
            self.broken.pop(0)
            raise torch.OutOfMemoryError(where)

    def forward(self, _: Any) -> Any:
        self._run_out("forward")
        return StepLosses({"one": (3 * self.weight).sum()}, torch.zeros(2), torch.zeros(2), {})


@pytest.mark.parametrize("broken", [[], ["forward"], ["backward"]])
def test_where_compiled_parts_need_too_much_memory_the_step_is_done_without_them(broken, capsys):
    parts = SimpleNamespace(compile_parts=lambda _: None, compile_nothing=lambda: None, has_parts_to_compile=True)
    fabric: Any = SimpleNamespace(
        backward=lambda loss: loss.backward(), is_global_zero=True, device=torch.device("cpu"), world_size=1
    )
    compiling = Compiling(fabric, cast(Any, parts), Recipe(compile=False), 2)
    compiling.unasked = True
    failures, layer = len(broken), Layer(broken)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    run: Any = SimpleNamespace(compiling=compiling, fabric=fabric, optimizer=optimizer)
    terms = _forward_and_back(run, layer, BATCH, 2).terms
    assert (float(terms["one"].detach()), layer.weight.grad.tolist()) == (6, [1.5, 1.5])
    assert compiling.unasked == (not failures)
    assert ("not compiled: the memory of the device" in capsys.readouterr().out) == bool(failures)
    layer.broken.append("forward")
    with pytest.raises(torch.OutOfMemoryError):  # nothing is compiled any more, or an earlier part would be lost
        _forward_and_back(run, layer, BATCH, 2)


@pytest.mark.parametrize(("best", "stuck"), [(None, True), (1, True), (2, False), (3, False)])
def test_patience_counts_from_the_best_evaluation_and_from_the_start_where_there_is_none(best, stuck):
    history = [{"epoch": epoch, "metrics": {}} for epoch in (1, 2, 3)]
    progress = Progress(best_epoch=best, history=history)
    assert _is_stuck(progress, 2) is stuck
    assert not _is_stuck(progress, None)
    assert not _is_stuck(Progress(best_epoch=best, history=[*history, {"epoch": 4}]), 2)


def batches_of(processes: int, progress: Progress, told: list[str], pictures: int = 29) -> list[list[int]]:
    dataset: Any = SimpleNamespace(
        sizes=lambda: np.full((pictures, 2), 32), draw_weights=lambda: np.ones(pictures), placing=lambda _: None
    )
    run: Any = SimpleNamespace(progress=progress, fabric=SimpleNamespace(world_size=processes), say=told.append)
    return [[draw.row for draw in batch] for batch in _batches(run, Recipe(batch_size=8), dataset, 0)]


def test_a_begun_epoch_keeps_its_batches_for_other_processes():
    """They depend on how many processes there are: a picture was lost where one went on for two."""
    told: list[str] = []
    by_two = batches_of(2, Progress(), told)
    assert batches_of(1, Progress(), told) != by_two
    begun = Progress(step_in_epoch=3, pieces=2)
    assert batches_of(1, begun, told) == by_two
    assert begun.pieces == 2
    assert batches_of(1, Progress(step_in_epoch=3, pieces=1), told) == batches_of(1, Progress(), told)
    begun.step_in_epoch = 0  # the next epoch is its own
    assert batches_of(1, begun, told) == batches_of(1, Progress(), told)
    assert begun.pieces == 1
    assert not told
    # a last batch of 5 pictures has none for three of eight processes
    begun = Progress(step_in_epoch=1, pieces=1)
    assert batches_of(8, begun, told) == batches_of(8, Progress(), [])
    assert told == [
        "the rest of this epoch is in other batches than it began: some pictures may come twice, others never"
    ]


def test_where_the_loss_of_another_process_broke_no_picture_is_named():
    waited: list[str] = []
    fabric = SimpleNamespace(barrier=lambda: waited.append("for the other"))
    run: Any = SimpleNamespace(progress=Progress(step=6), fabric=fabric)
    with pytest.raises(Diverged, match="the loss of another process is not finite at step 7; that one says"):
        _stop_with(run, None, BATCH)
    assert waited
