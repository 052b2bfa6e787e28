"""An exported file as a network, for what runs with torch: evaluation, audits, large pictures in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from crossdet.errors import UserError
from crossdet.export.detector import answers, check_limits, thresholds_of
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
    def stretched_to(self) -> int | None:
        about = self.session.about
        if not about.rules.stretched or about.rules.size is None:
            return about.card.settings.stretched_to
        height, width = about.rules.size
        return height if height == width else None

    @property
    def suppresses(self) -> bool:
        return self.session.about.rules.suppresses

    @property
    def antialias(self) -> bool:
        return self.session.about.rules.antialias

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
        check_limits(self.session.about, limits)
        ids = torch.arange(self.num_classes)
        floors = torch.as_tensor(limits.threshold_of(ids), dtype=torch.float32).expand(self.num_classes)
        wanted = None if classes is None else [int(c) for c in classes]
        thresholds = thresholds_of(self.session.about, wanted, floors.numpy())
        return [
            self._one(image[:, :height, :width], thresholds, limits.max_detections)
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]

    def _one(self, image: Tensor, thresholds: Any, most: int) -> Detections:
        given = image.permute(1, 2, 0).to(torch.uint8).numpy()
        boxes, scores, labels = (torch.from_numpy(a[:most]) for a in answers(self.session, given, thresholds))
        return Detections(boxes, scores, labels)

    def positives(self, batch: Batch) -> NoReturn:
        self.losses(batch)

    def losses(self, _batch: Batch) -> NoReturn:
        raise UserError("an exported file cannot be trained; use the weights that it was made of")

    def feature_maps(self, _images: Tensor) -> NoReturn:
        raise UserError("an exported file does not show its features; use the weights that it was made of")

    def export_module(self) -> nn.Module:
        raise UserError("this file is exported already; use the weights that it was made of")
