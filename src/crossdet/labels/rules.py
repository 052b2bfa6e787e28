"""The label rules as a person writes them -> numbers, with all mistakes in one message.

`crossdet.labels.space.LabelSpace.build` is the way in.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict

from crossdet.errors import LabelError, problem_list
from crossdet.labels.patterns import is_pattern, nothing_matches
from crossdet.yaml_text import flow

DROPPED = -1
"""Unified id of a source class that the label rules drop."""

RowClass = tuple[int, int]
Names = Sequence[str] | None


class LabelRules(TypedDict, total=False):
    """What may be said about the classes of datasets. Every rule may be None, and one name may stand for a list of
    one.

    The name of a class may be a pattern (`labels.patterns`); that of a dataset may not.

    merge: unified name -> source classes as `dataset/name`; the key `same_names: True` merges all names that are
        identical in several datasets.
    distinct: names that mean different things in different datasets; they become `dataset/name`.
    drop: source classes that are not learnt, as `dataset/name` or dataset -> names. Their objects are background
        of their dataset.
    absent: dataset -> unified classes it is known not to contain: its background is trusted for them.
    unlabelled: dataset -> unified classes that its pictures may show and that it does not label, though it may
        list them: its background is avoided for them.
    not_exhaustive: dataset -> unified classes it labels only in part.
    overlap: pairs of unified classes that one box can show at once (a close-up face and its person).
    federated: datasets whose images say themselves what was verified (LVIS, Open Images).
    labelled: dataset -> those of its class names that it has boxes of; None: all of them; of a dataset that is
        missing nothing is known. A class that is listed without a box may be `absent` or `unlabelled`; the dataset
        is then as one that does not list it.
    """

    merge: Mapping[str, Any] | None
    absent: Mapping[str, Names] | None
    distinct: Names
    drop: Names | Mapping[str, Names]
    not_exhaustive: Mapping[str, Names] | None
    overlap: Sequence[Sequence[str]]
    federated: Iterable[str] | None
    unlabelled: Mapping[str, Names] | None
    labelled: Mapping[str, Collection[str]] | None


@dataclass(frozen=True)
class ReadRules:
    """What the rules come to; the fields are those of `LabelSpace`."""

    datasets: tuple[str, ...]
    classes: tuple[str, ...]
    sources: tuple[Mapping[str, int], ...]
    absent_pairs: frozenset[RowClass]
    not_exhaustive_pairs: frozenset[RowClass]
    overlap_pairs: frozenset[tuple[int, int]]
    federated: frozenset[int]
    listed_only: frozenset[tuple[int, str, int]]


# ------------------------------------------------------------------------------------------- names and wording


def normalised_name(name: str) -> str:
    """A class name without case, plural and separators: `Traffic_Lights` and `traffic light` are equal."""
    words = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split()
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if word in ("people", "persons"):
        return "person"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def quoted(names: Iterable[str]) -> str:
    """The names for a message, sorted."""
    return ", ".join(repr(name) for name in sorted(names))


def unknown(what: str, name: object, known: Sequence[str]) -> str:
    """The message for a name that is not among the known ones, or a pattern that matches none of them."""
    if is_pattern(name):
        return nothing_matches(what, str(name), known)
    return _unknown(what, name, known)


def _unknown(what: str, name: object, known: Sequence[str]) -> str:
    same = [one for one in known if one.lower() == str(name).lower()]
    close = same or get_close_matches(str(name), known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    if close and name in [part.strip() for part in close[0].split(",")[1:]] + close[0].split(",")[:1]:
        hint += " (on the command line a comma within a name is written `\\,`)"
    return f"unknown {what} {name!r}; {hint}"


def _pairs_said(said: Any) -> set[str]:
    """`dataset/name` of the entries of `absent` or `unlabelled`; what is malformed is told elsewhere."""
    found = set()
    for dataset, names in said.items() if isinstance(said, Mapping) else ():
        entries = [names] if isinstance(names, str) else names
        if isinstance(entries, Iterable):
            found |= {f"{dataset}/{name}" for name in entries}
    return found


_EACH = 3
"""Up to so many equal names have a line each."""


def _unmerged(several: Mapping[str, Sequence[str]]) -> list[str]:
    """The messages for names that datasets share and no rule speaks of. several: name -> source classes."""
    if len(several) > _EACH:
        datasets = dict.fromkeys(source.partition("/")[0] for sources in several.values() for source in sources)
        return [
            f"{len(several)} classes are in several of the datasets {', '.join(datasets)}: {', '.join(several)}. "
            f"Merge them (`merge: {{same_names: true}}`), or list those that mean different things under `distinct`"
        ]
    return [
        f"class {name!r} is in several datasets ({', '.join(sources)}): merge them "
        f"(`merge: {flow({name: list(sources)})}` or `merge: {{same_names: true}}`) "
        f"or list {name!r} under `distinct`"
        for name, sources in several.items()
    ]


# ------------------------------------------------------------------------------------------- reading


class RuleReader:
    """Collects the mistakes of all rules before it gives up; lives for one `LabelSpace.build`.

    classes, sources: as of `ReadRules`, before what a dataset only lists is taken out.
    """

    def __init__(self, datasets: Any) -> None:
        self.problems: list[str] = []
        self.names: dict[str, list[str]] = {}
        for dataset, classes in self._items("datasets", datasets, "class names"):
            self.names[dataset] = self._class_names(dataset, classes)
        if not self.names and not self.problems:
            self.problems.append("datasets: none given")
        self.datasets = tuple(self.names)
        self.known = [f"{dataset}/{name}" for dataset, names in self.names.items() for name in names]
        self.classes: tuple[str, ...] = ()
        self.sources: tuple[Mapping[str, int], ...] = ()

    def read(
        self,
        merge: Any = None,
        absent: Any = None,
        distinct: Any = None,
        drop: Any = None,
        not_exhaustive: Any = None,
        overlap: Any = None,
        federated: Any = None,
        unlabelled: Any = None,
        labelled: Mapping[str, Collection[str]] | None = None,
    ) -> ReadRules:
        """The arguments are `LabelRules`. Raises `LabelError` that lists all mistakes."""
        dropped = self._dropped(drop)
        merged, same_names = self._merged(merge, dropped)
        lists = _pairs_said(absent) | _pairs_said(unlabelled)
        unified = self._unified_names(merged, same_names, self._distinct(distinct, merged, dropped), dropped, lists)
        self.classes = tuple(dict.fromkeys(unified[source] for source in self.known if source not in dropped))
        if not self.classes and not self.problems:
            self.problems.append("drop: no class is left")
        ids = {source: self.classes.index(name) for source, name in unified.items()}
        self.sources = tuple(
            {name: ids.get(f"{dataset}/{name}", DROPPED) for name in names} for dataset, names in self.names.items()
        )
        absent_pairs, unlabelled_pairs = self._pairs("absent", absent), self._pairs("unlabelled", unlabelled)
        self._with_boxes("absent", absent_pairs, labelled)
        self._with_boxes("unlabelled", unlabelled_pairs, labelled)
        self._said_twice(absent_pairs & unlabelled_pairs)
        sources, listed_only = self._without_listed(absent_pairs | unlabelled_pairs)
        rules = ReadRules(
            datasets=self.datasets,
            classes=self.classes,
            sources=sources,
            absent_pairs=absent_pairs,
            not_exhaustive_pairs=self._pairs("not_exhaustive", not_exhaustive),
            overlap_pairs=self._overlap(overlap),
            federated=self._rows("federated", self._texts("federated", federated)),
            listed_only=listed_only,
        )
        self._contradictions(rules)
        if self.problems:
            raise LabelError(problem_list(f"labels: {len(self.problems)} mistake(s)", self.problems))
        return rules

    # ------------------------------------------------------------------ what was given

    def _texts(self, key: str, given: Any) -> list[str]:
        """The names in a list of names; what is none is noted."""
        if given is None:
            return []
        if isinstance(given, str):
            return [given]
        if not isinstance(given, Iterable) or isinstance(given, (Mapping, bytes)):
            self.problems.append(f"{key}: {given!r} is not a list of names")
            return []
        entries = list(given)
        self.problems.extend(f"{key}: {e!r} is not a text" for e in entries if not isinstance(e, str))
        return [entry for entry in entries if isinstance(entry, str)]

    def _items(self, key: str, given: Any, to: str) -> Iterator[tuple[str, Any]]:
        """The entries of a map from names; what is none is noted."""
        if given is None:
            return
        if not isinstance(given, Mapping):
            self.problems.append(f"{key}: {given!r} is not a map from dataset to {to}")
            return
        for name, value in given.items():
            if isinstance(name, str):
                yield name, value
            else:
                self.problems.append(f"{key}: the key {name!r} is not a text")

    def _class_names(self, dataset: str, given: Any) -> list[str]:
        before = len(self.problems)
        if not dataset or "/" in dataset:
            self.problems.append(f"datasets: name {dataset!r} must not be empty or hold a '/'")
        if isinstance(given, str):
            self.problems.append(f"datasets.{dataset}: {given!r} is not a list of class names; write [{given}]")
            return [given]
        names = self._texts(f"datasets.{dataset}", given)
        if not names and len(self.problems) == before:
            self.problems.append(f"datasets.{dataset}: no classes")
        if any(not name.strip() for name in names):
            self.problems.append(f"datasets.{dataset}: a class without a name; give it one in the annotations")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            self.problems.append(f"datasets.{dataset}: class {quoted(twice)} is listed twice")
        return names

    def _source(self, key: str, source: object) -> str | None:
        if source in self.known:
            return str(source)
        self.problems.append(f"{key}: {unknown('source class', source, self.known)}")
        return None

    # ------------------------------------------------------------------ which source class becomes which

    def _dropped(self, drop: Any) -> set[str]:
        if isinstance(drop, Mapping):
            entries = [
                f"{dataset}/{name}"
                for dataset, names in self._items("drop", drop, "class names")
                for name in self._texts(f"drop.{dataset}", names)
            ]
        else:
            entries = self._texts("drop", drop)
        return {source for entry in entries if (source := self._source("drop", entry))}

    def _merged(self, merge: Any, dropped: set[str]) -> tuple[dict[str, str], bool]:
        """source -> unified name of its merge group; and whether identical names merge by themselves."""
        merged: dict[str, str] = {}
        if merge is not None and not isinstance(merge, Mapping):
            self.problems.append(f"merge: {merge!r} is not a map from unified name to source classes")
            return merged, False
        groups = dict(merge or {})
        same_names = groups.pop("same_names", False)
        if not isinstance(same_names, bool):
            self.problems.append(f"merge.same_names: {same_names!r} is not true or false")
        for target, members in groups.items():
            if not isinstance(target, str):
                self.problems.append(f"merge: the name {target!r} is not a text")
            elif isinstance(members, str) or not isinstance(members, Sequence) or not members:
                self.problems.append(f"merge.{target}: {members!r} is not a list of source classes 'dataset/name'")
            else:
                self._merge_group(target, members, merged, dropped)
        return merged, bool(same_names)

    def _merge_group(self, target: str, members: Sequence[Any], merged: dict[str, str], dropped: set[str]) -> None:
        for member in members:
            source = self._source(f"merge.{target}", member)
            if source is None:
                continue
            if source in merged:
                self.problems.append(f"merge.{target}: {source!r} is already merged into {merged[source]!r}")
            elif source in dropped:
                self.problems.append(f"merge.{target}: {source!r} is also in `drop`; take it out of one of them")
            else:
                merged[source] = target

    def _distinct(self, distinct: Any, merged: Mapping[str, str], dropped: set[str]) -> set[str]:
        chosen = set()
        for entry in self._texts("distinct", distinct):
            matches = [s for s in self.known if entry in (s, s.split("/", 1)[1])]
            free = [s for s in matches if s not in merged and s not in dropped]
            if not matches:
                names = sorted({s.split("/", 1)[1] for s in self.known})
                self.problems.append(f"distinct: {unknown('class', entry, names)}")
            elif not free:
                self.problems.append(f"distinct: {entry!r} is merged or dropped everywhere; take it out of one")
            chosen.update(free)
        return chosen

    def _unified_names(
        self, merged: Mapping[str, str], same_names: bool, distinct: set[str], dropped: set[str], lists: set[str]
    ) -> dict[str, str]:
        """lists: source classes that their dataset is said not to label. There is nothing to merge in these: the
        name they have is that of the class which others label."""
        unified: dict[str, str] = {}
        holders: dict[str, list[str]] = {}
        for source in self.known:
            if source in dropped:
                continue
            name = source.split("/", 1)[1]
            unified[source] = merged.get(source) or (source if source in distinct else name)
            if source not in merged and source not in lists:
                holders.setdefault(unified[source], []).append(source)
        for name, sources in holders.items():
            if name in merged.values() and not same_names:
                self.problems.append(
                    f"merge.{name}: {', '.join(sources)} has the name of this group but is not in it; "
                    f"add it to the group (`same_names: true` adds all such), or list {name!r} under `distinct`"
                )
        several = (
            {}
            if same_names
            else {n: own for n, own in holders.items() if len(own) > 1 and n not in merged.values()}
        )
        self.problems += _unmerged(several)
        self._half_merged(merged, holders, distinct)
        return unified

    def _half_merged(self, merged: Mapping[str, str], holders: Mapping[str, list[str]], distinct: set[str]) -> None:
        """A name merged in one dataset and left alone in another would make the two each other's negatives."""
        for source, group in merged.items():
            dataset, name = source.split("/", 1)
            for other in holders.get(name, []):
                if name != group and other not in distinct and other.split("/", 1)[0] != dataset:
                    self.problems.append(
                        f"merge.{group}: {source} is in this group but {other}, of the same name, is not; "
                        f"add it to the group, or list {name!r} under `distinct`"
                    )

    # ------------------------------------------------------------------ what is said about unified classes

    def _rows(self, key: str, datasets: Iterable[str]) -> frozenset[int]:
        rows = set()
        for dataset in datasets:
            if dataset in self.datasets:
                rows.add(self.datasets.index(dataset))
            else:
                no_pattern = "; datasets are named one by one" if is_pattern(dataset) else ""
                self.problems.append(f"{key}: {_unknown('dataset', dataset, self.datasets)}{no_pattern}")
        return frozenset(rows)

    def _pairs(self, key: str, given: Any) -> frozenset[RowClass]:
        pairs = set()
        for dataset, names in self._items(key, given, "unified classes"):
            for row in self._rows(key, [dataset]):
                for name in self._texts(f"{key}.{dataset}", names):
                    if name in self.classes:
                        pairs.add((row, self.classes.index(name)))
                    else:
                        self.problems.append(f"{key}.{dataset}: {self._unknown_class(name)}")
        return frozenset(pairs)

    def _overlap(self, overlap: Any) -> frozenset[tuple[int, int]]:
        pairs = set()
        if overlap is not None and (isinstance(overlap, (str, Mapping)) or not isinstance(overlap, Iterable)):
            self.problems.append(f"overlap: {overlap!r} is not a list of pairs of unified classes")
            return frozenset()
        for pair in overlap or ():
            listed = isinstance(pair, Sequence) and not isinstance(pair, (str, bytes))
            if not listed or len(pair) != 2 or pair[0] == pair[1]:
                self.problems.append(f"overlap: {pair!r} is not a pair of two different unified classes")
                continue
            strange = [name for name in pair if name not in self.classes]
            self.problems.extend(f"overlap: {self._unknown_class(name)}" for name in strange)
            if not strange:
                a, b = sorted(self.classes.index(name) for name in pair)
                pairs.add((a, b))
        return frozenset(pairs)

    def _unknown_class(self, name: object) -> str:
        """The message for a name that is no unified class; a dataset's own name of one is told as such."""
        became = {
            self.classes[c]: f"{dataset}/{own_name}"
            for dataset, own in zip(self.datasets, self.sources, strict=True)
            for own_name, c in own.items()
            if c != DROPPED and name in (own_name, f"{dataset}/{own_name}")
        }
        if not became:
            return unknown("unified class", name, self.classes)
        told = ", ".join(f"{source} is {unified!r}" for unified, source in became.items())
        return f"unknown unified class {name!r}; {told} here"

    def _with_boxes(
        self, key: str, pairs: Iterable[RowClass], labelled: Mapping[str, Collection[str]] | None
    ) -> None:
        """A class that a dataset has boxes of is neither absent from it nor unlabelled in it."""
        for row, c in sorted(pairs):
            dataset, name = self.datasets[row], self.classes[c]
            mine = [own for own, unified in self.sources[row].items() if unified == c]
            if any(labelled is None or own in labelled.get(dataset, ()) for own in mine):
                in_part = f"; if it labels only some of them, use `not_exhaustive: {flow({dataset: [name]})}`"
                self.problems.append(
                    f"{key}.{dataset}: [{name}]: but this dataset labels the class"
                    f"{in_part if key == 'unlabelled' else ''}"
                )

    def _said_twice(self, pairs: Iterable[RowClass]) -> None:
        self.problems += [
            f"{self.datasets[row]}: [{self.classes[c]}] is both under `absent` (no picture shows it, the "
            f"background is trusted) and under `unlabelled` (pictures may show it, the background is avoided); "
            f"keep one"
            for row, c in sorted(pairs)
        ]

    def _without_listed(
        self, pairs: Collection[RowClass]
    ) -> tuple[tuple[Mapping[str, int], ...], frozenset[tuple[int, str, int]]]:
        """The sources as if no dataset listed the classes that it is said not to label, and `listed_only`."""
        listed = frozenset(
            (row, name, c) for row, own in enumerate(self.sources) for name, c in own.items() if (row, c) in pairs
        )
        left = tuple(
            {name: DROPPED if (row, name, c) in listed else c for name, c in own.items()}
            for row, own in enumerate(self.sources)
        )
        remaining = {c for own in left for c in own.values()}
        lost = [name for c, name in enumerate(self.classes) if c not in remaining]
        if lost and not self.problems:
            self.problems.append(
                f"{quoted(lost)}: no dataset is left that labels it, after `absent` and `unlabelled`; list its "
                f"source classes under `drop` instead"
            )
        return left, listed

    def _contradictions(self, rules: ReadRules) -> None:
        if self.problems:
            return
        for row, c in sorted(rules.not_exhaustive_pairs):
            if c not in rules.sources[row].values():
                self.problems.append(
                    f"not_exhaustive.{self.datasets[row]}: [{self.classes[c]}]: this dataset does not label the "
                    f"class at all, so it is avoided already; take the entry out"
                )
