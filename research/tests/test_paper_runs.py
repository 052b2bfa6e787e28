"""`crossdet-research paper run`: two steps of each kind of training, the queue, and the layout of the downloads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import ranks
from PIL import Image
from safetensors.torch import load_file
from torchvision.models._meta import _COCO_CATEGORIES
from typer.testing import CliRunner

from crossdet import load_config, load_detector
from crossdet.check import inspect
from crossdet.errors import RunError, UserError
from crossdet.inference import Detector
from crossdet.training import state as training_state
from crossdet.types import Detections
from crossdet_research.paper import data as paper_data
from crossdet_research.paper.command import app
from crossdet_research.paper.experiments import Experiment as PaperExperiment
from crossdet_research.paper.experiments import Place, resolve
from crossdet_research.paper.rows import DATASETS, TRAININGS, VOC_CLASSES

IMAGES = 8
TINY = ("input.shorter=64", "input.longer=96", "model.channels=16", "model.head_depth=1")
TWO_STEPS = ("--images", IMAGES, *(word for text in ("train.max_steps=2", *TINY) for word in ("--set", text)))
KINDS = {
    "face_mobilenetv2_small": ["face"],
    "coco_face_ped_resnet50": ["person", "car", "dog", "sign", "face"],
    "coco_ped_mobilenetv2_unmerged": ["person", "car", "dog", "sign", "pedestrian"],
    "coco_voc_mobilenetv2": ["person", "car", "dog", "sign"],
}
"""One dataset; three with person and pedestrian merged; unmerged; COCO with VOC. And their unified classes."""


def command(*words: str | Path | int) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with the generated pictures of every dataset."""
    root = tmp_path_factory.mktemp("paper_data")
    paper_data.write_world(root, IMAGES)
    paper_data.write_voc_objects(root, IMAGES)
    return root


