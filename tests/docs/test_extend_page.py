"""The configs and the commands of docs/extend.md and its details run as they stand, with a tiny network."""

import shlex
import sys

import pytest
import yaml

from crossdet import load_detector, train
from crossdet.commands import main as cli
from crossdet.config import Config, LabelsConfig

from .shown import blocks
from .stand_ins import TINY_EXTENSION, coco, wider_face


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the page's config describes, and runs/first, trained on its coco alone."""
    root = tmp_path_factory.mktemp("extend")
    for split, seed in (("train", 1), ("val", 2)):
        wider_face(root, f"WIDER_{split}/images", f"wider_face_split/wider_face_{split}_bbx_gt.txt", 4, seed)
        coco(root, f"{split}2017", f"annotations/instances_{split}2017.json", ["person", "car"], 8, seed + 4)
    (text,), (rules,) = blocks("extend.md", "yaml"), blocks("extend_details.md", "yaml")
    assert set(yaml.safe_load(rules)["labels"]) <= set(LabelsConfig.model_fields)
    (root / "more.yaml").write_text(text)
    splits = {
        split: {"images": f"{split}2017", "annotations": f"annotations/instances_{split}2017.json"}
        for split in ("train", "val")
    }
    first = {
        "datasets": {"coco": {"format": "coco", **splits}},
        "model": {"backbone": "test_efficientnet", "weights": "none", "channels": 16, "head_depth": 1},
        "input": {"shorter": 64, "longer": 96},
        "train": {"epochs": 1, "max_steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu"},
    }
    train(Config.from_dict(first, root), output=root / "runs" / "first")
    return root


def test_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    # a network that learnt nothing may lose everything
    shrink = [part for override in TINY_EXTENSION for part in ("--set", override)]
    lines = [line.split("#")[0].strip() for block in blocks("extend.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line]
    assert [words[1] for words in commands] == ["check", "check", *["extend"] * 4, "labels", "labels"]
    for words in commands:
        extra = [*shrink, "--tolerance", "100"] if words[1] == "extend" else []
        monkeypatch.setattr(sys, "argv", words + extra)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        assert code == 0, (words, capsys.readouterr().err)
    assert load_detector("runs/third", "cpu").classes == ("person", "car", "face")
    assert load_detector("renamed.safetensors", "cpu").classes == ("person", "automobile")
    assert load_detector("merged.safetensors", "cpu").reported == ("thing",)
    assert (folder / "runs/second/generations.png").exists()
