"""A run directory and a weights file of before the rooms were built (commit 1fa4930) load, resume and extend.

`run_of_november_2026` is `train` on the tiny world, stopped after step 7 of 12; WORLD stands for the folder of its
pictures.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import World

from crossdet import UserError, extend, load_detector, train
from crossdet.config import Config, load_config
from crossdet.models.card import read_card
from crossdet.models.weights import load_weights
from crossdet.runs.relabel import relabel

EARLIER = Path(__file__).parent / "run_of_november_2026"


@pytest.fixture
def earlier(world: World, tmp_path: Path) -> tuple[Path, Config]:
    """A copy of the run, with the pictures where they are now; and its config."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("WORLD", str(world.root)))
    return folder, load_config(file)


def test_it_goes_on_as_if_nothing_had_happened(earlier, tmp_path):
    """The resumed run ends with the weights of one that this version trains in one piece."""
    folder, config = earlier
    train(config, output=folder, resume=True)
    train(config, output=tmp_path / "whole")
    (found, card), (wanted, _) = load_weights(folder, last=True), load_weights(tmp_path / "whole", last=True)
    assert card == read_card(tmp_path / "whole")
    for name, tensor in wanted.items():
        # another machine trained half of it: an EPYC is up to 0.5 % from a Xeon, and 86 % without the momentum
        difference = (found[name] - tensor).double().norm()
        assert float(difference) <= 0.02 * float(tensor.double().norm()) + 1e-6, name


def test_another_architecture_is_told_on_resume(earlier):
    folder, config = earlier
    wider = config.model_copy(update={"model": config.model.model_copy(update={"channels": 16})})
    with pytest.raises(UserError, match="another config"):
        train(wider, output=folder, resume=True)


def test_its_weights_predict_extend_and_are_relabelled(earlier, world, tmp_path):
    folder, _ = earlier
    detector = load_detector(folder, "cpu")
    assert detector.classes == ("car", "face")
    assert len(detector(world.root / "cars" / "val_0.png", score_threshold=0.0))
    relabel(folder, tmp_path / "renamed.safetensors", [("car", "auto")])
    assert [g.mode for g in read_card(tmp_path / "renamed.safetensors").generations] == ["train", "labels"]
    values = world.settings()
    for section in ("model", "input"):
        del values[section]
    vans = {split: replace(index, classes=("van",)) for split, index in world.cars.items()}
    values |= {"datasets": {"vans": vans}, "extend": {"mode": "frozen"}}
    values["train"] |= {"max_steps": 1, "epochs": 1}
    extend(folder, Config.from_dict(values), output=tmp_path / "extended")
    before, after = load_weights(folder)[0], load_weights(tmp_path / "extended", last=True)[0]
    shared = [name for name in before if not name.startswith("class_subnet.predict")]
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert read_card(tmp_path / "extended").space.classes == ("car", "face", "van")
