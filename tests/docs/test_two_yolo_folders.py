"""The commands of docs/two_yolo_folders.md, and what they print, on two folders that are made here."""

import shlex
from pathlib import Path

import pytest
import yaml

from crossdet.commands.terminal import out

from .shown import assert_printed, blocks
from .stand_ins import TINY, pictures, yolo

PAGE = "two_yolo_folders.md"
SHRINK = [*TINY, "model.backbone=test_efficientnet", "model.weights=none"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    counts = {"train": 8, "val": 4}
    yolo(tmp_path / "yard", ["forklift", "person"], counts)
    yolo(tmp_path / "gate", ["Person", "truck"], counts, seed=2)
    listed = tmp_path / "gate/data.yaml"
    content = yaml.safe_load(listed.read_text())
    listed.write_text(yaml.safe_dump({**content, "names": {**content["names"], 2: "forklift"}}))
    pictures(tmp_path / "photos", ["1.jpg", "2.jpg"], ["x"], 9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out, "_width", 118)  # whatever `COLUMNS` was when it was made
    return tmp_path


def test_the_page(folder, crossdet, capsys):
    first, rules = blocks(PAGE, "yaml")
    config = yaml.safe_load(first)
    shrink = [part for override in SHRINK for part in ("--set", override)]
    printed = []
    for number, block in enumerate(blocks(PAGE, "sh")):
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        together = ""
        for line in block.splitlines():
            _, *words = shlex.split(line)
            done = crossdet(*words, *(shrink if "config.yaml" in words else ()))
            assert done.returncode == (0 if number else 2), (line, done.stderr)  # the first check asks questions
            together += done.stdout
        printed.append(together)
        config["labels"] = yaml.safe_load(rules)["labels"]
    shown = blocks(PAGE, "text")
    assert len(shown) == len(printed)
    for block, output in zip(shown, printed, strict=True):
        assert_printed(block, output)
    assert list((folder / "look").glob("*.jpg"))
    assert (folder / "runs/first/report.html").is_file()

    (code,) = blocks(PAGE, "python")
    exec(compile(code.replace('"photos/1.jpg"', '"photos/1.jpg", score_threshold=0.0'), PAGE, "exec"), {})
    assert capsys.readouterr().out.split()[0] in ("forklift", "person", "truck")
