"""Where the numbers of a training go besides its own files (`train.loggers`), each as a Fabric `Logger`."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from crossdet.files import write_atomically

PROJECT = "crossdet"
"""Where W&B and MLflow keep the runs if their own environment variables say nothing."""
SUCCESS, FAILED = "success", "failed"
"""How a training ended, as Fabric's loggers call it."""
METRICS_AT_ONCE, SETTINGS_AT_ONCE, LONGEST_SETTING = 1000, 100, 6000
"""MLflow takes no more in one call, and no longer texts."""


class Tracker(Logger):
    """What of Fabric's interface is not used here."""

    name, version = PROJECT, None

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They get the run's config when they begin."""


class WandbLogger(Tracker):
    """Weights & Biases: project by WANDB_PROJECT. A resumed training goes on in its run."""

    def __init__(self, run_dir: Path, step: int) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        known = _known(run_dir / "wandb_run.txt", step)
        self.run = wandb.init(
            project=project,
            name=run_dir.name,
            dir=str(run_dir),
            id=known,
            resume="allow",
            config=_settings(run_dir),
            allow_val_change=True,  # a resumed run may have more epochs
        )
        _keep(run_dir / "wandb_run.txt", self.run.id)
        self.run.define_metric("*", step_metric="step")  # its own count cannot go back to where a state was saved

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, "step": step})

    def finalize(self, status: str) -> None:
        self.run.finish(exit_code=int(status != SUCCESS))


class MlflowLogger(Tracker):
    """MLflow: server by MLFLOW_TRACKING_URI, experiment by MLFLOW_EXPERIMENT_NAME; resumed as in `WandbLogger`."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.client, self.metric = MlflowClient(), Metric
        known = _known(run_dir / "mlflow_run.txt", step)
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = self.client.create_experiment(name) if found is None else found.experiment_id
            known = self.client.create_run(experiment, run_name=run_dir.name).info.run_id
            _keep(run_dir / "mlflow_run.txt", known)
            settings = _settings(run_dir).items()
            self._log_settings(known, [Param(_name(key), str(v)[:LONGEST_SETTING]) for key, v in settings])
        else:
            self.client.update_run(known, status="RUNNING")
        self.run_id: str = known

    def _log_settings(self, run: str, settings: list[Any]) -> None:
        """They stay: a resumed run cannot change them. A server that refuses one gets the metrics all the same."""
        try:
            for start in range(0, len(settings), SETTINGS_AT_ONCE):
                self.client.log_batch(run, params=settings[start : start + SETTINGS_AT_ONCE])
        except Exception as error:
            print(f"warning: train.loggers: mlflow takes not all of the config ({str(error)[:200]})", flush=True)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        now = int(1000 * time.time())
        all_ = [self.metric(_name(name), v, now, step or 0) for name, v in metrics.items()]
        for start in range(0, len(all_), METRICS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=all_[start : start + METRICS_AT_ONCE])

    def finalize(self, status: str) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if status == SUCCESS else "FAILED")


def tensorboard(run_dir: Path, step: int) -> Logger:
    """Into `tensorboard/` of the run; what was written after the state that is resumed, or of an attempt that left
    none, is taken back."""
    return TensorBoardLogger(run_dir, name="tensorboard", version="", purge_step=step + 1)


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {
    "tensorboard": tensorboard,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
"""(run directory, step that is resumed from, else 0) -> the logger. Their packages: `recipe.LOGGERS`."""


class Loggers:
    """Several at once. One that fails is told once and left out: a training does not stop for its curves."""

    def __init__(self, names: tuple[str, ...], run_dir: Path, step: int) -> None:
        """step: that is resumed from, else 0."""
        self.active: dict[str, Logger] = {}
        for name in names:
            with self._told(name):
                self.active[name] = LOGGERS[name](run_dir, step)

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, logger in list(self.active.items()):
            with self._told(name):
                logger.log_metrics(metrics, step)

    def close(self, status: str) -> None:
        for name, logger in list(self.active.items()):
            with self._told(name):
                logger.finalize(status)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the network, of a server, of a full disk
            self.active.pop(name, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"warning: train.loggers: {name} failed and gets nothing more ({reason})", flush=True)


def _name(key: str) -> str:
    """As MLflow takes it."""
    return re.sub(r"[^\w/. -]", "_", key)


def _settings(run_dir: Path) -> dict[str, Any]:
    """The run's config, flat: `train.lr` -> its value. Empty where there is none."""
    file = run_dir / "config.yaml"  # of the room above
    return dict(_flat(yaml.safe_load(file.read_text(encoding="utf-8")), "")) if file.exists() else {}


def _flat(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else str(key))
    elif value is not None:
        yield at, value


def _known(file: Path, step: int) -> str | None:
    """The run that is resumed; None for a new one."""
    return file.read_text().strip() if step and file.exists() else None


def _keep(file: Path, run: str) -> None:
    write_atomically(file, f"{run}\n".encode())
