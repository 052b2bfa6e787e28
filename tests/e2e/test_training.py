"""A whole training through the Python API, and every rule of the run directory, on the tiny world."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from crossdet import Config, RunError, UserError, evaluate, load_config, load_detector, train
from crossdet.config.sources import open_sources
from crossdet.data.index import NO_LABELS
from crossdet.data.loading import collate, epoch_batches
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import load_weights
from crossdet.runs.building import build_fabric, network_settings, training_data
from crossdet.runs.evaluate import Evaluation
from crossdet.training.loop import Sealed, TrainStep
from crossdet.training.optimiser import set_rate
from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Schedule
from crossdet.training.state import RunState

STEPS_PER_EPOCH = 6


def run(world, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return train(world.config({"train.max_steps": 3, **(changes or {})}), output=folder, **options)


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_weights(folder / name)[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(folder: Path) -> list[dict[str, str]]:
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def short(world, tmp_path_factory) -> Path:
    """Three steps with the defaults of `world`; what options change is measured against it."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(world, folder)
    return folder


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
    """2 micro-batches of 2 are one step of 4 (each normalised by its own positives), not two steps."""
    frozen = {"model.freeze_batch_norm": True}
    run(world, tmp_path / "whole", frozen)
    run(world, tmp_path / "parts", {**frozen, "train.accumulate": 2})
    whole, parts = steps(tmp_path / "whole"), steps(tmp_path / "parts")
    assert [row["step"] for row in parts] == ["1", "2", "3"]
    assert [row["lr"] for row in parts] == [row["lr"] for row in whole]
    assert float(parts[0]["loss"]) == pytest.approx(float(whole[0]["loss"]), rel=0.3)
    assert float(parts[0]["loss"]) != float(whole[0]["loss"])
    with (tmp_path / "parts" / "metrics.json").open() as file:
        datasets = json.load(file)["epochs"][0]["datasets"]
    assert sum(row["images"] for row in datasets.values()) == 12


