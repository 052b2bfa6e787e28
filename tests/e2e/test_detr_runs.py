"""A checkpoint of HF transformers through all commands: looked at, used, trained from, and extended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from worlds import World, changed

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.models.detr.made import tiny

from crossdet import UserError, extend, load_config, load_detector
from crossdet.models.card import read_card
from crossdet.models.detr import building


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Of two classes that the world does not have."""
    building.write(tiny("dfine", 2, square=64, prior=0.2), ("bus", "tree"), tmp_path / "zoo")
    return tmp_path / "zoo"


def test_from_a_public_checkpoint_to_classes_of_ones_own(zoo, world: World, tmp_path, crossdet):
    done = crossdet("check", zoo)
    assert done.returncode == 0, done.stderr
    assert "dfine, 2 classes" in done.stdout
    assert crossdet("predict", zoo, world.root / "cars", "-o", tmp_path / "found").returncode == 0
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert found["weights"] == str(zoo / "model.safetensors")

    few = {"train.max_steps": 2, "train.epochs": 1, "train.lr": 0.001, "train.clip_norm": 0.1}
    more = world.write_config(tmp_path / "more.yaml", {**few, "model": None, "input": None})
    assert crossdet("check", more, "--extends", zoo).returncode == 0
    for mode in ("replay", "frozen"):
        done = crossdet("extend", zoo, more, "--mode", mode, "-o", tmp_path / mode, "--tolerance", "100")
        assert done.returncode == 0, done.stderr
        card = read_card(tmp_path / mode)
        assert card.space.classes == ("bus", "tree", "car", "face")
        assert card.settings.begins == ((2,) if mode == "frozen" else ())
        assert "adapter" not in done.stdout, "DETRs have none"
    picture = next((world.root / "cars").glob("*.png"))
    old, new = (load_detector(place)(picture, ["bus", "tree"], 0.0) for place in (zoo, tmp_path / "frozen"))
    assert len(old) > 10
    assert torch.equal(old.boxes, new.boxes)
    assert torch.equal(old.scores, new.scores)
    assert old.names == new.names
    assert crossdet("eval", tmp_path / "replay", more).returncode == 0
    assert crossdet("audit", tmp_path / "replay", more).returncode == 0
    done = crossdet("labels", tmp_path / "replay", "--rename", "bus=coach", "-o", tmp_path / "renamed.safetensors")
    assert done.returncode == 0, done.stderr
    assert "coach" in read_card(tmp_path / "renamed.safetensors").space.classes


def test_distillation_by_the_old_detectors_labels(zoo, world: World, tmp_path, capsys):
    """Queries have no places at which answers could be held; what the old detector finds becomes labels."""
    few = {"train": {"max_steps": 2, "workers": 0, "accelerator": "cpu"}, "model": None, "input": None}
    taught = {"extend.mode": "distill", "extend.tolerance": None, "model": {"name": "dfine", "square": 96}}
    config = world.write_config(tmp_path / "more.yaml", {**few, **taught})
    extend(zoo, config, tmp_path / "taught")
    printed = capsys.readouterr().out
    assert "held by what the old detector finds in the training images" in printed
    assert "AdamW, learning rate" in printed
    card = read_card(tmp_path / "taught")
    assert card.settings.square == 96  # no tensor depends on it
    assert load_detector(tmp_path / "taught").model.stretched_to == 96
    still = world.write_config(
        tmp_path / "still.yaml", {**few, "extend.mode": "frozen", "model": {"name": "dfine", "square": 96}}
    )
    with pytest.raises(UserError, match=r"`model.square`: 96, but the weights have 64"):
        extend(zoo, still, tmp_path / "held")
    chosen = load_config(tmp_path / "taught/config.yaml").extend
    assert (chosen.match, chosen.pseudo) == (0, True)
    assert any((tmp_path / "taught/teacher_labels").iterdir())
    assert read_card(tmp_path / "taught").space.classes == ("bus", "tree", "car", "face")
    asked = world.write_config(tmp_path / "asked.yaml", {**few, "extend": {"mode": "distill", "match": 2.0}})
    words = r"dfine cannot do that \(they have no `hold_to`\); leave `extend.match` out: the old detector's labels"
    with pytest.raises(UserError, match=words):
        extend(zoo, asked, tmp_path / "held")
    without = world.write_config(tmp_path / "no.yaml", {**few, "extend": {"mode": "distill", "pseudo": False}})
    with pytest.raises(UserError, match="needs a weight under `match`, `pseudo: true`, or both"):
        extend(zoo, without, tmp_path / "held")


