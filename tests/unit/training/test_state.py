"""The time of a training in its state."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Clock
from crossdet.training.state import Average, DatasetTotals, Progress, RunState


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


def test_all_processes_end_after_the_same_slow_step(monkeypatch):
    """The second one's clock alone would measure from the first step on, and end one earlier."""
    seconds, now, sent = (9.0, 14.0), [0.0, 0.0], []
    runs = [new_run(Progress()), new_run(Progress())]
    for rank, run in enumerate(runs):

        def broadcast(clock: Clock, rank: int = rank) -> Clock:
            sent.append(clock) if rank == 0 else None
            return Clock(**asdict(sent[-1]))

        run.fabric = SimpleNamespace(world_size=2, broadcast=broadcast)
        run.seen_at = 0.0
    for step in range(1, 7):
        for rank, run in enumerate(runs):
            now[rank] += seconds[rank]
            monkeypatch.setattr("crossdet.training.state.time.monotonic", lambda rank=rank: now[rank])
            run.progress.step = step
            run.look_at_clock(Recipe(minutes=1.0))
        assert runs[0].progress.clock.line == runs[1].progress.clock.line
    assert runs[0].progress.clock.line[2] == 6


def test_a_state_of_before_there_were_canvases_goes_on_without():
    assert Progress().canvases is None  # a new run chooses
    older = {key: value for key, value in vars(Progress()).items() if key not in ("canvases", "clock")}
    assert Progress.from_state(older).canvases == ()
    assert Progress.from_state(older | {"canvases": ((64, 96),)}).canvases == ((64, 96),)


class Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))
        self.norm = torch.nn.BatchNorm2d(2)
        self.register_buffer("table", torch.tensor([1, 2]))


def test_averages_are_those_of_torch_with_the_growing_decay():
    """Bit for bit: parameters and floating-point buffers; counts are copies."""
    torch.manual_seed(0)
    network = Mixed()

    def update(averages: Any, current: Any, count: Any) -> None:
        if averages[0].is_floating_point():
            kept = min(0.5, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averages, current, 1 - kept)
        else:
            torch._foreach_copy_(averages, current)

    theirs = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.no_grad()(update), use_buffers=True)
    ours = Average(network, 0.5)  # type: ignore[arg-type]
    for step in range(12):
        with torch.no_grad():
            network.weight += torch.randn(3, 2)
            network.norm(torch.randn(4, 2, 3, 3))
            network.table += step
        if step == 5:  # as on a resume
            ours.load_state_dict({name: tensor.clone() for name, tensor in ours.state_dict().items()})
        ours.update_parameters(network)
        theirs.update_parameters(network)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), (step, name)


def test_processes_tell_each_other_in_one_go(monkeypatch):
    """Whether the loss is finite everywhere, who wants to save, who wants to stop."""
    others, sent = torch.tensor([0.0, 1.0, 0.0]), []

    def all_reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        sent.append(tensor.tolist())
        return tensor + others

    run = new_run(Progress())
    run.fabric = SimpleNamespace(world_size=2, all_reduce=all_reduce)
    assert run.all_finite(torch.tensor(1.0), Recipe())
    assert run.asked == (True, False)
    run.stop.set()
    assert not run.all_finite(torch.tensor(torch.nan), Recipe(checkpoint_minutes=1e-9))
    assert run.asked == (True, True)
    others[0], others[1] = 1.0, 0.0
    assert not run.all_finite(torch.tensor(1.0), Recipe())
    assert sent == [[0, 0, 0], [1, 1, 1], [0, 0, 1]]


def test_all_processes_are_judged_with_the_statistics_that_are_saved(monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda buffer, source: sent.append(buffer.data_ptr()))
    network = torch.nn.BatchNorm2d(3)
    average = Average(network, 0.9)  # type: ignore[arg-type]
    run: Any = RunState(SimpleNamespace(world_size=2), network, None, average, None, None)  # type: ignore[arg-type]
    run.share_buffers()
    of = [network.running_mean, network.running_var, average.module.running_mean, average.module.running_var]
    assert sent == [buffer.data_ptr() for buffer in of]
    run.fabric.world_size = 1
    run.share_buffers()
    assert len(sent) == 4


def test_what_a_network_notes_is_a_mean_over_the_images_of_a_dataset():
    totals = DatasetTotals(["a", "b", "none"], torch.device("cpu"), ["share"])
    for values in ([0.5, 0.25, 1.0], [0.0, 0.75, 0.0]):
        noted = {"share": torch.tensor(values), "another": torch.zeros(3)}
        totals.add(torch.tensor([0, 1, 0]), torch.ones(3), torch.tensor([2, 1, 0]), noted)
    assert totals.rows(totals.sums) == {
        "a": {"loss": 1.0, "positives": 4.0, "images": 4.0, "share": 0.375},
        "b": {"loss": 1.0, "positives": 2.0, "images": 2.0, "share": 0.5},
    }


def test_a_state_that_noted_nothing_notes_nothing_in_its_epoch():
    """Written by an earlier version. A mean of the rest of the epoch would pass for that of all of it."""
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    fabric = SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True, device=torch.device("cpu"))
    run: Any = RunState(fabric, module, optimizer, None, None, None)
    state = {
        "model": module.state_dict(), "optimizer": optimizer.state_dict(), "average": None, "precision": {},
        "progress": vars(Progress()) | {"clock": {}}, "random": [[torch.get_rng_state()]],
        "names": ["a"], "totals": torch.tensor([[3.0], [2.0], [1.0]]).double(),
    }  # fmt: skip
    run._take(state)
    run.totals.add(torch.tensor([0]), torch.ones(1), torch.ones(1), {"share": torch.ones(1)})
    assert run.totals.rows(run.totals.sums) == {"a": {"loss": 4 / 3, "positives": 3.0, "images": 2.0}}
    run._take(state | {"totals": torch.tensor([[3.0], [2.0], [1.0], [0.5]]).double(), "noted": ["share"]})
    assert run.totals.rows(run.totals.sums)["a"]["share"] == 0.5
