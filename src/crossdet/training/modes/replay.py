"""`extend` by an ordinary training, in which old classes have images again."""

from __future__ import annotations

from collections.abc import Iterator

from crossdet.training.modes.mode import ExtendSettings, Extension, Growth, Mode, Plan, Remark


def check(_settings: ExtendSettings, growth: Growth, _can: frozenset[str]) -> Iterator[Remark]:
    if forgotten := growth.without_images():
        yield Remark(
            "warning",
            f"replay without training images of {', '.join(forgotten)}: give the old datasets again (a "
            f"share is `part: 1/4`), or use the mode distill or frozen",
        )


def prepare(extension: Extension) -> Plan:
    from crossdet.training.state import Course

    course = Course(fixed_statistics=extension.settings.fixed_statistics)
    return Plan(course, extension.growth.space, extension.growth.train)


REPLAY = Mode((), check, prepare, needs=lambda _settings: frozenset({"carry_over"}))
