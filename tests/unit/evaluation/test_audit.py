"""Detections of classes that a dataset does not label: every number of a small world by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from crossdet.data.index import IndexBuilder
from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.audit import AuditedSplit, audit, calibrate, precision_at, to_json, union_scores
from crossdet.evaluation.audit_page import AuditedRun, export_coco, write_page
from crossdet.evaluation.audit_summary import summary

CAR, DOG, FACE = range(3)
CLASSES = ("car", "dog", "face")
NO_OVERLAP = np.zeros((3, 3), bool)
UNION_NUMBERS = ("AP", "AP50", "false_on_other_objects_per_image", "false_elsewhere_per_image")


def split(tmp_path, name, annotated, truth, found, trusted=None, images=2):
    """truth: (image, label, x, crowd) of boxes 20 px wide; found: (image, label, x, score)."""
    builder = IndexBuilder(tmp_path)
    for number in range(images):
        file = f"{name}_{number}.png"
        Image.new("RGB", (200, 60), (90, 120, 90)).save(tmp_path / file)
        builder.image(file, 60, 200, image_id=100 + number)
    t = np.array([[*row, 0][:4] for row in truth], np.float64).reshape(-1, 4)
    d = np.array(found, np.float64).reshape(-1, 4)
    labelled = np.isin(np.arange(3), annotated)
    return AuditedSplit(
        name=name,
        index=builder.build([CLASSES[c] for c in annotated]),
        truth=GroundTruth(
            image_ids=np.arange(images),
            boxes=square(t[:, 2]),
            labels=t[:, 1].astype(np.int64),
            crowd=t[:, 3].astype(bool),
            area=np.full(len(t), 400.0),
            image_of_box=t[:, 0].astype(np.int64),
        ),
        annotated=labelled,
        trusted=labelled if trusted is None else np.isin(np.arange(3), trusted),
        detections=DetectionArrays(square(d[:, 2]), d[:, 3], d[:, 1].astype(np.int64), d[:, 0].astype(np.int64)),
    )


def square(x):
    return np.stack([x, np.full(len(x), 10.0), x + 20, np.full(len(x), 30.0)], 1)


@pytest.fixture
def world(tmp_path):
    """Street labels cars and dogs, faces labels faces. Faces at home: 0.9 and 0.7 right, 0.8 and 0.2 wrong."""
    street = split(
        tmp_path,
        "street",
        [CAR, DOG],
        truth=[(0, CAR, 0), (0, DOG, 40), (1, CAR, 100, True)],
        found=[
            (0, CAR, 0, 0.9),
            (0, DOG, 40, 0.8),
            (0, FACE, 42, 0.95),  # on the dog: wrong
            (0, FACE, 120, 0.85),  # background
            (1, FACE, 100, 0.75),  # in the crowd of cars: not judged
            (1, FACE, 30, 0.72),  # background
            (1, FACE, 60, 0.1),  # below the threshold
        ],
    )
    faces = split(
        tmp_path,
        "faces",
        [FACE],
        truth=[(0, FACE, 0), (1, FACE, 0)],
        found=[(0, FACE, 0, 0.9), (0, FACE, 60, 0.8), (1, FACE, 0, 0.7), (1, FACE, 90, 0.2), (0, CAR, 0, 0.6)],
        trusted=[FACE, DOG],
    )
    return [street, faces]


def of(found, name, dataset):
    (one,) = [f for f in found.foreign if (CLASSES[f.class_id], f.dataset) == (name, dataset)]
    return one


def test_where_foreign_detections_lie(world):
    found = audit(world, CLASSES, NO_OVERLAP)
    # best F1 of faces at home: down to 0.7 (2 of 3 right, all found: F1 0.8); between 0.7 and 0.2
    assert found.home[FACE].threshold == pytest.approx(0.45)
    # cross-fitted: from 0.85 on, of image 0, image 1 has none; from 0.45 on, of image 1, image 0 has 1 of 2 right
    assert found.home[FACE].operating.f1 == pytest.approx(0.5)
    assert found.home[FACE].operating.cross_fitted
    assert found.home[FACE].false_per_image == pytest.approx(0.5)  # one in two images
    faces = of(found, "face", "street")
    assert faces.rows.tolist() == [2, 3, 4, 5]  # by falling score
    assert faces.per_image == 2.0
    assert (faces.on_object.tolist(), faces.on_class.tolist(), faces.box.tolist()) == ([2], [DOG], [1])
    assert faces.ignored.tolist() == [4]
    assert faces.background.tolist() == [3, 5]
    # at home by falling score: right, wrong, right, wrong -> pooled: 0.9: 1; 0.7 and 0.8: 1/2; 0.2: 0
    assert faces.probability.tolist() == [0.5, 0.5]
    assert faces.expected_unlabelled == 1.0
    assert [(f.dataset, CLASSES[f.class_id]) for f in found.ranked()] == [("street", "face")]


def test_classes_at_home_are_not_foreign(world):
    found = audit(world, CLASSES, NO_OVERLAP)
    assert {(CLASSES[f.class_id], f.dataset) for f in found.foreign} == {
        ("face", "street"),
        ("car", "faces"),
        ("dog", "faces"),
    }


def test_a_class_declared_absent_has_no_unlabelled_objects(world):
    dog = of(audit(world, CLASSES, NO_OVERLAP), "dog", "faces")
    assert dog.absent
    assert not of(audit(world, CLASSES, NO_OVERLAP), "car", "faces").absent


def test_declared_overlap_makes_a_box_shareable(world):
    """A face may be the same box as a dog: then it is no certain mistake any more."""
    overlap = NO_OVERLAP.copy()
    overlap[DOG, FACE] = overlap[FACE, DOG] = True
    faces = of(audit(world, CLASSES, overlap), "face", "street")
    assert faces.on_object.tolist() == []
    assert faces.background.tolist() == [2, 3, 5]


def test_a_class_without_right_detections_has_the_default_threshold(tmp_path):
    only = [split(tmp_path, "street", [CAR], truth=[(0, CAR, 0)], found=[(0, CAR, 90, 0.9), (0, DOG, 60, 0.31)])]
    found = audit(only, CLASSES, NO_OVERLAP)
    assert found.home[CAR].threshold == 0.3
    assert len(of(found, "dog", "street").rows) == 1
    assert np.isnan(of(found, "dog", "street").expected_unlabelled)  # nothing is known about dogs at home
    assert found.ranked() == []
    # the detector's own thresholds, as `predict` uses them, where the data say none
    found = audit(only, CLASSES, NO_OVERLAP, [0.5, 0.32, 0.4])
    assert found.home[CAR].threshold == 0.5
    assert len(of(found, "dog", "street").rows) == 0
    assert {row["class"]: row["threshold"] for row in to_json(found)["foreign"]} == {"dog": 0.32, "face": 0.4}


def test_calibration_pools_violators():
    starts, precision = calibrate(np.array([0.9, 0.8, 0.7, 0.2]), np.array([True, False, True, False]))
    assert starts.tolist() == [0.2, 0.7, 0.9]
    assert precision.tolist() == [0.0, 0.5, 1.0]
    known = (starts, precision)
    assert precision_at(known, np.array([0.1, 0.2, 0.69, 0.7, 0.89, 0.95])).tolist() == [0, 0, 0, 0.5, 0.5, 1]
    assert precision_at((np.zeros(0), np.zeros(0)), np.array([0.5])).tolist() == [
        pytest.approx(np.nan, nan_ok=True)
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_calibration_never_falls_and_keeps_the_number_of_hits(rows):
    scores, hits = np.array([s / 10 for s, _ in rows]), np.array([h for _, h in rows])
    known = calibrate(scores, hits)
    assert (np.diff(known[1]) >= 0).all()
    assert (np.diff(known[0]) > 0).all()
    assert precision_at(known, scores).sum() == pytest.approx(hits.sum())


def test_everything_above_the_threshold_is_one_of_three(world):
    for f in audit(world, CLASSES, NO_OVERLAP).foreign:
        parts = np.concatenate([f.on_object, f.ignored, f.background])
        assert sorted(parts.tolist()) == sorted(f.rows.tolist())


def test_union_scores_count_foreign_false_positives(tmp_path, world):
    found = audit(world, CLASSES, NO_OVERLAP)
    test = split(
        tmp_path,
        "union",
        [CAR, DOG, FACE],
        truth=[(0, CAR, 0), (0, DOG, 40), (1, FACE, 0)],
        found=[(0, CAR, 0, 0.9), (0, FACE, 40, 0.9), (1, FACE, 0, 0.8), (1, FACE, 90, 0.6), (1, FACE, 120, 0.4)],
    )
    scores = union_scores(test.truth, test.detections, [CAR, DOG, FACE], found, NO_OVERLAP)
    assert scores["images"] == 2
    face = scores["per_class"]["face"]
    assert face["AP50"] == pytest.approx(0.5)  # the one on the dog comes first
    assert face["false_on_other_objects_per_image"] == 0.5
    assert face["false_elsewhere_per_image"] == 0.5  # 0.4 is below the face's threshold
    assert scores["per_class"]["car"]["AP50"] == pytest.approx(1)
    assert scores["per_class"]["dog"]["AP50"] == 0
    assert scores["AP50"] == pytest.approx(0.5)


def test_a_class_that_is_labelled_but_not_there_can_still_be_wrong(tmp_path, world):
    found = audit(world, CLASSES, NO_OVERLAP)
    test = split(tmp_path, "union", [DOG, FACE], truth=[(0, DOG, 40)], found=[(0, FACE, 40, 0.9)])
    scores = union_scores(test.truth, test.detections, [DOG, FACE], found, NO_OVERLAP)["per_class"]
    assert scores["face"]["false_on_other_objects_per_image"] == 0.5
    assert np.isnan(scores["face"]["AP50"])


def test_json_has_all_numbers(world):
    content = json.loads(json.dumps(to_json(audit(world, CLASSES, NO_OVERLAP))))
    row = next(row for row in content["foreign"] if row["class"] == "face")
    assert row["on_labelled_objects"] == {"dog": 1}
    assert (row["above_threshold"], row["in_ignored_regions"], row["on_background"]) == (4, 1, 2)
    assert content["probably_unlabelled"] == [{"dataset": "street", "class": "face", "count": 1.0}]
    assert sum(content["home"]["face"]["true_positive_scores"]) == 2


# ------------------------------------------------------------------------------------------ in short


def test_in_short(world):
    record = to_json(audit(world, CLASSES, NO_OVERLAP))
    pictures = sum(len(one.index) for one in world)
    found = sum(row["above_threshold"] for row in record["foreign"])
    wrong = sum(sum(row["on_labelled_objects"].values()) for row in record["foreign"])
    assert (pictures, found, wrong) == (4, 5, 2)
    foreign = (
        "In a picture there are 1.25 detections of classes that its dataset does not label; 0.50 lie on objects "
        "that are labelled as something else: these are wrong."
    )
    unlabelled = "About 1 object may be unlabelled of face in street (a guess on the high side)."
    assert summary(record, None) == [foreign, unlabelled]
    union = {"images": 7, "AP50": 0.613}
    first = "Union test, 7 pictures in which every class is labelled: AP50 61.3."
    assert summary(record, union) == [first, foreign, unlabelled]
    assert summary(record, union | {"AP50": float("nan")})[0].endswith("AP50 -.")
    counts = {"a": 40, "b": 35, "c": 30}
    alike = [{"dataset": name, "class": "dog", "count": count} for name, count in counts.items()]
    told = summary(record | {"probably_unlabelled": alike}, None)[-1]
    assert told.startswith("About 105 objects may be unlabelled, the most, about 40, of dog in a (a guess")


def test_in_short_without_the_usual(world, tmp_path):
    record = to_json(audit(world, CLASSES, NO_OVERLAP))
    row = record["foreign"][0] | {"declared_absent": True, "on_background": 3}
    told = summary(record | {"foreign": [row]}, None)[0]
    assert "something else, and 1.50 on background where the class is declared absent: these are wrong." in told
    none = {"on_labelled_objects": {}, "declared_absent": False}
    told = summary(record | {"foreign": [row | none]}, None)[0]
    assert told.endswith("does not label; none lies on an object that is labelled as something else.")
    told = summary(record | {"foreign": [row | none | {"declared_absent": True}]}, None)[0]
    assert told.endswith("not label; 1.50 on background where the class is declared absent: these are wrong.")
    unknown = record["foreign"][0] | {"class": "dog", "on_background": 2, "expected_unlabelled": float("nan")}
    told = summary(record | {"foreign": [unknown], "probably_unlabelled": []}, None)[-1]
    assert told == "How many of the detections of dog are right cannot be said: where it is labelled none is found."
    nothing = to_json(audit([split(tmp_path, "empty", [CAR], truth=[(0, CAR, 0)], found=[])], CLASSES, NO_OVERLAP))
    (none,) = summary(nothing, None)
    assert none.startswith("It finds none of the classes that a dataset does not label. Either there are none")
    assert none.endswith("a union test (`union_test` in the config) tells the two apart.")
    (_, with_test) = summary(nothing, {"images": 7, "AP50": 0.613})
    assert with_test.endswith("learnt not to see them there.")
    absent = [row | {"declared_absent": True} for row in nothing["foreign"]]
    assert summary(nothing | {"foreign": absent}, None) == [
        "It finds none of the classes that a dataset does not label."
    ]
    assert summary(nothing | {"foreign": []}, None) == [
        "Every dataset labels every class, so there is nothing else to look for."
    ]


# ------------------------------------------------------------------------------------------ page and export


def test_the_page_shows_counts_crops_and_escaped_names(world, tmp_path):
    classes = ("car", "dog", "<b>&'face")
    found = audit(world, classes, NO_OVERLAP)
    union = {"images": 1, "AP": 0.5, "AP50": 0.6, "per_class": {"dog": dict.fromkeys(UNION_NUMBERS, 0.6)}}
    short = ["Few & short."]
    runs = [AuditedRun(name, found, world, union, summary=short) for name in ("aware", "naive")]
    write_page(tmp_path / "audit.html", runs)
    page = (tmp_path / "audit.html").read_text()
    assert "<b>&'face" not in page
    assert page.count("&lt;b&gt;&amp;&#x27;face") > 3
    assert page.count("<img src='data:image/jpeg;base64,") == 2 * (1 + 2 + 1)  # both runs: dog, background, car
    assert page.count("0.95 on dog, street_0.png") == 2
    assert "4 detections above the threshold in 2 pictures: 1 on labelled objects (dog 1), 1 in ignored" in page
    titles = ("In short", "Union test: 1 pictures", "Objects that may be unlabelled", "Detections per picture")
    places = [page.index(f"<h2>{title}") for title in titles]
    assert places == sorted(places)
    assert page.count("Few &amp; short.") == 2
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere


def test_the_page_of_a_detector_that_finds_nothing(tmp_path):
    empty = [split(tmp_path, "street", [CAR], truth=[(0, CAR, 0)], found=[])]
    write_page(tmp_path / "audit.html", [AuditedRun("run", audit(empty, CLASSES, NO_OVERLAP), empty, None)])
    page = (tmp_path / "audit.html").read_text()
    assert "None." in page
    assert "<section" not in page


def test_pictures_that_cannot_be_read_are_told(world, tmp_path):
    world[0].index.path(0).write_bytes(b"broken")
    found = audit(world, CLASSES, NO_OVERLAP)
    write_page(tmp_path / "audit.html", [AuditedRun("run", found, world, None)])
    page = (tmp_path / "audit.html").read_text()
    assert "1 pictures could not be read" in page
    assert page.count("(cannot be read)") == 2


def test_export_for_a_labelling_tool(world, tmp_path):
    found = audit(world, CLASSES, NO_OVERLAP)
    assert export_coco(tmp_path / "street.json", world[0], found) == 2
    coco = COCO(str(tmp_path / "street.json"))
    rows = coco.loadAnns(coco.getAnnIds())
    assert [(r["image_id"], r["bbox"], r["score"], r["probability"]) for r in rows] == [
        (100, [120, 10, 20, 20], 0.85, 0.5),
        (101, [30, 10, 20, 20], 0.72, 0.5),
    ]
    assert {coco.cats[r["category_id"]]["name"] for r in rows} == {"face"}
    assert coco.imgs[101]["file_name"] == "street_1.png"
    assert export_coco(tmp_path / "faces.json", world[1], found) == 0  # the car there lies on a face
