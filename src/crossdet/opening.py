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
    """A trained detector, ready to be called: `detector("street.jpg")` gives its detections.

    path: a run directory (of which the weights of the best evaluation are taken), a weights file, the directory of
        a checkpoint of Hugging Face, or `hf://OWNER/NAME`, which is fetched first. Of an exported file (.onnx,
        .xml) the detector is an `ExportedDetector`: its detections are numpy arrays, no torch is loaded, and it
        runs where its software does, whatever the device.
    device: "cpu", "cuda", "cuda:1", "mps"; None: a GPU of CUDA where torch sees one.
    fold: directions of a class, its classes per dataset, and classes merged after training are reported as one
        class; False: each for itself.
    last: of a run directory its newest weights instead of its best ones.

    Raises:
        UserError: missing, damaged or foreign file; a device that is not there.
    """
    if str(path).startswith(SCHEME):
        path = fetched(Path(path))
    if is_exported(path):
        from crossdet.export.detector import load_exported

        return load_exported(path, fold)
    from crossdet import inference

    return inference.load_detector(path, device, fold, last)
