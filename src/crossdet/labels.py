"""Label space: the union of the datasets' classes, and whose background may be trusted for which class.

Implements the label mapping of Yao et al. (arXiv 2001.04621, sec. 1 steps 1-3, sec. 3.2, fig. 3) and the
avoidance relation of sec. 3.3. Datasets are rows, unified classes are columns everywhere:

- `annotated[k, c]`: dataset k labels class c.
- `avoid[k, c]`: the background of dataset k must not be used as negative for class c. By default what k does not
  annotate, or annotates only in part (`not_exhaustive`); a class known to be `absent` from k is not avoided.
- `trusted = not avoid`, one row per image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import LabelError, UserError, problem_list

if TYPE_CHECKING:
    from torch import Tensor

DROPPED = -1
"""Unified id of a source class that the label rules drop."""

Pairs = Sequence[Sequence[str]]


@dataclass(frozen=True)
class LabelSpace:
    """The union of the classes of K datasets, C unified classes. Build it with `LabelSpace.build`.

    datasets: names, in the order of the rows. classes: unified names, in the order of first appearance.
    sources: per dataset, source class name -> unified id, `DROPPED` for dropped classes.
    """

    datasets: tuple[str, ...]
    classes: tuple[str, ...]
    sources: tuple[Mapping[str, int], ...]
    absent_pairs: frozenset[tuple[int, int]] = frozenset()
    not_exhaustive_pairs: frozenset[tuple[int, int]] = frozenset()
    overlap_pairs: frozenset[tuple[int, int]] = frozenset()
    federated: frozenset[int] = frozenset()

    @classmethod
    def build(
        cls,
        datasets: Mapping[str, Sequence[str]],
        merge: Mapping[str, Any] | None = None,
        absent: Mapping[str, Sequence[str]] | None = None,
        distinct: Sequence[str] = (),
        drop: Sequence[str] | Mapping[str, Sequence[str]] = (),
        not_exhaustive: Mapping[str, Sequence[str]] | None = None,
        overlap: Pairs = (),
        federated: Iterable[str] = (),
    ) -> LabelSpace:
        """Merges the datasets' classes.

        datasets: dataset name -> its own class names.
        merge: unified name -> source classes as `dataset/name`; the key `same_names: True` merges all names
            that are identical in several datasets.
        distinct: names that mean different things in different datasets; they become `dataset/name`.
        drop: source classes that are not learnt, as `dataset/name` or dataset -> names. Their objects are
            background of their dataset.
        absent: dataset -> unified classes it is known not to contain: its background is trusted for them.
        not_exhaustive: dataset -> unified classes it labels only in part.
        overlap: pairs of unified classes that one box can show at once (a close-up face and its person).
        federated: datasets whose images say themselves what was verified (LVIS, Open Images).

        Raises `LabelError` that lists all mistakes.
        """
        return _Builder(datasets).build(
            merge or {}, absent or {}, distinct, drop, not_exhaustive or {}, overlap, federated
        )

    # ------------------------------------------------------------------ ids

    def dataset_index(self, dataset: str) -> int:
        """Row of a dataset. Raises `LabelError` for an unknown name."""
        try:
            return self.datasets.index(dataset)
        except ValueError:
            raise LabelError(f"unknown dataset {dataset!r}; known: {', '.join(self.datasets)}") from None

    def index(self, dataset: str, name: str) -> int:
        """Unified id of class `name` of `dataset`; `DROPPED` (-1) if the rules drop it."""
        sources = self.sources[self.dataset_index(dataset)]
        if name not in sources:
            raise LabelError(f"{dataset!r} has no class {name!r}; it has {', '.join(sources)}")
        return sources[name]

    def id_of(self, unified: str) -> int:
        """Unified id of a unified class name. Raises `LabelError` for an unknown name."""
        if unified not in self.classes:
            raise LabelError(_unknown("class", unified, self.classes))
        return self.classes.index(unified)

    def ids(self, dataset: str, names: Sequence[str]) -> NDArray[np.int64]:
        """`[len(names)]` unified ids of a dataset's class names (an index may list them in any order)."""
        return np.array([self.index(dataset, name) for name in names], np.int64)

    def sources_of(self, class_id: int) -> list[str]:
        """The source classes `dataset/name` of a unified class."""
        return [
            f"{dataset}/{name}"
            for dataset, sources in zip(self.datasets, self.sources, strict=True)
            for name, unified in sources.items()
            if unified == class_id
        ]

    # ------------------------------------------------------------------ relations (numpy inside)

    @cached_property
    def annotated_array(self) -> NDArray[np.bool_]:
        """`[K, C]` bool."""
        annotated = np.zeros((len(self.datasets), len(self.classes)), bool)
        for row, sources in enumerate(self.sources):
            annotated[row, [unified for unified in sources.values() if unified != DROPPED]] = True
        return annotated

    @cached_property
    def avoid_array(self) -> NDArray[np.bool_]:
        """`[K, C]` bool."""
        avoid = ~self.annotated_array
        avoid[sorted(self.federated)] = True
        for pair in self.not_exhaustive_pairs:
            avoid[pair] = True
        for pair in self.absent_pairs:
            avoid[pair] = False
        return avoid

    @cached_property
    def overlap_array(self) -> NDArray[np.bool_]:
        """`[C, C]` bool, symmetric."""
        overlap = np.zeros((len(self.classes), len(self.classes)), bool)
        for a, b in self.overlap_pairs:
            overlap[a, b] = overlap[b, a] = True
        return overlap

    def trusted_array(
        self,
        dataset: str,
        negatives: Iterable[int] = (),
        present: Iterable[int] = (),
        not_exhaustive: Iterable[int] = (),
    ) -> NDArray[np.bool_]:
        """`[C]` bool: the classes whose negatives may come from the background of an image of `dataset`.

        The image-level arguments (unified ids) are for federated datasets: `negatives` were verified to be
        absent, `present` have boxes in the image, `not_exhaustive` are labelled only in part. An image trusts
        its verified negatives and the classes it has boxes of, minus its not-exhaustive ones, plus `absent`.
        """
        return self.trusted_row(self.dataset_index(dataset), negatives, present, not_exhaustive)

    def trusted_row(
        self,
        row: int,
        negatives: Iterable[int] = (),
        present: Iterable[int] = (),
        not_exhaustive: Iterable[int] = (),
    ) -> NDArray[np.bool_]:
        """`trusted_array` by the row of the dataset instead of its name."""
        trusted = ~self.avoid_array[row]
        if row in self.federated:
            trusted[[*negatives, *present]] = True
            partial = [c for c in not_exhaustive if (row, c) not in self.absent_pairs]
            partial += [c for r, c in self.not_exhaustive_pairs if r == row]
            trusted[partial] = False
        return trusted

    # ------------------------------------------------------------------ the same as torch tensors

    @property
    def annotated(self) -> Tensor:
        """bool `[K, C]`: dataset k labels class c."""
        return _tensor(self.annotated_array)

    @property
    def avoid(self) -> Tensor:
        """bool `[K, C]`: background of dataset k must not be a negative for class c."""
        return _tensor(self.avoid_array)

    @property
    def overlap(self) -> Tensor:
        """bool `[C, C]`: an object of one class is no negative for the other."""
        return _tensor(self.overlap_array)

    def trusted(self, dataset: str) -> Tensor:
        """bool `[C]`: the classes that may take negatives from the background of `dataset`."""
        return _tensor(self.trusted_array(dataset))

    # ------------------------------------------------------------------ hints for people

    def partial_merges(self) -> list[str]:
        """Merges that join unlike sets of source names and are not declared `not_exhaustive`.

        A joins car, truck and bus into `vehicle`, B brings only `car`: B's unlabelled trucks are trained as
        background of `vehicle`. Single names are taken as synonyms (person, pedestrian).
        """
        hints = []
        for class_id, name in enumerate(self.classes):
            joined: dict[int, set[str]] = {}
            for row, sources in enumerate(self.sources):
                names = {fold(source) for source, unified in sources.items() if unified == class_id}
                if names:
                    joined[row] = names
            if len(joined) < 2 or max(len(names) for names in joined.values()) == 1:
                continue
            widest = set().union(*joined.values())
            for row, names in joined.items():
                if names != widest and (row, class_id) not in self.not_exhaustive_pairs:
                    hints.append(
                        f"{name!r}: {self.datasets[row]} brings only {_names(names)}, not "
                        f"{_names(widest - names)}; if its pictures show them, say "
                        f"`labels.not_exhaustive: {{{self.datasets[row]}: [{name}]}}`"
                    )
        return hints

    def likely_duplicates(self) -> list[tuple[str, str]]:
        """Pairs of source classes of different datasets with equal folded names and different unified ids."""
        seen: dict[str, list[tuple[int, str, int]]] = {}
        for row, sources in enumerate(self.sources):
            for name, unified in sources.items():
                if unified != DROPPED:
                    seen.setdefault(fold(name), []).append((row, name, unified))
        return [
            (f"{self.datasets[row_a]}/{name_a}", f"{self.datasets[row_b]}/{name_b}")
            for group in seen.values()
            for position, (row_a, name_a, id_a) in enumerate(group)
            for row_b, name_b, id_b in group[position + 1 :]
            if row_a != row_b and id_a != id_b and not self._said_distinct(name_a, id_a, name_b, id_b)
        ]

    def _said_distinct(self, name_a: str, id_a: int, name_b: str, id_b: int) -> bool:
        return self.classes[id_a].endswith(f"/{name_a}") and self.classes[id_b].endswith(f"/{name_b}")

    # ------------------------------------------------------------------ JSON

    def to_json(self) -> str:
        """The label space as JSON text; `from_json` gives an equal one back."""
        return json.dumps(
            {
                "datasets": self.datasets,
                "classes": self.classes,
                "sources": [dict(sources) for sources in self.sources],
                "absent": sorted(self.absent_pairs),
                "not_exhaustive": sorted(self.not_exhaustive_pairs),
                "overlap": sorted(self.overlap_pairs),
                "federated": sorted(self.federated),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> LabelSpace:
        data = json.loads(text)

        def pairs(key: str) -> frozenset[tuple[int, int]]:
            return frozenset((int(a), int(b)) for a, b in data[key])

        return cls(
            datasets=tuple(data["datasets"]),
            classes=tuple(data["classes"]),
            sources=tuple(data["sources"]),
            absent_pairs=pairs("absent"),
            not_exhaustive_pairs=pairs("not_exhaustive"),
            overlap_pairs=pairs("overlap"),
            federated=frozenset(data["federated"]),
        )


def fold(name: str) -> str:
    """A class name without case, plural and separators: `Traffic_Lights` and `traffic light` are equal."""
    words = name.casefold().replace("_", " ").replace("-", " ").split()
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


def _tensor(array: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(array.copy())


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {hint}"


class _Builder:
    """Collects the mistakes of all rules before it gives up; lives for one `LabelSpace.build`."""

    def __init__(self, datasets: Mapping[str, Sequence[str]]) -> None:
        self.names = {dataset: list(classes) for dataset, classes in datasets.items()}
        self.problems: list[str] = []
        if not datasets:
            self.problems.append("datasets: none given")
        for dataset, classes in self.names.items():
            if not dataset or "/" in dataset:
                self.problems.append(f"datasets: name {dataset!r} must not be empty or hold a '/'")
            if not classes:
                self.problems.append(f"datasets.{dataset}: no classes")
            twice = sorted({name for name in classes if classes.count(name) > 1})
            if twice:
                self.problems.append(f"datasets.{dataset}: class {_names(twice)} is listed twice")
        self.known = [f"{dataset}/{name}" for dataset, names in self.names.items() for name in names]

    def build(
        self,
        merge: Mapping[str, Any],
        absent: Mapping[str, Sequence[str]],
        distinct: Sequence[str],
        drop: Sequence[str] | Mapping[str, Sequence[str]],
        not_exhaustive: Mapping[str, Sequence[str]],
        overlap: Pairs,
        federated: Iterable[str],
    ) -> LabelSpace:
        dropped = self._dropped(drop)
        merged, same_names = self._merged(merge, dropped)
        unified = self._unified_names(merged, same_names, self._distinct(distinct, merged, dropped), dropped)
        classes = tuple(dict.fromkeys(unified[source] for source in self.known if source not in dropped))
        if not classes and not self.problems:
            self.problems.append("drop: no class is left")
        sources = tuple(
            {
                name: DROPPED if f"{d}/{name}" in dropped else classes.index(unified[f"{d}/{name}"])
                for name in names
            }
            for d, names in self.names.items()
        )
        space = LabelSpace(
            datasets=tuple(self.names),
            classes=classes,
            sources=sources,
            absent_pairs=self._pairs("absent", absent, classes),
            not_exhaustive_pairs=self._pairs("not_exhaustive", not_exhaustive, classes),
            overlap_pairs=self._overlap(overlap, classes),
            federated=self._rows("federated", federated),
        )
        self._contradictions(space)
        if self.problems:
            raise LabelError(problem_list(f"labels: {len(self.problems)} mistake(s)", self.problems))
        return space

    def _source(self, key: str, source: Any) -> str | None:
        if source in self.known:
            return str(source)
        self.problems.append(f"{key}: {_unknown('source class', str(source), self.known)}")
        return None

    def _dropped(self, drop: Sequence[str] | Mapping[str, Sequence[str]]) -> set[str]:
        if isinstance(drop, Mapping):
            drop = [f"{dataset}/{name}" for dataset, names in drop.items() for name in names]
        return {source for entry in drop if (source := self._source("drop", entry))}

    def _merged(self, merge: Mapping[str, Any], dropped: set[str]) -> tuple[dict[str, str], bool]:
        """source -> unified name of its merge group; and whether identical names merge by themselves."""
        merged: dict[str, str] = {}
        same_names = merge.get("same_names", False)
        if not isinstance(same_names, bool):
            self.problems.append(f"merge.same_names: {same_names!r} is not true or false")
        for target, members in merge.items():
            if target == "same_names":
                continue
            if isinstance(members, str) or not isinstance(members, Sequence) or not members:
                self.problems.append(
                    f"merge.{target}: {members!r} is not a list of source classes 'dataset/name'"
                )
                continue
            for member in members:
                source = self._source(f"merge.{target}", member)
                if source is None:
                    continue
                if source in merged:
                    self.problems.append(
                        f"merge.{target}: {source!r} is already merged into {merged[source]!r}"
                    )
                elif source in dropped:
                    self.problems.append(
                        f"merge.{target}: {source!r} is also in `drop`; take it out of one of them"
                    )
                else:
                    merged[source] = target
        return merged, bool(same_names)

    def _distinct(self, distinct: Sequence[str], merged: Mapping[str, str], dropped: set[str]) -> set[str]:
        chosen = set()
        for entry in distinct:
            matches = [s for s in self.known if entry in (s, s.split("/", 1)[1])]
            free = [s for s in matches if s not in merged and s not in dropped]
            if not matches:
                names = sorted({s.split("/", 1)[1] for s in self.known})
                self.problems.append(f"distinct: {_unknown('class', entry, names)}")
            elif not free:
                self.problems.append(
                    f"distinct: {entry!r} is merged or dropped everywhere; take it out of one"
                )
            chosen.update(free)
        return chosen

    def _unified_names(
        self, merged: Mapping[str, str], same_names: bool, distinct: set[str], dropped: set[str]
    ) -> dict[str, str]:
        unified: dict[str, str] = {}
        holders: dict[str, list[str]] = {}
        for source in self.known:
            if source in dropped:
                continue
            name = source.split("/", 1)[1]
            unified[source] = merged.get(source) or (source if source in distinct else name)
            if source not in merged:
                holders.setdefault(unified[source], []).append(source)
        for name, sources in holders.items():
            if name in merged.values() and not same_names:
                self.problems.append(
                    f"merge.{name}: {', '.join(sources)} has the name of this group but is not in it; "
                    f"add it to the group, or list {name!r} under `distinct`"
                )
            elif len(sources) > 1 and not same_names:
                self.problems.append(
                    f"class {name!r} is in several datasets ({', '.join(sources)}): merge them "
                    f"(`merge: {{{name}: [{', '.join(sources)}]}}` or `merge: {{same_names: true}}`) "
                    f"or list {name!r} under `distinct`"
                )
        self._half_merged(merged, holders, distinct)
        return unified

    def _half_merged(
        self, merged: Mapping[str, str], holders: Mapping[str, list[str]], distinct: set[str]
    ) -> None:
        """A name merged in one dataset and left alone in another would make the two each other's negatives."""
        for source, group in merged.items():
            dataset, name = source.split("/", 1)
            for other in holders.get(name, []):
                if name != group and other not in distinct and other.split("/", 1)[0] != dataset:
                    self.problems.append(
                        f"merge.{group}: {source} is in this group but {other}, of the same name, is not; "
                        f"add it to the group, or list {name!r} under `distinct`"
                    )

    def _rows(self, key: str, datasets: Iterable[str]) -> frozenset[int]:
        known = list(self.names)
        rows = set()
        for dataset in datasets:
            if dataset in known:
                rows.add(known.index(dataset))
            else:
                self.problems.append(f"{key}: {_unknown('dataset', dataset, known)}")
        return frozenset(rows)

    def _pairs(
        self, key: str, entries: Mapping[str, Sequence[str]], classes: tuple[str, ...]
    ) -> frozenset[tuple[int, int]]:
        pairs = set()
        for dataset, names in entries.items():
            for row in self._rows(key, [dataset]):
                for name in [names] if isinstance(names, str) else names:
                    if name in classes:
                        pairs.add((row, classes.index(name)))
                    else:
                        self.problems.append(f"{key}.{dataset}: {_unknown('unified class', name, classes)}")
        return frozenset(pairs)

    def _overlap(self, overlap: Pairs, classes: tuple[str, ...]) -> frozenset[tuple[int, int]]:
        pairs = set()
        for pair in overlap:
            if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
                self.problems.append(f"overlap: {pair!r} is not a pair of two different unified classes")
                continue
            unknown = [name for name in pair if name not in classes]
            self.problems.extend(f"overlap: {_unknown('unified class', n, classes)}" for n in unknown)
            if not unknown:
                a, b = sorted(classes.index(name) for name in pair)
                pairs.add((a, b))
        return frozenset(pairs)

    def _contradictions(self, space: LabelSpace) -> None:
        if self.problems:
            return
        annotated = space.annotated_array
        for row, c in sorted(space.absent_pairs):
            where = f"{space.datasets[row]}: [{space.classes[c]}]"
            if annotated[row, c]:
                self.problems.append(f"absent.{where}: but this dataset labels the class")
        for row, c in sorted(space.not_exhaustive_pairs):
            where = f"{space.datasets[row]}: [{space.classes[c]}]"
            if not annotated[row, c]:
                self.problems.append(
                    f"not_exhaustive.{where}: this dataset does not label the class at all, so it is "
                    f"avoided already; take the entry out"
                )


def check_class_names(dataset: str, trained: Sequence[str], found: Sequence[str], where: str) -> None:
    """Raises `UserError` if a split brings classes that the training split does not know."""
    unknown = [name for name in found if name not in trained]
    if unknown:
        raise UserError(
            f"{where}: class {_names(unknown)} is not among the classes of the training split of {dataset!r} "
            f"({', '.join(trained)}); list all classes under `datasets.{dataset}.classes`"
        )
