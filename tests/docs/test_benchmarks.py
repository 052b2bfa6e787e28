"""The benchmarks run at a small size, with their own checks of equal numbers."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch

from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings

from .scripts import BENCHMARKS, run_benchmark

sys.path.insert(0, str(BENCHMARKS))

import bench
import union

CARD_ROW = "card_step_mobilenetv2_320"
SMALL = "--datasets 3 --classes 5 --batch 2 --size 64 64 --backbone resnet18 --steps 1"


@pytest.fixture
def make_bench(monkeypatch, tmp_path):
    """As `python benchmarks/bench.py ARGUMENTS --output tmp_path`; its benchmarks are forks."""

    def forked(command, timeout, env):
        return forks.run(command, capture_output=True, text=True, check=False, env=env, timeout=timeout or 240)

    monkeypatch.setattr(bench, "run_group", forked)

    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["bench.py", "--output", str(tmp_path), *options])
        bench.main()

    return run


def unrun(*_: object) -> None:
    raise AssertionError("a benchmark was run")


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


def test_report_of_all_benchmarks(tmp_path, make_bench, capsys):
    """Step and floor at a tiny size, in processes of their own; targets of what was not run are left out."""
    make_bench("--quick", "--only", "step_mobilenetv2", "floor_mobilenetv2")
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
        make_bench("--quick", "--only", "nothing")
    assert "no benchmark nothing" in capsys.readouterr().err


def test_rows_of_a_card(tmp_path, make_bench, monkeypatch, capsys):
    """They run on a CPU with `--quick`, where no target of a card is judged, and go on where they ended."""
    command = ("--rows", "card", "--quick")
    make_bench(*command, "--only", CARD_ROW)
    file = tmp_path / "quick/bench_gpu.json"
    step = json.loads(file.read_text())["results"][CARD_ROW]
    assert (step["labelled"], step["compiled_for"], step["ours_form"][:8]) == (False, None, "bfloat16")
    if step["gpu"] is None:
        assert "MobileNetV2, 320x416, batch 16" not in (tmp_path / "quick/bench_gpu.md").read_text()
    # it is there: nothing runs, and what is there is kept
    monkeypatch.setattr(bench, "run", unrun)
    make_bench(*command, "--only", CARD_ROW, "--missing")
    assert json.loads(file.read_text())["results"][CARD_ROW] == step
    make_bench(*command, "--minutes", "1", "--missing")
    assert "never begun with --minutes 1: card_step_resnet50_800, whose limit is 120 s" in capsys.readouterr().out
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            make_bench("--rows", "card")
        assert "torch sees no GPU here" in capsys.readouterr().err


def test_the_load_before_is_rounded(monkeypatch):
    """It stands in a report."""
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (0.1796875, 0.0, 0.0))
    assert bench.machine(gpu=False)["load_before"] == 0.18


def test_only_what_ends_in_time_is_begun(make_bench, monkeypatch, capsys):
    """Minutes 5 of rows that take half of their limits: what does not fit is passed over, also for good."""
    limits = {"a": 240.0, "b": 200.0, "c": 90.0, "d": 300.0, "e": 100.0}
    monkeypatch.setattr(bench, "CARD", [bench.Benchmark(name, (), (), limit) for name, limit in limits.items()])
    clock, begun = SimpleNamespace(now=1000.0), []

    def run(benchmark, *_):
        begun.append((benchmark.name, clock.now - 1000))
        clock.now += benchmark.limit / 2
        return {}, ""

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: clock.now))
    make_bench("--rows", "card", "--quick", "--minutes", "5")
    assert begun == [("a", 0), ("c", 120), ("e", 165)]
    out = capsys.readouterr().out
    assert "not begun: b; the same command with --missing goes on\n" in out
    assert "never begun with --minutes 5: d, whose limit is 300 s\n" in out


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
    """It counts as failed, unless it has written something; the others go on."""
    wrote = None

    def slow(command, timeout, env):
        if wrote is not None:
            Path(command[-1]).write_text(json.dumps(wrote))
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(bench, "run_group", slow)
    row = bench.CARD[0]
    assert bench.run(row, tmp_path, quick=False) == (None, "failed: not done after its limit of 120 s")
    wrote = {"ratio": 2}
    result, text = bench.run(row, tmp_path, quick=False)
    assert result == json.loads((tmp_path / f"{row.name}.json").read_text()) == wrote
    assert "not done after its limit of 120 s; the JSON has what was measured until then" in text
    assert (tmp_path / f"{row.name}.txt").read_text() == f"{text}\n"
    assert bench._is_cut_off(tmp_path / f"{row.name}.json")  # `--missing` runs it again, behind the others
    assert bench._cut_off([row.name], tmp_path) == [
        f"ended at their limit: {row.name}; --missing runs them again, behind the others"
    ]
    (tmp_path / f"{row.name}.txt").write_text("all of it\n")
    assert not bench._is_cut_off(tmp_path / f"{row.name}.json")
    assert not bench._is_cut_off(tmp_path / "never_run.json")
    assert all(one.limit and one.limit <= 360 for one in bench.CARD)


def test_what_a_failed_row_had_written_is_no_result(tmp_path, monkeypatch):
    """Else `--missing` would not run it again."""

    def failing(command, timeout, env):
        Path(command[-1]).write_text("{}")
        return subprocess.CompletedProcess(command, 1, "", "out of memory")

    monkeypatch.setattr(bench, "run_group", failing)
    row = bench.CARD[0]
    assert bench.run(row, tmp_path, quick=False) == (None, "failed:\nout of memory")
    assert not (tmp_path / f"{row.name}.json").exists()


SLEEPER = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
file = pathlib.Path(sys.argv[1])
file.with_suffix(".new").write_text(str(child.pid))
file.with_suffix(".new").rename(file)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Within some seconds, or dead and not yet buried by its new parent."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", ["limit", "SIGINT", "SIGTERM"])
def test_what_ends_a_row_ends_all_of_its_processes(tmp_path, monkeypatch, end):
    """Also the process that a benchmark measures in, and workers; they would keep the card."""
    script, file = tmp_path / "sleeper.py", tmp_path / "pid"
    script.write_text(SLEEPER)
    row = bench.Benchmark("sleeper", (str(script), str(file)), (), 3.0 if end == "limit" else 60.0)
    monkeypatch.setattr(bench, "CARD", [row])
    before = signal.getsignal(signal.SIGTERM)
    foreground = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it

    def stop() -> None:
        while not file.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, end))

    if end == "limit":
        assert bench.run(row, tmp_path, quick=False)[0] is None
    else:
        threading.Thread(target=stop, daemon=True).start()
        try:
            with pytest.raises(KeyboardInterrupt if end == "SIGINT" else SystemExit):
                bench.run(row, tmp_path, quick=False)
        finally:
            signal.signal(signal.SIGINT, foreground)
    assert gone(int(file.read_text()))
    assert signal.getsignal(signal.SIGTERM) == before
