"""The teachers of a config (`pseudo`): whether they are there, and what they could teach."""

from __future__ import annotations

from pathlib import Path

from crossdet.config import Config
from crossdet.errors import UserError
from crossdet.sources import Sources
from crossdet.weights_argument import known_space


def look_at_teachers(config: Config, sources: Sources) -> tuple[list[str], list[str]]:
    """Errors and notes; nothing where the config has no teachers. Errors are what `train` would refuse."""
    if config.pseudo is None or not sources.train:
        return [], []
    from crossdet.api import lesson_of  # needs torch, for the few configs that have teachers

    lesson = lesson_of(config, sources)
    assert lesson is not None
    classes = sources.space.classes
    errors, notes = [], []
    teachable = set(range(len(classes))) if lesson.schedule is not None else set[int]()
    for path in lesson.paths:
        try:
            known = known_space(Path(path)).classes
        except UserError as error:
            errors.append(f"pseudo.teachers: {error}")
            continue
        common = [name for name in known if name in classes]
        teachable |= {classes.index(name) for name in common}
        if common:
            notes.append(f"pseudo.teachers: {path} knows {', '.join(common)}")
        else:
            errors.append(
                f"pseudo.teachers: {path} knows {', '.join(known)}, none of the classes of this training "
                f"({', '.join(classes)})"
            )
    if not errors:
        try:
            lesson.check(teachable)
        except UserError as error:
            errors.append(str(error))
    return errors, notes
