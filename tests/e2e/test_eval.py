"""A trained detector is scored on every dataset: `crossdet eval` and its parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossdet import Config, UserError, evaluate, load_detector, train
from crossdet.data.index import Index, IndexBuilder
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.run import EvalSettings, detect, score_dataset
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.labels.space import DROPPED
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.weights import update_card
from crossdet.types import Flag


@pytest.fixture(scope="module")
def detector(trained):
    return load_detector(trained.folder)


# --------------------------------------------------------------------------------------- crossdet eval


def test_eval_prints_all_datasets_and_writes_json(world, trained, tmp_path, command):
    config = world.write_config(tmp_path / "mine.yaml")
    code, printed = command(
        "eval", trained.folder, config, "--per-class", "-o", tmp_path, "--json", tmp_path / "numbers.json"
    )
    assert code == 0
    metrics = json.loads((tmp_path / "numbers.json").read_text())
    for name, scores in metrics["datasets"].items():
        (row,) = [line for line in printed.splitlines() if line.startswith(f"{name} ") and "coco" in line]
        assert f"{100 * scores['AP']:.1f}" in row.split()
        assert f"{100 * scores['AP50']:.1f}" in row.split()
    assert list(metrics["datasets"]) == ["cars", "faces"]
    assert list(metrics["datasets"]["faces"]["per_class"]) == ["face"]
    assert metrics["mean"] == pytest.approx(trained.record["metrics"]["mean"], abs=1e-6)


def test_eval_of_a_run_directory_writes_beside_it(world, trained, tmp_path, command):
    config = world.write_config(tmp_path / "mine.yaml")
    target = trained.folder / "eval_mine.json"
    try:
        code, printed = command("eval", trained.folder, config)
        assert code == 0
        assert str(target) in printed
        assert set(json.loads(target.read_text())["datasets"]) == {"cars", "faces"}
        folder = trained.folder / "eval_mine"
        assert f"curves and predictions in {folder}" in printed
        assert (folder / "curves/cars_coco.png").stat().st_size > 5000
        assert (folder / "predictions/faces/results.json").exists()
    finally:  # other tests look at the same run
        target.unlink(missing_ok=True)
        shutil.rmtree(trained.folder / "eval_mine", ignore_errors=True)


def test_eval_of_another_split_and_without_a_config(world, trained, tmp_path, command):
    """The training's own config is taken; a test split has numbers of its own beside those of `val`."""
    datasets = world.settings()["datasets"]
    tests = {f"datasets.{name}.test": datasets[name]["val"] for name in datasets}
    config = world.write_config(
        tmp_path / "mine.yaml", {**tests, "datasets.cars.val": None, "datasets.faces.val": None}
    )
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained.folder / "model.safetensors", run)
    assert command("eval", run, config)[0] == 2  # it has no `val`
    code, printed = command("eval", run, config, "--split", "test")
    assert code == 0
    assert f"numbers in {run / 'eval_mine_test.json'}" in printed
    metrics = json.loads((run / "eval_mine_test.json").read_text())
    assert command("eval", run, config, "--split", "test", "--store-thresholds")[0] == 2
    assert command("audit", run, config, "--split", "test")[0] == 0

    assert command("eval", run)[0] == 2
    assert command("eval", config)[0] == 2
    assert command("eval", tmp_path / "gone")[0] == 2
    assert command("eval", run, config, "--split", "test", "--json", config)[0] == 2
    world.write_config(run / "config.yaml")
    code, printed = command("eval", run)
    assert code == 0
    assert f"config: {run / 'config.yaml'}" in printed
    own = json.loads((run / "eval_config.json").read_text())
    assert repr(own["datasets"]) == repr(metrics["datasets"])  # here the same pictures
    assert command("audit", run)[0] == 0


