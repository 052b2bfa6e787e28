"""Pictures that belong together (copies of one photograph, frames of one film), so that no part takes some of them.

What says so is a regular expression on the file's path, or a file of paths and groups. No torch in here.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdet.data.index import Index
from crossdet.errors import UserError

_FILES = (".csv", ".json")
OF_A_NAME = 10
"""Pictures of one file name, on average, above which a picture is known by its whole path."""


@dataclass(frozen=True)
class Groups:
    """of: `[I]` number of each picture's group, by first appearance. alone: pictures of which nothing says a group;
    each is one of its own. names: of the groups; of a picture alone that of `short_names`."""

    of: NDArray[np.int64]
    alone: int
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        return int(self.of.max(initial=-1)) + 1

    def __str__(self) -> str:
        told = f"{len(self.of):,} pictures in {self.count:,} groups"
        return f"{told}, of them {self.alone:,} pictures that nothing groups" if self.alone else told


def is_file(group_by: str) -> bool:
    """Whether the pictures' groups stand in a file, instead of in their paths."""
    return group_by.lower().endswith(_FILES)


def expression_problem(expression: str) -> str | None:
    """What is wrong with a regular expression for `group`."""
    try:
        groups = re.compile(expression).groups
    except re.error as error:
        return f"no regular expression: {error}"
    if groups != 1:
        return f"expected one group in round brackets, such as ([^/]+)_jpg, got {groups}"
    return None


def group(index: Index, group_by: str) -> Groups:
    """The groups of an index's pictures.

    group_by: a regular expression with one group, searched in the path of each picture relative to the index's
    `root`; or a .csv (lines path,group) or .json file (path -> group). A path is that of the index, or the last
    parts of it. Pictures that it does not match are groups of their own.

    Raises `UserError` for what cannot be read, contradicts itself, or matches no picture.
    """
    names = [index.names[row] for row in range(len(index))]
    if is_file(group_by):
        given = _of_file(Path(group_by))
        keys = [_listed(given, name) for name in names]
    else:
        if problem := expression_problem(group_by):
            raise UserError(f"group by {group_by}: {problem}")
        found = (re.search(group_by, name) for name in names)
        keys = [match and match[1] for match in found]
    if names and all(key is None for key in keys):
        raise UserError(f"group by {group_by}: it matches no picture; their paths are such as {names[0]}")
    numbers: dict[tuple[bool, str], int] = {}
    pairs = [(key is None, name if key is None else key) for key, name in zip(keys, names, strict=True)]
    of = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
    short = dict(zip(names, short_names(names), strict=True))
    named = tuple(short[key] if alone else key for alone, key in numbers)
    return Groups(np.array(of, np.int64), keys.count(None), named)


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path: it stays where its folder is moved, and where pictures of its name come or go in
    other folders. Whole paths where few names stand for many pictures (`1/image.png`, `2/image.png`)."""
    last = [path.rpartition("/")[2] for path in paths]
    return last if len(last) <= OF_A_NAME * len(set(last)) else list(paths)


def drawn(names: Sequence[str], remainder: int, divisor: int) -> NDArray[np.bool_]:
    """`[N]`: about one of `divisor` names, drawn by what they are: where others come or go, these stay. The draws
    of all remainders together are all names, each once.

    Of two names or more at least one is drawn, and one is not, whatever the draw says of so few.
    """
    digests = [blake2b(name.encode(errors="surrogateescape"), digest_size=7).digest() for name in names]
    draws = np.array([int.from_bytes(digest, "big") for digest in digests], np.int64)
    chosen: NDArray[np.bool_] = draws % divisor == remainder
    if len(names) > 1 and (chosen.all() or not chosen.any()):
        chosen[np.argsort(draws)[remainder % len(names)]] = not chosen.any()
    return chosen


def _listed(given: Mapping[str, str], name: str) -> str | None:
    """The group of a path in a file that may name its last parts only."""
    pieces = name.split("/")
    tails = ("/".join(pieces[at:]) for at in range(len(pieces)))
    return next((given[tail] for tail in tails if tail in given), None)


def _of_file(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _of_json(path, text) if path.suffix.lower() == ".json" else _of_csv(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"group by {path}: it cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"group by {path}: no JSON: {error}") from None
    found: dict[str, str] = {}
    for name, of in pairs:
        if found.setdefault(name, of) != of:
            raise UserError(f"group by {path}: {name} is in two groups, {found[name]} and {of}")
    return found


def _of_json(path: Path, text: str) -> list[tuple[str, str]]:
    content = json.loads(text)
    if not isinstance(content, dict) or not all(isinstance(of, (str, int)) for of in content.values()):
        raise UserError(f"group by {path}: expected a JSON object of path -> group")
    return [(name, str(of)) for name, of in content.items()]


def _of_csv(path: Path, text: str) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(f"group by {path}: row {number}: expected path,group, got {','.join(row)}")
    return [(name.strip(), of.strip()) for name, of in rows if (name, of) != ("path", "group")]
