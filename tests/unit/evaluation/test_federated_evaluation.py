"""In federated images a detection without an object is wrong only where the image verifies its class."""

from __future__ import annotations

import numpy as np
import pytest

from crossdet import Config, LabelSpace
from crossdet.config.sources import open_sources
from crossdet.data.federated import verified_in_evaluation
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.index import Index, IndexBuilder
from crossdet.data.rotation import rotated
from crossdet.evaluation.arrays import DetectionArrays, Verified
from crossdet.evaluation.audit import AuditedSplit, audit
from crossdet.evaluation.operating import best_f1, judge
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.splits import ground_truth
from crossdet.inference import Detector
from crossdet.labels.space import DROPPED
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.runs.evaluate import splits_for_detector, splits_for_training


def index_of(classes, images, federated=True) -> Index:
    """images: per image its boxes (label, x), the classes verified to be absent, and those labelled in part."""
    builder = IndexBuilder("nowhere")
    for number, (boxes, negatives, in_part) in enumerate(images):
        builder.image(f"{number}.png", 50, 500, negatives=negatives, not_exhaustive=in_part)
        for label, x in boxes:
            builder.box((x, 10, x + 20, 30), label)
    return builder.build(classes, federated=federated)


def detections(*rows) -> DetectionArrays:
    """(image, label, x, score)."""
    d = np.array(rows, np.float64).reshape(-1, 4)
    boxes = np.stack([d[:, 2], np.full(len(d), 10.0), d[:, 2] + 20, np.full(len(d), 30.0)], 1)
    return DetectionArrays(boxes, d[:, 3], d[:, 1].astype(np.int64), d[:, 0].astype(np.int64))


def split_of(index, labels=None, name="lvis", others=None, train=None, **dataset):
    """The split in a config, as training judges it."""
    datasets = {name: {"train": index, "val": index, **dataset}, **(others or {})}
    config = Config.from_dict({"datasets": datasets, "labels": labels or {}, "train": train or {}})
    return splits_for_training(open_sources(config))[name]


def scores(split, found):
    """COCO AP50, VOC mAP and the operating point of class 0."""
    coco, voc = (score_split(PROTOCOLS[name], split, found, 100) for name in ("coco", "voc"))
    point = best_f1([judge(ground_truth(split), found, split.classes)], 0)
    return coco.record["AP50"], voc.record["mAP_area"], point


def test_detections_in_unverified_images_count_nothing():
    """Cats in two images; two more do not say whether they show cats, and there the detector finds some."""
    split = split_of(index_of(["cat"], [([(0, 0)], [], []), ([(0, 0)], [], []), ([], [], []), ([], [], [])]))
    found = detections((2, 0, 0, 0.95), (3, 0, 0, 0.9), (0, 0, 0, 0.8), (1, 0, 0, 0.7))
    ap, voc, point = scores(split, found)
    assert ap == pytest.approx(1)
    assert voc == pytest.approx(1)
    assert (point.precision, point.recall, point.objects) == (1.0, 1.0, 2)


def test_detections_in_images_that_verify_the_absence_are_wrong():
    """One image says that it shows no cat, one shows a cat: there and only there it can be wrong."""
    images = [([(0, 0)], [], []), ([], [0], []), ([], [], [])]
    split = split_of(index_of(["cat"], images))
    found = detections((1, 0, 0, 0.9), (2, 0, 0, 0.85), (0, 0, 0, 0.8), (0, 0, 200, 0.7))
    ap, voc, point = scores(split, found)
    assert ap == pytest.approx(0.5)  # the first wrong, then right
    assert voc == pytest.approx(0.5)
    assert point.precision == 0.5


def test_where_a_class_is_labelled_in_part_what_finds_nothing_does_not_count():
    """AP takes what is right there, as LVIS does; thresholds leave the image out: nothing can be wrong there."""
    images = [([(0, 0)], [], [0]), ([(0, 0)], [], [])]
    split = split_of(index_of(["cat"], images))
    found = detections((0, 0, 100, 0.95), (0, 0, 0, 0.9), (1, 0, 100, 0.85), (1, 0, 0, 0.8))
    ap, voc, point = scores(split, found)
    # counted: right (recall 1/2 at precision 1), wrong, right (recall 1 at precision 2/3)
    assert ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert voc == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert (point.precision, point.recall, point.objects) == (0.5, 1.0, 1)


