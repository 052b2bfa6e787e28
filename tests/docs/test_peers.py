"""benchmarks/peers.py without its peers: the data that they get, the boxes that come back, queue and table."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossdet.config import load_config
from crossdet.data.formats.yolo import read_yolo
from crossdet.data.index import IndexBuilder
from crossdet.types import Flag

from .stand_ins import coco, random_backbone, voc, yolo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peers  # noqa: E402
from peer_methods import dfine, fitting, own, sets, torchvision_models  # noqa: E402
from peer_methods.job import Job, Settings, Training, read_job  # noqa: E402

ANIMALS = ["fish", "jellyfish", "penguin"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    for name in ("bccd", "voc_animals"):
        voc(root / name, ["Platelets", "RBC", "WBC"], {"train": 8, "val": 4})
    yolo(root / "dice", ["one", "two"], {"train": 8, "val": 4})
    for seed, (split, count) in enumerate({"train": 8, "val": 4}.items()):
        for name in ("aquarium", "playing_cards"):
            file = f"{name}/annotations/instances_{split}.json"
            coco(root, f"{name}/images/{split}", file, ANIMALS, count, seed)
        coco(root, "site_safety", f"site_safety/{split}_merged.json", ANIMALS, count, seed)
    random_backbone(root / "mobilenet.safetensors")
    return root


def settings(data: Path, **changes) -> Settings:
    weights = str(data / "mobilenet.safetensors")
    return replace(Settings(str(data), weights, minutes=0.02, size=64, threads=1, batch=2), **changes)


@pytest.mark.parametrize("name", peers.SETS)
def test_the_sets_are_read_and_true_boxes_score_one(data, name):
    photographs = sets.open_set(name, data)
    assert (len(photographs.train), len(photographs.val)) == (8, 4)
    truth = photographs.truth
    found = sets.DetectionArrays(truth.boxes, np.ones(len(truth.boxes)), truth.labels, truth.image_of_box)
    scores = photographs.score(found)
    assert scores["AP"] == scores["AP50"] == 1
    assert set(scores["per_class"]) == set(photographs.classes)


def test_sets_and_methods_have_one_list_each():
    from peer_methods.worker import METHODS

    assert set(peers.SETS) == set(sets.SETS)
    assert set(peers.METHODS) == set(METHODS)
    assert set(dfine.RATES) | set(torchvision_models.MODELS) < set(METHODS)


@pytest.mark.parametrize("name", ["bccd", "aquarium", "dice"])
def test_yolo_files_hold_the_same_boxes_and_pictures(data, name, tmp_path):
    """Read back by this package's own reader: same boxes, classes and pictures as in the index."""
    photographs = sets.open_set(name, data)
    file = sets.write_yolo_set(photographs, tmp_path)
    for split in ("train", "val"):
        index, back = getattr(photographs, split), read_yolo(file, split)
        assert back.classes == photographs.classes
        rows = {Path(back.names[row]).name: row for row in range(len(back))}
        assert len(back) == len(index)
        for row in range(len(index)):
            there = rows[Path(index.names[row]).name]
            np.testing.assert_allclose(back.boxes[back.rows(there)], index.boxes[index.rows(row)], atol=1e-4)
            np.testing.assert_array_equal(back.labels[back.rows(there)], index.labels[index.rows(row)])
            assert back.path(there).read_bytes() == index.path(row).read_bytes()


def test_class_ids_with_gaps_become_positions(data, tmp_path):
    """Ultralytics wants 0, 1, ...; COCO's ids begin at 1 and have gaps."""
    photographs = sets.open_set("aquarium", data)
    gaps = np.array([1, 5, 90])
    splits = {split: replace(getattr(photographs, split), category_ids=gaps) for split in ("train", "val")}
    file = sets.write_yolo_set(replace(photographs, **splits), tmp_path)
    assert read_yolo(file, "train").category_ids.tolist() == [0, 1, 2]


def test_regions_are_no_objects():
    builder = IndexBuilder("/")
    builder.image("a.jpg", 60, 80)
    for flags in (0, Flag.CROWD, Flag.DIFFICULT, Flag.IGNORE_REGION, Flag.INVALID):
        builder.box((1, 2, 11, 22), 0, int(flags), keep_invalid=True)
    assert sets.objects(builder.build(["a"]), 0).tolist() == [0, 2]


