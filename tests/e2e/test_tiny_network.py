"""A network from outside goes through the whole package by one line in a dict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from worlds import World, changed

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "models"))

from tiny import TINY, Tiny

from crossdet import Config, UserError, load_detector, train
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.card import read_card
from crossdet.training import compiling


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    tiny = {"name": "tiny", "width": 16, "weights": "none"}
    values = changed(world.settings(), {"model": tiny, "train.epochs": 30, "train.lr": 0.01})
    values["train"] |= {"eval_every": 0, "clip_norm": 5.0, "warmup_epochs": 1.0, "log_every": 50}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_from_check_to_extend(config, world, tmp_path, crossdet):
    run = tmp_path / "run"
    done = crossdet("check", config, "--json", tmp_path / "check.json")
    assert done.returncode == 0, done.stderr
    assert "No errors" in done.stdout
    done = crossdet("anchors", config)
    assert (done.returncode, "tiny has no anchors" in done.stderr) == (2, True)
    done = crossdet("train", config, "-o", run)
    assert done.returncode == 0, done.stderr
    assert "objects" in (run / "steps.csv").read_text().splitlines()[0]
    card = read_card(run)
    assert (card.settings.name, card.settings.width) == ("tiny", 16)
    scores = json.loads((run / "metrics.json").read_text())["epochs"][-1]["metrics"]["datasets"]
    assert scores["cars"]["AP50"] > 0.3  # it learns
    assert load_detector(run, "cpu").classes == ("car", "face")

    assert crossdet("eval", run, config, "--json", tmp_path / "eval.json").returncode == 0
    again = json.loads((tmp_path / "eval.json").read_text())
    assert again["datasets"]["cars"]["AP50"] == pytest.approx(scores["cars"]["AP50"], abs=1e-6)
    assert crossdet("predict", run, world.root / "cars", "-o", tmp_path / "found").returncode == 0
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert found["weights"] == str(run / "best.safetensors")
    assert crossdet("check", run).returncode == 0
    assert crossdet("audit", run, config).returncode == 0

    more = yaml.safe_load(config.read_text())
    del more["model"], more["input"]
    for split, files in more["datasets"].pop("cars").items():
        if split in ("train", "val"):
            text = Path(files["annotations"]).read_text().replace('"car"', '"van"')
            (tmp_path / f"{split}.json").write_text(text)
            more["datasets"].setdefault("vans", {"format": "coco"})[split] = {
                "images": files["images"], "annotations": str(tmp_path / f"{split}.json"),
            }  # fmt: skip
    more["train"] |= {"epochs": 1, "max_steps": 2}
    extension = tmp_path / "more.yaml"
    extension.write_text(yaml.safe_dump(more, sort_keys=False))
    assert crossdet("check", extension, "--extends", run).returncode == 0
    done = crossdet("extend", run, extension, "--mode", "replay", "-o", tmp_path / "second", "--tolerance", "100")
    assert done.returncode == 0, done.stderr
    second = read_card(tmp_path / "second")
    assert second.space.classes == ("car", "face", "van")
    assert [g.mode for g in second.generations] == ["train", "replay"]

    done = crossdet("check", extension, "--extends", run, "--set", "extend.init.van=car")
    assert "extend.init, but networks of the architecture tiny cannot do that" in " ".join(done.stdout.split())
    for mode, words in (("frozen", "they have no `freeze_old`"), ("distill", "they have no `hold_to`")):
        said = ("--set", "extend.match=1") if mode == "distill" else ()
        done = crossdet("extend", run, extension, "--mode", mode, "-o", tmp_path / mode, *said)
        assert done.returncode == 2
        assert words in done.stderr.replace("\n", " ")
        assert not (tmp_path / mode).exists()  # found before anything is written
        checked = crossdet("check", extension, "--extends", run, "--set", f"extend.mode={mode}", *said)
        assert words in checked.stdout.replace("\n", " ")


def test_its_mistakes_are_told_like_all_others(config, crossdet, monkeypatch):
    done = crossdet("train", config, "--set", "model.width=13", "--set", "model.depth=3")
    assert done.returncode == 2
    assert "unknown key `model.depth`" in done.stderr
    done = crossdet("train", config, "--set", "model.width=13")
    assert "expected a luckier number, got 13" in done.stderr
    monkeypatch.delitem(ARCHITECTURES, "tiny")
    done = crossdet("train", config)
    assert done.returncode == 2
    assert "`model.name`: expected 'retinanet', 'dfine', 'rtdetr' or 'rfdetr', got \"tiny\"" in done.stderr


@pytest.mark.parametrize(("compiled", "canvases"), [(True, 2), (True, 0), (False, 2), ("auto", 2)])
def test_a_network_compiles_its_parts_where_the_recipe_says_so(config, tmp_path, monkeypatch, compiled, canvases):
    calls = []
    monkeypatch.setattr(Tiny, "compile_parts", lambda _self, full=None: calls.append(full))
    values = {"train.compile": compiled, "train.canvases": canvases, "train.epochs": 1, "train.warmup_epochs": 0.5}
    train(Config.from_dict(changed(yaml.safe_load(config.read_text()), values)), output=tmp_path / "run")
    assert calls == [4 if canvases else None] * (compiled is True)


def test_a_step_waits_no_longer_than_it_takes(config, tmp_path, monkeypatch):
    """Of every step its own waiting, in every epoch."""
    steps = []
    monkeypatch.setattr(compiling.Compiling, "step", lambda _self, *given: steps.append(given))
    values = changed(yaml.safe_load(config.read_text()), {"train.epochs": 3})
    assert train(Config.from_dict(values), output=tmp_path / "whole")["step"] == len(steps) > 6
    assert [left for *_, left in steps] == list(range(len(steps)))[::-1]
    assert all(0 < waited < seconds for seconds, waited, _ in steps)


def test_a_training_goes_on_where_parts_cannot_be_compiled(config, tmp_path, monkeypatch, capsys):
    """Tried unasked (as on a GPU, by the first steps): what cannot be compiled is told. Asked for it ends the
    run."""
    parts = []
    losses = Tiny.losses

    def failing(self, batch):
        if parts and parts[-1] != "nothing":
            raise torch._dynamo.exc.TorchRuntimeError("no compiler here\nand more lines")
        return losses(self, batch)

    monkeypatch.setattr(Tiny, "losses", failing)
    monkeypatch.setattr(Tiny, "compile_parts", lambda _self, full=None: parts.append(full))
    monkeypatch.setattr(Tiny, "compile_nothing", lambda _self: parts.append("nothing"))
    monkeypatch.setattr(compiling, "may_pay", lambda *_: True)
    monkeypatch.setattr(compiling, "START_UP", 0.0)
    monkeypatch.setattr(compiling, "NOTICED", 1.0)  # these pictures are waited for more than the network
    monkeypatch.setattr(compiling, "WARM_STEPS", 1)
    monkeypatch.setattr(compiling, "TIMED_STEPS", 2)
    values = changed(
        yaml.safe_load(config.read_text()), {"train.epochs": 3, "train.canvases": 2, "train.compile": "auto"}
    )
    record = train(Config.from_dict(values), output=tmp_path / "run")
    assert record["epoch"] == 3
    assert parts == [4, "nothing"]
    printed = capsys.readouterr().out
    assert "compiling parts of the network" in printed
    assert "not compiled: no compiler here. The training goes on without" in printed
    parts.clear()
    parts.append("always")  # what fails although nothing is compiled unasked is no reason to try again
    with pytest.raises(UserError, match=r"train\.compile: torch\.compile failed here"):
        train(Config.from_dict(values), output=tmp_path / "again")
    with pytest.raises(UserError, match=r"train\.compile: torch\.compile failed here \(no compiler here\)"):
        train(Config.from_dict(changed(values, {"train.compile": True})), output=tmp_path / "asked")
