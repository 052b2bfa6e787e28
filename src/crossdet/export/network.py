"""An exported file as a network, for what runs with torch: evaluation, audits, large pictures in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from crossdet.errors import UserError
from crossdet.export.detector import NOT_LOOKED_FOR, answers
from crossdet.export.sessions import Session
from crossdet.models.contract import Limits, Network
from crossdet.types import Batch, Detections


class ExportedNetwork(Network):
    """It only finds. Suppression is the file's, whatever `Limits` say, and so is the largest `max_detections`."""

    terms = ()

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.num_classes = len(session.about.card.space.classes)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def fill_colour(self) -> Sequence[int]:
        return self.session.about.rules.fill

    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        """Pictures one by one, without the padding of the batch."""
        self._check(limits)
        looked = self.session.about.rules.classes
        wanted = looked if classes is None else [int(c) for c in classes]
        if missing := set(wanted) - set(looked):
            names = ", ".join(self.session.about.card.space.classes[c] for c in sorted(missing))
            raise UserError(f"the file was exported without the class(es) {names}")
        thresholds = torch.full((self.num_classes,), NOT_LOOKED_FOR)
        ids = torch.tensor(list(wanted), dtype=torch.int64)
        thresholds[ids] = torch.as_tensor(limits.threshold_of(ids), dtype=torch.float32)
        return [
            self._one(image[:, :height, :width], thresholds.numpy(), limits.max_detections)
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]

    def _check(self, limits: Limits) -> None:
        """Raises `UserError` for limits that the file cannot keep."""
        rules = self.session.about.rules
        if (limits.nms_iou, limits.agnostic_nms) != (rules.nms_iou, rules.agnostic_nms):
            raise UserError(
                f"the file was exported with nms_iou {rules.nms_iou:g} and agnostic_nms {rules.agnostic_nms}, "
                f"which it keeps; ask for these (`--set eval.nms_iou={rules.nms_iou:g}`)"
            )
        if limits.max_detections > rules.max_detections:
            raise UserError(
                f"the file gives {rules.max_detections} detections per picture at most, asked for are "
                f"{limits.max_detections}; export again with --max-detections {limits.max_detections}"
            )

    def _one(self, image: Tensor, thresholds: Any, most: int) -> Detections:
        given = image.permute(1, 2, 0).to(torch.uint8).numpy()
        boxes, scores, labels = (torch.from_numpy(a[:most]) for a in answers(self.session, given, thresholds))
        return Detections(boxes, scores, labels)

    def losses(self, _batch: Batch) -> NoReturn:
        raise UserError("an exported file cannot be trained; use the weights that it was made of")

    def feature_maps(self, _images: Tensor) -> NoReturn:
        raise UserError("an exported file does not show its features; use the weights that it was made of")

    def export_module(self) -> nn.Module:
        raise UserError("this file is exported already; use the weights that it was made of")