def test_boxes_come_back_from_the_square_as_they_were(data):
    """D-FINE's: the truth, taken to the square and back, scores 1; in the square boxes are where objects are."""
    photographs = sets.open_set("bccd", data)
    index, found = photographs.val, sets.Found()
    for row in range(len(index)):
        rows = index.rows(row)
        boxes, labels = torch.tensor(index.boxes[rows]), torch.tensor(index.labels[rows])
        picture = torch.zeros(3, *index.sizes[row].tolist(), dtype=torch.uint8)
        for left, top, right, bottom in boxes.int().tolist():
            picture[:, top:bottom, left:right] = 255
        square, factors = dfine.letterbox(picture, 64)
        assert square.shape == (3, 64, 64)
        there = dfine.to_square(boxes, factors, 64)
        assert ((there >= 0) & (there <= 1)).all()
        for x, y, *_ in (there * 64).int().tolist():
            assert square[0, y, x] == 255
        found.add(row, dfine.from_square(there, factors, 64), torch.ones(len(boxes)), labels)
    assert photographs.score(found.arrays())["AP"] == 1


def test_boxes_come_back_from_torchvision_as_they_were(data):
    """Its own resizing, there and back."""
    photographs = sets.open_set("bccd", data)
    index, found = photographs.val, sets.Found()
    model = torchvision_models.build("fcos", 3, 64, None).eval()  # training leaves boxes as they are
    for row in range(len(index)):
        rows = index.rows(row)
        boxes, labels = torch.tensor(index.boxes[rows]), torch.tensor(index.labels[rows]).long()
        height, width = index.sizes[row].tolist()
        images, targets = model.transform([torch.zeros(3, height, width)], [{"boxes": boxes, "labels": labels}])
        assert max(images.image_sizes[0]) == 64
        answer = [{**targets[0], "scores": torch.ones(len(boxes))}]
        (back,) = model.transform.postprocess(answer, images.image_sizes, [(height, width)])
        found.add(row, back["boxes"], back["scores"], back["labels"])
    assert photographs.score(found.arrays())["AP"] == 1


def test_a_flip_moves_boxes_with_their_pixels():
    picture = torch.zeros(3, 20, 30, dtype=torch.uint8)
    picture[:, 5:9, 2:12] = 1
    mirrored, boxes = torchvision_models.flipped(picture, torch.tensor([[2.0, 5, 12, 9]]))
    assert boxes.tolist() == [[18, 5, 28, 9]]
    assert mirrored[0, 5:9, 18:28].all()
    assert mirrored.sum() == picture.sum()


def test_found_keeps_the_best_hundred_above_the_threshold():
    found = sets.Found()
    scores = torch.linspace(0, 1, 200)
    found.add(3, torch.zeros(200, 4), scores, torch.arange(200))
    arrays = found.arrays()
    assert arrays.labels.tolist() == list(range(199, 99, -1))
    assert set(arrays.image_of_box.tolist()) == {3}
    found = sets.Found()
    found.add(0, torch.zeros(2, 4), torch.tensor([0.0005, 0.01]), torch.tensor([0, 1]))
    assert found.arrays().labels.tolist() == [1]
    assert len(sets.Found().arrays().scores) == 0


def test_the_schedule_of_torchvision():
    def rate(step, share, batch=16, epoch_steps=101):
        return torchvision_models.rate(fitting.At(step, share), batch, epoch_steps)

    assert rate(0, 0) == pytest.approx(1e-5)  # a thousandth
    assert rate(50, 0.01) == pytest.approx(0.01 * (0.001 + 0.999 * 0.5))  # half of the first epoch
    assert rate(100, 0.02) == pytest.approx(0.01)
    assert rate(500, 0.02, epoch_steps=5000) == pytest.approx(0.01 * (0.001 + 0.999 * 0.5))  # half of 1,000
    assert rate(1, 0.1) == pytest.approx(0.01)  # a tenth of the time is enough
    assert rate(900, 0.6) == pytest.approx(0.01)
    assert rate(900, 16 / 26) == pytest.approx(0.001)
    assert rate(900, 0.85) == pytest.approx(0.0001)
    assert rate(900, 0.3, batch=8) == pytest.approx(0.005)
    assert rate(0, 0.5, epoch_steps=1) == pytest.approx(0.01)  # fewer pictures than a batch


def test_batches_hold_one_group_and_show_every_picture_equally_often():
    groups = [0, 1, 0, 0, 1, 0, 1, 0, 1, 0]
    first = list(itertools.islice(fitting.endless(groups, 3, seed=0), 40))
    assert all(len(batch) == 3 for batch in first)
    assert all(len({groups[row] for row in batch}) == 1 for batch in first)
    counts = np.bincount([row for batch in first for row in batch], minlength=10)
    assert counts.sum() == 120
    assert counts.max() - counts.min() <= 2  # what waits, and the epoch that has begun
    assert first == list(itertools.islice(fitting.endless(groups, 3, seed=0), 40))
    assert first != list(itertools.islice(fitting.endless(groups, 3, seed=1), 40))


