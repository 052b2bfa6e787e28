"""With which classes of a checkpoint a new network's begin. No torch in here."""

from __future__ import annotations

from pathlib import Path

from crossdet.errors import some
from crossdet.labels.common import rows_by_name
from crossdet.labels.placeholders import used
from crossdet.labels.space import LabelSpace
from crossdet.models.settings import NetworkSettings

NAMED = 8  # classes that the line names before it only counts


def rows_begun(settings: NetworkSettings, space: LabelSpace, weights: str | Path) -> dict[int, int]:
    """Class of the union -> the checkpoint's class that it begins as, by `labels.common.rows_by_name`.

    weights: of the `model` section. Raises `UserError` where they cannot be read.
    """
    return rows_by_name(space, settings.classes_of(weights))


def beginning(settings: NetworkSettings, space: LabelSpace, weights: str | Path) -> list[str]:
    """The same for people, in a line; none where there is no checkpoint."""
    theirs = settings.classes_of(weights)
    if not theirs:
        return []
    rows = rows_begun(settings, space, weights)
    begun = [
        name if name == theirs[rows[c]] else f"{name} ({theirs[rows[c]]})"
        for c, name in enumerate(space.classes)
        if c in rows
    ]
    new = [name for c, name in enumerate(space.classes) if c not in rows]
    anew = f"; anew: {some(new, NAMED)}" if new else ""
    kept = set(rows.values())
    left = len(used([name for row, name in enumerate(theirs) if row not in kept]))
    others = f"; {left} more are forgotten (`crossdet extend` keeps them)" if left else ""
    return [f"classes that begin as the checkpoint's: {some(begun, NAMED) or 'none'}{anew}{others}"]