def test_rf_detr_from_a_checkpoint(world: World, tmp_path, crossdet):
    """Looked at, extended, and used, as the others; written back in `test_checkpoints`."""
    zoo = tmp_path / "zoo"
    building.write(tiny("rfdetr", 2, prior=0.2), ("bus", "tree"), zoo)
    done = crossdet("check", zoo)
    assert done.returncode == 0, done.stderr
    assert "rfdetr, 2 classes" in done.stdout
    few = {"train.max_steps": 2, "train.epochs": 1, "train.lr": 0.001, "model": None, "input": None}
    config = world.write_config(tmp_path / "more.yaml", {**few, "extend.tolerance": None})
    extend(zoo, config, tmp_path / "more")
    terms = (tmp_path / "more/steps.csv").read_text().splitlines()[0]
    assert "classification" in terms
    assert "denoising" not in terms
    detector = load_detector(tmp_path / "more")
    assert detector.space.classes == ("bus", "tree", "car", "face")
    picture = next((world.root / "cars").glob("*.png"))
    assert set(detector(picture, ["bus", "car"], 0.0).names) == {"bus", "car"}
    assert crossdet("eval", tmp_path / "more", config).returncode == 0

    done = crossdet("extend", zoo, config, "--mode", "frozen", "-o", tmp_path / "frozen")
    assert done.returncode == 0, done.stderr
    old, new = (load_detector(place)(picture, ["bus", "tree"], 0.0) for place in (zoo, tmp_path / "frozen"))
    assert len(old) > 10
    assert torch.equal(old.boxes, new.boxes)
    assert torch.equal(old.scores, new.scores)
    assert old.names == new.names


def test_training_from_a_checkpoint_is_the_same_for_any_number_of_workers(zoo, world: World, tmp_path, crossdet):
    """The noise of denoising comes from (seed, epoch, position), like all else."""
    values = changed(world.settings(), {"model": {"name": "dfine", "weights": str(zoo)}, "train.eval_every": 0})
    values["train"] |= {"lr": 0.001, "clip_norm": 0.1, "max_steps": 3}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    assert crossdet("check", config).returncode == 0
    for workers in ("0", "1"):
        done = crossdet("train", config, "-o", tmp_path / workers, "--set", f"train.workers={workers}")
        assert done.returncode == 0, done.stderr
    one, other = ((tmp_path / workers / "model.safetensors").read_bytes() for workers in ("0", "1"))
    assert one == other
    assert "denoising" in (tmp_path / "0/steps.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("kind", ["dfine", "rfdetr"])
def test_a_run_from_a_checkpoint_is_read_again(kind, world: World, tmp_path, crossdet):
    """Its own config gives every key; what the checkpoint decides was refused there, or taken for asked: such a run
    could not be resumed or reported."""
    network = tiny(kind, 2, square=64, prior=0.2)
    building.write(network, ("car", "face"), tmp_path / "zoo")
    values = {"model": {"name": kind, "weights": str(tmp_path / "zoo")}, "input": None, "train.recipe": None,
              "train.steps": None, "train.lr": 0.001, "train.epochs": 2, "train.batch_size": 12}  # fmt: skip
    config = world.write_config(tmp_path / "config.yaml", values)
    run = tmp_path / "run"
    shorter = crossdet("train", config, "-o", run, "--set", "train.epochs=1")
    assert shorter.returncode == 0, shorter.stderr
    again = load_config(run / "config.yaml")
    assert (again.model.size, again.model.queries) == (None, None)
    settings = read_card(run).settings
    assert (settings.queries, settings.denoising) == (network.settings.queries, network.settings.denoising)
    assert settings.queries < 300
    assert type(settings).of(again.model, again.loss).queries == settings.queries
    resumed = crossdet("train", config, "-o", run, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert read_card(run).settings == settings
    assert crossdet("report", run).returncode == 0
    assert crossdet("eval", run, run / "config.yaml").returncode == 0


def test_a_missing_checkpoint_is_a_finding_of_check(world: World, tmp_path, crossdet):
    config = world.write_config(
        tmp_path / "config.yaml", {"model": {"name": "dfine", "weights": "./no/where/at/all"}}
    )
    done = crossdet("check", config)
    assert done.returncode == 2
    assert "is no directory with config.json" in " ".join(done.stdout.split())
