"""Trainings by `recipe: auto`, by the clock and with patience, on the tiny world; and what `check` says of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import World, changed

from crossdet import RunError, UserError, train
from crossdet.config import Config
from crossdet.config.schema import PseudoConfig
from crossdet.models.weights import load_state, load_weights
from crossdet.training.optimiser import make_optimiser, set_rate
from crossdet.training.recipe import Recipe, Start
from crossdet.training.state import RunState


def auto(world: World, **changes: Any) -> Config:
    settings = world.settings()
    settings["train"] = {"workers": 0, "accelerator": "cpu", "log_every": 1, **changes}
    return Config.from_dict(settings)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_auto_trains_and_says_how(world, tmp_path, capsys):
    record = train(auto(world, epochs=12, batch_size=4), output=tmp_path)
    printed = capsys.readouterr().out
    rate = "learning rate 0.0014 for 4 pictures a step (it begins with random weights)"
    assert f"recipe auto: AdamW, {rate}, weight decay 0.05, none of norms and biases" in printed
    assert "12 epochs, 72 steps" in printed
    assert "batch norm of the backbone: trained (its weights are random)" in printed
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["recipe"][0] in printed
    judged = [r["epoch"] for r in content["epochs"] if "metrics" in r]
    assert judged == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]  # about ten times
    assert record["metrics"]["mean"] >= 0
    found = [float(row["lr"]) for row in rows(tmp_path)]
    assert max(found) == pytest.approx(Recipe(batch_size=4).rate(Start("random")))
    assert found[-1] < 0.01 * max(found)
    assert load_state(tmp_path / "state.pt")["average"] is not None


def test_a_training_by_the_clock_ends_in_time_and_resumes(world, tmp_path, monkeypatch):
    """Six minutes of training in seconds: by this clock every question for the time takes two seconds."""
    now = [0.0]

    def ticks() -> float:
        now[0] += 2.0
        return now[0]

    monkeypatch.setattr("crossdet.training.state.time.monotonic", ticks)
    config = auto(world, minutes=6.0, batch_size=4, checkpoint_minutes=1000.0)
    train(config, output=tmp_path / "whole")
    progress = load_state(tmp_path / "whole" / "state.pt")["progress"]
    assert progress["finished"]
    assert 0.85 * 360 <= progress["clock"]["spent"] <= 1.05 * 360
    rates = [float(row["lr"]) for row in rows(tmp_path / "whole")]
    assert rates[-1] < 0.05 * max(rates)
    assert len(rates) == progress["step"]

    saved, save = [], RunState.save_if_due

    def stop_at_30(self: RunState, recipe: Recipe) -> None:
        if self.progress.step == 30 and not saved:
            saved.append(1)
            self.stop.set()
        save(self, recipe)

    monkeypatch.setattr(RunState, "save_if_due", stop_at_30)
    with pytest.raises(RunError, match="interrupted after step 30"):
        train(config, output=tmp_path / "stopped")
    line = load_state(tmp_path / "stopped" / "state.pt")["progress"]["clock"]["line"]
    assert line is not None
    train(config, output=tmp_path / "stopped", resume=True)
    resumed = load_state(tmp_path / "stopped" / "state.pt")["progress"]
    assert resumed["finished"]
    assert 0.85 * 360 <= resumed["clock"]["spent"] <= 1.05 * 360
    both = [float(row["lr"]) for row in rows(tmp_path / "stopped")]
    assert all(abs(a - b) < 0.1 * max(both) for a, b in pairwise(both[40:]))  # no jump, not where it went on either


def test_evaluations_after_every_epoch_leave_a_clock_its_schedule(world, tmp_path, monkeypatch):
    """Each takes as long as fifteen steps; an epoch has six."""
    now = [0.0]

    def ticks() -> float:
        now[0] += 2.0
        return now[0]

    evaluation = RunState.evaluation

    @contextmanager
    def slow(self: RunState, done: float) -> Iterator[None]:
        with evaluation(self, done):
            now[0] += 28.0
            yield

    monkeypatch.setattr("crossdet.training.state.time.monotonic", ticks)
    monkeypatch.setattr(RunState, "evaluation", slow)
    train(auto(world, minutes=6.0, batch_size=4, checkpoint_minutes=1000.0, eval_every=1), output=tmp_path)
    progress = load_state(tmp_path / "state.pt")["progress"]
    assert progress["clock"]["evaluations"] == progress["epoch"]
    assert 0.9 * 360 <= progress["clock"]["spent"] <= 1.05 * 360
    rates = [float(row["lr"]) for row in rows(tmp_path)]
    assert rates[-1] < 0.1 * max(rates)


def test_a_run_does_not_go_on_in_other_numbers_unasked(world, tmp_path):
    config = auto(world, max_steps=4, batch_size=4, eval_every=0, checkpoint_steps=2)
    train(config, output=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["numbers"] == "32-true"  # `auto`, on a CPU
    state["numbers"], state["progress"]["finished"] = "bf16-mixed", False
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"computed in bf16-mixed, and `train.precision: auto` means 32-true"):
        train(config, output=tmp_path, resume=True)
    asked = auto(world, max_steps=4, batch_size=4, eval_every=0, checkpoint_steps=2, precision="32-true")
    train(asked, output=tmp_path, resume=True)


def test_a_run_goes_on_in_float16_when_asked(world, tmp_path, monkeypatch):
    """Its state has no scale of the loss, which float16 wants; torch refuses an empty one."""

    def refused(_self: Any, _state: Any) -> None:
        raise RuntimeError("The source state dict is empty")

    monkeypatch.setattr("lightning_fabric.plugins.precision.precision.Precision.load_state_dict", refused)
    config = auto(world, max_steps=4, batch_size=4, eval_every=0, checkpoint_steps=2)
    train(config, output=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["precision"] == {}
    state["progress"]["finished"] = False
    torch.save(state, tmp_path / "state.pt")
    train(config, output=tmp_path, resume=True)


def test_too_little_memory_is_told_with_what_helps(world, tmp_path, monkeypatch):
    def full(*_given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr("crossdet.models.retinanet.network.RetinaNet.losses", full)
    config = auto(world, max_steps=4, batch_size=4, eval_every=0)
    with pytest.raises(RunError) as error:
        train(config, output=tmp_path)
    told = "4 pictures at once (CUDA out of memory. Tried to allocate 20.00 GiB.). Less is needed by `train"
    assert f"cpu ran out of memory at step 1, with {told}.accumulate: 2` (" in str(error.value)


def test_patience_ends_a_training_that_gets_no_better(world, tmp_path, monkeypatch):
    scores = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1])

    def score(*_args: Any, **_kwargs: Any) -> Any:
        value = next(scores)
        name = "AP"
        metrics = {"cars": {name: value}, "mean": value}
        return type("Scored", (), {"metrics": {"datasets": metrics, "mean": value}})

    monkeypatch.setattr("crossdet.training.loop.is_better", lambda judged, kept, new: kept is None
                        or new["mean"] > judged[kept]["mean"])  # fmt: skip
    monkeypatch.setattr("crossdet.runs.train.score_network", score)
    monkeypatch.setattr("crossdet.runs.train.metrics_table", lambda _metrics: "")
    monkeypatch.setattr("crossdet.runs.train.main_numbers", lambda *_: [])
    config = auto(world, epochs=6, batch_size=8, eval_every=1, patience=2)
    pseudo = PseudoConfig(teachers="self", from_epoch=5)  # for which that is too early
    train(config.model_copy(update={"pseudo": pseudo}), output=tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["epoch"] for r in content["epochs"]] == [1, 2, 3, 4]
    assert content["best_epoch"] == 2
    told = [warning for r in content["epochs"] for warning in r["warnings"] if warning["kind"] == "never_labelled"]
    assert told == content["epochs"][-1]["warnings"]
    assert "it was to begin in epoch 6, and the training ended in epoch 4" in told[0]["sentence"]


def test_a_frozen_stem_stays_as_it_was(world, tmp_path):
    config = auto(world, max_steps=3, batch_size=4, freeze_stem=True, ema=None, eval_every=0)
    train(config, output=tmp_path / "frozen")
    train(auto(world, max_steps=1, batch_size=4, freeze_stem=True, ema=None, eval_every=0), output=tmp_path / "one")
    (three, _), (one, _) = (load_weights(tmp_path / name, last=True) for name in ("frozen", "one"))
    stem = ("backbone.body.conv_stem", "backbone.body.bn1", "backbone.body.blocks.0", "backbone.body.blocks.1.")
    equal = {name for name in three if torch.equal(three[name], one[name])}
    assert {name for name in three if name.startswith(stem)} <= equal
    assert not {name for name in equal if "blocks.2" in name and name.endswith("conv_pw.weight")}


def test_groups_of_the_optimiser(world):
    from crossdet.models.building import build_detector
    from crossdet.models.retinanet.settings import RetinaNetSettings

    network = build_detector(RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1), 2)
    optimizer = make_optimiser(network, Recipe(backbone_lr=0.1), scaled=False)
    set_rate(optimizer, 1.0)
    names = {id(p): name for name, p in network.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            seen[names[id(p)]] = (group["lr"], group["weight_decay"])
    assert seen.keys() == {name for name, p in network.named_parameters() if p.requires_grad}
    for name, p in network.named_parameters():
        if p.requires_grad:
            wanted = (0.1 if name.startswith("backbone.") else 1.0, 0.05 if p.ndim > 1 else 0.0)
            assert seen[name] == wanted, name


def test_check_prints_the_recipe(world, tmp_path, command):
    import yaml

    settings = changed(world.settings(), {"train": {"minutes": 15}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    code, out = command("check", tmp_path / "config.yaml", "--json", tmp_path / "report.json")
    assert code == 0
    assert "recipe auto: AdamW" in out
    assert "length: 15 minutes, schedule fitted to the speed" in out
    assert "batch norm of the backbone: trained (its weights are random)" in out
    assert "precision: bf16-mixed on a GPU that has it, else 32-true" in out
    assert json.loads((tmp_path / "report.json").read_text())["recipe"][0].startswith("recipe auto")
