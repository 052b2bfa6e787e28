"""Two processes on the CPU compute what one computes, and `crossdet train` runs under torchrun."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from forks import TIMEOUT, free_port, ranks
from worlds import one_thread

from crossdet import evaluate, load_config, train

SCRIPT = Path(two_processes.__file__)


def torchrun(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
         "--master-addr=127.0.0.1", f"--master-port={free_port()}", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT, check=False, env=one_thread(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(world, tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes -> what each of them wrote."""
    folder = tmp_path_factory.mktemp("distributed")
    config = world.write_config(folder / "config.yaml", {"model.freeze_batch_norm": True})
    done = ranks(2, SCRIPT, config, folder / "out")
    assert done.returncode == 0, done.stderr
    both = [torch.load(folder / f"out_{rank}.pt", weights_only=True) for rank in range(2)]
    return {1: [two_processes.compute(load_config(config))], 2: both}


def test_the_global_batch_is_split_unevenly_and_completely(results):
    assert [part["images"] for part in results[1]] == [3]
    assert [part["images"] for part in results[2]] == [2, 1]
    positives = [part["positives"] for part in results[2]]
    assert positives[0] != positives[1]  # a mean of the processes' own means would be another number
    assert sum(positives) == results[1][0]["positives"]


def test_gradients_of_two_processes_equal_those_of_one(results):
    (alone,), both = results[1], results[2]
    for key in ("gradients", "by_image", "in_parts"):
        for part in both:
            assert part[key].keys() == alone[key].keys()
            for name, gradient in part[key].items():
                torch.testing.assert_close(gradient, alone[key][name], rtol=1e-5, atol=1e-9, msg=name)
        assert all(float(g.abs().max()) > 0 for g in alone[key].values())
    bias = "class_subnet.predict.bias"
    assert not torch.allclose(alone["gradients"][bias], alone["by_image"][bias], rtol=1e-2)


def test_weights_after_three_steps_are_equal_everywhere(results):
    (alone,), (first, second) = results[1], results[2]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        torch.testing.assert_close(value, alone["weights"][name], rtol=1e-5, atol=1e-9, msg=name)
    assert not torch.equal(alone["weights"]["class_subnet.predict.bias"][:1], torch.tensor([-4.59511985]).double())


@pytest.mark.parametrize("processes", [1, 2])
def test_the_whole_network_runs_in_bf16_under_bf16_mixed(results, processes):
    """Everything that goes through the wrapped forward is under autocast; losses and gradients stay float32."""
    for part in results[processes]:
        assert part["world_size"] == processes
        assert part["dtypes"] == {
            "class_subnet": "torch.bfloat16",
            "box_subnet": "torch.bfloat16",
            "backbone": "torch.bfloat16",
            "loss": "torch.float32",
            "boxes": "torch.float32",
            "gradient": "torch.float32",
        }


def test_crossdet_train_under_torchrun(world, tmp_path):
    """Two processes, one run directory; evaluation sees every image and scores as one process does."""
    config = world.write_config(
        tmp_path / "config.yaml", {"train.epochs": 3, "train.eval_every": 0, "eval.score_threshold": 0.001}
    )
    folder = tmp_path / "runs" / "run"
    script = tmp_path / "crossdet_main.py"
    script.write_text("from crossdet.commands.main import main\nmain()\n")
    done = torchrun(2, script, "train", config, "--output", folder, "--json", tmp_path / "numbers.json")
    assert done.returncode == 0, done.stderr
    assert os.listdir(folder.parent) == ["run"]  # noqa: PTH208
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert done.stdout.count("evaluation, last") == 1
    assert done.stdout.count("done: ") == 1
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    assert len(epochs) == 3
    for record in epochs:
        assert {name: row["images"] for name, row in record["datasets"].items()} == {"cars": 12, "faces": 12}
    metrics = epochs[-1]["metrics"]
    assert json.loads((tmp_path / "numbers.json").read_text())["metrics"] == metrics
    alone = evaluate(folder, load_config(config))
    for name in ("cars", "faces"):
        have, want = metrics["datasets"][name], alone["datasets"][name]
        assert have["images"] == want["images"] == 5
        # scores that differ by rounding change places; a lost half of the images would halve the recall
        assert have["AR100"] == pytest.approx(want["AR100"], rel=0.05), name
        assert have["AP"] == pytest.approx(want["AP"], abs=0.005), name
        assert have["AR100"] > 0.1


def test_the_logged_loss_is_that_of_all_processes(world, tmp_path):
    """The first step on one global batch: two processes log what one process logs."""
    changes = {"train.max_steps": 1, "model.freeze_batch_norm": True, "datasets.cars.val": None}
    config = world.write_config(tmp_path / "config.yaml", {**changes, "datasets.faces.val": None})
    done = ranks(2, "-m", "crossdet", "train", config, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    train(load_config(config), output=tmp_path / "one")
    for column in ("loss", "classification", "box"):
        one, two = (
            float(next(csv.DictReader((tmp_path / run / "steps.csv").open()))[column]) for run in ("one", "two")
        )
        assert two == pytest.approx(one, rel=1e-4), column


def test_a_process_that_fails_ends_the_others(world, tmp_path):
    config = world.write_config(tmp_path / "config.yaml", {"train.devices": 2})
    script, file = SCRIPT.with_name("one_fails.py"), tmp_path / "other"
    done = subprocess.run(
        [sys.executable, script, config, file],
        capture_output=True, text=True, timeout=TIMEOUT, check=False, env=one_thread(),
    )  # fmt: skip
    assert done.returncode == 1
    assert "no space left on device" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
