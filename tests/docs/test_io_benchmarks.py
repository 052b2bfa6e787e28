"""The benchmarks of loading, opening and inference run at a small size, with their own checks of equal results."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_quick(name: str, tmp_path: Path, *options: str) -> dict:
    target = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / name, "--quick", "--rounds", "1", *options]
    done = subprocess.run([*command, "--json", target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text())


def test_loading_benchmark(tmp_path):
    """It compares pictures and boxes with torchvision's before it times anything."""
    result = run_quick("loading.py", tmp_path, "--workers", "0")
    assert result["pixel_difference"] < 1
    (row,) = result["runs"]
    assert set(row["ratio"]) == {"torchvision, tensors", "torchvision, PIL"}
    assert all(rate > 0 for rate in row["images_per_second_per_core"].values())


def test_augmentation_benchmark(tmp_path):
    """All settings load; mosaics keep more background by tile than by what all tiles trust."""
    result = run_quick("augmentation.py", tmp_path, "--workers", "0")
    assert {"off", "zoom_out", "iou_crop", "mosaic"} < set(result["loading"])
    alone, three = result["loss"]["1 x 7"], result["loss"]["3 x 3"]
    assert alone["kept_by_tile"] == alone["kept_by_all_tiles"] == 1
    assert three["kept_by_all_tiles"] < three["kept_by_tile"] < 1


def test_index_benchmark(tmp_path):
    result = run_quick("index.py", tmp_path)
    assert result["open_ratio"] > 3
    assert result["worker_growth_mb"] < result["pycocotools_worker_growth_mb"]


def test_inference_benchmark(tmp_path):
    """A folder gives the same detections by `predict_files` and by a plain loop, else it ends with an error."""
    result = run_quick("inference.py", tmp_path)
    assert [(row["classes"], row["batch"]) for row in result["runs"]] == [(91, 1), (91, 2), (200, 1), (200, 2)]
    for row in result["runs"]:
        assert row["detections"]["crossdet"] == row["detections"]["torchvision"] == 100
    assert result["folder"]["ratio"].keys() == {"batches of 8", "file by file"}
