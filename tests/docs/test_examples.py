"""Every config in examples/ is resolved and trains two steps, on generated stand-ins for its data."""

import shlex
from pathlib import Path

import pytest

from crossdet import load_config, load_detector, train
from crossdet.check import inspect

from .stand_ins import TINY, coco, coco_classes, random_backbone, voc, yolo

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    voc(root / "bccd", ["Platelets", "RBC", "WBC"], {"train": 8, "val": 4})
    coco(root, "coco/images/train", "coco/annotations/instances_train.json", coco_classes(), 8, 1)
    coco(root, "coco/images/val", "coco/annotations/instances_val.json", coco_classes(), 4, 2)
    voc(root / "voc_animals", ["cat", "cow", "dog", "horse", "sheep"], {"train": 8, "val": 4})
    yolo(root / "dice", ["one", "two", "three"], {"train": 8, "val": 4})
    for folder, classes in (("playing_cards", ["king", "ace"]), ("aquarium", ["fish", "shark"])):
        for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
            annotations = f"{folder}/annotations/instances_{split}.json"
            coco(root, f"{folder}/images/{split}", annotations, classes, count, seed)
    for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
        coco(root, "heads/images", f"heads/{split}.json", ["head"], count, seed)
    random_backbone(root / "weights" / "mobilenetv2_100.imagenet.safetensors")
    return root


def test_there_are_examples():
    assert {"bccd.yaml", "coco_voc.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_trains_two_steps(path, bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDET_BENCH", str(bench))
    monkeypatch.setenv("CROSSDET_HEADS", str(bench / "heads"))
    monkeypatch.setenv("CROSSDET_WEIGHTS", str(bench / "weights"))
    config = load_config(path, TINY)
    assert not inspect(config).errors
    record = train(config, output=tmp_path / "run")
    assert record["step"] == 2
    assert set(record["metrics"]["datasets"]) == set(config.datasets)
    assert load_detector(tmp_path / "run").classes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_opens_with_command_time_and_result(path):
    head = path.read_text().split("datasets:")[0]
    for part in (f"crossdet train examples/{path.name}", "time:", "result:"):
        assert part in head


def test_the_split_in_the_head_of_its_example(bench, tmp_path, monkeypatch, research):
    """As it stands there; the stand-ins show every class in every picture."""
    monkeypatch.setenv("CROSSDET_BENCH", str(bench))
    monkeypatch.setenv("CROSSDET_WEIGHTS", str(bench / "weights"))
    (example,) = [path for path in EXAMPLES if path.stem == "bccd_full"]
    (line,) = [
        row for row in example.read_text().splitlines() if "crossdet-research split" in row and "--part" in row
    ]
    monkeypatch.chdir(tmp_path)
    words = line.strip("# ").replace("examples/bccd_full.yaml", str(example))
    assert research(*shlex.split(words)[1:]).returncode == 0
    for name in ("aware", "naive", "same_positives", "full", "expert_red", "expert_white"):
        assert not inspect(load_config(tmp_path / "bccd_look" / f"{name}.yaml")).errors
