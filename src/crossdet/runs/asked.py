"""What a detector is asked for on the command line, and the exported file that answers it without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossdet.errors import UserError
from crossdet.labels.reporting import Threshold
from crossdet.models.card import is_exported

if TYPE_CHECKING:
    from crossdet.export.detector import ExportedDetector
    from crossdet.inference import Detector
    from crossdet.windows import Tiling


@dataclass(frozen=True)
class Asked:
    """weights, fold, last and device: of `load_detector`; the others of `Detector.__call__`, where None means what
    it means there."""

    weights: Path
    classes: Sequence[str] | None = None
    score_threshold: Threshold | None = None
    max_detections: int | None = None
    fold: bool = True
    agnostic_nms: bool | None = None
    last: bool = False
    tile: int | None = None
    overlap: float | None = None
    device: str | None = None

    @property
    def tiling(self) -> Tiling | None:
        """`Tiling.of`. Raises `UserError` also without torch, which exported files do without otherwise."""
        if self.tile is None and self.overlap is None:
            return None
        try:
            from crossdet.windows import Tiling
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "torchvision"):
                raise
            raise UserError(
                f"--tile: windows need {error.name}, also those of an exported file; leave out --tile, or "
                f"pip install torch torchvision"
            ) from None
        return Tiling.of(self.tile, self.overlap)

    @property
    def limits(self) -> dict[str, Any]:
        """Options of `Detector.batch` and `inference.predict_files`, by name."""
        limits = {"max_detections": self.max_detections, "tile": self.tile, "overlap": self.overlap}
        return limits if self.agnostic_nms is None else limits | {"agnostic_nms": self.agnostic_nms}

    def without_torch(self) -> ExportedDetector | None:
        """The exported file, where it can do all that is asked; None: `detector` does.

        Raises `UserError` for what neither can, such as unknown classes: before an earlier result is written over.
        """
        if not is_exported(self.weights) or self.tiling is not None:
            return None
        from crossdet.export.detector import load_exported

        exported = load_exported(self.weights, self.fold)
        if self.agnostic_nms not in (None, exported.about.rules.agnostic_nms):
            raise UserError(
                f"--agnostic-nms: {self.weights} keeps what it was exported with; leave it out, or export again"
            )
        exported.asked(self.classes, self.score_threshold)
        exported.limit(self.max_detections)
        return exported

    def detector(self) -> Detector:
        """Raises `UserError` as `without_torch`."""
        from crossdet.inference import load_detector

        detector = load_detector(self.weights, self.device, self.fold, self.last)
        if is_exported(self.weights):  # which options its file keeps it says when it looks at a picture
            nothing = np.zeros((32, 32, 3), np.uint8)
            detector.batch([nothing], self.classes, self.score_threshold, **self.limits)
        else:
            detector.class_ids(self.classes)
            detector.limits(self.score_threshold, self.max_detections)
        return detector
