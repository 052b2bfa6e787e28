"""YAML beside the reading of configs: values as they may stand in one, and aliases that no file means."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
"""`1e-4` is a number to `config.files`, and text to YAML 1.1."""


MOST_VALUES = 1_000_000
"""Of a file that is read, aliases counted wherever they stand. 40 lines of ten aliases each can make 10^40."""


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


def check_aliases(root: yaml.Node) -> None:
    """Raises `yaml.MarkedYAMLError` for an alias that contains itself, and for more than `MOST_VALUES` by them."""
    values: dict[int, int] = {}  # of every node looked at, 0 while inside

    def count(node: yaml.Node) -> int:
        if id(node) not in values:
            values[id(node)] = 0
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            children = node.value if isinstance(node, yaml.SequenceNode) else [n for pair in pairs for n in pair]
            values[id(node)] = 1 + sum(map(count, children))
        elif not values[id(node)]:
            raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
        return values[id(node)]

    if (number := count(root)) > max(MOST_VALUES, len(values)):  # a long file without aliases is none
        problem = f"its aliases repeat values, so that there are {number:,}; {MOST_VALUES:,} are read at most"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=root.start_mark)
