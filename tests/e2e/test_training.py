"""A whole training through the Python API, on the tiny world: what it leaves, what its options do."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from short_runs import STEPS_PER_EPOCH, run, same, steps, weights
from torch import Tensor

from crossdet import evaluate, load_config, train
from crossdet.config.sources import open_sources
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.runs.evaluate import Evaluation
from crossdet.training.optimiser import set_rate
from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Schedule

# ----------------------------------------------------------------------------------- what a run leaves


def test_boxes_that_no_anchor_reaches_are_told(world, tmp_path, crossdet):
    """By the command alone, before its first step: they are the commonest reason why a class is not found."""
    changes = {"model.anchors": {"scales": [40], "ratios": [1]}, "train.max_steps": 1}
    file = world.write_config(tmp_path / "c.yaml", changes)
    done = crossdet("train", file, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "warning: cars train: anchors reach only 0% of the boxes with IoU >= 0.5" in done.stdout
    assert "warning: faces train: anchors reach only 0% of the boxes with IoU >= 0.5" in done.stdout


def test_a_share_of_the_training_pictures_is_validated_on(world, tmp_path):
    """`val: 1/4` in place of files: the run's own config holds it, and is read again by eval and by resume."""
    changes = {f"datasets.{name}.val": "1/4" for name in ("cars", "faces")} | {"train.epochs": 1}
    train(world.config(changes), output=tmp_path / "run")
    config = load_config(tmp_path / "run/config.yaml")
    sources = open_sources(config)
    for name, whole in (("cars", world.cars["train"]), ("faces", world.faces["train"])):
        names = {split: set(getattr(sources, split)[name].names) for split in ("train", "val")}
        assert names["train"] | names["val"] == set(whole.names)
        assert not names["train"] & names["val"]
        assert names["val"]
    scored = evaluate(tmp_path / "run", config)["datasets"]
    assert {name: row["images"] for name, row in scored.items()} == {n: len(i) for n, i in sources.val.items()}


def test_run_directory_is_complete(trained):
    files = {path.name for path in trained.folder.iterdir()}
    assert files == {
        "config.yaml",
        "model.safetensors",
        "best.safetensors",
        "state.pt",
        "metrics.json",
        "steps.csv",
        "pictures",
        "tensorboard",
    }
    assert any("tfevents" in path.name for path in (trained.folder / "tensorboard").iterdir())


def test_config_in_the_run_is_resolved_and_loads_again(trained, world):
    loaded = load_config(trained.folder / "config.yaml")
    wanted = world.config(trained.settings)
    assert loaded.model_copy(update={"output": None}) == wanted
    raw = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert raw["train"]["warmup_factor"] == 0.001  # the defaults are written out


def test_weights_carry_what_predicting_needs(trained):
    with safe_open(trained.folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert LabelSpace.from_json(metadata["labels"]).classes == ("car", "face")
    settings = RetinaNetSettings.from_json(metadata["model"])
    assert (settings.channels, settings.anchors.scales) == (16, (2.0, 3.0))
    assert json.loads(metadata["input"]) == {"shorter": 64, "longer": 96}
    model = build_detector(settings, 2)
    model.load_state_dict(weights(trained.folder))  # strict


def test_state_is_read_without_running_code(trained):
    state = torch.load(trained.folder / "state.pt", weights_only=True)
    assert state["progress"]["finished"] is True
    assert state["progress"]["step"] == 16 * STEPS_PER_EPOCH
    momentum = state["optimizer"]["state"]
    assert momentum
    assert all(float(entry["momentum_buffer"].abs().sum()) > 0 for entry in momentum.values())


def test_metrics_are_valid_json_with_null_for_undefined_numbers(trained):
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    metrics = json.loads((trained.folder / "metrics.json").read_text(), parse_constant=no_constant)
    epochs = metrics["epochs"]
    assert [record["epoch"] for record in epochs] == list(range(1, 17))
    assert [i for i, record in enumerate(epochs, 1) if "metrics" in record] == [8, 16]  # eval_every
    last = epochs[-1]["metrics"]
    cars = last["datasets"]["cars"]
    assert cars["APl"] is None  # there is no large car
    assert math.isnan(trained.record["metrics"]["datasets"]["cars"]["APl"])
    assert cars["AP"] == trained.record["metrics"]["datasets"]["cars"]["AP"]
    aps = [last["datasets"][name]["AP"] for name in ("cars", "faces")]
    assert last["mean"] == pytest.approx(sum(aps) / 2)
    assert metrics["best"] == max(record["metrics"]["mean"] for record in epochs if "metrics" in record)


def test_every_dataset_is_logged_every_epoch(trained):
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    for record in metrics["epochs"]:
        assert set(record["datasets"]) == {"cars", "faces"}
        for row in record["datasets"].values():
            assert row["images"] == 12  # an epoch draws every image once
            assert row["positives"] >= 12
            assert 0 < row["loss"] < 100


def test_dataset_sums_equal_the_steps_of_an_epoch(trained):
    """The loss per dataset and the loss per step are two groupings of the same terms; steps are normalised by
    their positives, so with equal weights both means lie close together."""
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    rows = steps(trained.folder)
    for record in metrics["epochs"]:
        of_epoch = [float(row["loss"]) for row in rows if int(row["epoch"]) == record["epoch"]]
        parts = record["datasets"].values()
        total = sum(p["loss"] * p["positives"] for p in parts) / sum(p["positives"] for p in parts)
        assert total == pytest.approx(sum(of_epoch) / len(of_epoch), rel=0.25)


def test_steps_table(trained):
    rows = steps(trained.folder)
    assert [int(row["step"]) for row in rows] == list(range(1, 16 * STEPS_PER_EPOCH + 1))
    assert float(rows[0]["lr"]) == pytest.approx(0.02 * 0.001)  # the warm-up starts at warmup_factor
    assert float(rows[-1]["lr"]) == pytest.approx(0.02)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["classification"]) + float(row["box"]))
        assert float(row["images_per_second"]) > 0
        assert row["gradient_norm"] == ""


