"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_evaluation_benchmark(tmp_path):
    """It compares all scores with a plain loop, faster-coco-eval and pycocotools before it prints a time."""
    command = [sys.executable, ROOT / "benchmarks/evaluation.py", "--quick", "--rounds", "1", "--json"]
    done = subprocess.run([*command, tmp_path / "r.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["wider_face"]["times_faster"] > 30
    assert result["coco"]["times_faster_than_pycocotools"] > 1.5
