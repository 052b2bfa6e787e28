"""Trained weights as a directory of HF transformers, with our rules beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from crossdet import LabelSpace, load_detector
from crossdet.errors import RunError, UserError
from crossdet.labels.edits import edited
from crossdet.models.building import build_detector
from crossdet.models.card import Card, Generation, InputSettings, Score, read_card
from crossdet.models.detr.network import Detr
from crossdet.models.detr.settings import DetrLoss, DFineModel, DFineSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import load_weights, save_weights
from crossdet.runs.hugging_face import write_directory
from crossdet.runs.relabel import relabel

from ..models.detr.made import tiny

SIDE = 64


def saved(file: Path, network) -> Path:
    space = LabelSpace.build(
        {"a": ["cat", "dog"], "b": ["puppy", "tv"]}, absent={"a": ["tv"]}, not_exhaustive={"b": ["puppy"]},
        overlap=[["dog", "puppy"]],
    )  # fmt: skip
    space = edited(space, (), [("dogs", ["dog", "puppy"])])
    history = (
        Generation("train", {"a": ["cat", "dog"]}, list(space.classes), scores=(Score("cat", "a", "AP", 0.5),)),
    )
    card = Card(
        space, network.settings, InputSettings(SIDE, 2 * SIDE), {"topk": 50, "max_detections": 90},
        {"cat": {"threshold": 0.4}}, history,
    )  # fmt: skip
    save_weights(file, network.state_dict(), card)
    return file


@pytest.mark.parametrize("names", [["face ", "dog"], ["face ", "face"]])
def test_a_name_with_a_space_after_it_comes_back(names, tmp_path):
    """As older weights may have it: without the space, unless another class is called so."""
    network = tiny("dfine", 2, square=SIDE, prior=0.2)
    card = Card(
        LabelSpace.build({"a": names}), network.settings, InputSettings(SIDE, SIDE), {}, None,
        (Generation("train", {"a": names}, names),),
    )  # fmt: skip
    save_weights(tmp_path / "mine.safetensors", network.state_dict(), card)
    write_directory(tmp_path / "mine.safetensors", tmp_path / "out")
    read = tuple(names) if names == ["face ", "face"] else ("face", "dog")
    assert load_detector(tmp_path / "out", "cpu").classes == read
    (tmp_path / "out/crossdet.json").unlink()
    if len({name.strip() for name in names}) > 1:
        assert load_detector(tmp_path / "out", "cpu").classes == ("face", "dog")


def test_transformers_opens_it_and_so_do_we(tmp_path):
    from transformers import pipeline

    weights = saved(tmp_path / "mine.safetensors", tiny("dfine", square=SIDE, prior=0.2))
    files = write_directory(weights, tmp_path / "out")
    assert {file.name for file in files} == {
        "config.json", "crossdet.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    theirs = pipeline("object-detection", model=str(tmp_path / "out"))(picture, threshold=0.0)
    ours = load_detector(weights, "cpu", fold=False)(picture, score_threshold=0.0)
    assert len(ours) > 5
    assert ours.scores[:5].tolist() == pytest.approx([row["score"] for row in theirs[:5]], abs=1e-4)
    assert list(ours.names[:3]) == [row["label"] for row in theirs[:3]]

    (before, card), (after, again) = load_weights(weights), load_weights(tmp_path / "out")
    assert again == card
    assert again.thresholds == {"cat": 0.4}
    assert again.space.reported == ("cat", "dogs", "tv")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert write_directory(tmp_path / "out", tmp_path / "copy")[0].read_bytes() == files[0].read_bytes()


@pytest.mark.parametrize("backbone", [None, "test_efficientnet"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["dfine", "rtdetr v1", "rtdetr v2"])
def test_batch_norm_comes_back_as_it_was(tmp_path, capfd, name, frozen, backbone):
    """HF says it of its own backbones only; fixed batch norm counts no steps."""
    network = tiny(name, square=SIDE, prior=0.2, freeze_batch_norm=frozen, backbone=backbone)
    weights = saved(tmp_path / "mine.safetensors", network)
    write_directory(weights, tmp_path / "out")
    (before, card), (after, again) = load_weights(weights), load_weights(tmp_path / "out")
    assert again == card
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    load_detector(tmp_path / "out", "cpu")
    counts = [key for key in before if key.endswith("num_batches_tracked") and "core.backbone" in key]
    assert bool(counts) is not frozen
    network.carry_over(after, 4)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_suppression_comes_back(tmp_path):
    weights = saved(tmp_path / "mine.safetensors", tiny("dfine", square=SIDE, prior=0.2, nms=True))
    write_directory(weights, tmp_path / "out")
    assert load_detector(tmp_path / "out", "cpu").model.suppresses
    settings = [DFineSettings.of(DFineModel(weights=str(tmp_path / "out")), DetrLoss())]
    (tmp_path / "out/crossdet.json").unlink()
    settings.append(DFineSettings.of(DFineModel(weights=str(tmp_path / "out")), DetrLoss()))
    assert [one.suppresses for one in settings] == [True, False]


def test_what_cannot_be_written(tmp_path):
    torch.manual_seed(0)
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1)
    weights = saved(tmp_path / "retinanet.safetensors", build_detector(settings, 4))
    with pytest.raises(UserError, match="none of HF transformers"):
        write_directory(weights, tmp_path / "out")
    frozen = tiny("dfine", square=SIDE)
    frozen.settings = frozen.settings.model_copy(update={"begins": (2,)})
    with pytest.raises(UserError, match="mode: frozen"):
        frozen.write_directory(("a", "b", "c", "d"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not empty; give another directory"):
        write_directory(weights, tmp_path)


def test_rules_that_do_not_fit_the_checkpoint(tmp_path):
    weights = saved(tmp_path / "mine.safetensors", tiny("dfine", square=SIDE))
    write_directory(weights, tmp_path / "out")
    file = tmp_path / "out/crossdet.json"
    content = json.loads(file.read_text())
    content["labels"]["classes"][0] = "lynx"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"crossdet.json says 'lynx' where the checkpoint beside it says 'cat'"):
        read_card(tmp_path / "out")
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(
            UserError, match=r"crossdet.json cannot be read .*without it the classes alone are taken"
        ):
            read_card(tmp_path / "out")
    file.unlink()
    assert read_card(tmp_path / "out").space == LabelSpace.build({"out": ["cat", "dog", "puppy", "tv"]})


def test_a_class_that_is_called_like_a_placeholder(tmp_path):
    """`crossdet.json` knows that it is one."""
    weights = saved(tmp_path / "mine.safetensors", tiny("dfine", square=SIDE))
    relabel(weights, tmp_path / "named.safetensors", [("tv", "none")])
    write_directory(tmp_path / "named.safetensors", tmp_path / "out")
    assert read_card(tmp_path / "out").space.classes == ("cat", "dog", "puppy", "none")
    (tmp_path / "out/crossdet.json").unlink()
    assert read_card(tmp_path / "out").space.classes == ("cat", "dog", "puppy", "unused_3")


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    """The next call would be refused for what this one left."""
    weights = saved(tmp_path / "mine.safetensors", tiny("dfine", square=SIDE, prior=0.2))

    def no_space(self, classes, directory) -> None:
        directory.mkdir()
        (directory / "config.json").write_text("{")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(Detr, "write_directory", no_space)
    with pytest.raises(RunError, match=r"out could not be written \(No space left on device\); nothing of it"):
        write_directory(weights, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
