"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

SMALL = "--datasets 1 3 --classes 5 --batch 2 --size 64 96 --backbone resnet18 --steps 1 --full"
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
    """Sliced and full step of two small unions, each in a process of its own."""
    small = shlex.split(SMALL)
    command = [sys.executable, ROOT / "benchmarks/union.py", *small, "--json", tmp_path / "u.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "u.json").read_text())
    assert [(row["datasets"], row["classes"]) for row in rows] == [(1, 5), (3, 15)]
    for row in rows:
        numbers = ("step_seconds", "state_mb", "activation_mb", "full_step_seconds", "full_activation_mb")
        assert all(row[key] > 0 for key in numbers)
    assert rows[1]["state_mb"] > rows[0]["state_mb"]


def test_loss_benchmark(tmp_path):
    """It compares its loss with the paper's formulas before it times anything."""
    command = [sys.executable, ROOT / "benchmarks/loss.py", "--rounds", "1", "--json", tmp_path / "l.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "l.json").read_text())["torchvision_over_crossdet"] > 1