def test_a_merged_class_is_verified_by_all_its_classes():
    """An image with cars that says nothing about trucks: its cars are to be found, but what else is called a
    vehicle may be a truck."""
    merge = {"merge": {"vehicle": ["lvis/car", "lvis/truck"]}}
    images = [([(0, 0)], [], []), ([(0, 0)], [1], []), ([], [0, 1], []), ([], [0], [])]
    split = split_of(index_of(["car", "truck"], images), merge)
    truth = ground_truth(split)
    assert truth.verifies(np.arange(4), np.zeros(4, np.int64)).tolist() == [False, True, True, False]
    assert truth.images_verifying(0) == 2
    on = [detections((0, 0, 0, 0.5), (1, 0, 0, 0.5), (image, 0, 200, 0.9)) for image in range(4)]
    assert [score_split(PROTOCOLS["coco"], split, found, 100).record["AP50"] for found in on] == [
        pytest.approx(1),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        pytest.approx(1),
    ]


def test_a_dataset_that_labels_a_class_in_part():
    """`labels.not_exhaustive`: its other classes, and other datasets, are judged as ever."""
    index = index_of(["car", "dog"], [([(0, 0), (1, 100)], [], []), ([], [], [])], federated=False)
    split = split_of(index, {"not_exhaustive": {"lvis": ["car"]}})
    found = detections((0, 0, 0, 0.8), (1, 0, 0, 0.9), (0, 1, 100, 0.8), (1, 1, 100, 0.9))
    result = score_split(PROTOCOLS["coco"], split, found, 100)
    assert result.record["per_class"]["car"]["AP50"] == pytest.approx(1)
    assert result.record["per_class"]["dog"]["AP50"] == pytest.approx(0.5)
    (note,) = result.notes
    assert note.startswith("no image is labelled in full for car: their AP says how much is found")
    judged = judge(ground_truth(split), found, split.classes)
    assert best_f1([judged], 0) is None  # every threshold would have precision 1
    assert best_f1([judged], 1).precision == 0.5
    # the images of another dataset that labels cars in full decide alone
    full = judge(ground_truth(split_of(index)), found, [0, 1])
    assert best_f1([judged, full], 0) == best_f1([full], 0)
    faces = score_split(PROTOCOLS["wider_pedestrian"], split, found, 100)
    assert faces.notes == (
        "the challenge counts every detection that finds nothing, also where the images do not verify its class",
    )


def test_without_rules_and_lists_every_image_verifies_everything():
    images = [([(0, 0)], [], [])]
    lists, plain = index_of(["car"], images), index_of(["dog"], images, federated=False)
    assert split_of(plain).verified is None
    assert split_of(lists).verified is not None
    assert split_of(lists, train={"plain": True}).verified is not None  # how it is trained changes no score
    assert split_of(plain, name="b", others={"lvis": {"train": lists, "val": lists}}).verified is None
    assert split_of(lists, federated=False).verified is None  # as the config says
    assert split_of(plain, federated=True).verified is not None


@pytest.mark.parametrize("seed", range(5))
def test_evaluation_calls_wrong_what_training_takes_as_negative(seed):
    """Random images, merged, dropped and partly labelled classes."""
    rng = np.random.default_rng(seed)

    def some():
        return [int(c) for c in np.flatnonzero(rng.random(5) < 0.4)]

    index = index_of(list("abcde"), [([(c, 50 * c) for c in some()], some(), some()) for _ in range(30)])
    rules = {"merge": {"ab": ["lvis/a", "lvis/b"]}, "drop": ["lvis/e"], "not_exhaustive": {"lvis": ["d"]}}
    split = split_of(index, rules)
    space = LabelSpace.build({"lvis": list("abcde")}, federated=["lvis"], **rules)
    dataset = HybridDataset([Part(index, 0, space.ids("lvis", index.classes))], space, lambda *row: row)
    trusted = np.stack([dataset.annotations(0, image)[1].numpy() for image in range(30)])
    image, label = np.indices(trusted.shape)
    verified = ground_truth(split).verifies(image.ravel(), label.ravel()).reshape(trusted.shape)
    assert (verified == trusted).all()
    assert 0 < trusted.mean() < 1
    some_images = np.array([7, 3, 20])
    part = ground_truth(split.take(some_images))
    assert [part.verifies(np.full(len(space.classes), row), np.arange(len(space.classes))).tolist()
            for row in range(3)] == trusted[some_images].tolist()  # fmt: skip


