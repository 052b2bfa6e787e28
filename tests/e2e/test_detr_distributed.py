"""Set-prediction detectors on two processes of a CPU compute what one computes.

That is so of all that an image's loss consists of: its noise comes from its draw, its queries are chosen and
matched by itself, and only the number of objects to divide by is that of all processes. Batch norm that is trained
takes the statistics of a process's own pictures, by design, as in any training by torch's DDP; so a whole run is
compared with itself, resumed, and not with a run of one process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import two_detr_processes
from forks import ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.unit.models.detr.made import tiny

from crossdet import load_config
from crossdet.models.detr import building
from crossdet.models.weights import load_state

SCRIPT = Path(two_detr_processes.__file__)
LAST = 2  # the step whose second process has a picture without objects alone


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """With the files of both processes."""
    folder = tmp_path_factory.mktemp("distributed")
    building.write(tiny("dfine", 2, square=64, prior=0.1), ("car", "face"), folder / "zoo")
    few = {"datasets.cars.val": None, "datasets.faces.val": None, "train.lr": 0.001, "train.clip_norm": 0.1}
    model = {"model": {"name": "dfine", "weights": str(folder / "zoo")}}
    config = world.write_config(folder / "config.yaml", {**few, **model})
    done = ranks(2, SCRIPT, config, folder / "out")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(folder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of one process, and of both."""
    alone = two_detr_processes.compute(load_config(folder / "config.yaml"))
    return alone, [torch.load(folder / f"out_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", two_detr_processes.NETWORKS)
def test_gradients_and_weights_of_two_processes_are_those_of_one(results, name):
    alone, both = results[0][name], [part[name] for part in results[1]]
    for key, value in both[0]["weights"].items():
        assert torch.equal(value, both[1]["weights"][key]), key
    for kind in ("gradients", "weights"):
        for part in both:
            assert part[kind].keys() == alone[kind].keys()
            for key, value in part[kind].items():
                torch.testing.assert_close(value, alone[kind][key], rtol=1e-5, atol=1e-9, msg=key)
    assert sum(bool(gradient.any()) for gradient in alone["gradients"].values()) > 100


@pytest.mark.parametrize("name", two_detr_processes.NETWORKS)
def test_losses_of_two_processes_are_those_of_one(results, name):
    """Of every term, and of every dataset what is logged of it: loss, objects, and what the network notes."""
    alone, (first, second) = results[0][name], [part[name] for part in results[1]]
    assert [int(part["steps"][LAST]["of_images"]["positives"].sum() > 0) for part in (first, second)] == [1, 0]
    for one, *parts in zip(alone["steps"], first["steps"], second["steps"], strict=True):
        assert [len(part["datasets"]) for part in parts] != [len(one["datasets"])] * 2
        for term, value in one["terms"].items():  # DDP takes the mean of the processes
            mean = (parts[0]["terms"][term] + parts[1]["terms"][term]) / 2
            torch.testing.assert_close(mean, value, rtol=1e-7, atol=1e-9, msg=term)
        for key in one["of_images"]:
            sums = [torch.zeros(2).double(), torch.zeros(2).double()]
            for total, those in zip(sums, ([one], parts), strict=True):
                for part in those:
                    total.index_add_(0, part["datasets"], part["of_images"][key].double())
            torch.testing.assert_close(*sums, rtol=1e-7, atol=1e-9, msg=key)
            assert bool((sums[0] > 0).any())
        assert float(one["terms"]["classification"]) > 0.01


def test_a_training_by_two_processes_goes_on_as_if_it_had_not_ended(folder):
    """Weights and logs, bit for bit; noise of denoising is that of the draws, whoever draws them."""
    whole, resumed = (folder / f"out_{name}" for name in ("whole", "resumed"))
    logs = [json.loads((run / "metrics.json").read_text())["epochs"] for run in (whole, resumed)]
    assert logs[0] == logs[1]
    for record in logs[0]:
        assert {name: row["images"] for name, row in record["datasets"].items()} == {"cars": 12, "faces": 12}
        assert all(0 <= row["top_not_labelled"] <= 1 for row in record["datasets"].values())
    tags = EventAccumulator(str(whole / "tensorboard")).Reload().Tags()["scalars"]
    assert {"dataset/cars/top_not_labelled", "dataset/faces/top_not_labelled"} <= set(tags)
    one, other = (load_state(run / "state.pt") for run in (whole, resumed))
    assert one["progress"]["step"] == 12
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key]), key
    assert "denoising" in (whole / "steps.csv").read_text().splitlines()[0]
    rows = [
        [line.split(",")[:-2] for line in (run / "steps.csv").read_text().splitlines()]  # clocks have their own
        for run in (whole, resumed)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 13
