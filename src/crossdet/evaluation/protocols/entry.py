"""What a protocol is, and what scoring by any of them shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.precision_recall import Curve
from crossdet.evaluation.splits import Split, ground_truth

Record = Mapping[str, Any]
"""The numbers of one dataset by one protocol, as `metrics.json` has them: ratios in 0..1, not rounded. One that is
not defined is NaN, or None where the record was read from JSON."""


@dataclass(frozen=True)
class ProtocolLimits:
    """What a detector may report per image: so many detections, each scoring more than the threshold."""

    max_detections: int
    score_threshold: float


@dataclass(frozen=True)
class Scores:
    """curves: name -> curve. notes: what a reader of the numbers must know."""

    record: dict[str, Any]
    curves: dict[str, Curve]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lists:
    """Of a protocol that reads more about a split than its annotations: `val.lists` of the config.

    read: path -> `Split.lists`. without: what `crossdet check` notes where a dataset has none.
    """

    read: Callable[[Path], Any]
    without: str


@dataclass(frozen=True)
class Protocol:
    """How a field judges the detections in a split. `PROTOCOLS` has it under its name, which configs use, too.

    limits: part of how the number is measured in its field; a config may override them.
    score: (split, its detections, how many count per image) -> scores; the detections are no more than that. Raises
        `UserError` where the split does not fit the protocol.
    headline: the one number of a record for means and for choosing the best weights.
    columns: what a table shows of a record, name and number.
    class_number: (record, class name) -> the class's main number, such as for what `extend` forgot; None without.
        number: what it is called.
    write: (folder, split, detections by falling score in each image); writes them as the field exchanges them.
    lists: None = the protocol reads none.
    """

    name: str
    limits: ProtocolLimits
    score: Callable[[Split, DetectionArrays, int], Scores]
    headline: Callable[[Record], float | None]
    columns: Callable[[Record], Sequence[tuple[str, float]]]
    class_number: Callable[[Record, str], float | None]
    write: Callable[[Path, Split, DetectionArrays], None]
    number: str = "AP"
    lists: Lists | None = None


def columns(*keys: str) -> Callable[[Record], list[tuple[str, float]]]:
    """`Protocol.columns`: these numbers of the record, where it has them."""
    return lambda record: [(key, record[key]) for key in keys if key in record]


def of_class(key: str) -> Callable[[Record, str], float | None]:
    """`Protocol.class_number`: this number of the class in the record's `per_class`."""
    return lambda record, name: record["per_class"].get(name, {}).get(key)


def score_split(protocol: Protocol, split: Split, detections: DetectionArrays, most: int | None = None) -> Scores:
    """Scores of the detections of a split's classes. most: detections per image that count, best first; None = as
    the protocol has it.

    Raises `UserError` where the split does not fit the protocol.
    """
    most = protocol.limits.max_detections if most is None else most
    scores = protocol.score(split, best_per_image(detections, most), most)
    return replace(scores, record={"protocol": protocol.name, **scores.record})


def best_per_image(detections: DetectionArrays, most: int) -> DetectionArrays:
    """The `most` best-scored detections of every image, in the given order."""
    order = np.lexsort((-detections.scores, detections.image_of_box))
    images = detections.image_of_box[order]
    within = np.arange(len(order)) - np.searchsorted(images, images)
    return detections.take(np.sort(order[within < most]))


def write_predictions(protocol: Protocol, folder: Path, split: Split, detections: DetectionArrays) -> None:
    """Writes the detections of a split in the layout of the protocol, ready for `crossdet score` and other tools.

    Boxes are in pixels, nothing is rounded. Classes carry the dataset's own names; of several that are merged into
    one the first. Files are named by `safe_names`: nothing is written outside the folder, whatever a class or an
    image is called.
    """
    protocol.write(folder, split, detections.take(np.lexsort((-detections.scores, detections.image_of_box))))


def never_wrong(split: Split) -> tuple[str, ...]:
    """A note on the classes that have boxes, but no image in which a detection without one would be wrong."""
    truth = ground_truth(split)
    seen = np.unique(truth.labels[~truth.crowd])
    names = [split.names[c] for c in seen.tolist() if not truth.images_verifying(c)]
    if not names:
        return ()
    return (
        f"no image is labelled in full for {', '.join(names)}: their AP says how much is found, not how much is "
        "wrong, and no operating threshold comes from here",
    )


def counts_everything(protocol: str, split: Split) -> list[str]:
    """A note of protocols that read their own annotations, which know no classes labelled in part."""
    if split.verified is None:
        return []
    return [f"{protocol} counts every detection that finds nothing, also where the images do not verify its class"]
