"""Values as they may stand in a config: for what is written into one, and for what messages say to write there."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
"""`1e-4` is a number to `config.files`, and text to YAML 1.1."""


class Dumper(yaml.SafeDumper):
    """Quotes the text "1e-4", which would be read as a number."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


Dumper.add_implicit_resolver(FLOAT, EXPONENT, list("-+0123456789"))


def flow(value: Any, width: int = sys.maxsize) -> str:
    """A value as it may stand behind a key of a config: `{a: [1, 2]}`. width: where lines are broken."""
    text = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=width, sort_keys=False
    )
    return text.removesuffix("...\n").strip()


def rule(key: str, value: Mapping[str, Any] | list[Any]) -> str:
    """A rule of the `labels` section as a message names it: "`labels.merge: {a: [b/c]}`"."""
    return f"`labels.{key}: {flow(value)}`"
