"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "--datasets 3 --classes 5 --batch 2 --size 64 64 --backbone resnet18 --steps 1 --full"
ROOT = Path(__file__).parents[2]


def test_evaluation_benchmark(tmp_path):
    """It compares all scores with a plain loop, faster-coco-eval and pycocotools before it prints a time."""
    command = [sys.executable, ROOT / "benchmarks/evaluation.py", "--quick", "--rounds", "1", "--json"]
    done = subprocess.run([*command, tmp_path / "r.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["wider_face"]["times_faster"] > 30
    assert result["coco"]["times_faster_than_pycocotools"] > 1.5


def test_union_benchmark(tmp_path):
    """Sliced and full step of a small union, each in processes of its own."""
    small = shlex.split(SMALL)
    command = [sys.executable, ROOT / "benchmarks/union.py", *small, "--json", tmp_path / "u.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "u.json").read_text())
    assert [(row["datasets"], row["classes"]) for row in rows] == [(3, 15)]
    for row in rows:
        numbers = ("step_seconds", "state_mb", "activation_mb", "full_step_seconds", "full_activation_mb")
        assert all(row[key] > 0 for key in numbers)
    # weights, gradients and momentum of ResNet-18, the pyramid, and a head of 9 anchors x 15 classes
    assert rows[0]["state_mb"] > 3 * 4 * (11e6 + 9 * 256 * 9 * 15) / 2**20


def test_loss_benchmark(tmp_path):
    """It compares its loss with the paper's formulas before it times anything."""
    command = [sys.executable, ROOT / "benchmarks/loss.py", "--rounds", "1", "--json", tmp_path / "l.json"]
    done = subprocess.run([*command, "--crowd"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "l.json").read_text())
    assert result["torchvision_over_crossdet"] > 1
    if sys.platform == "linux":
        assert result["crowd_adds_mb"] < 300


def test_report_of_all_benchmarks(tmp_path):
    """Step and floor at a tiny size, in processes of their own; targets of what was not run are left out."""
    command = [sys.executable, ROOT / "benchmarks/bench.py", "--quick", "--output", tmp_path]
    only = ["--only", "step_mobilenetv2", "floor_mobilenetv2"]
    done = subprocess.run([*command, *only], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
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
    wrong = subprocess.run([*command, "--only", "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no benchmark nothing" in wrong.stderr