def test_loss_falls_and_both_classes_are_found(trained):
    losses = [float(row["loss"]) for row in steps(trained.folder)]
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    scores = trained.record["metrics"]["datasets"]
    assert scores["cars"]["AP50"] > 0.5
    assert scores["faces"]["AP50"] > 0.5


def test_progress_is_printed(trained):
    lines = trained.printed.splitlines()
    assert sum("images/s" in line and " left" in line for line in lines) == 16 * STEPS_PER_EPOCH
    assert sum(" positives, loss " in line for line in lines) == 32
    assert sum(line.startswith("evaluation, ") for line in lines) == 2


def test_scores_of_the_run_are_those_of_its_weights(trained, world):
    again = evaluate(trained.folder, world.config())
    assert again["mean"] == pytest.approx(trained.record["metrics"]["mean"], abs=1e-6)


@pytest.mark.parametrize(("means", "kept"), [([0.1, 0.9, 0.3], 2), ([math.nan, 0.0, 0.0], 2), ([0.5, 0.6, 0.7], 3)])
def test_best_weights_are_those_of_the_best_evaluation(world, tmp_path, monkeypatch, means, kept):
    """Of three epochs the one with the best mean is kept; the first of equals; NaN is never the best."""
    seen: list[dict[str, Tensor]] = []

    def scores(model, *_: Any, **__: Any) -> Evaluation:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        mean = means[len(seen) - 1]
        record = {"protocol": "coco", "AP": mean, "per_class": {}, "images": 0, "unreadable": []}
        return Evaluation({"mean": mean, "datasets": {"cars": record}}, {}, {})

    monkeypatch.setattr("crossdet.runs.evaluate.score_splits", scores)
    run(world, tmp_path / "run", {"train.epochs": 3, "train.max_steps": None, "train.batch_size": 8})
    assert same(weights(tmp_path / "run", "best.safetensors"), seen[kept - 1])
    assert same(weights(tmp_path / "run"), seen[2])
    assert not same(seen[0], seen[1])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["best"] == means[kept - 1]


# ------------------------------------------------------------------------------------------ the options


def test_same_seed_same_weights_other_seed_other_weights(world, short, tmp_path):
    run(world, tmp_path / "same")
    run(world, tmp_path / "other", {"seed": 1})
    assert same(weights(short), weights(tmp_path / "same"))
    assert not same(weights(short), weights(tmp_path / "other"))


def test_plain_trusts_the_background_of_every_dataset(world, short, tmp_path):
    """Naive concatenation has more negatives: the same first batch costs more, and the weights differ."""
    run(world, tmp_path / "plain", {"train.plain": True})
    aware, plain = steps(short)[0], steps(tmp_path / "plain")[0]
    assert float(plain["classification"]) > float(aware["classification"])
    # equal but for the order of the images: those that trust the same classes stand side by side
    assert float(plain["box"]) == pytest.approx(float(aware["box"]), rel=1e-6)
    assert not same(weights(short), weights(tmp_path / "plain"))


def test_ema_is_the_running_average_of_the_weights(world, short, tmp_path):
    """The file holds the average, the state both; one step back and the newest weights give the average."""
    decay = 0.05  # below (1 + 1) / (10 + 1), to which it is bounded after one update
    run(world, tmp_path / "one", {"train.max_steps": 1})
    run(world, tmp_path / "two", {"train.max_steps": 2})
    run(world, tmp_path / "ema", {"train.max_steps": 2, "train.ema": decay})
    first, second, average = (weights(tmp_path / name) for name in ("one", "two", "ema"))
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, decay * first[name] + (1 - decay) * second[name], rtol=1e-4, atol=1e-6
            )
    state = torch.load(tmp_path / "ema" / "state.pt", weights_only=True)
    assert same(state["model"], second)  # training itself is not changed by averaging
    assert not same(average, second)


