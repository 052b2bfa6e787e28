"""`extend` with the old detector as a teacher: its answers are held, or what it finds becomes labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crossdet.data.index import Index
from crossdet.errors import UserError
from crossdet.labels.space import LabelSpace
from crossdet.training.modes.mode import ExtendSettings, Extension, Growth, Mode, Plan, Remark


def check(settings: ExtendSettings, _growth: Growth, _can: frozenset[str]) -> Iterator[Remark]:
    if not settings.match:
        if not settings.pseudo:
            raise UserError("extend: the mode distill needs a weight under `match`, `pseudo: true`, or both")
        yield Remark(
            "note",
            "old classes are held by what the old detector finds in the training images and nothing else; look "
            "at `crossdet predict` on some of them first",
        )


def adapted(settings: ExtendSettings, can: frozenset[str]) -> ExtendSettings:
    """Where a network cannot be held at answers, the old detector's labels teach, unless the config says else."""
    if "hold_to" in can or "match" in settings.model_fields_set:
        return settings
    labels = {} if "pseudo" in settings.model_fields_set else {"pseudo": True}
    return settings.model_copy(update={"match": 0.0, **labels})


def prepare(extension: Extension) -> Plan:
    from crossdet.training.state import Course

    settings, growth, old = extension.settings, extension.growth, extension.old
    space, train = growth.space, growth.train
    if settings.pseudo:
        space, train = _with_labels(extension)
    course = Course(
        hold_to=(old.model, settings.match) if settings.match else None, fixed_statistics=settings.fixed_statistics
    )
    return Plan(course, space, train)


def _with_labels(extension: Extension) -> tuple[LabelSpace, Mapping[str, Index]]:
    """Label space and training splits with the old detector's labels; a resumed run reads what was found."""
    from crossdet.training.pseudo_labels import Teacher, label_images, space_with_teachers

    old, settings, growth = extension.old, extension.settings, extension.growth
    thresholds = dict(enumerate(old.class_thresholds()))
    teacher = Teacher(
        "the old detector", old.model, {c: c for c in thresholds}, extension.teacher_settings, thresholds
    )
    train, by_teacher = label_images(
        extension.fabric,
        [teacher],
        growth.space,
        growth.train,
        settings.uncertain_from,
        extension.folder,
        keep=extension.goes_on,
    )
    return space_with_teachers(growth.space, by_teacher, settings.trust), train


def needs(settings: ExtendSettings) -> frozenset[str]:
    return frozenset({"carry_over", "hold_to"} if settings.match else {"carry_over"})


DISTILL = Mode(
    ("pseudo", "match"),
    check,
    prepare,
    needs,
    adapted=adapted,
    without={"hold_to": "leave `extend.match` out: the old detector's labels teach instead (`extend.pseudo`)"},
)
