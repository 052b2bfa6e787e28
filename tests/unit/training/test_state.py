"""The time of a training in its state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crossdet.training.recipe import Recipe
from crossdet.training.state import Progress, RunState


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
