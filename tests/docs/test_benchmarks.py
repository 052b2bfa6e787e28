"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import shlex
import sys

import pytest
import torch

from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings

from .scripts import BENCHMARKS, run_benchmark

sys.path.insert(0, str(BENCHMARKS))

import union

SMALL = "--datasets 3 --classes 5 --batch 2 --size 64 64 --backbone resnet18 --steps 1"


def test_evaluation_benchmark(tmp_path, monkeypatch):
    """It compares all scores with a plain loop, faster-coco-eval and pycocotools before it prints a time."""
    run_benchmark(monkeypatch, "evaluation.py", "--quick", "--rounds", 1, "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["wider_face"]["times_faster"] > 30
    assert result["coco"]["times_faster_than_pycocotools"] > 1.5


def test_union_benchmark(tmp_path, monkeypatch):
    """The step of a small union, its time and its memory in processes of their own."""
    run_benchmark(monkeypatch, "union.py", *shlex.split(SMALL), "--json", tmp_path / "u.json")
    (row,) = json.loads((tmp_path / "u.json").read_text())
    assert (row["datasets"], row["classes"]) == (3, 15)
    assert all(row[key] > 0 for key in ("step_seconds", "state_mb", "activation_mb"))
    # weights, gradients and momentum of ResNet-18, the pyramid, and a head of 9 anchors x 15 classes
    assert row["state_mb"] > 3 * 4 * (11e6 + 9 * 256 * 9 * 15) / 2**20


def test_the_step_with_all_logits_has_the_same_loss():
    batch = union.random_batch(2, (64, 64), 3, 5, 4, torch.device("cpu"))
    torch.manual_seed(0)
    detector = build_detector(RetinaNetSettings(backbone="resnet18", freeze_batch_norm=True), 15).train()
    sliced, full = (union.Step(detector, full)(batch) for full in (False, True))
    torch.testing.assert_close(sliced, full)


def test_loss_benchmark(tmp_path, monkeypatch):
    """It compares its loss with the paper's formulas before it times anything."""
    run_benchmark(monkeypatch, "loss.py", "--rounds", 1, "--crowd", "--json", tmp_path / "l.json")
    result = json.loads((tmp_path / "l.json").read_text())
    assert result["torchvision_over_crossdet"] > 1
    if sys.platform == "linux":
        assert result["crowd_adds_mb"] < 300


def test_report_of_all_benchmarks(tmp_path, monkeypatch, capsys):
    """Step and floor at a tiny size, in processes of their own; targets of what was not run are left out."""
    command = ("bench.py", "--quick", "--output", tmp_path, "--only")
    run_benchmark(monkeypatch, *command, "step_mobilenetv2", "floor_mobilenetv2")
    content = json.loads((tmp_path / "quick/bench.json").read_text())
    step, floor = content["results"]["step_mobilenetv2"], content["results"]["floor_mobilenetv2"]
    assert step["ratio"] == pytest.approx(step["torchvision_seconds"] / step["ours_seconds"])
    larger = max(floor["compute_floor_seconds"], floor["memory_floor_seconds"])
    assert floor["step_over_floor"] == pytest.approx(floor["step_seconds"] / larger)
    # a 3x3 convolution of 256 to 9 x 91 channels at P3 alone: 2 x 9 x 256 x 819 x 8 x 12 operations, forward
    assert floor["operations"] > 2 * 9 * 256 * 819 * 8 * 12
    report = (tmp_path / "quick/bench.md").read_text()
    assert "| training step, MobileNetV2, float32 |" in report
    assert "match + loss" not in report
    with pytest.raises(SystemExit, match="2"):
        run_benchmark(monkeypatch, *command, "nothing")
    assert "no benchmark nothing" in capsys.readouterr().err