def test_accumulated_gradient_is_the_mean_over_micro_batches(world):
    """What a step of two micro-batches adds up, computed by hand from two separate backward passes."""
    config = world.config({"model.freeze_batch_norm": True})
    parts = []
    for loop in ("together", "apart"):
        torch.manual_seed(0)
        model, batch_a, batch_b = small_step(config)
        gradients = []
        for batch in (batch_a, batch_b):
            terms, *_ = model(Sealed(batch))
            (sum(terms.values()) / (2 if loop == "together" else 1)).backward()
            if loop == "apart":
                gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
                model.zero_grad()
        if loop == "together":
            parts.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        else:
            parts.append([(a + b) / 2 for a, b in zip(*gradients, strict=True)])
    for together, apart in zip(*parts, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


def small_step(config: Config):
    sources = open_sources(config, ["train"])
    dataset = training_data(config, sources)
    batches = epoch_batches(dataset.sizes(), dataset.draw_weights(), 2, 0, 0)
    detector = build_detector(network_settings(config), 2, None, config.model.weights)
    detector.train()
    return TrainStep(detector), *(collate([dataset[d] for d in batch]) for batch in batches[:2])


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


# ------------------------------------------------------------------------------------ the run directory


def test_a_run_is_not_mixed_with_another(world, short, tmp_path):
    before = (short / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run; continue it with --resume.*--overwrite"):
        run(world, short)
    assert (short / "model.safetensors").read_bytes() == before


def test_overwrite_replaces_a_run(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    (folder / "notes.txt").write_text("old")
    run(world, folder, {"train.max_steps": 1}, overwrite=True)
    assert len(steps(folder)) == 1
    assert not (folder / "notes.txt").exists()


def test_overwrite_deletes_nothing_that_is_no_run(world, tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match="is no run directory; it is not deleted"):
        run(world, folder, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        run(world, folder / "thesis.tex", overwrite=True)
    assert (folder / "thesis.tex").read_text() == "ten years"


def test_a_mistake_costs_neither_the_old_run_nor_the_new_name(world, short, tmp_path):
    """A config that cannot be built leaves the run it should replace, and no half-made one."""
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    wrong = {"model.backbone": "no_such_backbone"}
    with pytest.raises(UserError, match="no_such_backbone"):
        run(world, folder, wrong, overwrite=True)
    assert same(weights(folder), weights(short))
    with pytest.raises(UserError, match="no_such_backbone"):
        run(world, tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()


def test_resume_refuses_another_config_and_names_the_key(world, short):
    with pytest.raises(
        UserError, match=r"another config; differing: train\.lr, loss\.gamma|loss\.gamma, train\.lr"
    ):
        run(world, short, {"train.lr": 0.5, "loss.gamma": 1.0}, resume=True)


def test_a_key_that_is_newer_than_the_run_had_its_default(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    del written["train"]["group_aspect"]
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match="nothing to resume"):
        run(world, folder, resume=True)
    with pytest.raises(UserError, match=r"another config; differing: train\.group_aspect"):
        run(world, folder, {"train.group_aspect": False}, resume=True)


def test_resume_of_a_finished_run_says_so(world, short):
    with pytest.raises(UserError, match="this run is finished; there is nothing to resume"):
        run(world, short, resume=True)
    # keys that change nothing may differ
    with pytest.raises(UserError, match="finished"):
        run(world, short, {"train.workers": 1, "train.log_every": 7, "eval.batch_size": 2}, resume=True)


def test_a_run_goes_on_where_its_data_have_moved(world, tmp_path):
    """The same weights as where they stayed; other labels there are refused by their content."""
    few = {"datasets.cars.part": "1/2", "train.epochs": 1, "train.eval_every": 0}
    train(world.config(few), output=tmp_path / "stayed")
    shutil.copytree(tmp_path / "stayed", tmp_path / "run")
    moved = replace(world, root=tmp_path / "elsewhere")
    shutil.copytree(world.root, moved.root)
    train(world.config(few | {"train.epochs": 2}), output=tmp_path / "stayed", resume=True)
    train(moved.config(few | {"train.epochs": 2}), output=tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "stayed"))
    assert str(moved.root) in (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(UserError, match=r"differing: train\.lr\. Resume"):
        train(moved.config(few | {"train.epochs": 3, "train.lr": 0.5}), output=tmp_path / "run", resume=True)
    written = (tmp_path / "run/config.yaml").read_text()
    picture = moved.root / "cars/train_0.png"
    kept = picture.read_bytes()
    picture.write_bytes(kept + b" ")
    with pytest.raises(UserError, match=r"1 of \d+ pictures are other files, such as train_0\.png \([\d,]+ bytes"):
        train(moved.config(few | {"train.epochs": 3}), output=tmp_path / "run", resume=True)
    picture.write_bytes(kept)
    labels = moved.root / "cars_train.json"
    content = json.loads(labels.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 0.5
    labels.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be resumed, it would go on with something else"):
        train(moved.config(few | {"train.epochs": 3}), output=tmp_path / "run", resume=True)
    assert (tmp_path / "run/config.yaml").read_text() == written  # a refusal changes nothing


def test_a_finished_run_goes_on_for_more_epochs(world, tmp_path, capsys):
    """The rate does not depend on the number of epochs here: as if it had been trained for two at once."""
    few = {"datasets.cars.val": None, "datasets.faces": None, "datasets.cars.part": "1/2", "train.epochs": 1}
    more = few | {"train.epochs": 2}
    train(world.config(few), output=tmp_path / "run")
    with pytest.raises(UserError, match="there is nothing to resume"):
        train(world.config(few), output=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"differing: train\.lr\. Resume"):  # the epochs are no mistake beside it
        train(world.config(more | {"train.lr": 0.5}), output=tmp_path / "run", resume=True)
    train(world.config(more), output=tmp_path / "run", resume=True)
    assert (
        "train.epochs: 1 -> 2, as if it had begun with 2: its learning rates are the same"
        in capsys.readouterr().out
    )
    train(world.config(more), output=tmp_path / "whole")
    assert [row["step"] for row in steps(tmp_path / "run")] == [row["step"] for row in steps(tmp_path / "whole")]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"differing: train\.epochs"):  # fewer are not what was trained
        train(world.config(few), output=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"differing: train\.epochs, train\.max_steps"):
        train(world.config(more | {"train.epochs": 3, "train.max_steps": 99}), output=tmp_path / "run", resume=True)


def test_resume_without_a_state_starts_at_the_beginning(world, short, tmp_path):
    run(world, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), weights(short))


def test_resume_with_a_damaged_state_says_so(world, short, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    state = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.raises(UserError, match=r"training state .*state\.pt cannot be read"):
        run(world, folder, resume=True)


# ----------------------------------------------------------------------------------------------- data


def test_indexes_from_python_train_as_their_files(world, short, tmp_path):
    settings = world.settings()
    settings["train"]["max_steps"] = 3
    settings["datasets"] = {
        "cars": {"train": world.cars["train"], "val": world.cars["val"]},
        "faces": {"train": world.faces["train"], "val": world.faces["val"]},
    }
    train(Config.from_dict(settings), output=tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(short))
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "an index of 12 images, given from Python" in text


def test_what_may_become_background_by_mistake_is_told(world, tmp_path, capsys):
    """By `train`, too: not everybody calls `check` first."""
    settings = world.settings()
    settings["train"]["max_steps"] = 1
    faces = replace(world.faces["train"], classes=("Cars",))
    unlabelled = replace(world.cars["train"], skipped={NO_LABELS: ["street.jpg"]})
    settings["datasets"] = {"cars": {"train": unlabelled}, "faces": {"train": faces}}
    train(Config.from_dict(settings), output=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "warning: cars train: 1 images have no label file, such as street.jpg, and count as pictures" in printed
    assert "warning: likely the same class, not merged: cars/car and faces/Cars" in printed


def test_without_val_there_are_no_scores(world, tmp_path):
    folder = tmp_path / "run"
    record = run(world, folder, {"datasets.cars.val": None, "datasets.faces.val": None})
    assert "metrics" not in record
    assert not (folder / "best.safetensors").exists()
    assert json.loads((folder / "metrics.json").read_text())["best"] is None
    assert load_detector(folder).classes == ("car", "face")


def test_short_epochs_do_not_all_write(world, tmp_path, monkeypatch):
    written, save = [], RunState.save_state
    monkeypatch.setattr(RunState, "save_state", lambda run: (written.append(run.progress.step), save(run)))
    monkeypatch.setattr("crossdet.training.loop.STEPS_APART", 7)
    changes = {"train.max_steps": 23, "train.epochs": 4}
    run(world, tmp_path / "run", changes | {"datasets.cars.val": None, "datasets.faces.val": None})
    assert written == [6, 18, 23, 23]  # the first epoch, the third (12 is too early), the last, and the end


def test_val_of_one_dataset_only(world, tmp_path):
    record = run(world, tmp_path / "run", {"datasets.faces.val": None, "train.max_steps": 1})
    assert set(record["metrics"]["datasets"]) == {"cars"}


def test_config_without_train_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no dataset of the config has a `train` split"):
        run(world, tmp_path / "run", {"datasets.cars.train": None, "datasets.faces.train": None})


def test_too_few_images_for_the_processes(world):
    dataset = training_data(world.config(), open_sources(world.config()))
    with pytest.raises(UserError, match="24 training images are too few for 25"):
        epoch_batches(dataset.sizes(), dataset.draw_weights(), 4, 0, 0, min_batch=25)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_and_named_once(world, tmp_path, capsys, workers):
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    broken = root / "cars" / "train_3.png"
    broken.write_bytes(broken.read_bytes()[:150])
    changes = {
        "train.max_steps": 2 * STEPS_PER_EPOCH,
        "train.workers": workers,
        "datasets.cars.train.images": str(root / "cars"),
    }
    record = run(world, tmp_path / "run", changes)
    lines = [line for line in capsys.readouterr().out.splitlines() if "another image takes its place" in line]
    assert len(lines) == 1  # though both epochs drew it
    assert "train_3.png" in lines[0]
    assert record["datasets"]["cars"]["images"] == 12  # the epoch stays complete
    assert record["unreadable"] == 1


def test_a_part_without_readable_images_stops_the_run(world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(world.root, root)
    for file in (root / "cars").glob("train_*.png"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"12 images in a row cannot be read, the last one: .*the file is empty"):
        run(world, tmp_path / "run", {"datasets.cars.train.images": str(root / "cars")})


def test_no_other_accelerator_is_taken_unasked(world, monkeypatch):
    """Apple's GPU has no float64, which the guard and the totals want."""
    monkeypatch.setattr("lightning_fabric.accelerators.mps.MPSAccelerator.is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build_fabric(world.config({"train.accelerator": "auto"})).device.type == "cpu"


def test_cuda_is_refused_where_there_is_none(world, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no GPU here; use auto or cpu"):
        build_fabric(world.config({"train.accelerator": "cuda"}))
