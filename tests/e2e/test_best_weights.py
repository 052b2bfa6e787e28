"""Of a run directory the best weights are taken, which is said; a switch takes the newest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crossdet import evaluate, load_detector
from crossdet.models.card import read_card
from crossdet.models.weights import load_weights, update_card

THRESHOLDS = {"best.safetensors": 0.77, "model.safetensors": 0.11}


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run whose two weights files can be told apart by their thresholds."""
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    for name, threshold in THRESHOLDS.items():
        points = {one: {"threshold": threshold} for one in ("car", "face")}
        update_card(folder / name, operating=points)
    return folder


@pytest.mark.parametrize(("options", "name"), [([], "best.safetensors"), (["--last"], "model.safetensors")])
def test_commands_say_what_they_take(run, world, tmp_path, crossdet, options, name):
    config = world.write_config(tmp_path / "c.yaml")
    picture = world.root / "cars" / "val_0.png"
    done = crossdet("predict", run, picture, "-o", tmp_path / "p", *options)
    assert f"weights: {run / name}" in done.stdout
    predictions = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert predictions["weights"] == str(run / name)
    assert set(predictions["thresholds"].values()) == {THRESHOLDS[name]}
    inside = sorted(run.glob("eval*"))
    for command in ("eval", "audit"):
        done = crossdet(command, run, config, "-o", tmp_path / command, *options)
        assert done.returncode == 0
        assert f"weights: {run / name}" in done.stdout
    assert (tmp_path / "eval" / "eval.json").is_file()
    assert sorted(run.glob("eval*")) == inside
    before = {file: load_weights(run / file)[1].operating for file in THRESHOLDS}
    crossdet("eval", run, config, "-o", tmp_path / "again", "--store-thresholds", *options)
    after = {file: load_weights(run / file)[1].operating for file in THRESHOLDS}
    assert [file for file in THRESHOLDS if before[file] != after[file]] == [name]


def test_the_python_api_takes_the_same(run, world):
    assert load_detector(run).thresholds["car"] == 0.77
    assert load_detector(run).file == run / "best.safetensors"
    assert load_detector(run, last=True).thresholds["car"] == 0.11
    assert load_detector(run / "model.safetensors").file == run / "model.safetensors"
    config = world.config()
    last = evaluate(load_detector(run, last=True), config)
    assert json.dumps(evaluate(run, config, last=True)) == json.dumps(last)  # NaN is not equal to itself
    (run / "best.safetensors").unlink()  # a run without validation data
    assert load_detector(run).thresholds["car"] == 0.11


def test_each_weights_file_has_its_own_scores(trained):
    """Those of its own epoch; both, so that whichever file goes on in life knows what it scored."""
    content = json.loads((trained.folder / "metrics.json").read_text())
    epochs = {record["epoch"]: record["metrics"] for record in content["epochs"] if "metrics" in record}
    for name, epoch in (("best.safetensors", content["best_epoch"]), ("model.safetensors", max(epochs))):
        scores = {s.name: s.value for s in read_card(trained.folder / name).generations[-1].scores}
        datasets = epochs[epoch]["datasets"]
        assert scores == {
            "car": datasets["cars"]["per_class"]["car"]["AP"],
            "face": datasets["faces"]["per_class"]["face"]["AP"],
        }
