"""The architectures, by the names that `model.name` of a config has. No torch in here."""

from __future__ import annotations

from crossdet.models.architecture import Architecture
from crossdet.models.detr.architecture import DFINE, RFDETR, RTDETR
from crossdet.models.retinanet.architecture import RETINANET

ARCHITECTURES: dict[str, Architecture] = {
    "retinanet": RETINANET,
    "dfine": DFINE,
    "rtdetr": RTDETR,
    "rfdetr": RFDETR,
}
DEFAULT = next(iter(ARCHITECTURES))
"""Of a config or of weights that do not say: files from before there was a choice. So RetinaNet stays the first."""
