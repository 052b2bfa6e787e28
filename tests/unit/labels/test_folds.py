"""Classes in several directions or datasets: what is trusted, and how they become one class again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossdet import LabelSpace
from crossdet.config import Config
from crossdet.config.sources import classes_of, open_sources
from crossdet.data.index import IndexBuilder
from crossdet.data.rotation import rotated
from crossdet.errors import ConfigError, LabelError, UserError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.folding import angular_error, fold_detections, orientation_scores
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.splits import Split
from crossdet.inference import Detector
from crossdet.labels.edits import edited
from crossdet.labels.folds import NO_ANGLE, Fold, Folding
from crossdet.labels.members import with_members
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.runs.evaluate import splits_for_detector

BASE = {"faces": ["face"], "people": ["person", "face"], "cars": ["car", "wheel"]}


def base(**rules) -> LabelSpace:
    merge = {"face": ["faces/face", "people/face"]}
    return LabelSpace.build(BASE, merge=merge, overlap=[["face", "person"]], **rules)


def test_directions_know_what_their_class_knew():
    """`faces` is turned by 4, `people` is upright: it labels face@0 alone, but no face is in its background."""
    known = base(absent={"cars": ["face"]}, drop=["cars/wheel"])
    space = with_members(
        LabelSpace.build(
            BASE, merge={"face": ["faces/face", "people/face"]}, overlap=[["face", "person"]],
            absent={"cars": ["face"]}, drop=["cars/wheel"],
        ),
        directions={"faces": (0, 90, 180, 270), "people": (0,)},
    )  # fmt: skip
    assert space.classes == ("face@0", "face@90", "face@180", "face@270", "person@0", "car")
    assert space.sources[0] == {"face@0": 0, "face@90": 1, "face@180": 2, "face@270": 3}
    assert space.sources[1] == {"person@0": 4, "face@0": 0}
    assert space.sources[2] == {"car": 5, "wheel": -1}
    before = {name: c for c, name in enumerate(known.classes)}
    of = [before[name.partition("@")[0]] for name in space.classes]
    assert np.array_equal(space.avoid_array, known.avoid_array[:, of])
    assert np.array_equal(space.overlap_array, known.overlap_array[np.ix_(of, of)])
    assert space.annotated_array[1].tolist() == [True, False, False, False, True, False]
    assert [(f.name, f.members, f.angles) for f in space.folds] == [
        ("face", (0, 1, 2, 3), (0, 90, 180, 270)),
        ("person", (4,), (0,)),
    ]
    assert classes_of(space) == {"faces": ["face"], "people": ["person", "face"], "cars": ["car", "wheel"]}
    assert LabelSpace.from_json(space.to_json()) == space


def test_one_class_per_dataset():
    known = base(not_exhaustive={"people": ["face"]})
    space = with_members(known, ["face"])
    assert space.classes == ("face@faces", "face@people", "person", "car", "wheel")
    assert space.folds == (Fold("face", (0, 1), None, ("faces", "people")),)
    of = [0, 0, 1, 2, 3]
    assert np.array_equal(space.avoid_array, known.avoid_array[:, of])
    assert not space.avoid_array[0, 1]  # all faces of `faces` are labelled: none is left in its background
    assert space.avoid_array[1].tolist() == [True, True, False, True, True]
    both = with_members(known, ["face"], {"faces": (0, 90), "people": (0, 90)})
    assert both.classes[:4] == ("face@faces@0", "face@faces@90", "face@people@0", "face@people@90")
    assert both.folds[0].angles == (0, 90, 0, 90)


def test_open_members_differ_by_their_dataset_alone():
    """Of face, split into datasets and directions, only the same direction of different datasets may share a box;
    what overlaps anyway stays."""
    known = base(not_exhaustive={"people": ["face"]})
    closed, opened = (with_members(known, ["face"], open_members=given) for given in (False, True))
    assert closed.overlap_pairs == {(0, 2), (1, 2)}  # each face with person
    assert opened.overlap_pairs == {(0, 1), (0, 2), (1, 2)}
    assert np.array_equal(closed.avoid_array, opened.avoid_array)
    assert (opened.folds, opened.sources) == (closed.folds, closed.sources)
    turned = {"faces": (0, 90), "people": (0, 90)}
    both = with_members(known, ["face"], turned, open_members=True)
    assert both.classes[:4] == ("face@faces@0", "face@faces@90", "face@people@0", "face@people@90")
    among = {pair for pair in both.overlap_pairs if max(pair) < 4}
    assert among == {(0, 2), (1, 3)}
    assert both.overlap_array[2, 0]
    assert not both.overlap_array[0, 3]
    # directions alone, and classes that are not split, know nothing of it
    for per_dataset in ([], ["face"]):
        for directions in ({}, turned):
            plain, opened = (with_members(known, per_dataset, directions, given) for given in (False, True))
            more = opened.overlap_pairs - plain.overlap_pairs
            assert len(more) == (0 if not per_dataset else 2 if directions else 1)


def test_without_members_nothing_changes():
    assert with_members(base()) == base()
    assert "folds" not in base().to_json()
    assert base().folding is None


def test_mistakes_in_members():
    text = (
        r"(?s)2 mistake.*per_dataset: unknown class 'fase'; did you mean 'face'.*"
        r"'face' has directions in faces but not in people; give it `directions`, too \(`\[0\]`"
    )
    with pytest.raises(LabelError, match=text):
        with_members(base(), ["fase"], {"faces": (0, 90)})
    clash = LabelSpace.build({"a": ["x", "y"], "b": ["x@0"]})
    with pytest.raises(LabelError, match="'x@0' would be the name of two classes"):
        with_members(clash, directions={"a": (0, 90)})
    with pytest.raises(UserError, match="cannot be renamed or merged"):
        edited(with_members(base(), ["face"]), [("car", "auto")], [])


# ------------------------------------------------------------------------------------------- config


def settings(index, **more) -> dict:
    return {"datasets": {"a": {"train": index, "val": index, **more.pop("a", {})}}, **more}


def small_index(folder="."):
    builder = IndexBuilder(folder)
    builder.image("a.png", 30, 40)
    builder.box((5, 4, 13, 10), 0)
    return builder.build(["face"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"directions": 5}, "expected 4, 8, 12 or a list of different whole degrees from 0 to 359, got 5"),
        ({"directions": [0, 360]}, r"got \[0, 360\]"),
        ({"directions": [0, 90]}, r"mirrored pictures also show 270 degrees; add them, or set `augment.flip`"),
        ({"directions": 4, "val_directions": 8}, r"45, 135, 225, 315 degrees are not among `directions`"),
        ({"directions": [90, 270]}, r"`datasets.a.val_directions`: 0 degrees are not among"),
    ],
)
def test_wording(changes, text):
    with pytest.raises(ConfigError, match=text):
        Config.from_dict(settings(small_index(), a=changes))


def test_directions_that_only_a_test_split_has():
    """Without `val`, too: `eval --split test` ended with a traceback."""
    with pytest.raises(ConfigError, match=r"`datasets.a.val_directions`: 0 degrees are not among"):
        Config.from_dict(settings(small_index(), a={"directions": [90, 270], "val": None, "test": small_index()}))
    Config.from_dict(settings(small_index(), a={"directions": [90, 270], "val": None}))


def test_open_members_in_the_config():
    def opened(**labels):
        both = {name: {"train": small_index()} for name in "ab"}
        merge = {"face": ["a/face", "b/face"]}
        return open_sources(Config.from_dict({"datasets": both, "labels": {"merge": merge, **labels}})).space

    assert opened(per_dataset=["face"]).overlap_pairs == frozenset()
    assert opened(per_dataset=["face"], open_members=True).overlap_pairs == {(0, 1)}
    with pytest.raises(ConfigError, match=r"`labels.open_members` is about .* `labels.per_dataset`"):
        opened(open_members=True)


def test_sources_are_turned_as_the_config_says():
    def opened(**a):
        return open_sources(Config.from_dict(settings(small_index(), a=a)))

    found = opened(directions=4, val_directions=[0, 90])
    assert found.space.classes == ("face@0", "face@90", "face@180", "face@270")
    assert (len(found.train["a"]), len(found.val["a"])) == (4, 2)
    assert found.val["a"].labels.tolist() == [0, 1]
    assert opened(directions=4).val["a"].labels.tolist() == [0]
    plain = opened(directions=[0, 90], direction_classes=False, val_directions=4)
    assert (plain.space.classes, len(plain.train["a"]), len(plain.val["a"])) == (("face",), 2, 4)
    known = opened(directions=4).space
    config = Config.from_dict(settings(small_index()))
    with pytest.raises(UserError, match="cannot be extended"):
        open_sources(config, known=known)


# ------------------------------------------------------------------------------------------- folding


FOLDING = Folding.build(["x", "face@0", "face@90", "face@180", "y"], [Fold("face", (1, 2, 3), (0, 90, 180))])


def test_folding_arrays():
    assert FOLDING is not None
    assert (FOLDING.names, FOLDING.of.tolist()) == (("x", "face", "y"), [0, 1, 1, 1, 2])
    assert FOLDING.angles.tolist() == [NO_ANGLE, 0, 90, 180, NO_ANGLE]
    assert (FOLDING.at_once(True), FOLDING.at_once(False), FOLDING.members([1])) == (3, 3, [1, 2, 3])
    box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]
    found = DetectionArrays(
        np.array([box, near, far, box, near], float),
        np.array([0.5, 0.9, 0.4, 0.3, 0.8]),
        np.array([1, 2, 3, 0, 1]),
        np.array([0, 0, 0, 0, 1]),
    )
    folded, degrees = fold_detections(found, FOLDING, 0.5)
    # of the two on one face the better is left; another class, place or picture stays
    assert folded.labels.tolist() == [1, 1, 0, 1]
    assert folded.scores.tolist() == [0.9, 0.4, 0.3, 0.8]
    assert degrees.tolist() == [90, 180, NO_ANGLE, 0]
    # of a network that finds no object twice only what two members have found is one object
    twice = found.take(np.array([0, 1, 0, 2]))
    folded, _ = fold_detections(twice, FOLDING, 0.5, suppresses=False)
    assert folded.scores.tolist() == [0.9, 0.4]
    alike = DetectionArrays(np.array([box, near], float), np.array([0.5, 0.9]), np.array([4, 4]), np.zeros(2, int))
    assert len(fold_detections(alike, FOLDING, 0.5, suppresses=False)[0].scores) == 2
    assert len(fold_detections(alike, FOLDING, 0.5)[0].scores) == 1
    empty = fold_detections(found.take(np.zeros(0, int)), FOLDING, 0.5)
    assert (len(empty[0].scores), len(empty[1])) == (0, 0)


def test_angular_error():
    assert angular_error(np.array([0, 350, 90, 270]), np.array([180, 10, 90, 0])).tolist() == [180, 20, 0, 90]


def test_orientation_by_hand(tmp_path):
    """Four rolls of one face: right, right but weak, wrong by 180, wrong by 90 though a worse one is right."""
    many = rotated(small_index(tmp_path), (0, 90, 180, 270), classes=(0, 90, 180, 270))
    angles = np.array([0, 90, 180, 270])
    split = Split(many, np.zeros(4, np.int64), ["face"], angles)
    boxes = many.boxes[[0, 1, 2, 3, 3]]
    found = DetectionArrays(boxes, np.array([0.9, 0.2, 0.8, 0.7, 0.6]), np.zeros(5, int), np.array([0, 1, 2, 3, 3]))
    scores = orientation_scores(split, found, np.array([0, 90, 0, 0, 270]))
    assert scores is not None
    assert (scores["objects"], scores["found"], scores["accuracy"]) == (4, 4, 0.5)
    assert scores["mean_error"] == (0 + 0 + 180 + 90) / 4
    assert scores["confident"] == {"found": 3, "accuracy": 1 / 3, "mean_error": 90.0}
    assert orientation_scores(Split(many, np.zeros(4, np.int64), ["face"]), found, angles[[0] * 5]) is None
    everything = score_split(PROTOCOLS["coco"], split, found, 100).record
    # the double one stands before the weakest right one: precision 0.8 at the last 25 of 101 recalls
    assert everything["AP50"] == pytest.approx((76 + 25 * 0.8) / 101)


def test_a_crowd_and_a_region_have_no_direction(tmp_path):
    builder = IndexBuilder(tmp_path)
    builder.image("a.png", 30, 40)
    builder.box((20, 4, 36, 10), -1, 2)
    builder.box((20, 14, 36, 20), 0, 1)
    builder.box((5, 4, 13, 10), 0)
    many = rotated(builder.build(["face"]), (0, 90), classes=(0, 90))
    split = Split(many, np.zeros(2, np.int64), ["face"], np.array([0, 90]))
    rows = [2, 5]
    found = DetectionArrays(many.boxes[rows], np.array([0.9, 0.8]), np.zeros(2, int), np.array([0, 1]))
    scores = orientation_scores(split, found, np.array([0, 90]))
    assert scores is not None
    assert (scores["objects"], scores["found"], scores["accuracy"]) == (2, 2, 1.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1, prior=0.3)
    return build_detector(made, 5)


def test_a_detector_without_directions_is_judged_on_turned_pictures(network):
    """Its classes are found by their names without directions, and the split still says the directions."""
    sources = open_sources(Config.from_dict(settings(small_index(), a={"directions": 4, "val_directions": 4})))
    plain = Detector(network, LabelSpace.build({"z": ["b", "face", "c", "d", "e"]}), InputSettings(64, 64))
    for fold, angles in ((True, [0, 90, 180, 270]), (False, None)):
        split = splits_for_detector(sources, sources.val, plain, fold=fold)["a"]
        assert split.class_ids.tolist() == [1] * 4
        assert (None if split.angles is None else split.angles.tolist()) == angles


def test_a_detector_reports_folded_classes(network):
    space = with_members(LabelSpace.build({"a": ["face"], "b": ["car"]}), directions={"a": (0, 90, 180, 270)})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    folded, raw = (
        Detector(network, space, InputSettings(64, 64), thresholds={"face": 0.25}, fold=fold)
        for fold in (True, False)
    )
    assert folded.reported == ("face", "car")
    assert raw.reported == space.classes
    assert folded.thresholds_used(None) == {"face": 0.25, "car": 0.3}
    assert raw.thresholds_used(None)["face@90"] == 0.25
    found = folded(picture, "face", score_threshold=0.0, max_detections=7)
    assert len(found) == 7
    assert set(found.names or ()) == {"face"}
    assert found.labels.tolist() == [0] * 7
    assert found.angles is not None
    assert set(found.angles.tolist()) <= {0, 90, 180, 270}
    iou = torch.ops.torchvision.nms(found.boxes, found.scores, 0.5)
    assert len(iou) == 7  # no two boxes of one object
    best = raw(picture, "face", score_threshold=0.0, max_detections=7)
    assert best.angles is None
    assert best.scores[0] == found.scores[0]
    assert best.names is not None
    assert best.names[0] == f"face@{int(found.angles[0])}"
    one = folded(picture, "face@90", score_threshold=0.0, max_detections=3)
    assert one.angles is not None
    assert one.angles.tolist() == [90] * 3
    with pytest.raises(UserError, match="unknown class 'dog'"):
        folded(picture, "dog")
