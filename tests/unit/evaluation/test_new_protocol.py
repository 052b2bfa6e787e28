"""A protocol that crossdet does not know, added from outside: an object and an entry of `PROTOCOLS`."""

import json

import pytest

from crossdet import evaluate
from crossdet.config import Config
from crossdet.errors import UserError
from crossdet.evaluation.files.coco import write_coco_results
from crossdet.evaluation.forgetting import changes, main_numbers
from crossdet.evaluation.operating import judge
from crossdet.evaluation.protocols import PROTOCOLS, main_number
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, Scores, columns, of_class
from crossdet.evaluation.splits import ground_truth
from crossdet.runs.evaluate import metrics_table


def score(split, detections, most):
    """The share of the objects that are found."""
    found = judge(ground_truth(split), detections, split.classes)
    recall = {
        split.names[c]: float((found.hits & (found.labels == c)).sum() / max(1, found.objects[c]))
        for c in split.classes
    }
    per_class = {name: {"recall": value} for name, value in recall.items()}
    return Scores({"recall": sum(recall.values()) / max(1, len(recall)), "per_class": per_class}, curves={})


RECALL = Protocol(
    name="recall",
    limits=ProtocolLimits(max_detections=100, score_threshold=0.05),
    score=score,
    headline=lambda record: record["recall"],
    columns=columns("recall"),
    class_number=of_class("recall"),
    number="recall",
    write=write_coco_results,
)


def test_evaluation_by_a_new_protocol(world, trained, monkeypatch, tmp_path, command):
    changed = {"datasets.faces.protocol": "recall", "datasets.cars.protocol": ["coco", "recall"]}
    with pytest.raises(UserError, match="expected one of coco, lvis, voc, wider_face, wider_pedestrian, got"):
        world.config(changed)
    monkeypatch.setitem(PROTOCOLS, "recall", RECALL)
    metrics = evaluate(trained.folder, world.config(changed), output=tmp_path)
    faces, cars = metrics["datasets"]["faces"], metrics["datasets"]["cars"]
    assert faces["protocol"] == "recall"
    assert 0.3 < faces["recall"] <= 1
    assert faces["per_class"]["face"]["recall"] == faces["recall"]
    assert faces["per_class"]["face"]["found_confidently"] <= faces["recall"]
    assert cars["further"]["recall"]["recall"] >= cars["per_class"]["car"]["found_confidently"]

    # what a training, its table and an extension make of it
    assert main_number(faces) == faces["recall"]
    assert metrics["mean"] == pytest.approx((faces["recall"] + cars["AP"]) / 2)
    assert f"recall    recall {100 * faces['recall']:.1f}" in metrics_table(metrics)
    names = {"faces": ["face"], "cars": ["car"]}
    after = {score.dataset: score for score in main_numbers(metrics, names)}
    assert (after["faces"].number, after["faces"].value) == ("recall recall", faces["recall"])
    assert changes(list(after.values()), list(after.values()))[0].difference == 0

    # its predictions, and the terminal
    assert json.loads((tmp_path / "predictions/faces/results.json").read_text())
    config = world.write_config(tmp_path / "config.yaml", changed)
    code, printed = command(
        "eval", trained.folder, config, "-o", tmp_path / "eval", "--json", tmp_path / "numbers.json"
    )
    assert code == 0
    assert "recall" in printed
    assert json.loads((tmp_path / "numbers.json").read_text())["datasets"]["faces"]["recall"] == faces["recall"]
    assert command("check", config)[0] in (0, 1)


def test_the_names_are_those_of_the_objects():
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    val = {"images": "a", "annotations": "a", "lists": "b"}
    with pytest.raises(UserError, match=r"lists` belongs to the protocol `wider_face`"):
        Config.from_dict({"datasets": {"a": {"format": "coco", "val": val}}})
