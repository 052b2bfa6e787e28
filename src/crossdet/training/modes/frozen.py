"""`extend` that trains what the new classes have of their own; old detections stay bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

from crossdet.errors import UserError
from crossdet.models.architecture import ADAPTER
from crossdet.training.modes.mode import ExtendSettings, Extension, Growth, Mode, Plan, Remark


def check(settings: ExtendSettings, growth: Growth, can: frozenset[str]) -> Iterator[Remark]:
    if not growth.new:
        raise UserError(
            f"extend.mode: frozen trains new classes only, and the config brings none (the weights know "
            f"{', '.join(growth.known.classes)}); use replay or distill"
        )
    if not settings.adapter and ADAPTER in can:
        yield Remark(
            "note",
            "boxes of the new classes come from what the old ones taught; if theirs have other shapes they "
            "need some of their own, `--set extend.adapter=32`",
        )


def prepare(extension: Extension) -> Plan:
    from crossdet.training.state import Course

    growth = extension.growth
    course = Course(
        after_step=extension.network.freeze_old(len(growth.known.classes)),
        fixed_statistics=extension.settings.fixed_statistics,
    )
    return Plan(course, growth.space, growth.train)


FROZEN = Mode(
    ("adapter",),
    check,
    prepare,
    needs=lambda _settings: frozenset({"carry_over", "freeze_old"}),
    keeps_thresholds=True,
)
