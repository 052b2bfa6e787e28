"""crossdet: one object detector for the union of the classes of datasets that label different things."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdet.config import Config, load_config
    from crossdet.data.index import Index
    from crossdet.errors import CrossdetError, RunError, UserError
    from crossdet.labels.space import LabelSpace
    from crossdet.losses import dataset_aware_focal_loss, negative_weights
    from crossdet.opening import load_detector
    from crossdet.runs.evaluate import evaluate
    from crossdet.runs.extend import extend
    from crossdet.runs.predict import predict
    from crossdet.runs.train import train
    from crossdet.types import Annotations, Batch, Detections

__version__ = "0.1.0"

# Imported on first use, so that `crossdet --help` and `crossdet check` start without loading torch.
_HOME = {
    "LabelSpace": "crossdet.labels.space",
    "dataset_aware_focal_loss": "crossdet.losses",
    "negative_weights": "crossdet.losses",
    "Config": "crossdet.config",
    "load_config": "crossdet.config",
    "train": "crossdet.runs.train",
    "evaluate": "crossdet.runs.evaluate",
    "predict": "crossdet.runs.predict",
    "load_detector": "crossdet.opening",
    "extend": "crossdet.runs.extend",
    "Index": "crossdet.data.index",
    "Annotations": "crossdet.types",
    "Batch": "crossdet.types",
    "Detections": "crossdet.types",
    "CrossdetError": "crossdet.errors",
    "UserError": "crossdet.errors",
    "RunError": "crossdet.errors",
}

__all__ = [
    "Annotations", "Batch", "Config", "CrossdetError", "Detections", "Index", "LabelSpace", "RunError",
    "UserError", "dataset_aware_focal_loss", "evaluate", "extend", "load_config", "load_detector",
    "negative_weights", "predict", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crossdet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
