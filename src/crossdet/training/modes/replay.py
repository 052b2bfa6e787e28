"""`extend` by an ordinary training, in which old classes have images again."""

from __future__ import annotations

from crossdet.training.modes.mode import ExtendSettings, Extension, Growth, Mode, Plan


def check(_settings: ExtendSettings, growth: Growth) -> str | None:
    forgotten = growth.without_images()
    if not forgotten:
        return None
    return (
        f"replay without training images of {', '.join(forgotten)}: give the old datasets again (a "
        f"share is `part: 1/4`), or use the mode distill or frozen"
    )


def prepare(extension: Extension) -> Plan:
    from crossdet.training.state import Course

    course = Course(fixed_statistics=extension.settings.fixed_statistics)
    return Plan(course, extension.growth.space, extension.growth.train)


REPLAY = Mode((), check, prepare, needs=lambda _settings: frozenset({"carry_over"}))
