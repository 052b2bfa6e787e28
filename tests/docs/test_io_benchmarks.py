"""Benchmarks of loading, opening, inference and D-FINE at a small size, with their own checks of equal results."""

import json
import subprocess
import sys

import pytest

from .scripts import BENCHMARKS, run_benchmark


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Runs a benchmark; gives what it wrote."""

    def run(name: str, *options: str) -> dict:
        target = tmp_path / "result.json"
        run_benchmark(monkeypatch, name, "--quick", "--rounds", "1", *options, "--json", target)
        return json.loads(target.read_text())

    return run


def test_loading_benchmark(quick):
    """It compares pictures and boxes with torchvision's before it times anything."""
    result = quick("loading.py", "--workers", "0")
    assert result["pixel_difference"] < 1
    (row,) = result["runs"]
    assert set(row["ratio"]) == {"torchvision, tensors", "torchvision, PIL"}
    assert all(rate > 0 for rate in row["images_per_second_per_core"].values())


def test_augmentation_benchmark(quick):
    """All settings load; mosaics keep more background by tile than by what all tiles trust."""
    result = quick("augmentation.py", "--workers", "0")
    assert {"off", "zoom_out", "iou_crop", "mosaic"} < set(result["loading"])
    alone, three = result["loss"]["1 x 7"], result["loss"]["3 x 3"]
    assert alone["kept_by_tile"] == alone["kept_by_all_tiles"] == 1
    assert three["kept_by_all_tiles"] < three["kept_by_tile"] < 1


def test_index_benchmark(tmp_path):
    """Its workers are forks, so what they hold depends on the process: it has one of its own."""
    options = ["--quick", "--rounds", "1", "--json", tmp_path / "result.json"]
    subprocess.run([sys.executable, BENCHMARKS / "index.py", *options], capture_output=True, check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["open_ratio"] > 3
    assert result["worker_growth_mb"] < result["pycocotools_worker_growth_mb"]


def test_inference_benchmark(quick):
    """A folder gives the same detections by `predict_files` and by a plain loop, else it ends with an error."""
    result = quick("inference.py")
    assert [(row["classes"], row["batch"]) for row in result["runs"]] == [(91, 1), (91, 2), (200, 1), (200, 2)]
    for row in result["runs"]:
        assert row["detections"]["crossdet"] == row["detections"]["torchvision"] == 100
    assert result["folder"]["ratio"].keys() == {"batches of 8", "file by file"}


def test_step_of_d_fine_benchmark(monkeypatch, tmp_path):
    """Both are the same network and take a step."""
    options = ("--square", "256", "--batch", "1", "--rounds", "1", "--json", tmp_path / "result.json")
    run_benchmark(monkeypatch, "detr_step.py", *options)
    result = json.loads((tmp_path / "result.json").read_text())
    seconds = result["seconds"]
    assert min(seconds.values()) > 0
    assert result["transformers_over_crossdet"] == seconds["transformers"] / seconds["crossdet"]


@pytest.mark.parametrize("name", sorted(file.name for file in BENCHMARKS.glob("*.py")))
def test_every_benchmark_tells_its_options(name, monkeypatch, capsys):
    """Also those that no test runs: what they import may have moved."""
    with pytest.raises(SystemExit) as end:
        run_benchmark(monkeypatch, name, "--help")
    assert end.value.code in (0, None)
    assert "usage: " in capsys.readouterr().out
