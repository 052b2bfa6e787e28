"""The LVIS protocol on arrays: COCO's AP in federated images, with 300 detections per image.

Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", and the LVIS API
(lvis-dataset/lvis-api, lvis/eval.py and results.py); a test compares the numbers. Which image verifies which class
is in the ground truth (`arrays.Verified`) and counts in the COCO protocol as well: this one differs from it in its
limit, which is per image and not per class and image, and in its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossdet.evaluation.arrays import DetectionArrays, GroundTruth, Ints
from crossdet.evaluation.files.coco import FREQUENCIES, write_coco_results
from crossdet.evaluation.protocols.coco import CocoScores, coco_scores, in_split
from crossdet.evaluation.protocols.entry import Protocol, ProtocolLimits, Scores, columns, of_class
from crossdet.evaluation.splits import Split, ground_truth


def lvis_scores(
    truth: GroundTruth,
    detections: DetectionArrays,
    class_ids: Sequence[int] | Ints,
    frequencies: Mapping[int, str] | None = None,
    sized: bool = False,
) -> CocoScores:
    """Scores as `coco_scores` gives them, under LVIS' names: AP AP50 AP75 APs APm APl, AR ARs ARm ARl.

    detections: no more per image than may count (`best_per_image`). frequencies: class id -> r, c or f;
    with them also APr APc APf, means over the classes of the group that have boxes. sized: see `coco_scores`.

    Raises: see `coco_scores`.
    """
    most = int(np.bincount(detections.image_of_box).max(initial=1)) if len(detections.scores) else 1
    found = coco_scores(truth, detections, class_ids, most, sized=sized)
    scores = {key: found.scores[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    for group in FREQUENCIES if frequencies is not None else ():
        known = [
            row["AP"]
            for c, row in found.per_class.items()
            if frequencies is not None and frequencies.get(c) == group and row["AP"] == row["AP"]
        ]
        scores[f"AP{group}"] = float(np.mean(known)) if known else float("nan")
    scores["AR"] = found.scores["AR100"]
    scores |= {key: found.scores[key] for key in ("ARs", "ARm", "ARl")}
    return replace(found, scores=scores)


def _score(split: Split, detections: DetectionArrays, _most: int) -> Scores:
    return in_split(split, lvis_scores(ground_truth(split), detections, split.classes))


PROTOCOL = Protocol(
    name="lvis",
    limits=ProtocolLimits(300, 0.0001),
    score=_score,
    headline=lambda record: record["AP"],
    columns=columns("AP", "AP50", "AP75", "APs", "APm", "APl", "AR"),
    class_number=of_class("AP"),
    write=write_coco_results,
)
