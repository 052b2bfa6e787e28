"""The protocols by which detections are judged, each in a file of its own (docs/extending_crossdet.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from crossdet.evaluation.protocols import coco, lvis, voc, wider_face, wider_pedestrian
from crossdet.evaluation.protocols.entry import Lists, Protocol, Record

PROTOCOLS: dict[str, Protocol] = {
    "coco": coco.PROTOCOL,
    "lvis": lvis.PROTOCOL,
    "voc": voc.PROTOCOL,
    "wider_face": wider_face.PROTOCOL,
    "wider_pedestrian": wider_pedestrian.PROTOCOL,
}
"""By the name that a config gives under `protocol`. No torch."""


def lists_of(names: Iterable[str]) -> Lists | None:
    """Of the first of these protocols that reads lists; None: none does."""
    return next((PROTOCOLS[name].lists for name in names if PROTOCOLS[name].lists), None)


def main_number(record: Record) -> float:
    """The one number of a dataset's record, by its (first) protocol, 0..1; NaN where it is not defined."""
    value = PROTOCOLS[record["protocol"]].headline(record)
    return math.nan if value is None else float(value)  # JSON has null for NaN
