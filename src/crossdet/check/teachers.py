"""The teachers of a config (`pseudo`): whether they are there, and what they could teach."""

from __future__ import annotations

from crossdet.config import Config
from crossdet.config.sources import Sources
from crossdet.errors import UserError
from crossdet.models.card import known_space
from crossdet.models.hub import fetched


def look_at_teachers(config: Config, sources: Sources) -> tuple[list[str], list[str]]:
    """Errors, those that `train` would tell, and notes; nothing where the config has no teachers."""
    if config.pseudo is None or not sources.train_pictures:
        return [], []
    from crossdet.evaluation.run import EvalSettings
    from crossdet.evaluation.splits import Split  # with torch, for the few configs that have teachers
    from crossdet.training.teachers import TeacherPlan, known_ids

    space, teachers = sources.space, config.pseudo.teachers
    splits = {n: Split(i, space.ids(n, i.classes), space.classes) for n, i in sources.val.items()}
    plan = TeacherPlan(space, sources.train, splits, EvalSettings.of(config.input))
    errors, notes = [], []
    teachable = set(range(len(space.classes))) if teachers == "self" else set[int]()
    for path in () if isinstance(teachers, str) else teachers:
        try:
            classes = known_space(fetched(path)).reported
            ids = known_ids(str(path), classes, space)
        except UserError as error:
            errors.append(f"pseudo.teachers: {error}")
            continue
        teachable |= ids.keys()
        notes.append(f"pseudo.teachers: {path} knows {', '.join(classes[own] for own in ids.values())}")
    if problem := config.pseudo.never_labels(config.train, sources.train_pictures):
        errors.append(problem)
    if not errors:
        try:
            plan.check(teachable)
        except UserError as error:
            errors.append(str(error))
    return errors, notes
