"""A training that compiles its network after the first steps, as on a GPU, here by the compiler of a CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from worlds import World

from crossdet import train
from crossdet.training import compiling


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_training_compiles_its_network_after_the_first_steps(world: World, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "START_UP", 0.0)
    monkeypatch.setattr(compiling, "NOTICED", 1.0)  # these pictures are waited for more than the network
    monkeypatch.setattr(compiling, "WARM_STEPS", 2)
    monkeypatch.setattr(compiling, "TIMED_STEPS", 2)
    changes = {"train.epochs": 4, "train.canvases": 1, "train.compile": "auto"}
    eager = train(world.config(changes), output=tmp_path / "eager")
    assert "compiling" not in capsys.readouterr().out  # on a CPU nothing is tried unasked
    monkeypatch.setattr(compiling, "may_pay", lambda *_: True)
    torch._dynamo.utils.counters.clear()
    compiled = train(world.config(changes), output=tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    printed = capsys.readouterr().out
    assert "compiling parts of the network (a step takes" in printed
    assert "compiled: " in printed or "compiled parts are no faster" in printed
    for name, row in compiled["datasets"].items():
        assert row["loss"] == pytest.approx(eager["datasets"][name]["loss"], rel=1e-2)
