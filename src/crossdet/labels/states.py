"""What a dataset is to a class, in one word. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdet.labels.space import LabelSpace

LABELLED = "labelled"
AVOIDED = "avoided"
ABSENT = "absent"
NOT_EXHAUSTIVE = "not exhaustive"
PER_IMAGE = "per image"
STATES = (LABELLED, AVOIDED, ABSENT, NOT_EXHAUSTIVE, PER_IMAGE)
"""Labels it and its background is a negative; its background is not used; does not label it but is known not to
contain it (background is a negative); labels it in part (background not used); every image says it itself
(federated)."""


def state_of(space: LabelSpace, row: int, class_id: int) -> str:
    """One of `STATES`. row: of the dataset in the label space."""
    labels, avoids = space.annotated_array[row, class_id], space.avoid_array[row, class_id]
    if not labels:
        return AVOIDED if avoids else ABSENT
    if row in space.federated:
        return PER_IMAGE
    return NOT_EXHAUSTIVE if avoids else LABELLED
