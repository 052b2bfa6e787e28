"""`train.loggers`: TensorBoard is read back; stand-ins for W&B and MLflow say what they were given."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from crossdet import Config, UserError
from crossdet.check import inspect
from crossdet.errors import ConfigError, RunError
from crossdet.runs.building import build_fabric
from crossdet.training import recipe
from crossdet.training.log import RunLog, Step

FABRIC = SimpleNamespace(is_global_zero=True)
RECORD = {
    "epoch": 1, "step": 2, "unreadable": 0,
    "datasets": {"a": {"images": 4, "positives": 3.0, "loss": 0.5}},
    "metrics": {"mean": 0.25, "datasets": {"a": {"AP": 0.25, "protocol": "coco"}}},
}  # fmt: skip
SCORES = {
    "dataset/a/images": 4,
    "dataset/a/positives": 3,
    "dataset/a/loss": 0.5,
    "eval/mean": 0.25,
    "eval/datasets/a/AP": 0.25,
}


def logged(folder, names, resumed=0, steps=(1, 2), error=None):
    """Two steps and an epoch; their losses are 10 times the step, or 100 times after a resume. error: ends it."""
    with RunLog(FABRIC, folder, resumed, ["classification"], names) as log:
        log.start_epoch()
        for number in steps:
            loss = torch.tensor((100.0 if resumed else 10.0) * number)
            log.step(Step(number, 0, number, 2, 0.125, {"classification": loss}, None, None), 4, 1)
        log.epoch(RECORD)
        if error is not None:
            raise error
    return log


def test_tensorboard_has_everything_and_goes_on(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # files of one second and process are read in the order of this number, as text: the tenth before the second
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    logged(tmp_path, ("tensorboard",))
    logged(tmp_path, ("tensorboard",), resumed=1, steps=(2,))  # step 2 is done again
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: found.Scalars(tag)[-1].value for tag in SCORES} == pytest.approx(SCORES)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 10.0), (2, 200.0)]
    rest = {f"train/{name}" for name in ("lr", "loss", "classification", "images_per_second", "waiting")}
    assert set(found.Tags()["scalars"]) == {*SCORES, *rest}


class Wandb(SimpleNamespace):
    """`wandb.init` and the runs that it made."""

    def __init__(self):
        super().__init__(rows={}, inits=[], ended=[], config=None)

    def init(self, *, project, name, dir, id, resume, config, allow_val_change):
        assert allow_val_change
        self.config = config
        run = id or f"run{len(self.rows)}"
        self.inits.append((project, name, run, resume))
        rows = self.rows.setdefault(run, [])
        return SimpleNamespace(
            id=run, log=rows.append, finish=lambda exit_code: self.ended.append((run, exit_code)),
            define_metric=lambda name, step_metric: rows.append((name, step_metric)),
        )  # fmt: skip


class Mlflow(SimpleNamespace):
    def __init__(self):
        entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
        )
        super().__init__(entities=entities, runs={}, status={}, params={}, MlflowClient=lambda: self)

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"experiment {name}"

    def create_run(self, experiment, run_name):
        self.runs[f"m{len(self.runs)}"] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=f"m{len(self.runs) - 1}"))

    def update_run(self, run, status):
        self.status[run] = status

    def set_terminated(self, run, status):
        self.status[run] = status

    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100
        self.runs[run] += metrics
        self.params.setdefault(run, []).extend(params)


def test_wandb_and_mlflow_get_the_same_and_go_on(tmp_path, monkeypatch):
    wandb, mlflow = Wandb(), Mlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", mlflow.entities)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (tmp_path / "run").mkdir()
    datasets = {f"d{n}": {"train": {"images": "x" * 7000}} for n in range(120)}
    settings = {"datasets": datasets, "train": {"lr": 0.5, "minutes": None, "steps": [8, 11]}, "labels": {}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    logged(tmp_path / "run", ("wandb", "mlflow"))
    of_datasets = {f"datasets.d{n}.train.images": "x" * 7000 for n in range(120)}
    assert wandb.config == {**of_datasets, "train.lr": 0.5, "train.steps": [8, 11], "labels": {}}
    assert dict(mlflow.params["m0"])["train.steps"] == "[8, 11]"
    assert dict(mlflow.params["m0"])["datasets.d7.train.images"] == "x" * 6000
    assert len(mlflow.params["m0"]) == 123
    logged(tmp_path / "run", ("wandb", "mlflow"), resumed=1, steps=(2,))
    assert wandb.inits == 2 * [("mine", "run", "run0", "allow")]
    assert wandb.ended == 2 * [("run0", 0)]
    first, one, _, scores, _, again, _ = wandb.rows["run0"]
    assert first == ("*", "step")
    assert (one["step"], one["train/loss"], one["train/lr"], again["train/loss"]) == (1, 10.0, 0.125, 200.0)
    assert scores == {**SCORES, "step": 2}
    assert list(mlflow.runs) == ["m0"]
    assert {(key, value) for key, value, _ in mlflow.runs["m0"]} >= {*SCORES.items(), ("train/loss", 200.0)}
    assert mlflow.status == {"m0": "FINISHED"}
    assert len(mlflow.params["m0"]) == 123
    logged(tmp_path / "other", ("wandb", "mlflow"))  # another run is another log
    assert (len(wandb.rows), len(mlflow.runs)) == (2, 2)


@pytest.mark.parametrize("error", [RunError("interrupted after step 2"), KeyboardInterrupt()])
def test_a_run_that_ends_early_has_failed(tmp_path, monkeypatch, error):
    """By an error, or Ctrl-C."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb, mlflow = Wandb(), Mlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", mlflow.entities)
    with pytest.raises(type(error)):
        logged(tmp_path, ("mlflow", "wandb", "tensorboard"), error=error)
    assert wandb.ended == [("run0", 1)]
    assert mlflow.status == {"m0": "FAILED"}
    assert set(EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]) > set(SCORES)


def test_a_logger_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    wandb, mlflow = Wandb(), Mlflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", mlflow.entities)

    def fails(run, metrics=(), params=()):
        raise ConnectionError("no server\nat all")

    def refused(**_):
        raise ValueError("no key")

    monkeypatch.setattr(mlflow, "log_batch", fails)
    monkeypatch.setattr(wandb, "init", refused)
    log = logged(tmp_path, ("wandb", "mlflow", "tensorboard"))
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 2
    assert "warning: train.loggers: wandb failed and gets nothing more (no key)\n" in printed
    assert "warning: train.loggers: mlflow failed and gets nothing more (no server)\n" in printed
    assert list(log.loggers.active) == ["tensorboard"]
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 3


def test_what_the_config_says(world, monkeypatch):
    def config(loggers):
        return Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "train": {"loggers": loggers}})

    assert config([]).train.loggers == ()
    with pytest.raises(
        ConfigError, match=r'train.loggers.*expected some of tensorboard, wandb, mlflow.*"tensorbord"'
    ):
        config("tensorbord")
    monkeypatch.setattr(recipe, "find_spec", lambda name: None if name == "wandb" else name)
    wanted = config(["tensorboard", "wandb"])
    with pytest.raises(UserError, match=r"^train\.loggers: wandb needs a package: pip install wandb$"):
        build_fabric(wanted)
    report = inspect(world.config({"train.loggers": ["wandb"]}))
    assert "train.loggers: wandb needs a package: pip install wandb" in report.errors
