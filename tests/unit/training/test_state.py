"""The time of a training in its state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossdet.training.recipe import Recipe
from crossdet.training.state import Progress, RunState, averaged


def new_run(progress: Progress) -> Any:
    return RunState(SimpleNamespace(world_size=1), None, None, None, None, None, progress=progress)


def test_an_evaluation_is_spent_when_the_state_is_saved_after_it(monkeypatch):
    """Otherwise a run resumed there knows of evaluations that nobody waited for: its steps seem to take no time,
    and its schedule gets no end."""
    now = [0.0]
    monkeypatch.setattr("crossdet.training.state.time.monotonic", lambda: now[0])
    recipe, progress = Recipe(minutes=10.0), Progress()

    def steps(run: RunState, last: int) -> None:
        while run.progress.step < last:
            now[0] += 1.0
            run.progress.step += 1
            run.look_at_clock(recipe)

    run = new_run(progress)
    steps(run, 60)
    now[0] += 2.0
    with run.evaluation(0.1):
        now[0] += 60.0
    assert progress.clock.spent == 122
    assert (progress.clock.evaluated, progress.clock.evaluations) == (60, 1)

    now[0] += 1000.0  # it is killed after the state is saved, and goes on later
    resumed = new_run(progress)
    steps(resumed, 120)
    assert progress.clock.spent == 182
    assert progress.clock.line is not None
    assert progress.clock.line[2] == pytest.approx(10 * 60 - 2 - 60, rel=0.12)  # steps of a second each


def test_a_state_of_before_there_were_canvases_goes_on_without():
    assert Progress().canvases is None  # a new run chooses
    older = {key: value for key, value in vars(Progress()).items() if key not in ("canvases", "clock")}
    assert Progress.from_state(older).canvases == ()
    assert Progress.from_state(older | {"canvases": ((64, 96),)}).canvases == ((64, 96),)


def test_all_processes_are_judged_with_the_statistics_that_are_saved(monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda buffer, source: sent.append(buffer.data_ptr()))
    network = torch.nn.BatchNorm2d(3)
    average = averaged(network, 0.9)  # type: ignore[arg-type]
    run: Any = RunState(SimpleNamespace(world_size=2), network, None, average, None, None)  # type: ignore[arg-type]
    run.share_buffers()
    of = [network.running_mean, network.running_var, average.module.running_mean, average.module.running_var]
    assert sent == [buffer.data_ptr() for buffer in of]
    run.fabric.world_size = 1
    run.share_buffers()
    assert len(sent) == 4
