"""When a training compiles parts of its network, and what it does where that does not pay; no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from crossdet.training.compiling import TIMED_STEPS, WARM_STEPS, Compiling, may_pay
from crossdet.training.recipe import Recipe

STEPS = WARM_STEPS + TIMED_STEPS


class Parts:
    """Of a network what is used. done: what was asked of it."""

    has_parts_to_compile = True

    def __init__(self) -> None:
        self.done: list[object] = []

    def compile_parts(self, full: int | None = None) -> None:
        self.done.append(full)

    def compile_nothing(self) -> None:
        self.done.append("nothing")


def fabric(device: str = "cuda", world_size: int = 1, first: bool = True) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device), world_size=world_size, is_global_zero=first)


def run(parts: Parts, left: int | None, eager: float, after: float, waited: float = 0.0) -> Compiling:
    """Three rounds of steps, the first steps and every eleventh of them slow."""
    one = Compiling(fabric(), parts, Recipe(), 2)
    for number in range(3 * STEPS):
        slow = number % STEPS < WARM_STEPS or number % 11 == 0
        one.step(waited + (100 if slow else 1) * (after if 8 in parts.done else eager), waited, left)
    return one


def test_it_compiles_where_many_steps_are_left_and_keeps_what_is_faster(capsys):
    parts = Parts()
    run(parts, 10_000, 0.08, 0.04)
    assert parts.done == [8]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0].startswith(
        "compiling parts of the network (a step takes 80 ms, 10,000 are left, 2 canvas(es)"
    )
    assert printed[1] == "compiled: 40 ms a step instead of 80"


def test_what_is_no_faster_is_taken_back(capsys):
    parts = Parts()
    run(parts, 10_000, 0.08, 0.09)
    assert parts.done == [8, "nothing"]
    assert "compiled parts are no faster (90 ms a step instead of 80)" in capsys.readouterr().out


def test_a_short_training_is_not_compiled(capsys):
    """2 canvases of 45 s against a quarter of 80 ms: 4,500 steps."""
    parts = Parts()
    run(parts, 4_500, 0.08, 0.04)
    assert parts.done == []
    assert "it would not pay back (a step takes 80 ms, 4,500 are left" in capsys.readouterr().out
    run(parts, 4_501, 0.08, 0.04)
    assert parts.done == [8]


def test_nothing_is_decided_before_it_is_known_how_many_steps_are_left(capsys):
    parts = Parts()
    one = run(parts, None, 0.08, 0.04)
    assert (parts.done, capsys.readouterr().out) == ([], "")
    one.step(0.08, 0.0, 10_000)
    assert parts.done == [8]


@pytest.mark.parametrize(
    ("values", "device", "canvases"),
    [
        ({}, "cpu", 2),
        ({}, "cuda", 0),
        ({"deterministic": True}, "cuda", 2),
        ({"compile": False}, "cuda", 2),
        ({"recipe": "paper"}, "cuda", 2),
    ],
)
def test_where_nothing_is_tried(values, device, canvases, capsys):
    parts = Parts()
    one = Compiling(fabric(device), parts, Recipe.model_validate(values), canvases)
    for _ in range(3 * STEPS):
        one.step(1.0, 0.0, 100_000)
    assert (parts.done, capsys.readouterr().out) == ([], "")


def test_a_network_without_such_parts_and_several_processes():
    parts = Parts()
    assert may_pay(fabric(), parts, Recipe(), 2)
    assert not may_pay(fabric(world_size=2), parts, Recipe(), 2)  # one alone may fail to compile
    parts.has_parts_to_compile = False
    assert not may_pay(fabric(), parts, Recipe(), 2)


@pytest.mark.parametrize(("waited", "done"), [(0.008, [8]), (0.01, [])])
def test_where_pictures_are_waited_for_a_faster_network_gains_nothing(waited, done, capsys):
    """More than a tenth of a step of 80 ms and the waiting."""
    parts = Parts()
    run(parts, 10_000, 0.08, 0.04, waited)
    assert parts.done == done
    printed = capsys.readouterr().out
    assert ("not compiled: pictures are waited for (10 ms a step)" in printed) == (not done)
    assert ("compiled: 40 ms a step instead of 80" in printed) == bool(done)


@pytest.mark.parametrize(("canvases", "full"), [(2, 8), (0, None)])
def test_what_is_asked_for_is_done_at_once(canvases, full):
    parts = Parts()
    one = Compiling(fabric("cpu"), parts, Recipe(compile=True), canvases)
    assert (parts.done, one.unasked) == ([full], False)  # what fails then ends the training
    for _ in range(3 * STEPS):
        one.step(1.0, 0.0, 100_000)
    assert parts.done == [full]


def test_the_batch_of_a_process_is_what_is_compiled_for():
    parts = Parts()
    Compiling(fabric(world_size=2), parts, Recipe(compile=True, batch_size=16, accumulate=2), 2)
    assert parts.done == [4]


def test_what_cannot_be_compiled_is_told_and_left(capsys):
    parts = Parts()
    one = Compiling(fabric(), parts, Recipe(), 2)
    for _ in range(STEPS):
        one.step(0.08, 0.0, 10_000)
    assert one.unasked
    one.give_up("no Triton here")
    assert not one.unasked
    assert parts.done == [8, "nothing"]
    assert capsys.readouterr().out.splitlines()[-1] == "not compiled: no Triton here. The training goes on without"
    for _ in range(2 * STEPS):
        one.step(0.08, 0.0, 10_000)
    assert parts.done == [8, "nothing"]
