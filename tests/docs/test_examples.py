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
    yolo(root / "dice", ["five", "four", "one", "six", "three", "two"], {"train": 8, "val": 4})
    animals = ["fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"]
    for folder, classes in (("playing_cards", ["king", "ace"]), ("aquarium", animals)):
        for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
            annotations = f"{folder}/annotations/instances_{split}.json"
            coco(root, f"{folder}/images/{split}", annotations, classes, count, seed)
    for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
        coco(root, "heads/images", f"heads/{split}.json", ["head"], count, seed)
        things = ["person", "head", "lower_face", "torso", "cone", "machinery", "vehicle"]  # each part needs each
        coco(root, "site_safety", f"site_safety/{split}_merged.json", things, 4 * count, seed)
    random_backbone(root / "weights" / "mobilenetv2_100.imagenet.safetensors")
    return root


def test_there_are_examples():
    assert {"bccd.yaml", "coco_voc.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_trains_two_steps(path, bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDET_BENCH", str(bench))
    monkeypatch.setenv("CROSSDET_HEADS", str(bench / "heads"))
    monkeypatch.setenv("CROSSDET_WEIGHTS", str(bench / "weights"))
    of_paper = ["train.warmup_epochs=0.5", "train.steps=[0.9]"] if "recipe: paper" in path.read_text() else []
    config = load_config(path, [*TINY, *of_paper])
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


SPLITS = {
    "bccd_full": ["red", "white"],
    "site_safety_full": ["faces", "persons", "rest"],
    "aquarium_full": ["small", "large"],
    "dice_full": ["low", "high"],
}
"""Example with a split in its head -> the parts of it."""


def test_every_example_with_a_split_is_listed():
    assert set(SPLITS) == {path.stem for path in EXAMPLES if "crossdet-research split" in path.read_text()}


@pytest.mark.parametrize("name", SPLITS)
def test_the_split_in_the_head_of_its_example(name, bench, tmp_path, monkeypatch, research):
    """As it stands there."""
    monkeypatch.setenv("CROSSDET_BENCH", str(bench))
    monkeypatch.setenv("CROSSDET_WEIGHTS", str(bench / "weights"))
    (example,) = [path for path in EXAMPLES if path.stem == name]
    (line,) = [
        row for row in example.read_text().splitlines() if "crossdet-research split" in row and "--part" in row
    ]
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.strip("# ").replace(f"examples/{name}.yaml", str(example)))
    assert research(*words[1:]).returncode == 0
    folder = tmp_path / words[words.index("--output") + 1]
    for method in ("aware", "naive", "same_positives", "full", *(f"expert_{part}" for part in SPLITS[name])):
        assert not inspect(load_config(folder / f"{method}.yaml")).errors
