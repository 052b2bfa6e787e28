"""Directions as classes: train, evaluate, predict, and the queue of `crossdet-research orientation`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from worlds import World, changed

from crossdet import load_detector, train
from crossdet.check import inspect
from crossdet.config import Config
from crossdet.errors import UserError
from crossdet.runs.evaluate import evaluate
from crossdet_research.orientation.queue import run_orientation
from crossdet_research.orientation.tables import markdown, read_runs

TURNED = {"datasets.faces": None, "datasets.cars.directions": 4, "datasets.cars.val_directions": [0, 90]}


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("orientation") / "run"
    train(world.config({**TURNED, "train.max_steps": 2}), output=folder)
    return folder


def test_two_steps_with_directions_as_classes(run: Path, world: World, tmp_path: Path, command: Any) -> None:
    detector = load_detector(run)
    assert detector.classes == ("car@0", "car@90", "car@180", "car@270")
    assert detector.reported == ("car",)
    all_found = {"eval.score_threshold": 0.0}
    config = world.config({**TURNED, **all_found})
    scores = evaluate(run, config, output=tmp_path / "eval")["datasets"]["cars"]
    assert scores["images"] == 10
    assert set(scores["per_class"]) == {"car"}
    assert scores["orientation"]["objects"] == 10
    upright_val = world.config({"datasets.faces": None, "datasets.cars.directions": 4, **all_found})
    evaluate(run, upright_val, output=tmp_path / "up")
    for name, ids in (("eval", {360 * n + d for n in range(1, 6) for d in (0, 90)}), ("up", {1, 2, 3, 4, 5})):
        rows = json.loads((tmp_path / name / "predictions/cars/results.json").read_text())
        assert rows
        assert {row["category_id"] for row in rows} == {3}
        assert {row["image_id"] for row in rows} <= ids
    apart = evaluate(run, config, fold=False)["datasets"]["cars"]
    assert set(apart["per_class"]) == {"car@0", "car@90", "car@180", "car@270"}
    assert "orientation" not in apart
    upright = world.config({"datasets.faces": None})  # a config that knows no directions
    assert set(evaluate(run, upright)["datasets"]["cars"]["per_class"]) == {"car"}
    pictures = sorted((world.root / "cars").glob("val_*.png"))
    code, _ = command("predict", run, *pictures, "-o", tmp_path / "found", "--score", "0.0")
    assert code == 0
    content = json.loads((tmp_path / "found/predictions.json").read_text())
    assert content["classes"] == ["car"]
    rows = [row for image in content["images"] for row in image["detections"]]
    assert rows
    assert {row["class"] for row in rows} == {"car"}
    assert {row["angle"] for row in rows} <= {0, 90, 180, 270}
    code, _ = command("predict", run, pictures[0], "-o", tmp_path / "raw", "--score", "0.0", "--no-fold")
    assert code == 0
    content = json.loads((tmp_path / "raw/predictions.json").read_text())
    assert content["classes"] == ["car@0", "car@90", "car@180", "car@270"]


def test_check_looks_at_each_file_once(world: World) -> None:
    report = inspect(world.config(TURNED))
    assert not report.errors
    assert report.train_images == 12
    assert "cars train: 12 pictures in 4 directions, an epoch draws each once" in report.notes
    assert not any("were looked at" in note for note in report.notes)
    assert not report.duplicates


def test_the_queue(world: World, tmp_path: Path, research: Any) -> None:
    settings = changed(world.settings(), {"datasets.faces": None, "datasets.cars.directions": 4})
    file = tmp_path / "turned.yaml"
    file.write_text(yaml.safe_dump(settings))
    said: list[str] = []
    output = tmp_path / "results"
    words = ["train.max_steps=2"]
    files = run_orientation(file, output, [0], overrides=words, say=said.append)
    assert [f.stem for f in files] == ["upright_seed0", "rotated_seed0", "directions_seed0"]
    for made in files:
        content = json.loads(made.read_text())
        assert (content["steps"], content["diverged"]) == (2, None)
        assert str(tmp_path) not in made.read_text()
        assert str(world.root) not in made.read_text()
        row = content["datasets"]["cars"]
        assert row["images"] == 20
        assert list(row["rolls"]) == ["0", "90", "180", "270"]
        assert (row["orientation"] is not None) == (content["method"] == "directions")
        assert row["found"]["objects"] == 20
        assert ("looks" in content) == (content["method"] == "upright")
    looks = json.loads(files[0].read_text())["looks"]["cars"]
    assert (looks["images"], looks["looks"], looks["orientation"]["objects"]) == (20, 4, 20)
    assert list(looks["rolls"]) == ["0", "90", "180", "270"]
    # a detector that knows no directions, on turned pictures: categories are those of the file
    evaluate(
        output / "runs/upright_seed0", world.config({**TURNED, "eval.score_threshold": 0.0}), output=tmp_path / "e"
    )
    rows = json.loads((tmp_path / "e/predictions/cars/results.json").read_text())
    assert {row["category_id"] for row in rows} == {3}
    before = [f.stat().st_mtime_ns for f in files]
    assert run_orientation(file, output, [0], ["directions"], words, say=said.append) == files[2:]
    assert said[-1].endswith("finished, skipped")
    assert [f.stat().st_mtime_ns for f in files] == before
    with pytest.raises(UserError, match=r"(?s)differing: train\.lr"):
        run_orientation(file, output, [0], overrides=[*words, "train.lr=0.5"])
    text = markdown(read_runs(output))
    assert "| directions as classes | 1 |" in text
    assert "AP50 at 270°" in text
    assert "| upright, 4 looks (4 x inference) | 1 |" in text
    assert "Optimiser steps of every training: 2." in text
    code, shown, _ = research("orientation", "table", output, "--markdown", tmp_path / "table.md")
    assert code == 0
    assert "rotation as augmentation" in shown
    assert "Optimiser steps of every training: 2." in shown
    assert (tmp_path / "table.md").read_text() == text


def test_classes_per_dataset(world: World, tmp_path: Path) -> None:
    settings = changed(
        world.settings(), {"labels.merge": {"thing": ["cars/car", "faces/face"]}, "labels.per_dataset": ["thing"]}
    )
    file = tmp_path / "domains.yaml"
    file.write_text(yaml.safe_dump(settings))
    files = run_orientation(file, tmp_path / "out", [0], overrides=["train.max_steps=2"], say=lambda _: None)
    assert [f.stem for f in files] == ["merged_seed0", "per_dataset_seed0", "per_dataset_open_seed0"]
    for name, overlap in (("per_dataset", set()), ("per_dataset_open", {(0, 1)})):
        detector = load_detector(tmp_path / f"out/runs/{name}_seed0")
        assert detector.classes == ("thing@cars", "thing@faces")
        assert detector.reported == ("thing",)
        assert detector.space.overlap_pairs == overlap
    text = markdown(read_runs(tmp_path / "out"))
    assert "| classes per dataset, folded | 1 |" in text
    assert "| the same, no negatives of each other | 1 |" in text
    assert "cars AP, split" in text
    assert "alone (thing)." in text


def test_nothing_to_compare(world: World, tmp_path: Path) -> None:
    file = world.write_config(tmp_path / "plain.yaml")
    with pytest.raises(UserError, match="nothing to compare: give a dataset `directions`"):
        run_orientation(file, tmp_path / "out", [0])
    assert isinstance(world.config(), Config)
