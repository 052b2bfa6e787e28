"""What well-known datasets call their classes: which names mean the same, and which only look so. No torch.

The names stand in `common_names.yaml`, for people to read. They merge nothing unasked (`with_common_names`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, product
from typing import TYPE_CHECKING

import yaml

from crossdet.labels.placeholders import is_unused
from crossdet.labels.rules import DROPPED, normalised_name
from crossdet.yaml_text import rule

if TYPE_CHECKING:
    from crossdet.labels.space import LabelSpace

COMMON = "common"
"""The value of `labels.merge.same_names` that asks for these names."""


SHORTEST_SLIP, SHORTEST_OTHER = 6, 9
"""Letters of a name from which on a letter more or less (or two in turn), and another letter, are taken for a slip:
`paint brush`, but not `candle` for `handle`."""


def spelling(name: str) -> str:
    """A name without capitals, `_` and `-`, and without wide letters and the like (Unicode NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


@dataclass(frozen=True)
class CommonNames:
    """groups: spelling -> name of its group. parts: meaning -> meanings of its parts. different: two meanings (one,
    where it is the same word) -> why they are not the same. likely: normalised name -> a meaning it often has."""

    groups: Mapping[str, str]
    parts: Mapping[str, frozenset[str]]
    different: Mapping[frozenset[str], str]
    likely: Mapping[str, str]

    def meaning(self, name: str) -> str:
        """What a name is compared by: its group, or its spelling where it is in none."""
        written = spelling(name)
        return self.groups.get(written, written)

    def known(self, name: str) -> bool:
        """Whether the name has a group."""
        return spelling(name) in self.groups

    def keys(self, name: str) -> set[str]:
        """Texts of which two names share one where they are likely the same: what they mean or often mean, and how
        they are written without plurals."""
        normalised = normalised_name(name)
        return {normalised, self.meaning(name), self.likely.get(normalised, normalised)}

    def alike(self, one: str, other: str) -> bool:
        """Whether two names are likely the same: they share a key, or are a slip apart."""
        if self.keys(one) & self.keys(other):
            return True
        different_words = self.known(one) and self.known(other)
        return not different_words and bool(slip_keys(one) & slip_keys(other)) and _slip_apart(one, other)

    def are_parts(self, names: Collection[str], wholes: Collection[str]) -> bool:
        """Whether each of these names is a part of one of the others: `pedestrian` of `person`."""
        parts = frozenset().union(*(self.parts.get(self.meaning(whole), ()) for whole in wholes))
        return bool(names) and all(self.meaning(name) in parts for name in names)

    def unclear(self, name: str, present: Collection[str]) -> bool:
        """Whether datasets mean different things by this word, and a name says so that is present beside it (the
        `mouse` of a dataset with `Computer mouse` is an animal). present: meanings."""
        mine = self.meaning(name)
        several = frozenset({mine}) in self.different
        return several and any(frozenset({mine, other}) in self.different for other in present if other != mine)


def slip_keys(name: str) -> set[str]:
    """Texts of which two names that are a slip apart share one: the name, and the name without one letter."""
    text = normalised_name(name)
    if len(text) < SHORTEST_SLIP or any(letter.isdigit() for letter in text):
        return set()
    return {f"~{text}", *(f"~{text[:i]}{text[i + 1 :]}" for i in range(len(text)))}


def _slip_apart(one: str, other: str) -> bool:
    """Whether two names that share a slip key are a letter apart (more, less, other), or two in turn."""
    a, b = normalised_name(one), normalised_name(other)
    start = _common_start(a, b)
    end = _common_start(a[start:][::-1], b[start:][::-1])
    rest_a, rest_b = a[start : len(a) - end], b[start : len(b) - end]
    if len(rest_a) == len(rest_b) == 1:
        return len(a) >= SHORTEST_OTHER
    return len(rest_a) + len(rest_b) == 1 or (len(rest_a) == 2 and rest_a == rest_b[::-1])


def _common_start(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@cache
def common_names() -> CommonNames:
    """The file of the package."""
    content = yaml.safe_load((files("crossdet.labels") / "common_names.yaml").read_text(encoding="utf-8"))
    groups = {spelling(name): spelling(name) for name in content["alike"]}
    for group, names in content["same"].items():
        groups |= {spelling(name): group for name in (group, *names.values())}
    names = CommonNames(groups, {}, {}, {})
    parts = {names.meaning(whole): frozenset(map(names.meaning, of)) for whole, of in content["parts"].items()}
    different = {frozenset(map(names.meaning, pair)): reason for *pair, reason in content["different"]}
    likely = {normalised_name(n): names.meaning(group) for group, also in content["likely"].items() for n in also}
    return CommonNames(groups, parts, different, likely)


def rows_by_name(space: LabelSpace, names: Sequence[str]) -> dict[int, int]:
    """Classes of the union -> rows of `names` that are called the same: as the class, else as one of its source
    classes; by letters, else by what the names mean or likely mean, else as what the class is a part of (a
    `pedestrian` of `person`). For where weights begin, so that a wrong one costs little. Rows that mean nothing are
    nobody's.
    """
    common = common_names()
    written: dict[str, int] = {}
    meant: dict[str, int] = {}
    for row, name in enumerate(names):
        if not is_unused(name):
            written.setdefault(name, row)
            for key in common.keys(name):
                meant.setdefault(key, row)

    def row_of(name: str) -> int | None:
        meaning = common.meaning(name)
        wholes = [whole for whole, parts in common.parts.items() if meaning in parts]
        keys = [meaning, *sorted(common.keys(name)), *wholes]
        return written.get(name, next((meant[key] for key in keys if key in meant), None))

    found = {}
    for c, own in enumerate(space.classes):
        called = [own, *(source.split("/", 1)[1] for source in space.sources_of(c))]
        rows = [row for row in map(row_of, called) if row is not None]
        if rows:
            found[c] = rows[0]
    return found


# ------------------------------------------------------------------------------------------- merging


def with_common_names(
    merge: Mapping[str, Sequence[str] | bool],
    datasets: Mapping[str, Sequence[str]],
    settled: Collection[str],
    known: LabelSpace | None = None,
) -> dict[str, Sequence[str] | bool]:
    """The merge groups of a config, and those that `same_names: common` adds.

    Added are identical names of several datasets, but for words that datasets mean different things by, and names
    of one group of the file. Left alone is what the config settles itself, what one dataset or the weights tell
    apart, and names that the weights have merged.

    settled: source classes `dataset/name`, or names, of `distinct` and `drop`. known: the label space that grows;
    its classes keep their names.
    """
    groups: dict[str, Sequence[str] | bool] = {
        name: members for name, members in merge.items() if name != "same_names"
    }
    told = {source: name for name, members in groups.items() if isinstance(members, Sequence) for source in members}
    if known is not None:
        told |= {source: name for c, name in enumerate(known.classes) for source in known.sources_of(c)}
    for sources in _alike(known, datasets, settled).values():
        targets = {told[source] for source in sources if source in told}
        free = [source for source in sources if source not in told]
        owners = [source.partition("/")[0] for source in sources if source not in told]
        if len(sources) < 2 or not free or len(targets) > 1 or len(set(owners)) < len(owners):
            continue
        target = targets.pop() if targets else free[0].partition("/")[2]
        before = groups.get(target, ())
        groups[target] = (*(before if isinstance(before, Sequence) else ()), *free)
    return {**groups, "same_names": False}


def _alike(
    known: LabelSpace | None, datasets: Mapping[str, Sequence[str]], left: Collection[str]
) -> dict[str, list[str]]:
    """Source classes by what they are merged by, in the order of the datasets, those of the weights first."""
    names = common_names()
    learnt = () if known is None else zip(known.datasets, known.sources, strict=True)
    ids = {f"{dataset}/{name}": c for dataset, before in learnt for name, c in before.items()}
    new = (f"{dataset}/{name}" for dataset, listed in datasets.items() for name in listed)
    own = {source: source.partition("/")[2] for source in dict.fromkeys([*ids, *new])}
    present = {names.meaning(name) for name in own.values()}
    found: dict[str, list[str]] = {}
    for source, name in own.items():
        if ids.get(source) != DROPPED and not {source, name} & {*left} and not names.unclear(name, present):
            found.setdefault(names.meaning(name) if names.known(name) else f"={name}", []).append(source)
    return found


# ------------------------------------------------------------------------------------------- what check tells


def _by_meaning(space: LabelSpace) -> dict[str, list[tuple[str, str, int]]]:
    """Meaning -> (dataset, its own name, unified id), without what a rule calls distinct."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for dataset, own in zip(space.datasets, space.sources, strict=True):
        for name, c in own.items():
            if c != DROPPED and not space.classes[c].endswith(f"/{name}"):
                found.setdefault(common_names().meaning(name), []).append((dataset, name, c))
    return found


def only_alike(space: LabelSpace) -> list[str]:
    """Classes of different datasets that look the same and are not, by the file, and why."""
    by_meaning, found = _by_meaning(space), []
    for pair, reason in common_names().different.items():
        first, second = (by_meaning.get(meaning, []) for meaning in (min(pair), max(pair)))
        pairs = combinations(first, 2) if len(pair) == 1 else product(first, second)
        found += [
            f"{a[0]}/{a[1]} and {b[0]}/{b[1]} are not taken for the same: {reason}"
            for a, b in pairs
            if a[0] != b[0] and a[2] != b[2]
        ]
    return found


def parts_apart(space: LabelSpace, known: LabelSpace | None = None) -> list[str]:
    """What to do about `parts_of`. known: the label space that has grown, whose classes are no longer merged with
    each other here."""
    old = set() if known is None else {s for c in range(len(known.classes)) for s in known.sources_of(c)}
    return [_apart(space, whole, parts, old) for whole, parts in parts_of(space)]


def parts_of(space: LabelSpace) -> list[tuple[int, list[tuple[str, str, int]]]]:
    """Classes of one dataset that are, by the file, a part of another's class, and are neither merged with it nor
    allowed to share its boxes: the id of the whole, and dataset, own name and id of each part."""
    by_meaning, found = _by_meaning(space), []
    for whole, parts in common_names().parts.items():
        narrow = [source for part in sorted(parts) for source in by_meaning.get(part, [])]
        for c in dict.fromkeys(c for _, _, c in by_meaning.get(whole, [])):
            owners = {dataset for dataset, _, own in by_meaning[whole] if own == c}
            apart = [s for s in narrow if s[2] != c and not space.overlap_array[c, s[2]] and owners - {s[0]}]
            if apart:
                found.append((c, apart))
    return found


def label_in_part(space: LabelSpace, whole: int, parts: Sequence[tuple[str, str, int]]) -> list[str]:
    """The datasets that label parts of a class and not the class itself. whole, parts: of `parts_of`."""
    labelling = {source.partition("/")[0] for source in space.sources_of(whole)}
    return [dataset for dataset in dict.fromkeys(dataset for dataset, _, _ in parts) if dataset not in labelling]


def _apart(space: LabelSpace, whole: int, parts: Sequence[tuple[str, str, int]], old: Collection[str]) -> str:
    """old: source classes that weights know."""
    name, sources = space.classes[whole], [f"{dataset}/{part}" for dataset, part, _ in parts]
    pairs = [[name, space.classes[c]] for c in dict.fromkeys(c for _, _, c in parts)]
    narrow = label_in_part(space, whole, parts)
    rest = rule("not_exhaustive", {dataset: [name] for dataset in narrow})
    in_part = f"with {rest} if there are others in its pictures, " if narrow else ""
    members = [source for source in (*space.sources_of(whole), *sources) if source not in old]
    merge = f"{rule('merge', {name: members})}, {in_part}or to learn both "
    if set(sources) & {*old}:  # a class of the weights stays one
        merge = ""
    return (
        f"by their names part of {name!r}: {', '.join(sources)}. Objects of the one are negatives of the other; "
        f"say {merge}{rule('overlap', pairs)}"
    )