def test_the_search_gets_the_classes_of_the_dataset_alone(world, trained, monkeypatch):
    """Before top-k and caps, so that what other datasets call objects takes no place from them."""
    seen = []
    find = RetinaNet.find

    def spy(self, images, sizes, classes=None, *rest, **named):
        seen.append(classes)
        return find(self, images, sizes, classes, *rest, **named)

    monkeypatch.setattr(RetinaNet, "find", spy)
    evaluate(trained.folder, world.config())
    space = load_detector(trained.folder).space
    car, face = space.id_of("car"), space.id_of("face")
    assert seen == [[car], [car], [face], [face]]  # two batches of each


def test_scores_equal_those_computed_by_hand(world, trained, detector):
    """Single predictions, collected here, through `coco_scores`."""
    metrics = evaluate(trained.folder, world.config())
    for name, index in (("cars", world.cars["val"]), ("faces", world.faces["val"])):
        only = [index.classes[0]]
        found = [detector(index.path(i), only, score_threshold=0.05) for i in range(len(index))]
        detections = DetectionArrays(
            boxes=torch.cat([f.boxes for f in found]).numpy(),
            scores=torch.cat([f.scores for f in found]).numpy(),
            labels=np.full(sum(map(len, found)), 7),
            image_of_box=np.repeat(np.arange(len(index)), [len(f) for f in found]),
        )
        truth = ground_truth(Split(index, np.array([7]), []))
        wanted = coco_scores(truth, detections, [7]).scores
        for score in ("AP", "AP50", "AR100"):
            assert metrics["datasets"][name][score] == pytest.approx(wanted[score], abs=1e-6), (name, score)


def test_a_detector_is_scored_on_other_datasets_by_class_name(world, trained, tmp_path):
    """Fewer datasets, another order, a class dropped: ids of the config are not those of the detector."""
    whole = evaluate(trained.folder, world.config())
    other = world.settings()
    other["datasets"] = {name: other["datasets"][name] for name in ("faces", "cars")}
    del other["datasets"]["cars"]["train"]
    scores = evaluate(trained.folder, world.config({"datasets": other["datasets"]}))
    assert list(scores["datasets"]) == ["faces", "cars"]
    for name in ("faces", "cars"):
        assert repr(scores["datasets"][name]) == repr(whole["datasets"][name])  # NaN is not equal to itself
    with pytest.raises(UserError, match="no dataset of the config has a `train` split"):
        evaluate(trained.folder, world.config({"datasets.cars.train": None, "datasets.faces": None}), "train")


def test_padding_has_the_colour_that_is_zero_to_the_network(world, trained, monkeypatch):
    """In training's evaluation, in `evaluate` and in predictions alike (here the backbone's mean is 0.5)."""
    import crossdet.evaluation.of_network as run

    fills = []
    loader = run.make_loader

    def spy(dataset, batches, workers=0, pin=False, fill=None):
        fills.append(tuple(fill))
        return loader(dataset, batches, workers, pin, fill)

    monkeypatch.setattr(run, "make_loader", spy)
    evaluate(trained.folder, world.config())
    model = load_detector(trained.folder).model
    assert set(fills) == {tuple(model.fill_colour)}
    pixel = torch.tensor(fills[0]).view(3, 1, 1)
    assert float(((pixel - model.mean.cpu()) / model.std.cpu()).abs().max()) < 0.01


def test_evaluation_leaves_the_mode_of_the_model(world, detector):
    model = load_detector_copy(detector)
    settings = EvalSettings(64, 96)
    for mode in (True, False):
        model.train(mode)
        detect(model, world.cars["val"], [0], settings)
        assert model.training is mode


def load_detector_copy(detector) -> RetinaNet:
    import copy

    return copy.deepcopy(detector.model)


def test_classes_that_a_dataset_only_lists_are_noted(world, detector):
    """`eval` asks nothing, but says what it takes for wrong."""
    index = world.cars["val"]
    both = replace(index, classes=("car", "face"), category_ids=np.array([3, 4]))
    datasets = {"other": {"val": both}, "faces": {"val": world.faces["val"]}}
    rules = {"merge": {"car": ["cars/car", "other/car"], "face": ["faces/face", "other/face"]}}

    def notes(labels):
        config = Config.from_dict({"datasets": datasets, "labels": labels}, known_datasets=["cars"])
        return evaluate(detector, config)["datasets"]["other"].get("notes", [])

    assert any(note.startswith("lists face and has no box of it, while faces has") for note in notes(rules))
    assert not any(note.startswith("lists") for note in notes(rules | {"unlabelled": {"other": ["face"]}}))


