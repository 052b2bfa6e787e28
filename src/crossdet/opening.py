"""`crossdet.load_detector`: a detector of weights, or of an exported file, which loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crossdet.models.card import is_exported
from crossdet.models.hub import SCHEME, fetched

if TYPE_CHECKING:
    import torch

    from crossdet.export.detector import ExportedDetector
    from crossdet.inference import Detector


def load_detector(
    path: str | Path, device: str | torch.device | None = None, fold: bool = True, last: bool = False
) -> Detector | ExportedDetector:
    """As `inference.load_detector`; of an exported file (.onnx, .xml) an `ExportedDetector`, whose detections are
    numpy arrays and which runs where its software does, whatever the device. `hf://OWNER/NAME` is fetched first."""
    if str(path).startswith(SCHEME):
        path = fetched(Path(path))
    if is_exported(path):
        from crossdet.export.detector import load_exported

        return load_exported(path, fold)
    from crossdet import inference

    return inference.load_detector(path, device, fold, last)
