"""What an extension says of itself: its report and where its weights came from."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from crossdet import LabelSpace, UserError
from crossdet.check import inspect_weights, print_weights
from crossdet.data.index import IndexBuilder
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.forgetting import (
    Change,
    changes,
    changes_table,
    draw_generations,
    histories,
    intervals,
    main_numbers,
    means,
    regressions,
    report_text,
    to_json,
    warning_of,
)
from crossdet.evaluation.protocols.coco import coco_scores
from crossdet.evaluation.splits import Split, ground_truth
from crossdet.models.card import Card, Generation, InputSettings, Score, new_generation
from crossdet.models.retinanet.settings import Adapter
from crossdet.models.weights import save_weights

from .made import SETTINGS

# ----------------------------------------------------------------------------------------- the report

METRICS = {
    "datasets": {
        "a": {"protocol": "coco", "per_class": {"car": {"AP": 0.5, "AP50": 0.9}, "dog": {"AP": math.nan}}},
        "b": {"protocol": "voc", "per_class": {"car": {"area": 0.6, "11pt": 0.7}}},
        "c": {"protocol": "wider_face", "easy": 0.9, "medium": 0.8, "hard": 0.4, "per_class": {"face": {}}},
        "d": {"protocol": "wider_pedestrian", "per_class": {"person": {"AP": 0.2, "AP50": 0.4}}},
    }
}  # fmt: skip
NAMES = {"a": ["car", "dog"], "b": ["car"], "c": ["face"], "d": ["person"]}


def test_the_main_number_is_that_of_the_protocol():
    scores = main_numbers(METRICS, NAMES)
    assert [(s.name, s.dataset, s.number) for s in scores] == [
        ("car", "a", "coco AP"),
        ("dog", "a", "coco AP"),
        ("car", "b", "voc AP area"),
        ("face", "c", "wider_face AP"),
        ("person", "d", "wider_pedestrian AP"),
    ]
    assert [s.value for s in scores] == [0.5, None, 0.6, pytest.approx(0.7), 0.2]


def test_differences_and_tolerance():
    after = main_numbers(METRICS, NAMES)
    before = [
        Score("car", "a", "coco AP", 0.505),  # lost 0.5 points: within a tolerance of 0.5
        Score("car", "b", "voc AP area", 0.612),  # lost 1.2
        Score("dog", "a", "coco AP", 0.1),  # no number any more
        Score("gone", "z", "coco AP", 0.9),  # its dataset is not in the config
    ]
    found = changes(before, after)
    assert [c.name for c in found] == ["car", "dog", "car", "face", "person"]
    assert found[0].difference == pytest.approx(-0.005)
    assert [c.difference for c in found[1:2] + found[3:]] == [None, None, None]
    assert [(c.name, c.dataset) for c in regressions(found, 0.5)] == [("car", "b")]
    assert [(c.name, c.dataset) for c in regressions(found, 0.4)] == [("car", "a"), ("car", "b")]
    assert regressions(found, None) == []
    lines = changes_table(found).splitlines()
    assert lines[0].split() == ["class", "dataset", "number", "before", "after", "difference"]
    assert lines[3].split() == ["car", "b", "voc", "AP", "area", "61.2", "60.0", "-1.2"]
    assert lines[4].split() == ["face", "c", "wider_face", "AP", "-", "70.0", "-"]
    report = to_json(found, 0.5, ["dog", "gone", "car"])
    assert report["unmeasured"] == ["dog", "gone"]
    told = report_text(found, ["dog", "car"]).splitlines()
    assert (told[0], told[-1]) == ("before and after, in points:", "not measured, no `val` split shows them: dog")
    assert report_text([], ["car"]) == "not measured, no `val` split shows them: car"  # no empty table
    assert report["regressions"] == report["certain"] == ["car on b"]  # without an interval nobody knows better
    assert report["classes"][0]["difference"] == pytest.approx(-0.005)
    assert warning_of(report) == "forgotten more than the tolerance of 0.5 points: car on b -1.2"


def test_means_and_intervals_of_what_was_lost():
    """Eight pictures with a car and a dog each: before, all are found; after, all dogs and half of the cars."""
    builder = IndexBuilder("")
    for row in range(8):
        builder.image(f"{row}.png", 100, 100)
        builder.box((10, 10, 50, 50), 0, 0)
        builder.box((60, 60, 90, 90), 1, 0)
    split = Split(builder.build(["car", "dog"]), np.array([0, 1]), ["car", "dog"])
    boxes = np.array([[10.0, 10, 50, 50]] * 8 + [[60.0, 60, 90, 90]] * 8)
    whole = DetectionArrays(boxes, np.linspace(0.9, 0.5, 16), np.repeat([0, 1], 8), np.tile(np.arange(8), 2))
    half = whole.take(np.array([0, 2, 4, 6, *range(8, 16)]))
    known = intervals({"a": split}, {"a": whole, "b": whole}, {"a": half})
    low, high = known["car", "a"]
    assert -0.9 < low < -0.5 < high < -0.1
    assert known["dog", "a"] == (0.0, 0.0)
    number = coco_scores(ground_truth(split), half, [0]).per_class[0]["AP"]
    before = [Score("car", "a", "coco AP", 1.0), Score("dog", "a", "coco AP", 1.0)]
    after = [Score("car", "a", "coco AP", number), Score("dog", "a", "coco AP", 1.0)]
    found = changes(before, [*after, Score("new", "a", "coco AP", 0.3), Score("car", "b", "voc AP", 0.3)], known)
    (mean,) = means(found, known)
    assert (mean.name, mean.dataset, mean.difference) == ("mean of 2 classes", "a", pytest.approx((number - 1) / 2))
    assert (mean.low, mean.high) == (pytest.approx(low / 2), pytest.approx(high / 2))
    table = changes_table([*found, mean]).splitlines()
    assert table[0].endswith("difference   95 % interval")
    assert table[1].endswith(f"{100 * low:+.1f} to {100 * high:+.1f}")
    assert table[3].split()[-2:] == ["-", "-"]
    report = to_json(found, 0.5, ["car", "dog"], [mean])
    assert report["means"][0]["name"] == "mean of 2 classes"
    sure = warning_of(report)
    assert f"car on a {100 * (number - 1):+.1f} (95 % interval {100 * low:+.1f} to {100 * high:+.1f}), " in sure
    assert ", mean of 2 classes on a -" in sure
    assert report["regressions"] == ["car on a"]
    assert report["certain"] == ["car on a", "mean of 2 classes on a"]
    report["classes"][0]["high"] = 0.0
    assert warning_of(report) == sure.replace(f"{100 * high:+.1f})", "+0.0, so it may be chance)")
    assert "other pictures of the same kind" in report_text(found, ["car"], [mean])


@pytest.mark.parametrize(
    ("rows", "certain"),
    [
        ([(-0.03, -0.05, -0.01)], ["a on d"]),
        ([(-0.03, -0.07, 0.01)], []),
        ([(-0.03, None, None)], ["a on d"]),
        ([(-0.003, -0.004, -0.002)], []),  # for certain, and less than the tolerance
        ([(-0.03, -0.07, 0.01), (-0.02, -0.05, 0.01)], ["mean of 2 classes on d"]),
    ],
)
def test_what_is_not_chance(rows, certain):
    """Two losses that may each be chance are none together, if their mean says so."""
    found = [Change(n, "d", "coco AP", 0.5, 0.5 + row[0], *row[1:]) for n, row in zip("ab", rows, strict=False)]
    mean = [Change("mean of 2 classes", "d", "coco AP", 0.5, 0.475, -0.04, -0.01)] if len(rows) > 1 else []
    report = to_json(found, 0.5, [], mean)
    assert report["certain"] == certain
    assert ("mean of 2" in warning_of(report)) == bool(mean)


def test_lines_over_generations(tmp_path):
    def one(mode: str, **scores: float) -> Generation:
        return Generation(mode, {}, [], scores=tuple(Score(n, "d", "coco AP", v) for n, v in scores.items()))

    history = [one("train"), one("replay", car=0.5), one("frozen", car=0.4, dog=0.3)]
    # measured today, the parent has 0.45; its own record counts more
    before = [Score("car", "d", "coco AP", 0.45), Score("car", "e", "coco AP", 0.2)]
    lines = histories(history, before)
    assert lines == {("car", "d"): [(1, 0.5), (2, 0.4)], ("dog", "d"): [(2, 0.3)], ("car", "e"): [(1, 0.2)]}
    draw_generations(tmp_path / "plot.png", history, before)
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    draw_generations(tmp_path / "empty.png", [one("train"), one("replay")], [])
    assert not (tmp_path / "empty.png").exists()


# ----------------------------------------------------------------------------------------- provenance


def test_generations_survive_the_metadata(space):
    plain = Card(space, SETTINGS, InputSettings(64, 96), {}).to_metadata()
    del plain["provenance"]  # as weights of before there were generations
    first = Card.from_metadata(plain).generations
    assert [(g.mode, g.parent, g.when) for g in first] == [("train", None, None)]
    assert first[0].datasets == {"old": ["car", "face"], "new": ["sign", "helmet"], "sea": ["ship"]}
    second = new_generation("replay", {"new": ("sign",)}, space, "ab" * 32)
    assert second.when is not None
    assert second.when.endswith("+00:00")
    second = replace(second, scores=(Score("car", "old", "coco AP", 0.5),))
    history = (*first, second, Generation("labels", {}, ["x"], "cd", edits=("rename a=b",)))
    card = Card(space, SETTINGS, InputSettings(64, 96), {"topk": 5}, {"car": {"threshold": 0.5}}, history)
    assert Card.from_metadata(card.to_metadata()) == card


def test_a_generation_tells_how_names_were_read(tmp_path):
    space = LabelSpace.build(
        {"peds": ["pedestrian", "cyclist"], "old": ["car"], "yard": ["person", "car", "bus"]},
        merge={"person": ["peds/pedestrian", "yard/person"]}, drop=["peds/cyclist"],
        unlabelled={"yard": ["car"]}, absent={"yard": ["person"]},
        labelled={"peds": ["pedestrian"], "old": ["car"], "yard": ["bus"]},
    )  # fmt: skip
    read = {
        "peds": ["pedestrian", "cyclist"], "old": ["car", "no longer there"], "yard": ["person", "car", "bus"],
        "elsewhere": ["x"],
    }  # fmt: skip
    history = (Generation("train", read, ["person", "car"]),)
    card = Card(space, SETTINGS, InputSettings(64, 96), {}, generations=history)
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, card)
    console = Console(record=True, width=120)
    print_weights(inspect_weights(tmp_path), console)
    lines = console.export_text().splitlines()
    for part in (
        "   peds: pedestrian -> person, cyclist (dropped)",
        "   old: car, no longer there",
        "   yard: person (listed, absent), car (listed, not labelled), bus",
        "   elsewhere: x",
    ):
        assert part in [line.rstrip() for line in lines], part


def test_weights_are_described_without_torch(space, tmp_path):
    history = (Generation("train", {"old": ["car"]}, ["car"]), Generation("frozen", {}, ["car"], "ab" * 32))
    settings = SETTINGS.model_copy(update={"adapters": (Adapter(3, 8, 3),)})
    card = Card(space, settings, InputSettings(64, 96), {}, {"car": {"threshold": 0.25, "f1": 1.0}}, history)
    file = tmp_path / "model.safetensors"
    save_weights(file, {"a": torch.zeros(1)}, card)
    report = inspect_weights(tmp_path)
    assert report.classes["car"] == ["old/car"]
    assert report.thresholds == {"car": 0.25}
    code = (
        "import sys; from crossdet.commands import main as cli; sys.argv = ['crossdet', 'check', sys.argv[1]]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in (
        "test_efficientnet, 16 channels, 1 convolution before each output, 5 classes",
        "0.250",
        "1: frozen, from abababababab",
        "overlap: face and helmet",
        "adapter of 8 channels: scores of helmet, ship; boxes of helmet, ship",
    ):
        assert part in done.stdout, part
    (tmp_path / "other.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        inspect_weights(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        inspect_weights(tmp_path / "none.safetensors")