def test_a_split_of_which_nothing_can_be_read_has_no_scores(world, trained, tmp_path, command):
    (tmp_path / "empty").mkdir()
    config = world.write_config(tmp_path / "c.yaml", {"datasets.cars.val.images": str(tmp_path / "empty")})
    assert command("eval", trained.folder, config, "-o", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()


def test_unreadable_images_count_as_empty_and_are_listed(world, detector, tmp_path):
    index = world.cars["val"]
    broken = Index(**{**vars(index), "root": str(tmp_path)})
    for row in range(len(index)):
        if row != 2:
            (tmp_path / index.names[row]).write_bytes(index.path(row).read_bytes())
    names, cars = ["car", "face"], np.array([0])
    settings = EvalSettings(64, 96)
    record = score_dataset(detector.model, Split(broken, cars, names), settings).record
    whole = score_dataset(detector.model, Split(index, cars, names), settings).record
    assert len(record["unreadable"]) == 1
    assert index.names[2] in record["unreadable"][0]
    assert record["images"] == 5
    assert record["per_class"]["car"]["boxes"] == 5  # its box still counts, as missed
    assert record["AR100"] < whole["AR100"]


# ---------------------------------------------------------------------------------------- ground truth


def flagged_index() -> Index:
    builder = IndexBuilder("nowhere")
    builder.image("a.png", 100, 100, image_id=10)
    builder.box((0, 0, 10, 10), 0)
    builder.box((0, 0, 20, 20), 1, Flag.CROWD, area=77.0)
    builder.box((5, 5, 9, 9), 2)  # a class that the rules drop
    builder.image("b.png", 100, 100, image_id=11)
    builder.image("c.png", 100, 100, image_id=12)
    builder.box((0, 0, 30, 30), -1, Flag.IGNORE_REGION)
    builder.box((1, 1, 2, 2), 1, Flag.DIFFICULT)
    builder.box((3, 3, 5, 5), 0, Flag.INVALID)
    builder.box((7, 7, 7, 9), 0, Flag.INVALID, keep_invalid=True)  # no area
    builder.box((40, 40, 60, 60), 1)
    return builder.build(["a", "b", "dropped"])


def test_ground_truth_in_unified_ids():
    truth = ground_truth(Split(flagged_index(), np.array([4, 6, DROPPED]), []))
    rows = sorted(
        zip(
            truth.image_of_box.tolist(),
            truth.labels.tolist(),
            truth.crowd.tolist(),
            truth.area.tolist(),
            map(tuple, truth.boxes.tolist()),
            strict=True,
        )
    )
    assert rows == [
        (0, 4, False, 100.0, (0, 0, 10, 10)),
        (0, 6, True, 77.0, (0, 0, 20, 20)),
        (2, 4, True, 4.0, (3, 3, 5, 5)),
        (2, 4, True, 900.0, (0, 0, 30, 30)),  # a region of no class, once for every class
        (2, 6, False, 400.0, (40, 40, 60, 60)),
        (2, 6, True, 1.0, (1, 1, 2, 2)),
        (2, 6, True, 900.0, (0, 0, 30, 30)),
    ]
    assert len(truth.image_ids) == 3  # an image without boxes can still be wrong


def test_detections_on_regions_are_neither_right_nor_wrong():
    """Of class 6: one right box; detections in the crowd and in the ignore region above it cost nothing."""
    truth = ground_truth(Split(flagged_index(), np.array([4, 6, DROPPED]), []))

    def scores(*boxes: tuple[int, tuple[float, float, float, float], float]) -> float:
        detections = DetectionArrays(
            boxes=np.array([box for _, box, _ in boxes], np.float64),
            scores=np.array([score for *_, score in boxes]),
            labels=np.full(len(boxes), 6),
            image_of_box=np.array([image for image, *_ in boxes]),
        )
        return coco_scores(truth, detections, [6]).scores["AP"]

    right = (2, (40.0, 40.0, 60.0, 60.0), 0.5)
    assert scores(right) == pytest.approx(1)
    on_regions = [
        (0, (0.0, 0.0, 9.0, 9.0), 0.9),
        (0, (10.0, 10.0, 20.0, 20.0), 0.8),
        (2, (2.0, 2.0, 29.0, 29.0), 0.7),
    ]
    assert scores(right, *on_regions) == pytest.approx(1)
    assert scores(right, (1, (0.0, 0.0, 9.0, 9.0), 0.9)) == pytest.approx(0.5)  # in an image with no box at all


# ------------------------------------------------------------------------------------ label rules and splits


def train_only_config(world, tmp_path):
    """The faces have no `val` split, but the label rules speak of them."""
    changes = {"datasets.faces.val": None, "labels": {"merge": {"head": ["faces/face"]}}}
    return world.config({**changes, "train.max_steps": 1})


def test_label_rules_may_name_datasets_without_the_scored_split(world, tmp_path):
    config = train_only_config(world, tmp_path)
    train(config, output=tmp_path / "run")
    assert set(evaluate(tmp_path / "run", config)["datasets"]) == {"cars"}


def test_a_finished_run_holds_pictures_of_what_it_finds(trained):
    names = [path.name for path in (trained.folder / "pictures").glob("*.jpg")]
    assert {name.split("_")[0] for name in names} == {"cars", "faces"}


def test_decoding_limits_travel_with_the_weights(world, tmp_path):
    train(
        world.config({"eval.max_detections": 7, "eval.nms_iou": 0.4, "train.max_steps": 1}), output=tmp_path / "r"
    )
    detector = load_detector(tmp_path / "r")
    wanted = {"topk": 1000, "max_detections": 7, "nms_iou": 0.4, "agnostic_nms": False}
    assert detector.decoding == wanted
    picture = np.zeros((48, 64, 3), np.uint8)
    assert len(detector(picture, score_threshold=0.0)) == 7
    assert len(detector(picture, score_threshold=0.0, max_detections=3)) == 3


def test_the_device_may_be_chosen(world, trained, tmp_path, crossdet):
    config = world.write_config(tmp_path / "mine.yaml")
    given = {"predict": [world.root / "cars"], "eval": [config], "audit": [config], "serve": []}
    for name, words in given.items():
        more = [*words, "-o", tmp_path / name] if words else []
        done = crossdet(name, trained.folder, *more, "--device", "cuda:99")
        assert done.returncode == 2
        assert "device cuda:99: torch has none of that name here; expected cpu" in done.stderr
        if words:
            assert crossdet(name, trained.folder, *more, "--device", "cpu").returncode == 0


def test_odd_arguments_of_a_detector(trained):
    detector = load_detector(trained.folder)
    picture = np.zeros((48, 64, 3), np.uint8)
    assert detector.batch([]) == []
    assert len(detector(picture, classes="car")) == len(detector(picture, classes=["car"]))
    with pytest.raises(UserError, match="none given"):
        detector(picture, classes=[])
    with pytest.raises(UserError, match="got NoneType"):
        detector(None)
    with pytest.raises(UserError, match="no pixels"):
        detector(np.zeros((0, 64, 3), np.uint8))


def test_low_thresholds_are_told(world, trained, tmp_path, crossdet):
    """A class whose best F1 was found from a score of 0.01 on reports much that is wrong."""
    weights = tmp_path / "model.safetensors"
    shutil.copy(trained.folder / "model.safetensors", weights)
    car = {"threshold": 0.01, "f1": 0.5, "precision": 0.5, "recall": 0.5, "objects": 3}
    update_card(weights, operating={"car": car})
    words = ("predict", weights, world.root / "cars/val_0.png", "-o", tmp_path / "out")
    done = crossdet(*words)
    assert "note: low scores are reported, where validation found the best F1: car from 0.01 on; see" in done.stdout
    assert "low scores" not in crossdet(*words, "--score", 0.01).stdout
