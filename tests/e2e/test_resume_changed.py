"""A run is resumed with the classes and the data that it began with, or says what is another."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from worlds import BACKBONE, World, changed

from crossdet import RunError, train
from crossdet.config import Config, load_config
from crossdet.errors import UserError
from crossdet.models.card import read_card
from crossdet.models.weights import load_state, save_state
from crossdet.runs import building
from crossdet.training.log import RunLog, Step
from crossdet.training.watch import Watch


@pytest.fixture
def data(world: World, tmp_path: Path) -> World:
    """A copy of the world, to be changed; every second car is a truck."""
    shutil.copytree(world.root, tmp_path / "data")
    for split in ("train", "val"):
        edit(tmp_path / "data" / f"cars_{split}.json", with_trucks)
    return World(tmp_path / "data", world.cars, world.faces)


@pytest.fixture
def interrupted(data: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(config, run directory) of a run that Ctrl-C stopped after 7 of 12 steps."""
    settings = changed(data.settings(), {"train.epochs": 2})
    config, folder = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(settings))
    load_config(config)
    step = RunLog.step

    def ctrl_c(self: RunLog, at: Step, *arguments: Any) -> None:
        step(self, at, *arguments)
        if at.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLog, "step", ctrl_c)
    with pytest.raises(RunError, match="interrupted after step 7"):
        train(config, folder)
    monkeypatch.setattr(RunLog, "step", step)
    return config, folder


