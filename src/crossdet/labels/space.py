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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import LabelError, UserError
from crossdet.labels.common import common_names, slip_keys
from crossdet.labels.folds import Fold, Folding
from crossdet.labels.patterns import expanded
from crossdet.labels.rules import DROPPED, LabelRules, RuleReader, normalised_name, quoted, unknown
from crossdet.yaml_text import rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DROPPED", "LabelSpace", "check_class_names"]


@dataclass(frozen=True)
class LabelSpace:
    """The union of the classes of K datasets, C unified classes. Build it with `LabelSpace.build`.

    datasets: names, in the order of the rows. classes: unified names, in the order of first appearance.
    sources: per dataset, source class name -> unified id, `DROPPED` for dropped classes.
    folds: classes that are one class in several directions or datasets (`labels.members.with_members`), or that
        were merged after training (`labels.edits.edited`).
    directions: row of a dataset -> the directions that its source classes `name@DEGREES` have.
    listed_only: (row, own class name, unified id) of the source classes that a dataset lists and, by the rules
        `absent` and `unlabelled`, does not label. They are dropped in `sources`.
    """

    datasets: tuple[str, ...]
    classes: tuple[str, ...]
    sources: tuple[Mapping[str, int], ...]
    absent_pairs: frozenset[tuple[int, int]] = frozenset()
    not_exhaustive_pairs: frozenset[tuple[int, int]] = frozenset()
    overlap_pairs: frozenset[tuple[int, int]] = frozenset()
    federated: frozenset[int] = frozenset()
    folds: tuple[Fold, ...] = ()
    directions: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    listed_only: frozenset[tuple[int, str, int]] = frozenset()

    @classmethod
    def build(cls, datasets: Mapping[str, Sequence[str]], **rules: Unpack[LabelRules]) -> LabelSpace:
        """Merges the datasets' classes. datasets: dataset name -> its own class names. rules: see `LabelRules`.

        Raises `LabelError` that lists all mistakes.
        """
        reader = RuleReader(datasets)
        return cls(**vars(reader.read(**expanded(rules, reader.names)[0])))

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
            raise LabelError(unknown("class", unified, self.classes))
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

    @cached_property
    def folding(self) -> Folding | None:
        """How `folds` put classes together; None without any."""
        return Folding.build(self.classes, self.folds)

    @property
    def reported(self) -> tuple[str, ...]:
        """The names under which detections are reported: `classes`, folded where there is something to fold."""
        return self.classes if self.folding is None else self.folding.names

    @property
    def has_members(self) -> bool:
        """Whether some classes have directions or are told apart by dataset; merged ones do not count."""
        return any(not fold.is_merge for fold in self.folds)

    # ------------------------------------------------------------------ relations (numpy inside)

    @cached_property
    def source_counts(self) -> NDArray[np.int64]:
        """`[K, C]` how many of its own classes dataset k maps to unified class c."""
        counts = np.zeros((len(self.datasets), len(self.classes)), np.int64)
        for row, sources in enumerate(self.sources):
            kept = [unified for unified in sources.values() if unified != DROPPED]
            np.add.at(counts[row], kept, 1)
        return counts

    @cached_property
    def annotated_array(self) -> NDArray[np.bool_]:
        """`[K, C]` bool."""
        annotated: NDArray[np.bool_] = self.source_counts > 0
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
        A class merged from several of the dataset's own is verified only where all of them are ("no car" says
        nothing about trucks); `crossdet.data.federated.verified_classes` works that out from an index.
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

    def partial_merges(self, labelled: Mapping[str, Collection[str]] | None = None) -> list[str]:
        """Merges that join unlike sets of source names and are not declared `not_exhaustive`.

        A joins car, truck and bus into `vehicle`, B brings only `car`: B's unlabelled trucks are trained as
        background of `vehicle`. So they are where A brings `vehicle` itself; other single names are taken as
        synonyms. Nor are names joined that a dataset lists and has no box of, while others have boxes of the class.

        labelled: dataset -> its own class names that count, those that it has boxes of; None: all.
        """
        hints: list[str] = []
        for class_id in range(len(self.classes)):
            joined: dict[int, set[str]] = {}
            empty: dict[int, set[str]] = {}
            for row, sources in enumerate(self.sources):
                own = sources if labelled is None else labelled.get(self.datasets[row], sources)
                names = {normalised_name(s) for s, unified in sources.items() if unified == class_id and s in own}
                if names:
                    joined[row] = names
                    empty[row] = {s for s, unified in sources.items() if unified == class_id and s not in own}
            hints += self._empty_members(class_id, empty)
            if len(joined) > 1:
                hints += self._narrow_members(class_id, joined, {row for row, names in empty.items() if names})
        return hints

    def _narrow_members(
        self, class_id: int, joined: Mapping[int, set[str]], asked: Collection[int]
    ) -> Iterator[str]:
        """Of `partial_merges`: datasets whose names are fewer than others', or by themselves a part of theirs.
        joined: dataset (row) -> its names, normalised. asked: rows that `_empty_members` speaks of."""
        name, widest = self.classes[class_id], set().union(*joined.values())
        several = max(len(names) for names in joined.values()) > 1
        for row, names in joined.items():
            rest, dataset = widest - names, self.datasets[row]
            part = row not in asked and common_names().are_parts(names, rest)
            if ((several and rest) or part) and (row, class_id) not in self.not_exhaustive_pairs:
                lacks = "by its name a part of it" if part else f"not {quoted(rest)}"
                others = "others" if part else "them"
                yield (
                    f"{name!r}: {dataset} brings only {quoted(names)}, {lacks}; if its pictures show {others}, say "
                    f"{rule('not_exhaustive', {dataset: [name]})}"
                )

    def _empty_members(self, class_id: int, empty: Mapping[int, set[str]]) -> Iterator[str]:
        """Of `partial_merges`. empty: of each dataset (row) with boxes of the class its names without any."""
        name = self.classes[class_id]
        for row, names in empty.items():
            if names and len(empty) > 1 and (row, class_id) not in self.not_exhaustive_pairs:
                dataset = self.datasets[row]
                yield (
                    f"{name!r}: {dataset} lists {quoted(names)} and has no box of it; if its pictures show it, say "
                    f"{rule('not_exhaustive', {dataset: [name]})}, else drop it"
                )

    def likely_duplicates(self) -> list[tuple[str, str]]:
        """Pairs of source classes of different datasets and different unified ids whose normalised names are equal
        or a slip apart, or that mean the same by `labels.common`; without those that it says to be different, and
        those that the rules speak of (`overlap`, `distinct`). Of one dataset those that differ in case or white
        space alone."""
        names = common_names()
        seen: dict[str, list[tuple[int, str, int]]] = {}
        for row, sources in enumerate(self.sources):
            for name, unified in sources.items():
                if unified != DROPPED:
                    for key in sorted(names.keys(name) | slip_keys(name)):
                        seen.setdefault(key, []).append((row, name, unified))
        pairs = (
            (f"{self.datasets[row_a]}/{name_a}", f"{self.datasets[row_b]}/{name_b}")
            for group in seen.values()
            for position, (row_a, name_a, id_a) in enumerate(group)
            for row_b, name_b, id_b in group[position + 1 :]
            if id_a != id_b and (row_a != row_b or _same_text(name_a, name_b)) and names.alike(name_a, name_b)
            if not self._told_apart((name_a, id_a), (name_b, id_b))
            if (min(id_a, id_b), max(id_a, id_b)) not in self.overlap_pairs
            if frozenset({names.meaning(name_a), names.meaning(name_b)}) not in names.different
        )
        return list(dict.fromkeys(pairs))

    def _told_apart(self, *pair: tuple[str, int]) -> bool:
        """Whether `distinct` names both of two source classes (name, unified id), or one whose name no other
        dataset has: of a name that several have it answers whether these are one."""
        distinct = [(name, self.classes[c].endswith(f"/{name}")) for name, c in pair]
        alone = [name for name, apart in distinct if apart and sum(name in own for own in self.sources) == 1]
        return bool(alone) or all(apart for _, apart in distinct)

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
                **({"folds": [vars(fold) for fold in self.folds]} if self.folds else {}),
                **({"directions": sorted(self.directions.items())} if self.directions else {}),
                **({"listed_only": sorted(self.listed_only)} if self.listed_only else {}),
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
            folds=tuple(Fold.from_plain(fold) for fold in data.get("folds", ())),
            directions={int(row): tuple(angles) for row, angles in data.get("directions", ())},
            listed_only=frozenset((row, name, c) for row, name, c in data.get("listed_only", ())),
        )


def _tensor(array: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(array.copy())


def check_class_names(
    dataset: str, trained: Sequence[str], found: Sequence[str], where: str, by_weights: bool = False
) -> None:
    """Raises `UserError` if a split brings classes that the training split does not know. by_weights: what they
    know of a dataset of this name is `trained`, and no training split is read."""
    strange = [name for name in found if name not in trained]
    if strange and by_weights:
        raise UserError(
            f"{where}: class {quoted(strange)} is not among the classes with which the weights know the dataset "
            f"{dataset!r} ({', '.join(trained)}); give the dataset another name in this config, and its classes "
            f"are taken by their names"
        )
    if strange:
        raise UserError(
            f"{where}: class {quoted(strange)} is not among the classes of the training split of {dataset!r} "
            f"({', '.join(trained)}); add the class to the training file's categories, or remove it from this "
            f"split; for voc list all classes under `datasets.{dataset}.classes`"
        )


def _same_text(one: str, other: str) -> bool:
    return " ".join(one.casefold().split()) == " ".join(other.casefold().split())
