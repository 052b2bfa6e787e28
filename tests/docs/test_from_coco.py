"""The commands of docs/from_coco.md, and what they print, on a tiny checkpoint that is made here."""

import re
import shlex
from pathlib import Path

import pytest

from crossdet import load_detector
from crossdet.commands.terminal import out
from crossdet.models.detr import building

from ..unit.models.detr.made import tiny
from .stand_ins import TINY_EXTENSION, coco

PAGE = (Path(__file__).parents[2] / "docs/from_coco.md").read_text()
COCO = (Path(__file__).parents[1] / "unit/labels/names/coco.txt").read_text().splitlines()
HUB = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "potted plant": "pottedplant",
       "dining table": "diningtable", "tv": "tvmonitor"}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def plain(text: str) -> str:
    """Without what differs between machines: numbers, and how lines are broken and filled."""
    return " ".join(re.sub(r"\d[\d.,]*", "#", text).split())


def assert_printed(block: str, output: str) -> None:
    """The parts of a block between `...`, in their order."""
    printed, at = plain(output), 0
    for part in block.split("..."):
        place = printed.find(plain(part), at)
        assert place >= 0, part
        at = place + len(plain(part))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    network = tiny("dfine", len(COCO), square=64, prior=0.2)
    building.write(network, [HUB.get(name, name) for name in COCO], tmp_path / "dfine-small-coco")
    for split, seed in (("train", 1), ("val", 2)):
        coco(tmp_path, f"yard/{split}", f"yard/{split}.json", ["Person", "forklift", "Television"], 8, seed)
    coco(tmp_path, "photos", "photos.json", ["x"], 2, 3)
    (text,) = blocks("yaml")
    (tmp_path / "more.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out, "_width", 118)  # whatever `COLUMNS` was when it was made
    return tmp_path


def test_the_page(folder, crossdet):
    shrink = [part for override in TINY_EXTENSION for part in ("--set", override)]
    printed = []
    for block in blocks("sh"):
        for line in block.splitlines():
            _, *words = shlex.split(line)
            done = crossdet(*words, *(shrink if words[0] == "extend" else ()))
            assert done.returncode == 0, (line, done.stderr)
            printed.append(done.stdout)
    shown = blocks("text")
    outputs = [*printed[:2], None, printed[2], printed[3] + printed[4]]
    assert len(shown) == len(outputs)
    for block, output in zip(shown, outputs, strict=True):
        if output is not None:
            assert_printed(block, output)
    assert load_detector("runs/yard", "cpu").classes[79:] == ("toothbrush", "forklift")

    config = (folder / "more.yaml").read_text()
    without = "".join(line for line in config.splitlines(keepends=True) if "[yard/Television]" not in line)
    assert without != config
    (folder / "without.yaml").write_text(without)
    assert_printed(shown[2], crossdet("check", "without.yaml", "--extends", "dfine-small-coco").stdout)