@pytest.fixture(scope="module")
def results(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("paper") / "out"
    command("run", *KINDS, "--data", data, "--scale", "mini", "-o", output, *TWO_STEPS)
    return output


@pytest.mark.parametrize("name", KINDS)
def test_two_steps_of_each_kind(results, name):
    content = json.loads((results / "mini" / f"{name}_seed0.json").read_text())
    training = TRAININGS[name]
    keys = [DATASETS[d].key for d in training.datasets]
    assert content["training"] == name
    assert content["data"] == "generated pictures"
    assert content["steps"] == 2
    assert content["classes"] == len(KINDS[name])
    assert content["datasets"] == {key: {"train_images": 8, "val_images": 4} for key in keys}
    assert content["seconds"] > 0
    assert content["version"]["crossdet"]
    assert set(content["hardware"]) >= {"cpus", "gpu", "processes", "torch"}
    assert content["config"]["train"]["max_steps"] == 2
    assert content["config"]["datasets"][keys[0]]["train"]["images"][0].startswith("DATA/demo_")
    # every dataset is judged by its own protocol on its own classes
    own = {"faces": {"face"}, "coco": {"person", "car", "dog", "sign"}, "voc": {"car", "dog", "sign"},
           "peds": {"person" if training.merge else "pedestrian"}}  # fmt: skip
    protocol = {"faces": "wider_face", "peds": "wider_pedestrian", "coco": "coco", "voc": "voc"}
    assert list(content["metrics"]["datasets"]) == keys
    for key, record in content["metrics"]["datasets"].items():
        assert record["protocol"] == protocol[key]
        assert set(record["per_class"]) == own[key]
    assert sorted(load_detector(results / "mini" / f"{name}_seed0").classes) == sorted(KINDS[name])
    # the config beside it is what was trained
    written = load_config(results / "mini" / f"{name}_seed0.yaml")
    assert written.model.backbone == {"resnet50": "regnetx_004"}.get(training.backbone, "regnetx_002")


def test_faces_are_easy_medium_and_hard_at_mini_scale_too(results):
    content = json.loads((results / "mini" / "face_mobilenetv2_small_seed0.json").read_text())
    assert {"easy", "medium", "hard"} <= set(content["metrics"]["datasets"]["faces"])
    assert "notes" not in content["metrics"]["datasets"]["faces"]


def test_pictures_have_a_row_per_dataset_with_all_classes(results, tmp_path, monkeypatch):
    """Figure 6, on a detector that finds one box of every class in every picture."""
    run = results / "mini" / "coco_face_ped_resnet50_seed0"

    def everything(detector, image, score_threshold=None):
        ids = torch.arange(len(detector.classes))
        boxes = torch.tensor([[20.0, 20, 90, 90]]).repeat(len(ids), 1) + 8 * ids[:, None]
        return Detections(boxes, torch.full((len(ids),), 0.9), ids, detector.classes)

    file = tmp_path / "new/figure6.png"
    words = ("pictures", run, run.with_suffix(".yaml"), "-o", file, "--columns", 2)
    command(*words, "--score", 1)
    with Image.open(file) as opened:
        empty = np.asarray(opened.convert("RGB")).astype(int)
    assert len(empty) == 3 * (320 + 22)  # faces, peds and coco
    monkeypatch.setattr(Detector, "__call__", everything)
    command(*words)
    with Image.open(file) as opened:
        drawn = np.asarray(opened.convert("RGB")).astype(int)
    assert drawn.shape == empty.shape
    changed = (np.abs(drawn - empty).sum(2) > 60).reshape(3, 320 + 22, -1)
    for row in changed:  # in each row both pictures, and nothing in the line above them
        assert row[22:, : row.shape[1] // 2].any()
        assert row[22:, row.shape[1] // 2 :].any()
        assert not row[:22].any()
    with pytest.raises(UserError, match=r"ends in \.png, \.jpg"):
        command(*words[:3], "-o", tmp_path / "figure6.svg")


def test_finished_ones_are_skipped_and_other_settings_are_refused(results, data):
    before = {file: file.stat().st_mtime_ns for file in results.rglob("*") if file.is_file()}
    words = ("run", *KINDS, "--data", data, "--scale", "mini", "-o", results)
    assert command(*words, *TWO_STEPS).count("finished, skipped") == len(KINDS)
    with pytest.raises(UserError, match=r"other settings; differing: train\.lr"):
        command(*words, *TWO_STEPS, "--set", "train.lr=0.5")
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*") if file.is_file()} == before


def test_an_interrupted_queue_goes_on_elsewhere_and_ends_as_if_it_had_not_been(
    results, data, tmp_path, monkeypatch
):
    """Stopped after the first step, moved with its data to another folder, run again: the same weights."""
    name = "coco_ped_mobilenetv2_unmerged"
    save_if_due = training_state.RunState.save_if_due

    def stop(self, recipe):
        self.stop.set()
        save_if_due(self, recipe)

    words = ("--scale", "mini", *TWO_STEPS)
    with monkeypatch.context() as patch:
        patch.setattr(training_state.RunState, "save_if_due", stop)
        with pytest.raises(RunError, match="interrupted after step 1"):
            command("run", name, "--data", data, "-o", tmp_path / "out", *words)
    folder = tmp_path / "out/mini"
    assert not (folder / f"{name}_seed0.json").exists()
    seconds = json.loads((folder / f"{name}_seed0/experiment.json").read_text())["seconds"]
    shutil.copytree(data, tmp_path / "moved")
    with pytest.raises(UserError, match=r"other settings; differing: train\.lr"):
        command("run", name, "--data", tmp_path / "moved", "-o", tmp_path / "out", *words, "--set", "train.lr=1.0")
    command("run", name, "--data", tmp_path / "moved", "-o", tmp_path / "out", *words)
    content = json.loads((folder / f"{name}_seed0.json").read_text())
    assert content["steps"] == 2
    assert content["seconds"] > seconds > 0
    one, two = (place / f"{name}_seed0" / "model.safetensors" for place in (results / "mini", folder))
    if torch.cuda.is_available():  # its convolutions add up gradients in another order every time
        torch.testing.assert_close(load_file(one), load_file(two), rtol=1e-3, atol=1e-5)
    else:
        assert one.read_bytes() == two.read_bytes()


def test_a_run_that_ended_before_its_json_was_written(results, data, tmp_path):
    name = "face_mobilenetv2_small"
    shutil.copytree(results / "mini" / f"{name}_seed0", tmp_path / "mini" / f"{name}_seed0")
    command("run", name, "--data", data, "--scale", "mini", "-o", tmp_path, *TWO_STEPS)
    first, again = (
        json.loads((folder / "mini" / f"{name}_seed0.json").read_text()) for folder in (results, tmp_path)
    )
    assert first["metrics"] == again["metrics"]
    assert first["config"] == again["config"]


def test_a_diverged_training_does_not_stop_the_queue(data, tmp_path):
    words = ("--data", data, "--scale", "mini", "-o", tmp_path, "--images", IMAGES, "--set", "train.max_steps=4")
    wild = ("--set", "train.lr=1e30", "--set", "train.warmup_epochs=0", "--set", "train.clip_norm=null")
    with pytest.raises(RunError, match=r"(?s)2 training\(s\) diverged.*face_mobil.*voc_mobil"):
        command("run", "face_mobilenetv2_small", "voc_mobilenetv2", *words, *wild)
    assert not list((tmp_path / "mini").glob("*.json"))


def test_generated_voc_pictures_label_some_classes_and_are_made_once(data, tmp_path):
    config = resolve(PaperExperiment(TRAININGS["voc_mobilenetv2"], "mini"), Place(data, tmp_path, IMAGES))
    report = inspect(config)
    assert not report.errors
    marker = data / "demo_voc" / "made.json"
    picture = next((data / "demo_voc/JPEGImages").iterdir())
    stamp = picture.stat().st_mtime_ns
    paper_data.write_voc_objects(data, IMAGES)
    assert picture.stat().st_mtime_ns == stamp
    other = tmp_path / "data"
    (other / "demo_voc").mkdir(parents=True)
    with pytest.raises(UserError, match="not written by"):
        paper_data.write_voc_objects(other, IMAGES)
    shutil.copy(marker, other / "demo_voc/made.json")
    paper_data.write_voc_objects(other, 10)  # another size: made anew
    assert len(list((other / "demo_voc/JPEGImages").iterdir())) == 15


# ------------------------------------------------------------------------------------------- full scale

SMALL = ("model.backbone=test_efficientnet", "model.weights=none", "model.channels=16", "model.head_depth=1",
         "input.shorter=64", "input.longer=96", "train.max_steps=2", "train.batch_size=4", "train.workers=0",
         "train.accelerator=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def downloads(data, tmp_path_factory) -> Path:
    """The generated pictures in the folders and under the file names of the official downloads."""
    root = tmp_path_factory.mktemp("downloads")
    world = data / "demo_world"
    for split, images in (("train", "WIDER_train"), ("val", "WIDER_val")):
        shutil.copytree(world / "faces/images", root / "wider_face" / images / "images")
        shutil.copytree(world / "peds/images" / split, root / "wider_pedestrian" / split)
        shutil.copytree(world / "objects/images" / split, root / "coco" / f"{split}2017")
        content = json.loads((world / f"objects/annotations/instances_{split}.json").read_text())
        known = {
            category["id"]: category["name"].replace("sign", "stop sign") for category in content["categories"]
        }
        coco = [name for name in _COCO_CATEGORIES if name not in ("__background__", "N/A")]
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(coco, 1)]
        for annotation in content["annotations"]:
            annotation["category_id"] = coco.index(known[annotation["category_id"]]) + 1
        content["annotations"] += [  # as in the real files every class has a box
            {"id": 10_000 + n, "image_id": content["images"][0]["id"], "category_id": n, "bbox": [4, 4, 20, 20]}
            | {"area": 400, "iscrowd": 0}
            for n in range(1, len(coco) + 1)
        ]
        (root / "coco/annotations").mkdir(exist_ok=True)
        (root / f"coco/annotations/instances_{split}2017.json").write_text(json.dumps(content))
    (root / "wider_face/wider_face_split").mkdir()
    for file in world.glob("faces/*.txt"):
        shutil.copy(file, root / "wider_face/wider_face_split")
    for file in world.glob("peds/*.txt"):
        shutil.copy(file, root / "wider_pedestrian")
    shutil.copytree(world / "faces/ground_truth", root / "wider_face/eval_tools/ground_truth")
    for year, train in (("VOC2007", True), ("VOC2012", False)):
        shutil.copytree(data / "demo_voc", root / "VOCdevkit" / year)
        sets = root / "VOCdevkit" / year / "ImageSets/Main"
        lines = (sets / "train.txt").read_text().splitlines(keepends=True)
        (sets / "trainval.txt").write_text("".join(lines[: IMAGES // 2] if train else lines[IMAGES // 2 :]))
        shutil.move(sets / "val.txt", sets / "test.txt")
        for xml in (root / "VOCdevkit" / year / "Annotations").iterdir():
            xml.write_text(xml.read_text().replace(">sign<", ">bottle<"))
        box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
        every = "".join(f"<object><name>{name}</name>{box}</object>" for name in VOC_CLASSES)
        first = (sets / "trainval.txt").read_text().split()[0]
        xml = root / "VOCdevkit" / year / "Annotations" / f"{first}.xml"
        xml.write_text(xml.read_text().replace("</annotation>", f"{every}</annotation>"))
    return root


@pytest.mark.parametrize("name", ["coco_face_ped_resnet50", "coco_voc_resnet50"])
def test_check_recognises_the_official_layout(downloads, tmp_path, name):
    file = tmp_path / "config.yaml"
    file.write_text(command("show", name, "--data", downloads))
    report = inspect(load_config(file))
    assert not report.errors
    assert len(report.classes) == {"coco_face_ped_resnet50": 81, "coco_voc_resnet50": 80}[name]
    images = {(split.dataset, split.split): split.images for split in report.splits}
    assert set(images.values()) == {8, 4}
    assert all(not split.files.unreadable.count for split in report.splits)


def test_a_full_row_by_two_processes(downloads, tmp_path):
    """The official layout, two processes: they share the batch, and the first one writes."""
    script = tmp_path / "paper.py"
    script.write_text("from crossdet_research.paper.command import app\napp()\n")
    sets = [word for override in SMALL for word in ("--set", override)]
    words = (
        "run",
        "t1/coco_face_ped_resnet50",
        "face_mobilenetv2",
        "--data",
        downloads,
        "-o",
        tmp_path / "out",
        *sets,
    )
    done = ranks(2, script, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "out/full/coco_face_ped_resnet50_seed0.json").read_text())
    assert content["data"] == "official downloads"
    assert content["hardware"]["processes"] == 2
    assert (content["steps"], content["classes"]) == (2, 81)
    assert content["datasets"]["coco"] == {"train_images": 8, "val_images": 4}
    assert load_config(tmp_path / "out/full/coco_face_ped_resnet50_seed0.yaml").train.devices == 2
    assert (tmp_path / "out/full/face_mobilenetv2_seed0.json").exists()
    assert done.stdout.count("[1/2] coco_face_ped_resnet50") == 1
    again = command(*words)  # with one process: finished is finished
    assert again.count("finished, skipped") == 2


def test_mini_experiments_are_refused_under_torchrun(data, tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start them without torchrun"):
        command(
            "run", "t6", "--data", data, "-o", tmp_path / "out", "--scale", "mini", "--set", "train.batch_size=8"
        )