def test_a_small_last_batch_takes_a_small_step(world, tmp_path, monkeypatch):
    """Three quarters of the images make the first batches: the rest has the same rate per image. What is logged is
    the rate of a full batch, which the schedule says; a saw's teeth are no schedule."""
    taken = []
    monkeypatch.setattr(
        "crossdet.training.loop.set_rate", lambda optimizer, rate: taken.append(rate) or set_rate(optimizer, rate)
    )
    images = len(world.cars["train"]) + len(world.faces["train"])
    size = images // 2 + 1
    changes = {"train.batch_size": size, "train.warmup_epochs": 0, "train.lr": 0.01, "train.max_steps": 2}
    run(world, tmp_path / "run", {**changes, "train.group_aspect": False, "train.log_every": 1})
    rates = [float(row["lr"]) for row in steps(tmp_path / "run")]
    assert taken == pytest.approx([0.01, 0.01 * (images - size) / size])
    assert rates == [0.01, 0.01]


def test_accumulation_counts_a_batch_in_parts(world, short, tmp_path):
    """4 micro-batches of one picture are one step of 4, not four: with the losses and weights of one batch, though
    the pictures have from one to several objects."""
    frozen = {"model.freeze_batch_norm": True}
    run(world, tmp_path / "whole", frozen)
    run(world, tmp_path / "parts", {**frozen, "train.accumulate": 4})
    whole, parts = steps(tmp_path / "whole"), steps(tmp_path / "parts")
    assert [row["step"] for row in parts] == ["1", "2", "3"]
    assert [row["lr"] for row in parts] == [row["lr"] for row in whole]
    assert [float(row["loss"]) for row in parts] == pytest.approx([float(row["loss"]) for row in whole], rel=1e-4)
    for name, wanted in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], wanted, rtol=1e-3, atol=1e-5)
    with (tmp_path / "parts" / "metrics.json").open() as file:
        datasets = json.load(file)["epochs"][0]["datasets"]
    assert sum(row["images"] for row in datasets.values()) == 12


def test_clipping_limits_the_step(world, short, tmp_path):
    run(world, tmp_path / "clipped", {"train.clip_norm": 0.01, "train.max_steps": 1, "train.warmup_epochs": 0})
    run(world, tmp_path / "free", {"train.clip_norm": 1e9, "train.max_steps": 1, "train.warmup_epochs": 0})
    torch.manual_seed(0)
    norm = float(steps(tmp_path / "free")[0]["gradient_norm"])
    assert norm > 0.1
    assert float(steps(tmp_path / "clipped")[0]["gradient_norm"]) == pytest.approx(norm)  # before clipping
    # both started from the same weights w: (w_free - w_clipped) = lr g (0.01 / norm - 1), so the bias of a
    # layer that starts at zero has moved by the same ratio
    name = "box_subnet.predict.bias"
    free, clipped = weights(tmp_path / "free")[name], weights(tmp_path / "clipped")[name]
    assert float(free.abs().max()) > 0
    torch.testing.assert_close(clipped, free * (0.01 / norm), rtol=1e-3, atol=1e-9)


def test_max_steps_ends_the_run_inside_an_epoch(short):
    assert len(steps(short)) == 3
    epochs = json.loads((short / "metrics.json").read_text())["epochs"]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, 3)]
    assert "metrics" in epochs[0]  # the last epoch is evaluated
    assert sum(row["images"] for row in epochs[0]["datasets"].values()) == 12


def test_max_steps_in_a_later_epoch(world, tmp_path):
    run(world, tmp_path / "run", {"train.max_steps": 8, "train.log_every": 4})
    assert [row["step"] for row in steps(tmp_path / "run")] == ["4", "6", "8"]  # every 4th and an epoch's last


def test_learning_rate_schedule():
    def learning_rate(schedule, epoch):
        return schedule.rate(epoch, 0, 0.0)

    paper = Schedule.of(Recipe(recipe="paper"), 1000)
    assert learning_rate(paper, 0) == pytest.approx(0.04 * 0.001)
    assert learning_rate(paper, 1) == pytest.approx(0.04 * (0.001 + 0.999 / 2))
    assert learning_rate(paper, 2) == pytest.approx(0.04)
    assert learning_rate(paper, 9.999) == pytest.approx(0.04)
    assert learning_rate(paper, 10) == pytest.approx(0.004)
    assert learning_rate(paper, 15) == pytest.approx(0.0004)