def test_the_first_blocks_are_frozen_with_weights_only(data):
    model = torchvision_models.Backbone(str(data / "mobilenet.safetensors"))
    trained = {name.split(".")[1] for name, p in model.body.named_parameters() if p.requires_grad}
    frozen = {".".join(name.split(".")[:2]) for name, p in model.body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_stem.weight", "blocks.0", "blocks.1", "blocks.2"}
    assert trained == {"3", "4", "5", "6"}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.body.modules())
    plain = torchvision_models.Backbone(None)
    assert all(p.requires_grad for p in plain.parameters())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.body.modules())
    levels = plain(torch.zeros(1, 3, 64, 64))
    assert [features.shape[2] for features in levels.values()] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize("method", ["retinanet", "fcos"])
def test_torchvision_trains_by_the_clock_and_detects(data, tmp_path, method):
    photographs = sets.open_set("bccd", data)
    job = Job("bccd", method, settings(data), str(tmp_path))
    torch.manual_seed(0)
    training, find = torchvision_models.run(job, photographs)
    assert training.steps >= 1
    assert training.seconds >= 60 * job.settings.minutes
    assert training.pictures == 2 * training.steps == 2 * len(training.losses)
    assert training.start == "imagenet"
    scores = photographs.score(find().arrays())
    assert 0 <= scores["AP"] <= 1


def test_a_loss_that_is_no_number_ends_the_training(data, tmp_path):
    job = Job("bccd", "fcos", settings(data), str(tmp_path))
    with pytest.raises(ArithmeticError, match="step 1 is nan"):
        fitting.fit(job, iter([[0]]), lambda batch, at: float("nan"))


def test_the_config_of_crossdet(data, tmp_path):
    """Ten lines; all but recipe and minutes, which it takes as they are, are keys of this version."""
    config = own.config_of(Job("bccd", "crossdet", settings(data, minutes=15), str(tmp_path)))
    assert (config["train"].pop("recipe"), config["train"].pop("minutes")) == ("auto", 15)
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config))
    loaded = load_config(file)
    assert loaded.train.batch_size == 2
    assert loaded.input.longer == 64


def test_settings_and_jobs_travel(data, tmp_path):
    job = Job("dice", "yolo", settings(data, given=("seed=3",)), str(tmp_path))
    job.write(tmp_path / "job.json")
    assert read_job(tmp_path / "job.json") == job
    shown = job.settings.shown("crossdet")
    assert shown["weights"] == "imagenet"
    assert str(data) not in json.dumps(shown)
    assert shown["given"] == ["seed=3"]
    assert job.settings.shown("yolo")["given"] == []  # crossdet's alone


def test_the_record_of_a_training():
    record = Training(61.04, 20, 160, [float(20 - step) for step in range(20)], "random", {"epochs": 3}).record()
    assert (record["loss_first_tenth"], record["loss_last_tenth"]) == (19.5, 1.5)
    assert (record["seconds"], record["pictures"], record["epochs"]) == (61.0, 160, 3)


def entry(name, method, ap, seed=0, minutes=15, given=(), **more):
    shown = Settings("", None, minutes, 320, 2, seed=seed, given=given).shown(method)
    numbers = {"AP": ap, "AP50": 2 * ap, "pictures": 800}
    return {"set": name, "method": method, "settings": shown, **numbers, **more}


