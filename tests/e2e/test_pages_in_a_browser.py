"""Reports and audits open in a browser: of generated pictures, of a photograph, of names that look like HTML."""

from __future__ import annotations

import matplotlib.cbook
import pytest
from browsers import opened
from PIL import Image
from worlds import changed

from crossdet import train
from crossdet.config import Config
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import IndexBuilder
from crossdet.runs.audit import audit_runs
from crossdet.runs.report import report

SCRIPT, MARKUP = "<script>alert('car')</script>", "[red]face"
PERSON, FACE = (3, 20, 505, 600), (160, 130, 370, 335)
"""In matplotlib's photograph of Grace Hopper, xyxy."""


def pages(runs, config, folder):
    """report.html and audit.html of the first run, with the others beside it."""
    report(runs[0], folder / "report.html", *runs[1:])
    audit_runs(runs, config, folder)
    return [folder / "report.html", folder / "audit.html"]


def test_of_the_generated_world(world, trained, tmp_path):
    naive = tmp_path / "naive"
    train(world.config({"train.plain": True, "train.max_steps": 2}), output=naive)
    for page in pages([trained.folder, naive], world.config(), tmp_path):
        text = opened(page, 3)
        assert "trained" in text
        assert "naive" in text
        assert "In short" in text


def test_names_are_text(world, tmp_path):
    """Also of datasets; a script in one of them does not run."""
    settings = changed(world.settings(), {"train.max_steps": 2, "labels": {"merge": {SCRIPT: ["cars/car"]}}})
    settings["labels"]["merge"][MARKUP] = [f"{MARKUP}/face"]
    settings["datasets"] = {"cars": settings["datasets"]["cars"], MARKUP: settings["datasets"]["faces"]}
    config = Config.from_dict(settings)
    train(config, output=tmp_path / "run")
    for page in pages([tmp_path / "run"], config, tmp_path):
        text = opened(page, 0)
        assert SCRIPT in text
        assert MARKUP in text


@pytest.fixture
def photographs(tmp_path):
    """Crops of a photograph; one dataset labels its face, the other the person. Config as plain values."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        photograph = Image.open(file).convert("RGB")
    datasets = {}
    for name, box in (("person", PERSON), ("face", FACE)):
        builder = IndexBuilder(tmp_path / name)
        (tmp_path / name).mkdir()
        for number in range(4):
            left, top = 12 * number, 10 * number
            part = photograph.crop((left, top, left + 460, top + 480))
            part.save(tmp_path / name / f"{number}.jpg")
            builder.image(f"{number}.jpg", part.height, part.width, number + 1)
            x1, y1, x2, y2 = box
            builder.box((max(0, x1 - left), max(0, y1 - top), min(x2 - left, 460), min(y2 - top, 480)), 0)
        write_coco(builder.build([name]), tmp_path / f"{name}.json")
        split = {"images": str(tmp_path / name), "annotations": str(tmp_path / f"{name}.json")}
        datasets[f"{name}s"] = {"format": "coco", "train": split, "val": split}
    return {"datasets": datasets}


def test_of_a_photograph(world, photographs, tmp_path):
    config = Config.from_dict(changed(world.settings(), photographs | {"train.epochs": 30, "train.eval_every": 30}))
    train(config, output=tmp_path / "run")
    for page, least in zip(pages([tmp_path / "run"], config, tmp_path), (2, 0), strict=True):
        assert "persons" in opened(page, least)  # an audit's crops are those of what was found
