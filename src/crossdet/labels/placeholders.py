"""Class names of checkpoints that name nothing: of rows that no class has, and numbers in place of names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from crossdet.errors import some

PLACEHOLDERS = frozenset({"", "n/a", "none", "background", "__background__"})
"""In small letters. COCO's ids have gaps, which checkpoints with a row for every id call so."""
_UNUSED = re.compile(r"unused_\d+")
_NUMBERED = re.compile(r"LABEL_\d+")
_NAMED = 8  # classes that a message names before it only counts


def without_placeholders(names: Sequence[str]) -> tuple[str, ...]:
    """Names by row, with one of its own for every row that has a placeholder: `unused_12`."""

    def named(row: int) -> str:
        own = f"unused_{row}"
        while own in names:
            own = f"unused_{int(own.removeprefix('unused_')) + len(names)}"
        return own

    return tuple(named(row) if name.strip().lower() in PLACEHOLDERS else name for row, name in enumerate(names))


def used(names: Sequence[str]) -> list[str]:
    """Without those of rows that mean nothing."""
    return [name for name in names if not is_unused(name)]


def is_unused(name: str) -> bool:
    return _UNUSED.fullmatch(name) is not None


def unused_note(names: Sequence[str]) -> str | None:
    """What there is to say of rows that mean nothing."""
    unused = [name for name in names if is_unused(name)]
    return f"rows that mean nothing: {some(unused, _NAMED)}" if unused else None


def numbered_warning(names: Sequence[str]) -> str | None:
    """What is wrong if all classes are called as transformers calls those that nobody named."""
    if not names or not all(_NUMBERED.fullmatch(name) for name in names):
        return None
    return (
        f"classes without names ({some(names, 3, 2)}): none is the class of a dataset by its name; write names "
        f"under `id2label` in the checkpoint's config.json, or `crossdet labels WEIGHTS --rename {names[0]}=person`"
    )