def test_the_table(tmp_path):
    entries = [
        entry("bccd", "crossdet", 0.4),
        entry("bccd", "crossdet", 0.42, seed=1),
        entry("bccd", "yolo", 0.3),
        entry("dice", "crossdet", 0.2),
        entry("dice", "yolo", 0.1),
        entry("aquarium", "crossdet", 0.05),
        {"set": "aquarium", "method": "yolo", "settings": entry("", "yolo", 0)["settings"], "error": "broken"},
        entry("bccd", "yolo", 0.35, minutes=5),
        entry("bccd", "crossdet", 0.38, minutes=5, given=("train.lr=0.1",)),
    ]
    file = tmp_path / "peers.json"
    peers.write_entries(file, entries)
    command = [sys.executable, BENCHMARKS / "peers.py", "--table", "--output", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "**15 minutes, 320 px, cpu, 2 threads, start: random**"
    assert lines[2:8] == [
        "| AP | crossdet | yolo |",
        "|---|---|---|",
        "| bccd | 41.0 ± 1.4 | 30.0 |",
        "| aquarium | 5.0 |  |",
        "| dice | 20.0 | 10.0 |",
        "| mean of 2 | 30.5 | 20.0 |",
    ]
    assert "| AP50 | crossdet | yolo |" in lines
    assert "| dice | 800 | 800 |" in lines
    assert "**5 minutes, 320 px, cpu, 2 threads, start: random**" in lines
    assert "| AP | crossdet train.lr=0.1 | yolo |" in lines


def test_the_queue_skips_what_is_done_and_tries_again_what_failed(tmp_path, monkeypatch, capsys):
    answers = {"crossdet": {"error": "no such key"}, "fcos": {"AP": 0.1}}
    asked = []

    def run(name, method, given, folder):
        asked.append((name, method))
        numbers = {"AP50": 0.2, "steps": 1, "pictures": 8, "seconds": 1.0, "peak_memory_mb": 1}
        numbers |= {"loss_first_tenth": 2.0, "loss_last_tenth": 1.0}
        return {"set": name, "method": method, "settings": given.shown(method), **numbers, **answers[method]}

    monkeypatch.setattr(peers, "run", run)
    words = ["--data", tmp_path, "--output", tmp_path / "p.json", "--sets", "dice", "--methods", "crossdet", "fcos"]

    def call(*more):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, [*words, *more])])
        with pytest.raises(SystemExit) as ended:
            peers.main()
        return ended.value.code

    assert call() == 1
    assert asked == [("dice", "crossdet"), ("dice", "fcos")]
    answers["crossdet"] = {"AP": 0.3}
    assert call() == 0
    assert asked == [("dice", "crossdet")]
    assert "| dice | 30.0 | 10.0 |" in capsys.readouterr().out
    assert call("--minutes", 1, "--methods", "fcos") == 0
    assert asked == [("dice", "fcos")]
    assert len(peers.read_entries(tmp_path / "p.json")) == 3


def test_mistakes_are_told_before_anything_runs(tmp_path):
    for words, told in (
        (["--data", tmp_path / "none"], "no such folder"),
        (["--data", tmp_path, "--weights", tmp_path / "none"], "no such file"),
        (["--data", tmp_path, "--size", "100"], "multiple of 32"),
    ):
        command = [sys.executable, BENCHMARKS / "peers.py", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert told in done.stderr


def test_one_method_through_the_command(data, tmp_path):
    """A process of its own, its result in the JSON; a method whose package is missing is an error of its own."""
    output = tmp_path / "peers.json"
    words = ["--data", data, "--minutes", "0.01", "--size", "64", "--sets", "dice", "--methods", "fcos"]
    command = [sys.executable, BENCHMARKS / "peers.py", *words, "--output", output, "--threads", "1"]
    done = subprocess.run([*command, "--keep", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = peers.read_entries(output)
    assert found["start"] == "random"
    assert found["steps"] >= 1
    assert found["peak_memory_mb"] > 100
    assert found["threads_in_use"] == 1
    assert set(found["versions"]) >= {"torch", "torchvision", "timm"}
    assert (tmp_path / "dice_fcos/pictures/0.png").exists()


def test_an_earlier_try_is_cleared_away(data, tmp_path, monkeypatch):
    """A training wants an empty folder; a folder of something else stays."""
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: subprocess.CompletedProcess(args, 1))
    left = tmp_path / "left.txt"
    left.write_text("mine")
    assert peers.run("dice", "fcos", settings(data), tmp_path)["error"] == ""
    assert left.exists()
    peers.run("dice", "fcos", settings(data), tmp_path)
    assert not left.exists()
    assert read_job(tmp_path / "job.json").method == "fcos"


def test_crossdet_trains_is_timed_and_detects(data, tmp_path, monkeypatch):
    """By steps instead of minutes, with a head that is quick."""
    from crossdet.runs import train as verb

    for name in ("fit", "score_network"):
        monkeypatch.setattr(verb, name, getattr(verb, name))  # so that what is timed is itself again afterwards
    whole = own.config_of
    small = {"max_steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu", "eval_every": 0, "log_every": 1}
    monkeypatch.setattr(own, "config_of", lambda job: {**whole(job), "train": small})
    given = ("model.channels=16", "model.head_depth=1")
    photographs = sets.open_set("bccd", data)
    training, find = own.run(Job("bccd", "crossdet", settings(data, given=given), str(tmp_path)), photographs)
    assert (training.steps, training.pictures, len(training.losses)) == (2, 4, 2)
    assert training.seconds > 0
    assert training.about["evaluation_seconds"] > 0
    arrays = find().arrays()
    assert set(arrays.image_of_box.tolist()) <= set(range(4))
    assert arrays.boxes.max(initial=0) <= 80  # pixels of the pictures, which are 80x60
