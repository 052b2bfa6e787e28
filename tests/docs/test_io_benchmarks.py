"""Benchmarks of loading, opening, inference and D-FINE at a small size, with their own checks of equal results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .scripts import BENCHMARKS, run_benchmark

sys.path.insert(0, str(BENCHMARKS))

import bench
import whole_training
from crossdet.training.log import Step
from whole_training import kernel_seconds


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


def test_folder_against_torchvisions_loop(quick):
    """Both find something in every picture, in bfloat16, with a picture that is left over from the last batch."""
    folder = quick("inference.py", "--folder-peer", "--dtype", "bfloat16", "--workers", "0")["folder"]
    assert folder["files"] == 9
    assert folder["detections"] == {"predict_files": 100, "torchvision, DataLoader": 100}
    assert folder["ratio"].keys() == {"torchvision, DataLoader"}


def test_whole_training_benchmark(quick):
    """The real loop trains both settings; what is counted is its second epoch of three."""
    result = quick("whole_training.py", "--workers", "0")
    assert set(result["rounds"]) == {"flips alone", "jitter and colour"}
    for (one,) in result["rounds"].values():
        assert one["pictures_per_second"] == pytest.approx(8 / one["epoch_seconds"][1])
        assert len(one["epoch_seconds"]) == 3
        assert 0 < one["waiting"] < 1
        assert one["first_step_seconds"] <= one["epoch_seconds"][0]
        if result["gpu"] is None:
            assert one["busy"] is None
    plain, full = (row["pictures_per_second"] for row in result["medians"].values())
    assert result["second_over_first"] == pytest.approx(full / plain)


def test_a_training_that_is_cut_short_keeps_what_it_had(tmp_path, monkeypatch):
    """FILE is there after each; the compiled one comes first, and nothing is compared before both are."""
    target, seen = tmp_path / "result.json", []

    def training(args, images, annotations, name):
        seen.append(json.loads(target.read_text()) if target.exists() else None)
        config = whole_training.config_of(args, images, annotations, name)
        assert (config.train.compile, config.train.canvases) == (len(seen) == 1, 2)
        values = {"waiting": 0.5, **dict.fromkeys(("busy", "busy_nvml", "busy_profiler"))}
        graphs = {"first_step_seconds": 1.0, "graphs_of_first_epoch": 2, "graphs_after": 0}
        return {"pictures_per_second": 10.0 * len(seen), **values, **graphs}

    monkeypatch.setattr(whole_training, "training", training)
    options = ("--compile", "--canvases", "2", "--quick", "--json", str(target))
    monkeypatch.setattr(sys, "argv", ["whole_training.py", *options])
    whole_training.main()
    eager, compiled = whole_training.FULL, whole_training.COMPILED
    nothing, half = seen
    assert nothing is None
    assert (len(half["rounds"][eager]), len(half["rounds"][compiled])) == (0, 1)
    assert half["second_over_first"] is None
    assert half["medians"][eager]["pictures_per_second"] is None
    half["gpu"] = "a card"
    judged = {
        name: bench.judged(bench.CARD_TARGETS[name], {"card_training_compiled": half})
        for name in ("recompiled", "compiled_training")
    }
    assert judged == {"recompiled": (0, "met"), "compiled_training": None}
    assert json.loads(target.read_text())["second_over_first"] == 0.5


@pytest.mark.parametrize(("steps", "profiled"), [(64, 20), (21, 20), (20, 19), (2, 1), (1, None)])
def test_so_many_steps_are_profiled(monkeypatch, steps, profiled):
    """The last ones of the last epoch; the first step of an epoch is not."""
    over, spans = [0], []

    class Profile:
        def __init__(self, activities):
            self.began = None

        def start(self):
            self.began = over[0]

        def stop(self):
            spans.append(over[0] - self.began)

        def export_chrome_trace(self, file):
            Path(file).write_text('{"traceEvents": []}')

    monkeypatch.setattr(whole_training.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(whole_training.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(whole_training.torch.profiler, "profile", Profile)
    notes = whole_training.Notes(last=0)
    notes.epoch()
    for step in range(1, steps + 1):
        over[0] = step
        notes.step(Step(step, 0, step, steps, 0.1, {}, None, None), 4)
    assert spans == ([] if profiled is None else [profiled])


def test_kernels_that_overlap_count_once():
    """Other events do not, such as a copy and the range of the optimiser's step."""
    kernels = [(10, 5), (12, 1), (14, 4), (30, 2)]
    events = [{"cat": "kernel", "ts": begin, "dur": length} for begin, length in kernels]
    events += [{"cat": "gpu_memcpy", "ts": 20, "dur": 5}, {"cat": "gpu_user_annotation", "ts": 0, "dur": 90}]
    assert kernel_seconds([*events[::-1], {"ph": "M", "name": "process_name"}]) == pytest.approx(10e-6)
    assert kernel_seconds([]) == 0


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
