"""Pictures of three colours, whose classes are dealt out."""

from __future__ import annotations

from pathlib import Path

from crossdet.data.index import Index, IndexBuilder

SIZE, CELL = 48, 16
CLASSES = ("a", "b", "c")


PARTS = {"left": ["a"], "right": ["b", "c"]}


def index_of(shown: list[set[str]], root: Path | str = "") -> Index:
    """One image per set, with one object of each class in it, in three cells that do not touch."""
    builder = IndexBuilder(root)
    for number, names in enumerate(shown):
        builder.image(f"{number:03d}.png", SIZE, SIZE, image_id=number + 10)
        for name in sorted(names):
            c = CLASSES.index(name)
            x, y = 2 + c * CELL, 2 + (number % 3) * CELL
            builder.box((x, y, x + 10, y + 12), c)
    return builder.build(CLASSES, [3, 7, 9])