def edit(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def with_trucks(content: dict[str, Any]) -> None:
    content["categories"].append({"id": 99, "name": "truck"})
    for annotation in content["annotations"][::2]:
        annotation["category_id"] = 99


def reverse(content: dict[str, Any]) -> None:
    content["categories"].reverse()


def test_reordered_categories_are_refused(data, interrupted, crossdet):
    config, folder = interrupted
    before = {file.name: file.read_bytes() for file in folder.glob("*.*") if file.suffix != ".yaml"}
    for split in ("train", "val"):
        edit(data.root / f"cars_{split}.json", reverse)
    done = crossdet("train", config, "--output", folder, "--resume")
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "this run cannot be resumed" in text
    assert "classes: car, truck, face then, truck, car, face now" in text
    assert {name: (folder / name).read_bytes() for name in before} == before
    for split in ("train", "val"):
        edit(data.root / f"cars_{split}.json", reverse)
    train(config, folder, resume=True)
    assert load_state(folder / "state.pt")["progress"]["finished"]


def test_other_data_is_refused(data, interrupted):
    config, folder = interrupted
    images = len(data.cars["train"])
    file = data.root / "cars_train.json"
    whole = file.read_text()

    def without_a_box(content: dict[str, Any]) -> None:
        content["annotations"].pop()

    def moved(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"][0] += 1.0

    edit(file, without_a_box)
    with pytest.raises(UserError, match=rf"datasets.cars.train: {images} images with \d+ boxes now, .* then"):
        train(config, folder, resume=True)
    file.write_text(whole)
    edit(file, moved)
    with pytest.raises(UserError, match="as many as before, but not the same"):
        train(config, folder, resume=True)


def test_a_state_of_an_older_version_is_judged_by_its_weights(data, interrupted):
    config, folder = interrupted
    state = load_state(folder / "state.pt")
    del state["identity"]
    save_state(folder / "state.pt", state)
    weights = folder / "model.safetensors"
    hidden = weights.rename(folder / "hidden")
    with pytest.raises(UserError, match="does not say which classes it has"):
        train(config, folder, resume=True)
    hidden.rename(weights)
    for split in ("train", "val"):
        edit(data.root / f"cars_{split}.json", reverse)
    with pytest.raises(UserError, match="classes: car, truck, face then"):
        train(config, folder, resume=True)
    for split in ("train", "val"):
        edit(data.root / f"cars_{split}.json", reverse)
    train(config, folder, resume=True)
    assert all(torch.isfinite(v).all() for v in load_state(folder / "state.pt")["model"].values())


def test_the_weight_decay_that_a_run_began_with_stays_and_is_told(interrupted, capsys):
    """An older version may have meant another one by the same config."""
    config, folder = interrupted
    state = load_state(folder / "state.pt")
    for group in state["optimizer"]["param_groups"]:
        group["weight_decay"] = 0.25
    save_state(folder / "state.pt", state)
    capsys.readouterr()
    train(config, folder, resume=True)
    told = (
        "goes on as it began: weight decay 0.25, the backbone at 1 of the learning rate (this version would take "
    )
    assert told in capsys.readouterr().out
    groups = load_state(folder / "state.pt")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.25}


def killed_before_its_first_state(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as then:
        then.setattr(RunLog, "step", killed)
        with pytest.raises(SystemExit):
            train(config, folder, resume=True)


@pytest.mark.parametrize("recipe", ["auto", "paper"])
def test_a_longer_training_that_did_not_begin_changes_nothing(world: World, tmp_path: Path, monkeypatch, recipe):
    """The run is still of as many epochs as its state says."""
    changes = {"train.recipe": recipe, "train.warmup_epochs": None, "train.steps": None, "train.eval_every": 0}
    folder = tmp_path / "run"
    one, two, three = (world.config({**changes, "train.epochs": epochs}) for epochs in (1, 2, 3))
    train(one, folder)
    killed_before_its_first_state(two, folder, monkeypatch)
    assert load_state(folder / "state.pt")["progress"]["epochs"] == 1
    with pytest.raises(UserError, match="this run is finished; there is nothing to resume"):
        train(one, folder, resume=True)
    other = world.config({**changes, "train.epochs": 1, "train.lr": 0.03})
    with pytest.raises(UserError, match=r"differing: train.lr\. "):
        train(other, folder, resume=True)
    train(two, folder, resume=True)
    with pytest.raises(UserError, match=r"differing: train.epochs"):
        train(one, folder, resume=True)  # it is longer now
    killed_before_its_first_state(three, folder, monkeypatch)
    with pytest.raises(UserError, match="this run is finished"):
        train(two, folder, resume=True)


def test_an_interrupted_run_goes_on_as_it_began_after_a_longer_one_that_did_not_begin(
    data: World, interrupted, tmp_path, monkeypatch
):
    config, folder = interrupted
    killed_before_its_first_state(load_config(config, ["train.epochs=3"]), folder, monkeypatch)
    train(config, folder, resume=True)
    train(config, tmp_path / "whole")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert load_config(folder / "config.yaml").train.epochs == 2


def test_other_processes_leave_batch_norm_as_it_was(world: World, tmp_path: Path, monkeypatch, capsys):
    """Two begin a run of four pictures a step, too few for each to train batch norm; one goes on with it."""
    torch.save(timm.create_model(BACKBONE, pretrained=False).state_dict(), tmp_path / "backbone.pth")
    changes = {"model.weights": str(tmp_path / "backbone.pth"), "train.recipe": "auto", "train.warmup_epochs": None}
    changes |= {"train.steps": None, "train.eval_every": 0}
    config = world.config({**changes, "train.epochs": 1})
    folder, watched, begin = tmp_path / "run", [], Watch.begin
    monkeypatch.setattr(Watch, "begin", lambda self, run: (watched.append(self.fixed), begin(self, run)))
    with monkeypatch.context() as then:
        then.setattr(building, "processes", lambda _config: 2)
        train(config, folder)
    assert read_card(folder).settings.freeze_batch_norm
    capsys.readouterr()
    train(world.config({**changes, "train.epochs": 2}), folder, resume=True)
    told = "batch norm of the backbone: fixed (as this run began; a new one would have it trained: 4 pictures"
    assert told in capsys.readouterr().out
    assert read_card(folder).settings.freeze_batch_norm
    assert load_state(folder / "state.pt")["progress"]["epoch"] == 2
    assert watched == [True, True]
