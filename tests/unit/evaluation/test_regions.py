"""What lies in a region is neither right nor wrong, whoever judges; and what follows from floors and directions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crossdet import LabelSpace
from crossdet.data.index import IndexBuilder
from crossdet.data.rotation import rotated
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.audit import AuditedSplit, audit, to_json
from crossdet.evaluation.audit_page import export_coco
from crossdet.evaluation.files.voc import write_voc_results
from crossdet.evaluation.operating import Judged, best_f1
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.evaluation.protocols.entry import score_split
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.labels.members import with_members
from crossdet.types import Flag

OBJECT = (10, 10, 50, 50)


def found(*rows: tuple[tuple[float, float, float, float], float, int, int]) -> DetectionArrays:
    """rows: (box, score, label, image)."""
    boxes, scores, labels, images = zip(*rows, strict=True)
    return DetectionArrays(np.array(boxes, float), np.array(scores), np.array(labels), np.array(images))


@pytest.mark.parametrize("protocol", ["coco", "lvis", "voc", "wider_face"])
@pytest.mark.parametrize("label", [0, -1])
def test_small_detections_in_a_region_are_not_wrong(protocol, label):
    """By VOC's own rule for difficult boxes they would be, as their IoU with it is small."""
    builder = IndexBuilder("/nowhere")
    builder.image("x.jpg", 200, 200)
    builder.box(OBJECT, 0)
    builder.box((80, 80, 190, 190), label, int(Flag.IGNORE_REGION))
    split = Split(builder.build(["c"]), np.array([0]), ("c",))
    inside = [((90, 90, 110, 110), 0.95, 0, 0), ((130, 130, 150, 150), 0.93, 0, 0)]
    kind = PROTOCOLS[protocol]
    assert kind.headline(score_split(kind, split, found(*inside, (OBJECT, 0.9, 0, 0))).record) == pytest.approx(1)
    outside = found(((100, 10, 140, 50), 0.95, 0, 0), (OBJECT, 0.9, 0, 0))
    assert kind.headline(score_split(kind, split, outside).record) < 1


def test_a_detection_in_a_difficult_box_is_wrong_as_voc_has_it():
    builder = IndexBuilder("/nowhere")
    builder.image("x.jpg", 200, 200)
    builder.box(OBJECT, 0)
    builder.box((80, 80, 190, 190), 0, int(Flag.DIFFICULT))
    split = Split(builder.build(["c"]), np.array([0]), ("c",))
    voc = PROTOCOLS["voc"]
    small = found(((90, 90, 110, 110), 0.95, 0, 0), (OBJECT, 0.9, 0, 0))
    assert voc.headline(score_split(voc, split, small).record) == pytest.approx(0.5)
    whole = found(((80, 80, 190, 190), 0.95, 0, 0), (OBJECT, 0.9, 0, 0))
    assert voc.headline(score_split(voc, split, whole).record) == pytest.approx(1)


def judged(scores: list[float], objects: int, floor: float) -> Judged:
    every = np.ones(len(scores), bool)
    return Judged(np.zeros(len(scores), int), np.array(scores), every, every, {0: objects}, ~every, {0: 0}, floor)


def test_a_threshold_lies_above_every_floor():
    """Below 0.05 nobody knows what is wrong in the first split: 1.0 was claimed of what the second finds there."""
    point = best_f1([judged([0.5], 1, 0.05), judged([0.03, 0.025, 0.02], 3, 0.01)], 0)
    assert point.threshold == pytest.approx((0.5 + 0.05) / 2)
    assert (point.precision, point.recall) == (1, 0.25)
    assert best_f1([judged([], 1, 0.05), judged([0.03], 1, 0.01)], 0) is None
    assert best_f1([judged([0.03], 1, 0.01)], 0).threshold == pytest.approx(0.02)


@pytest.mark.parametrize("is_open", [False, True])
def test_an_open_member_on_an_object_of_another_is_no_mistake(is_open):
    space = LabelSpace.build({"A": ["person"], "B": ["person"]}, merge={"same_names": True})
    space = with_members(space, ["person"], open_members=is_open)
    builder = IndexBuilder("/nowhere")
    builder.image("x.jpg", 100, 200)
    builder.box(OBJECT, 0)
    index = builder.build(["person"])
    split = Split(index, space.ids("A", index.classes), space.classes)
    rows = found((OBJECT, 0.9, 0, 0), (OBJECT, 0.9, 1, 0), ((60, 10, 95, 50), 0.9, 1, 0))
    one = AuditedSplit("A", index, ground_truth(split), space.annotated_array[0], ~space.avoid_array[0], rows)
    (row,) = to_json(audit([one], space.classes, space.overlap_array))["foreign"]
    assert row["class"] == "person@B"
    assert row["declared_absent"]
    assert row["on_labelled_objects"] == ({} if is_open else {"person@A": 1})
    assert row["on_background"] == 1


def test_candidates_are_exported_of_upright_pictures_alone(tmp_path):
    builder = IndexBuilder("/nowhere")
    builder.image("x.jpg", 100, 200)
    builder.box(OBJECT, 0)
    index = rotated(builder.build(["c"]), [0, 90])
    split = Split(index, np.array([0]), ("c", "d"))
    rows = found(((60, 110, 90, 190), 0.9, 1, 1), ((100, 20, 150, 60), 0.8, 1, 0))
    some = np.array([True, False])
    one = AuditedSplit("a", index, ground_truth(split), some, some, rows)
    assert export_coco(tmp_path / "u.json", one, audit([one], ("c", "d"), np.zeros((2, 2), bool))) == 1
    content = json.loads((tmp_path / "u.json").read_text())
    assert [(image["file_name"], image["width"]) for image in content["images"]] == [("x.jpg", 200)]
    assert [one["bbox"] for one in content["annotations"]] == [[100, 20, 50, 40]]


def test_pictures_of_one_name_in_several_folders_are_told_apart(tmp_path):
    builder = IndexBuilder("/nowhere")
    for name in ("s1/1.jpg", "s2/1.jpg", "s2/2.jpg"):
        builder.image(name, 100, 100)
        builder.box(OBJECT, 0)
    split = Split(builder.build(["c"]), np.array([0]), ("c",))
    write_voc_results(tmp_path, split, found(*((OBJECT, 0.9, 0, image) for image in range(3))))
    assert [line.split()[0] for line in (tmp_path / "c.txt").read_text().splitlines()] == ["s1/1", "s2/1", "2"]
