"""The exceptions of the package.

Every error that a user can cause derives from `UserError`; the command line prints its message alone, without
a traceback, and exits with 2. `RunError` is a run that failed for a reason outside the user's input (a
non-finite loss, a full disk); the command line exits with 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


class CrossdetError(Exception):
    """Base of all errors that crossdet raises on purpose."""


class UserError(CrossdetError, ValueError):
    """A mistake in what the user gave: config, label rules, files, arguments."""


class LabelError(UserError):
    """The label rules (merge, distinct, absent, ...) contradict the datasets or each other."""


class ConfigError(UserError):
    """The config file is wrong; the message lists all mistakes with their key paths."""


class AnnotationError(UserError):
    """An annotation file is malformed; the message names file and line (or key)."""


class RunError(CrossdetError, RuntimeError):
    """A run that failed although its input was accepted."""


class Interrupted(RunError):
    """Somebody ended it (Ctrl-C, SIGTERM); what was done is kept."""


class Diverged(RunError):
    """The loss or the weights left the finite numbers: the training is at fault, not the machine."""


def problem_list(heading: str, problems: Iterable[str]) -> str:
    """`heading` followed by one indented line per problem: all mistakes at once, not the first one only."""
    return "\n".join([heading, *(f"  - {problem}" for problem in problems)])


def show(value: Any) -> str:
    """A value as it stands in a message: JSON, at most 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def some(names: Sequence[str], most: int, shown: int | None = None) -> str:
    """All names if they are at most so many; otherwise the first ones (as many, or `shown`) and a count."""
    if len(names) <= most:
        return ", ".join(names)
    shown = shown or most
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def check_counts(**given: Any) -> None:
    """Raises `UserError` for what is neither None nor a whole number from 1 on."""
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name} {value}: expected a whole number from 1 on")
