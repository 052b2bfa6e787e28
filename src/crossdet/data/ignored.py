"""Classes whose boxes mark places where nothing is known (`DontCare`, `ignored regions`), as regions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from crossdet.data.index import Index, Ragged
from crossdet.types import Flag


def with_regions(index: Index, names: Collection[str]) -> Index:
    """The index without some of its classes: their boxes are ignore regions, of no class in particular. Names that
    it does not have change nothing."""
    kept = [row for row, name in enumerate(index.classes) if name not in names]
    if len(kept) == len(index.classes):
        return index
    position = np.full(len(index.classes) + 1, -1, np.int64)  # the last one is that of label -1
    position[kept] = np.arange(len(kept))
    labels = position[index.labels].astype(np.int32)
    flags = index.flags.copy()
    flags[(index.labels >= 0) & (labels < 0)] |= np.uint8(Flag.IGNORE_REGION)

    def renumbered(lists: Ragged | None) -> Ragged | None:
        rows = range(len(index))
        return lists and Ragged.pack([[int(p) for p in position[lists[row]] if p >= 0] for row in rows])

    return replace(
        index,
        classes=tuple(index.classes[row] for row in kept),
        category_ids=index.category_ids[kept],
        labels=labels,
        flags=flags,
        negatives=renumbered(index.negatives),
        not_exhaustive=renumbered(index.not_exhaustive),
    )
