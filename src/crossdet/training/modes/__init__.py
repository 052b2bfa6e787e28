"""The modes of `crossdet extend`, by the names that `extend.mode` of a config has. No torch at import.

They differ in what a training reads and in what of the network it trains; the loop is the same.
"""

from crossdet.errors import UserError
from crossdet.training.modes.distill import DISTILL
from crossdet.training.modes.frozen import FROZEN
from crossdet.training.modes.mode import ExtendSettings, Growth, Mode, Remark
from crossdet.training.modes.replay import REPLAY

MODES: dict[str, Mode] = {"replay": REPLAY, "distill": DISTILL, "frozen": FROZEN}


def check_mode(settings: ExtendSettings, growth: Growth, can: frozenset[str]) -> list[Remark]:
    """Refuses what cannot work (`UserError`); returns what is worth saying. can: see `Mode.check`."""
    default = ExtendSettings()
    for name, mode in MODES.items():
        unused = [f"`{key}`" for key in mode.keys if getattr(settings, key) != getattr(default, key)]
        if name != settings.mode and unused:
            raise UserError(
                f"extend: {' and '.join(unused)} of the mode {name}, but this is {settings.mode}; say "
                f"`--mode {name}`, or leave it out"
            )
    growth.begins_as(settings.init)
    return list(MODES[settings.mode].check(settings, growth, can))


__all__ = ["MODES", "ExtendSettings", "Growth", "Mode", "Remark", "check_mode"]
