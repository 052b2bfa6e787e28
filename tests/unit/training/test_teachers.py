"""Teachers in joint training: who teaches which class, what is refused, and when the network teaches itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from crossdet import Config, LabelSpace, UserError
from crossdet.data.cache import save_index
from crossdet.data.index import IndexBuilder
from crossdet.data.picture_files import UnreadableImage, annotated_size
from crossdet.errors import ConfigError
from crossdet.evaluation.arrays import DetectionArrays, Verified
from crossdet.evaluation.run import EvalSettings, Found
from crossdet.evaluation.splits import Split
from crossdet.losses import dataset_aware_focal_loss
from crossdet.models.retinanet.anchors import anchor_grid, cell_anchors
from crossdet.models.retinanet.matching import label_anchors
from crossdet.training.feed import EpochData, _prepare_and_weigh
from crossdet.training.pseudo_labels import Teacher, label_folders, label_images, open_labelled
from crossdet.training.state import Average
from crossdet.training.teachers import (
    TeacherLabels,
    TeacherPlan,
    background_weights,
    label_by_teachers,
    last_teacher_labels,
    read_teacher_labels,
    teacher_epochs,
)
from crossdet.types import BACKGROUND, Annotations, Batch, Flag, Tiles

SETTINGS = EvalSettings(64, 96)
CAR, FACE = [10.0, 10, 30, 30], [60.0, 10, 70, 20]


def index_of(root: Path, name: str, box: list[float], images: int = 2) -> Any:
    """Every image has one labelled box."""
    builder = IndexBuilder(root)
    for number in range(images):
        builder.image(f"{number}.png", 100, 100, image_id=number + 1)
        builder.box(tuple(box), 0)
    return builder.build([name])


@pytest.fixture
def plan(tmp_path) -> TeacherPlan:
    """`cars` labels cars and `faces` faces; every image shows both."""
    space = LabelSpace.build({"cars": ["car"], "faces": ["face"]})
    indexes = {"cars": index_of(tmp_path, "car", CAR), "faces": index_of(tmp_path, "face", FACE)}
    splits = {name: Split(index, space.ids(name, index.classes), space.classes) for name, index in indexes.items()}
    return TeacherPlan(space, indexes, splits, SETTINGS)


def found(rows: list[tuple[list[float], float, int]], images: int = 2) -> DetectionArrays:
    """The same (box, score, label) in every image."""
    return DetectionArrays(
        np.array([box for box, _, _ in rows] * images).reshape(-1, 4),
        np.array([score for _, score, _ in rows] * images),
        np.array([label for _, _, label in rows] * images, np.int64),
        np.repeat(np.arange(images), len(rows)),
    )


@pytest.fixture
def detections(monkeypatch) -> dict[str, list[tuple[list[float], float, int]]]:
    """What each model (a word here) finds, in its own ids; to be filled by the test."""
    say: dict[str, Any] = {}

    def detect(model: Any, index: Any, classes: Any, settings: Any, floors: Any = None, **_: Any) -> Found:
        least = {c: settings.score_threshold if floors is None else floors[c] for c in classes}
        rows = [row for row in say[model] if row[2] in classes and row[1] > least[row[2]]]
        unseen = tuple(say.get("unseen", ()))
        return Found(found(rows[: settings.max_detections], len(index)), (), unseen=unseen)

    monkeypatch.setattr("crossdet.evaluation.run.detect", detect)
    return say


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def teacher(name: str, own_ids: dict[int, int]) -> Teacher:
    return Teacher(name, name, own_ids, SETTINGS)  # type: ignore[arg-type]


def labels(index: Any) -> list[tuple[str, int]]:
    return [(index.classes[label], int(flag)) for label, flag in zip(index.labels, index.flags, strict=True)]


# ------------------------------------------------------------------------------------------ who teaches


def test_each_class_has_the_teacher_that_finds_it_best(plan, detections, tmp_path, capsys):
    """`blind` finds cars beside wrong ones; `good` knows both, faces under its id 0, and an uncertain car."""
    wrong, unsure = [0.0, 70, 20, 90], [40.0, 60, 55, 75]
    detections["blind"] = [(CAR, 0.6, 0), (wrong, 0.8, 0)]
    detections["good"] = [(CAR, 0.9, 1), (FACE, 0.7, 0), (unsure, 0.2, 1), (wrong, 0.05, 1)]
    teachers = [teacher("blind", {0: 0}), teacher("good", {0: 1, 1: 0})]
    by_teacher = label_by_teachers(fabric(), plan, teachers, tmp_path / "labels")
    # half-way to the next score: 0.55 of cars, (0.7 + 0.01) / 2 of faces
    assert labels(by_teacher.train["faces"]) == [("face", 0), ("car (teacher)", 32), ("car (teacher)", 48)] * 2
    assert labels(by_teacher.train["cars"]) == [("car", 0), ("face (teacher)", 32)] * 2
    assert by_teacher.background_weight is None
    assert not by_teacher.space.avoid_array.any()
    assert plan.space.avoid_array.sum() == 2
    told = last_teacher_labels(tmp_path)
    assert told is None
    (tmp_path / "labels").rename(tmp_path / "teacher_labels")
    told = last_teacher_labels(tmp_path)
    assert {name: row["teacher"] for name, row in told["classes"].items()} == {"car": "good", "face": "good"}
    assert told["classes"]["car"]["threshold"] == pytest.approx(0.55)
    assert told["datasets"]["faces"] == {"car": {"objects": 2, "uncertain": 2}}
    assert "teacher of car: good, objects from a score of 0.55 on (precision 1.00" in capsys.readouterr().out
    # the same from disk, without looking again
    detections.clear()
    again = read_teacher_labels(plan, tmp_path / "teacher_labels")
    assert again is not None
    assert again.space == by_teacher.space
    assert labels(again.train["faces"]) == labels(by_teacher.train["faces"])


def test_two_experts_share_a_dataset(plan, detections, tmp_path):
    """A third dataset labels signs; each expert knows one class, both as 0."""
    space = LabelSpace.build({"cars": ["car"], "faces": ["face"], "signs": ["sign"]})
    train = {**plan.train, "signs": index_of(tmp_path, "sign", [80.0, 80, 90, 90])}
    detections["a"], detections["b"] = [(CAR, 0.9, 0)], [(FACE, 0.8, 0)]
    three = TeacherPlan(space, train, plan.splits, SETTINGS)
    by_teacher = label_by_teachers(
        fabric(), three, [teacher("a", {0: 0}), teacher("b", {1: 0})], tmp_path / "labels"
    )
    assert labels(by_teacher.train["signs"]) == [("sign", 0), ("car (teacher)", 32), ("face (teacher)", 32)] * 2
    # nobody knows signs: they stay avoided
    assert np.argwhere(by_teacher.space.avoid_array).tolist() == [[0, 2], [1, 2]]


def test_thresholds_come_from_images_that_verify_the_class(plan, detections, tmp_path, capsys):
    """One image of two verifies cars; no image of the other dataset verifies faces, so no threshold of theirs can
    be known, and they stay avoided."""
    none = np.zeros(0, np.int64)
    part = {"cars": Verified(none, np.array([0]), np.array([0])), "faces": Verified(none, none, none)}
    splits = {name: replace(split, verified=part[name]) for name, split in plan.splits.items()}
    detections["good"] = [(CAR, 0.9, 0), (FACE, 0.7, 1)]
    by_teacher = label_by_teachers(
        fabric(), replace(plan, splits=splits), [teacher("good", {0: 0, 1: 1})], tmp_path / "labels"
    )
    printed = capsys.readouterr().out
    assert "on 1 validation objects" in printed
    assert "no teacher of face" in printed
    assert labels(by_teacher.train["faces"]) == [("face", 0), ("car (teacher)", 32)] * 2
    assert np.argwhere(by_teacher.space.avoid_array).tolist() == [[0, 1]]


def test_a_class_that_is_never_found_right_stays_avoided(plan, detections, tmp_path, capsys):
    detections["poor"] = [(FACE, 0.9, 0), ([0.0, 0, 5, 5], 0.9, 1)]
    by_teacher = label_by_teachers(fabric(), plan, [teacher("poor", {0: 0, 1: 1})], tmp_path / "labels")
    assert by_teacher.train == plan.train
    assert by_teacher.space == plan.space
    assert "no teacher of car\nno teacher of face\n" in capsys.readouterr().out


def test_a_labelled_object_wins_over_the_teacher(plan, detections, tmp_path):
    """The expert takes the labelled face for a car, too: that is left out, and the anchors stay negatives."""
    one = Teacher("t", "t", {0: 0}, SETTINGS, {0: 0.5})  # type: ignore[arg-type]
    detections["t"] = [(FACE, 0.9, 0), (CAR, 0.8, 0)]
    train, by_teacher = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "labels")
    assert by_teacher == {"faces": [0]}
    assert labels(train["faces"]) == [("face", 0), ("car (teacher)", 32)] * 2
    assert np.allclose(np.asarray(train["faces"].boxes)[1], CAR)


def test_every_class_is_looked_for_from_its_own_score_on(plan, detections, tmp_path):
    """The floor of one class does not let in the background of another."""
    one = Teacher("t", "t", {0: 0, 1: 1}, SETTINGS, {0: 0.8, 1: 0.02})  # type: ignore[arg-type]
    detections["t"] = [(CAR, 0.9, 0), ([40.0, 60, 70, 80], 0.1, 0), (FACE, 0.015, 1), ([0.0, 60, 30, 90], 0.005, 1)]
    train, _ = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "labels")
    assert labels(train["faces"]) == [("face", 0), ("car (teacher)", 32)] * 2
    assert labels(train["cars"]) == [("car", 0), ("face (teacher)", 48)] * 2


def test_where_a_teacher_finds_too_much_the_rest_is_avoided(plan, detections, tmp_path, monkeypatch):
    """What is left out of a crowd would be its background, and trusted."""
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_DETECTIONS", 3)
    one = Teacher("t", "t", {0: 0}, SETTINGS, {0: 0.5})  # type: ignore[arg-type]
    detections["t"] = [([float(x), 70, x + 20.0, 90], 0.9, 0) for x in (0, 20, 40, 60)]
    train, _ = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "labels")
    crowded = train["faces"]
    assert labels(crowded)[:5] == [("face", 0), *[("car (teacher)", 32)] * 3, ("car (teacher)", 48)]
    height, width = crowded.sizes[0].tolist()
    assert crowded.boxes[4].tolist() == [0, 0, width, height]
    assert crowded.box_offsets.tolist() == [0, 5, 10]
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_AVOIDED", 0)  # then for all classes at once
    train, _ = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "at_once")
    assert train["faces"].labels.tolist() == [0, 1, 1, 1, -1] * 2
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_DETECTIONS", 5)
    train, _ = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "fewer")
    assert labels(train["faces"]) == [("face", 0), *[("car (teacher)", 32)] * 4] * 2
    # a class whose floor is not below the least score that is reported was not cut
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_DETECTIONS", 2)
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_AVOIDED", 20)
    two = Teacher("t", "t", {0: 0, 1: 1}, SETTINGS, {0: 0.5, 1: 0.9})  # type: ignore[arg-type]
    signs = LabelSpace.build({"cars": ["car"], "faces": ["face"], "signs": ["sign"]})
    third = {"signs": index_of(tmp_path, "sign", [80.0, 80, 90, 90])}
    detections["t"] = [(CAR, 0.6, 0), (CAR, 0.55, 0), (FACE, 0.95, 1)]
    train, _ = label_images(fabric(), [two], signs, third, 1.0, tmp_path / "cut")
    assert labels(train["signs"]) == [("sign", 0), *[("car (teacher)", 32)] * 2, ("car (teacher)", 48)] * 2


@pytest.mark.parametrize("most", [20, 0], ids=["its classes", "all classes at once"])
def test_an_image_that_no_teacher_saw_has_no_background(plan, detections, tmp_path, monkeypatch, most):
    """It may be read later: then its cars would be background, and trusted."""
    monkeypatch.setattr("crossdet.training.pseudo_labels.MOST_AVOIDED", most)
    one = Teacher("t", "t", {0: 0}, SETTINGS, {0: 0.5})  # type: ignore[arg-type]
    detections["t"], detections["unseen"] = [], [1]
    train, _ = label_images(fabric(), [one], plan.space, plan.train, 0.25, tmp_path / "labels")
    faces = train["faces"]
    assert faces.box_offsets.tolist() == [0, 1, 3]
    assert (faces.boxes[2].tolist(), faces.flags[2]) == ([0, 0, 100, 100], int(Flag.TEACHER | Flag.AVOID))
    assert faces.labels[2] == (1 if most else -1)
    assert not faces.skipped


def test_an_image_of_unknown_size_that_no_teacher_saw_is_not_trained_on(plan, detections, tmp_path):
    """A region cannot say how much of it is to be left out."""
    faces = plan.train["faces"]
    sizes = np.asarray(faces.sizes).copy()
    sizes[1] = 0
    one = Teacher("t", "t", {0: 0}, SETTINGS, {0: 0.5})  # type: ignore[arg-type]
    detections["t"], detections["unseen"] = [], [1]
    train = {**plan.train, "faces": replace(faces, sizes=sizes)}
    labelled, _ = label_images(fabric(), [one], plan.space, train, 0.25, tmp_path / "labels")
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    with pytest.raises(UnreadableImage, match="it could not be read when its labels were"):
        annotated_size(labelled["faces"], 1)
    assert annotated_size(labelled["faces"], 0) == (100, 100)
    # the same where the run goes on with its pictures elsewhere
    moved = open_labelled(
        label_folders(tmp_path / "labels", train)["faces"], replace(train["faces"], root=tmp_path / "b")
    )
    with pytest.raises(UnreadableImage, match="it could not be read when its labels were"):
        annotated_size(moved, 1)


# ------------------------------------------------------------------------------------------ weights


def test_weights_of_the_background(plan, detections, tmp_path):
    space = plan.space
    assert background_weights(space, {"cars": [1]}, 1.0) is None
    assert background_weights(space, {"cars": [1]}, 0.0) is None
    table = background_weights(space, {"cars": [1]}, 0.25)
    assert table.tolist() == [[1.0, 0.25], [1.0, 1.0]]
    detections["good"] = [(CAR, 0.9, 0)]
    none = TeacherPlan(space, plan.train, plan.splits, SETTINGS, negative_weight=0.0)
    by_teacher = label_by_teachers(fabric(), none, [teacher("good", {0: 0})], tmp_path / "labels")
    assert labels(by_teacher.train["faces"])[1] == ("car (teacher)", 32)
    assert np.array_equal(by_teacher.space.avoid_array, space.avoid_array)  # positives only


def targets_of(index: Any, space: LabelSpace, dataset: str) -> Annotations:
    """Of the first image, in unified ids."""
    rows = slice(0, index.box_offsets[1])
    ids = space.ids(dataset, index.classes)[np.asarray(index.labels[rows])]
    boxes, flags = (torch.from_numpy(np.array(column[rows])) for column in (index.boxes, index.flags))
    return Annotations(boxes, torch.from_numpy(ids), flags)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_weight_only_the_confident_boxes_are_learnt(plan, detections, tmp_path, weight):
    """The gradient with the teacher's labels against that of plain avoidance: an image of `faces` with a labelled
    face, a confident car, and uncertain ones, of which one is around the face."""
    unsure, around = [40.0, 60, 70, 80], [50.0, 0, 80, 30]
    detections["good"] = [(CAR, 0.9, 0), (unsure, 0.2, 0), (around, 0.2, 0)]
    some = replace(plan, negative_weight=weight)
    by_teacher = label_by_teachers(fabric(), some, [teacher("good", {0: 0})], tmp_path / "labels")
    assert labels(by_teacher.train["faces"])[:4] == [
        ("face", 0), ("car (teacher)", 32), ("car (teacher)", 48), ("car (teacher)", 48)
    ]  # fmt: skip
    grid = anchor_grid([cell_anchors(8, [1, 2, 3], [0.5, 1, 2])], [(12, 12)], [8])
    values = torch.randn(1, len(grid.boxes), 2, generator=torch.Generator().manual_seed(0))

    def learnt(index: Any, space: LabelSpace) -> tuple[torch.Tensor, torch.Tensor]:
        """Anchor labels `[N]` and the gradient `[N, 2]`."""
        found = label_anchors(grid, [targets_of(index, space, "faces")])
        logits = values.clone().requires_grad_()
        trusted = space.trusted("faces")[None]
        dataset_aware_focal_loss(logits, found.labels, trusted, avoid=found.avoid).backward()
        return found.labels[0], logits.grad[0]

    before, plain = learnt(plan.train["faces"], plan.space)
    after, grad = learnt(by_teacher.train["faces"], by_teacher.space)
    cars, faces, background = after == 0, after == 1, after == BACKGROUND
    assert torch.equal(faces, before == 1)
    assert torch.equal(grad[faces], plain[faces])
    assert (grad[faces, 0] > 0).all()
    assert (before[cars] == BACKGROUND).all()
    assert (plain[before == BACKGROUND, 0] == 0).all()
    assert (grad[cars, 0] < 0).all()
    if weight:  # all background but that of the uncertain car
        assert 0.5 < (grad[background, 0] > 0).float().mean() < 1
    else:
        same = before == after
        assert torch.equal(grad[same], plain[same])
        assert (grad[background, 0] == 0).all()
    assert torch.equal(grad[background, 1], plain[background, 1])


def test_batches_carry_the_weights_of_their_datasets():
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.uint8))
    size = torch.full((2, 2), 32)
    ids = torch.tensor([1, 0])
    batch = Batch(
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8), size, size, [nothing] * 2,
        torch.ones(2, 2, dtype=torch.bool), ids, ids,
    )  # fmt: skip
    weights = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    weighed = _prepare_and_weigh(batch, None, weights)
    assert weighed.background_weight.tolist() == [[0.25, 1.0], [1.0, 0.5]]
    assert weighed.to("cpu").background_weight.tolist() == [[0.25, 1.0], [1.0, 0.5]]
    assert batch.background_weight is None
    # the second image is a mosaic of both datasets: nowhere more than either of them says
    trusted, owners = torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor([[1, 1], [0, 1]])
    mosaics = replace(batch, tiles=Tiles(torch.zeros(2, 2, 4), trusted, owners))
    assert _prepare_and_weigh(mosaics, None, weights).background_weight.tolist() == [[0.25, 1.0], [0.25, 0.5]]
    with pytest.raises(ValueError, match="background_weight"):
        _prepare_and_weigh(batch, None, weights.double())


# ------------------------------------------------------------------------------------------ by itself


def test_the_network_teaches_itself_on_schedule(plan, detections, tmp_path):
    """After 2 epochs and after every 3 more; resumed runs read, and never find anew in the middle of an epoch."""
    detections["net"] = [(CAR, 0.9, 0), (FACE, 0.9, 1)]
    own = TeacherPlan(plan.space, plan.train, plan.splits, SETTINGS, schedule=(2, 3))
    folder = tmp_path / "labels"

    def start(begun: bool) -> Any:
        return teacher_epochs(fabric(), own, [], folder, begun, lambda t: EpochData(t))  # type: ignore[arg-type]

    def seen(data_of: Any, epoch: int, step: int = 0, saved: int | None = None) -> TeacherLabels:
        return data_of(epoch, step, "net", saved).dataset

    def kept() -> list[str]:
        return sorted(f.name for f in folder.iterdir())

    run = start(False)
    assert seen(run, 0).train == seen(run, 1).train == dict(plan.train)
    assert not folder.exists()
    second = seen(run, 2)
    assert len(labels(second.train["cars"])) == 4
    assert seen(run, 3) is seen(run, 4) is second
    assert kept() == ["epoch_2"]
    detections["net"] = [(CAR, 0.9, 0)]
    assert labels(seen(start(True), 4, 7).train["cars"]) == labels(second.train["cars"])
    assert len(labels(seen(run, 5).train["cars"])) == 2  # the network forgot faces
    assert kept() == ["epoch_2", "epoch_5"]  # the state on disk, if there is one, may be of before epoch 5
    seen(run, 6, saved=4)
    assert kept() == ["epoch_2", "epoch_5"]
    assert labels(seen(start(True), 4, 7).train["cars"]) == labels(second.train["cars"])
    seen(run, 6, saved=5)
    assert kept() == ["epoch_5"]
    (folder / "epoch_5" / "taught.json").unlink()  # killed while labelling: found once more
    assert len(labels(seen(start(True), 5).train["faces"])) == 4
    (folder / "epoch_5" / "taught.json").unlink()
    for epoch, step in ((5, 1), (6, 0)):
        with pytest.raises(UserError, match=r"epoch_5: the labels that this run trains on are gone"):
            seen(start(True), epoch, step)
    start(False)
    assert not folder.exists()  # nothing of an earlier run is taken


def test_the_average_of_the_weights_by_its_formula():
    """From the first weights that it is told of on; a short training forgets its random beginning."""
    g = torch.Generator().manual_seed(0)
    network = torch.nn.BatchNorm1d(3)  # has weights, float buffers, and a counter that is no float
    average = Average(network, 0.9)  # type: ignore[arg-type]
    wanted = dict[str, torch.Tensor]()
    for updates in range(100):
        with torch.no_grad():
            for value in (*network.parameters(), network.running_mean, network.running_var):
                value.copy_(torch.rand(3, generator=g))
            network.num_batches_tracked.fill_(7 * updates)
        average.update_parameters(network)
        kept = min(0.9, (1 + updates) / (10 + updates))
        for name, value in network.state_dict().items():
            if updates and value.is_floating_point():
                wanted[name] = kept * wanted[name] + (1 - kept) * value
            else:
                wanted[name] = value.clone()
        if updates in (0, 1, 20, 99):
            found = average.module.state_dict()
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{name} {updates}")


def test_what_cannot_be_taught_is_told(plan):
    with pytest.raises(UserError, match="no dataset leaves a class unlabelled that a teacher knows"):
        plan.check([])
    blind = TeacherPlan(plan.space, plan.train, {"cars": plan.splits["cars"]}, SETTINGS)
    blind.check([0, 1])
    with pytest.raises(UserError, match=r"there are none of face; give a dataset .* a `val` split"):
        blind.check([1])


# ------------------------------------------------------------------------------------------ config


def config(plan: TeacherPlan, **sections: Any) -> Config:
    return Config.from_dict({"datasets": dict(plan.train), **sections})


def test_the_section_of_the_config(plan, tmp_path):
    assert config(plan).pseudo is None
    own = config(plan, pseudo={"teachers": "self"}, train={"epochs": 30}).pseudo
    assert own.schedule(30) == (16, 7)
    assert own.schedule(2) == (1, 1)
    assert own.schedule(3) == (2, 1)
    for epochs in range(4, 50, 4):  # an epoch after both falls of the default learning rate
        falls = Config.from_dict(
            {"datasets": dict(plan.train), "train": {"recipe": "paper", "epochs": epochs}}
        ).train.steps
        first, every = own.schedule(epochs)
        assert (first, first + every) == (falls[0] + 1, falls[1] + 1)
    assert own.negative_weight == 0.5  # its own misses count less than an expert's
    assert config(plan, pseudo={"teachers": ["a"]}).pseudo.negative_weight == 1
    asked = config(plan, pseudo={"teachers": "self", "negative_weight": 1.0}).pseudo
    assert asked.negative_weight == 1
    fixed = config(plan, pseudo={"teachers": "self", "from_epoch": 3, "every": 2}).pseudo
    assert fixed.schedule(30) == (3, 2)
    (tmp_path / "runs").mkdir()
    one = Config.from_dict({"datasets": dict(plan.train), "pseudo": {"teachers": "runs/a"}}, base=tmp_path)
    assert one.pseudo.teachers == (tmp_path / "runs/a",)


@pytest.mark.parametrize(
    ("pseudo", "train", "message"),
    [
        ({"teachers": []}, {}, "`pseudo.teachers`: expected `self` or a list of runs, weights files or hub ids"),
        ({"teachers": ["a"], "every": 2}, {}, "`pseudo.every` is for `teachers: self`"),
        ({"teachers": "self", "from_epoch": 20}, {"epochs": 20}, "expected less than `train.epochs` = 20, got 20"),
        ({"teachers": "self"}, {"epochs": 1}, "`pseudo.from_epoch`: expected less than `train.epochs` = 1"),
        ({"teachers": "self"}, {"plain": True}, "with `train.plain` all background is trusted already"),
        ({"teachers": "self", "negative_weight": 2.0}, {}, "`pseudo.negative_weight`: expected a number <= 1"),
        ({"beta": 2.0}, {}, "`pseudo.teachers` is missing: expected `self` or a list"),
    ],
)
def test_mistakes_of_the_section(plan, pseudo, train, message):
    with pytest.raises(ConfigError) as told:
        config(plan, pseudo=pseudo, train=train)
    assert message in str(told.value)


def test_labels_of_teachers_are_of_the_pictures_where_the_config_has_them(tmp_path):
    """A run that goes on after its data have moved."""
    builder = IndexBuilder(tmp_path / "then")
    builder.image("a.jpg", 10, 10)
    builder.box((1, 1, 5, 5), 0)
    index = builder.build(("cat",))
    save_index(index, tmp_path / "kept")
    moved = replace(index, root=str(tmp_path / "now"))
    assert open_labelled(tmp_path / "kept", moved).path(0) == tmp_path / "now/a.jpg"
