"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import shlex
import subprocess
import sys

import pytest
import torch

from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings

from .scripts import BENCHMARKS, run_benchmark

sys.path.insert(0, str(BENCHMARKS))

import bench
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
    half = ("--dtype", "bfloat16", "--labelled")
    run_benchmark(monkeypatch, "union.py", *shlex.split(SMALL), *half, "--json", tmp_path / "u.json")
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


def test_rows_of_a_card(tmp_path, monkeypatch, capsys):
    """They run on a CPU with `--quick`, where no target of a card is judged, and go on where they ended."""
    command = ("bench.py", "--rows", "card", "--quick", "--output", tmp_path, "--only")
    run_benchmark(monkeypatch, *command, "card_step_mobilenetv2_320")
    file = tmp_path / "quick/bench_gpu.json"
    step = json.loads(file.read_text())["results"]["card_step_mobilenetv2_320"]
    assert (step["labelled"], step["compiled_for"], step["ours_form"][:8]) == (False, None, "bfloat16")
    if step["gpu"] is None:
        assert "MobileNetV2, 320x416, batch 16" not in (tmp_path / "quick/bench_gpu.md").read_text()
    # it is there: nothing runs, and what is there is kept
    monkeypatch.setattr(bench.subprocess, "run", None)
    run_benchmark(monkeypatch, *command, "card_step_mobilenetv2_320", "--missing")
    assert json.loads(file.read_text())["results"]["card_step_mobilenetv2_320"] == step
    run_benchmark(monkeypatch, *command[:-1], "--minutes", "0")
    assert "not begun: card_step_resnet50_800, card_step_resnet50_320, card_step_union" in capsys.readouterr().out
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            run_benchmark(monkeypatch, *command[:3])
        assert "torch sees no GPU here" in capsys.readouterr().err


def test_targets_of_a_card_are_judged_by_rows_of_a_card():
    """All of one card's results, made up; the same without a card; one that was not measured."""
    step, growth = {"ratio": 2.6, "first_seconds": 61.0}, [(1, 2.0), (5, 9.0), (20, 2.2), (50, 2.6)]
    round_of = {"pictures_per_second": 1.0, "graphs_after": 0, "busy": 0.9}
    training = {"second_over_first": 0.95, "medians": {"a": round_of, "b": {**round_of, "busy": 0.8}}}
    training |= {"rounds": {"a": [{"graphs_after": 7}], "b": [{"graphs_after": 0}, {"graphs_after": 0}]}}
    results = {
        "card_union": [{"datasets": n, "step_seconds": s} for n, s in growth],
        "card_loss": {"torchvision_over_crossdet": 4.0},
        "card_training": training,
        "card_training_compiled": training,
        "card_folder": {"folder": {"ratio": {"torchvision, DataLoader": 2.0}}},
        "card_detr_step": {"transformers_over_crossdet": 1.1},
    }
    results["card_union_float32"] = results["card_union"]
    results |= {one.name: step for one in bench.CARD if one.name.startswith("card_step")}

    def on(gpu: str | None) -> dict:
        return {
            name: [{**one, "gpu": gpu} for one in row] if isinstance(row, list) else {**row, "gpu": gpu}
            for name, row in results.items()
        }

    found = {name: bench.judged(target, on("a card")) for name, target in bench.CARD_TARGETS.items()}
    assert found["step_800"] == (2.6, "missed")
    assert found["step_320"] == (2.6, "met")
    assert found["union"] == (1.3, "missed")
    assert found["busy"] == (0.8, "missed")
    assert found["recompiled"] == (0, "met")
    assert found["start_up"] == (61, "missed")
    assert None not in found.values()
    assert all(bench.judged(target, on(None)) is None for target in bench.CARD_TARGETS.values())
    assert bench.judged(bench.CARD_TARGETS["busy"], {"card_training": None}) is None


def test_a_row_of_a_card_has_a_limit(tmp_path, monkeypatch):
    """It counts as failed, and the others go on."""

    def slow(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(bench.subprocess, "run", slow)
    result, text = bench.run(bench.CARD[0], tmp_path, quick=False)
    assert (result, text) == (None, "failed: not done after its limit of 120 s")
    assert all(one.limit for one in bench.CARD)
    assert all(one.limit <= 360 for one in bench.CARD)
