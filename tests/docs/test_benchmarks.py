"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import union  # noqa: E402

SMALL = "union.py --datasets 3 --classes 5 --batch 2 --size 64 64 --backbone resnet18 --steps 1"


def test_evaluation_benchmark(tmp_path):
    """It compares all scores with a plain loop, faster-coco-eval and pycocotools before it prints a time."""
    command = [sys.executable, ROOT / "benchmarks/evaluation.py", "--quick", "--rounds", "1", "--json"]
    done = subprocess.run([*command, tmp_path / "r.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["wider_face"]["times_faster"] > 30
    assert result["coco"]["times_faster_than_pycocotools"] > 1.5


def test_union_benchmark(tmp_path, monkeypatch):
    """The step of a small union, its time and its memory in processes of their own."""
    monkeypatch.setattr(sys, "argv", [*shlex.split(SMALL), "--json", str(tmp_path / "u.json")])
    union.main()
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


def test_loss_benchmark(tmp_path):
    """It compares its loss with the paper's formulas before it times anything."""
    command = [sys.executable, ROOT / "benchmarks/loss.py", "--rounds", "1", "--json", tmp_path / "l.json"]
    done = subprocess.run([*command, "--crowd"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "l.json").read_text())
    assert result["torchvision_over_crossdet"] > 1
    if sys.platform == "linux":
        assert result["crowd_adds_mb"] < 300


def test_report_of_all_benchmarks(tmp_path, monkeypatch, capsys):
    """Step and floor at a tiny size, in processes of their own; targets of what was not run are left out."""
    command = ["bench.py", "--quick", "--output", str(tmp_path), "--only"]
    monkeypatch.setattr(sys, "argv", [*command, "step_mobilenetv2", "floor_mobilenetv2"])
    bench.main()
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
    monkeypatch.setattr(sys, "argv", [*command, "nothing"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "no benchmark nothing" in capsys.readouterr().err
