"""What tests of extensions share."""

from __future__ import annotations

from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings

SETTINGS = RetinaNetSettings(
    backbone="test_efficientnet", channels=16, head_depth=1, anchors=Anchors(scales=(2.0, 3.0), ratios=(0.6, 1.0)),
    freeze_batch_norm=False, prior=0.05,
)  # fmt: skip
