"""Which of two evaluations of a training is the better one: what `best.safetensors` is chosen by.

Protocols differ in scale: a point of VOC's mAP at IoU 0.5 is less than a point of COCO's AP, and a plain mean would
let the coarser one decide. So every dataset counts by its main number relative to the largest one that it has had
in this training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdet.evaluation.protocols import main_number

Metrics = Mapping[str, Any]
"""The record of `runs.evaluate.score_splits`."""


def relative_scores(evaluations: Sequence[Metrics]) -> list[float]:
    """Of each evaluation the mean over the datasets of main number / largest main number among all of them.

    Datasets without a number above 0 in any are left out; 0 where none is left, NaN without any number at all.
    """
    names = list(evaluations[0]["datasets"]) if evaluations else []
    table = np.array([[main_number(one["datasets"][name]) for name in names] for one in evaluations])
    table = table.reshape(len(evaluations), len(names))
    defined = not np.isnan(table).all()
    table = np.nan_to_num(table, nan=0.0)
    largest = table.max(0, initial=0.0)
    used = largest > 0
    if not used.any():
        return [0.0 if defined else math.nan] * len(evaluations)
    scores: list[float] = (table[:, used] / largest[used]).mean(1).tolist()
    return scores


def is_better(earlier: Sequence[Metrics], kept: int | None, new: Metrics) -> bool:
    """Whether `new` is better than the kept one of the earlier evaluations of the same training; they are compared
    by `relative_scores` of all of them. kept: position in `earlier`; None: none is kept yet.
    """
    scores = relative_scores([*earlier, new])
    return not math.isnan(scores[-1]) and (kept is None or scores[-1] > scores[kept])