def test_directions_of_a_class_and_detectors_without_them():
    """A class is verified where all its directions are; the detector's own numbers of classes are used."""
    upright = index_of(["dog", "face"], [([(1, 0)], [], []), ([], [1], []), ([], [], []), ([(1, 0)], [], [1])])
    config = Config.from_dict(
        {"datasets": {"a": {"train": upright, "val": upright, "directions": 4, "val_directions": 4}}}
    )
    sources = open_sources(config)
    assert sources.val["a"].classes == rotated(upright, (0, 90, 180, 270), classes=(0, 90, 180, 270)).classes
    wanted = np.repeat([True, True, False, False], 4)
    rows = np.arange(16)
    folded = splits_for_training(sources)["a"]
    truth = ground_truth(folded)
    assert truth.verifies(rows, np.full(16, folded.names.index("face"))).tolist() == wanted.tolist()
    assert not truth.verifies(rows, np.full(16, folded.names.index("dog"))).any()
    network = build_detector(RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1), 3)
    plain = Detector(network, LabelSpace.build({"z": ["x", "face", "dog"]}), InputSettings(64, 64))
    for fold in (True, False):
        theirs = ground_truth(splits_for_detector(sources, sources.val, plain, fold=fold)["a"])
        assert theirs.verifies(rows, np.full(16, 1)).tolist() == wanted.tolist()
        assert not theirs.verifies(rows, np.full(16, 2)).any()


def test_classes_that_become_one_are_verified_together():
    """Dogs and cats are one class, or none, in the evaluation."""
    index = index_of(["dog", "cat", "car"], [([], [0, 2], []), ([], [0, 1], []), ([(1, 0)], [0], [])])
    space = LabelSpace.build({"lvis": index.classes}, federated=["lvis"])
    ids = space.ids("lvis", index.classes)
    everywhere, image, label = verified_in_evaluation(index, ids, space, 0, np.array([4, 4, 1]))
    assert (everywhere.tolist(), image.tolist(), label.tolist()) == ([], [0, 1, 2], [1, 4, 4])
    _, image, label = verified_in_evaluation(index, ids, space, 0, np.array([0, DROPPED, DROPPED]))
    assert (image.tolist(), label.tolist()) == ([0, 1, 2], [0, 0, 0])
    part = LabelSpace.build({"d": index.classes}, not_exhaustive={"d": ["cat"]})
    everywhere, image, _ = verified_in_evaluation(index, ids, part, 0, np.array([4, 4, 1]))
    assert (everywhere.tolist(), image.tolist()) == ([1], [])
    assert verified_in_evaluation(index, ids, part, 0, np.array([0, DROPPED, 1])) is None


def test_regions_of_no_class_are_in_no_pair():
    """Label -1 must not be taken for the last class of the image before."""
    verified = Verified(np.zeros(0, np.int64), np.array([0]), np.array([1]))
    assert not verified(np.array([1, 0]), np.array([-1, -1])).any()


def test_false_detections_per_image_that_verifies(tmp_path):
    images = [([(0, 0)], [], []), ([], [0], []), ([], [], []), ([], [], [])]
    index = index_of(["cat"], images)
    split = split_of(index)
    found = detections((0, 0, 0, 0.9), (1, 0, 0, 0.8), (1, 0, 100, 0.95), (2, 0, 0, 0.99))
    yes = np.array([True])
    home = audit([AuditedSplit("lvis", index, ground_truth(split), yes, yes, found)], ("cat",), ~yes[:, None]).home[
        0
    ]
    assert home.operating.precision == 0.5  # 0.95 wrong, 0.9 right; 0.99 is in an image that verifies nothing
    assert home.false_per_image == 0.5
    assert home.histogram.sum() == 1
