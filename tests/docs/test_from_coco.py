"""The commands of docs/from_coco.md, and what they print, on a tiny checkpoint that is made here."""

import shlex
from pathlib import Path

import pytest
import transformers

from crossdet import load_detector
from crossdet.commands.terminal import out
from crossdet.models.detr import building

from ..unit.models.detr.made import tiny
from .shown import assert_printed, blocks
from .stand_ins import TINY_EXTENSION, coco

PAGE = "from_coco.md"
COCO = (Path(__file__).parents[1] / "unit/labels/names/coco.txt").read_text().splitlines()
HUB = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "potted plant": "pottedplant",
       "dining table": "diningtable", "tv": "tvmonitor"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    network = tiny("dfine", len(COCO), square=64, prior=0.2)
    building.write(network, [HUB.get(name, name) for name in COCO], tmp_path / "dfine-small-coco")
    for split, seed in (("train", 1), ("val", 2)):
        coco(tmp_path, f"yard/{split}", f"yard/{split}.json", ["Person", "forklift", "Television"], 8, seed)
    coco(tmp_path, "photos", "photos.json", ["x"], 2, 3)
    (text,) = blocks(PAGE, "yaml")
    (tmp_path / "more.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out, "_width", 118)  # whatever `COLUMNS` was when it was made
    return tmp_path


def test_the_page(folder, crossdet):
    shrink = [part for override in TINY_EXTENSION for part in ("--set", override)]
    printed = []
    for block in blocks(PAGE, "sh"):
        for line in block.splitlines():
            _, *words = shlex.split(line, comments=True)
            done = crossdet(*words, *(shrink if words[0] == "extend" else ()))
            assert done.returncode == 0, (line, done.stderr)
            printed.append(done.stdout)
    shown = blocks(PAGE, "text")
    outputs = [*printed[:2], None, printed[2], printed[3] + printed[4]]
    assert len(printed) == 7  # the last two print what others have shown
    assert len(shown) == len(outputs)
    for block, output in zip(shown, outputs, strict=True):
        if output is not None:
            assert_printed(block, output)
    assert load_detector("runs/yard", "cpu").classes[79:] == ("toothbrush", "forklift")

    pipeline = transformers.pipeline("object-detection", "runs/both/hf", threshold=0.0)
    assert {one["label"] for one in pipeline(str(next(folder.glob("photos/*.jpg"))))} <= set(
        load_detector("runs/both", "cpu").classes
    )

    config = (folder / "more.yaml").read_text()
    without = "".join(line for line in config.splitlines(keepends=True) if "tvmonitor" not in line)
    assert without != config
    (folder / "without.yaml").write_text(without)
    assert_printed(shown[2], crossdet("check", "without.yaml", "--extends", "dfine-small-coco").stdout)
