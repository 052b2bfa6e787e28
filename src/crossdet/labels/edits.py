"""What becomes of the label space of a trained detector: it grows, or its classes are renamed and merged. No
torch.

Everything goes by name. Growing keeps all ids that there are and gives new classes the ids after them; a
config that reads an old name differently is refused, since the weights already mean something by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Unpack

from crossdet.errors import LabelError, UserError, problem_list
from crossdet.labels.folds import Fold
from crossdet.labels.patterns import class_name, expanded, matching
from crossdet.labels.placeholders import is_unused
from crossdet.labels.rules import DROPPED, LabelRules, Names, quoted, unknown
from crossdet.labels.space import LabelSpace
from crossdet.yaml_text import flow

EDITS = "`crossdet labels` renames and merges classes of trained weights"

Renames = Sequence[tuple[str, str]]
Merges = Sequence[tuple[str, Sequence[str]]]
Rule = Mapping[str, Names]


# ------------------------------------------------------------------------------------------- growing


def grown(known: LabelSpace, datasets: Mapping[str, Sequence[str]], **rules: Unpack[LabelRules]) -> LabelSpace:
    """The label space `known` with more datasets, more classes, or both.

    The rules may speak of old datasets and classes as well; what they leave out about these stays as it is. Old
    classes keep their ids, old datasets their rows, also those that are not among `datasets`. Classes merged after
    training stay merged, and `merge` names their members; into the merged name itself it makes a further member,
    for objects that may be any of them. In the other rules the merged name stands for all members.

    Raises:
        LabelError: lists everything that contradicts `known`, else all mistakes of the rules.
    """
    growing = _Growing(known, datasets, expanded(rules, datasets, known)[0])
    problems = [
        *growing.dataset_contradictions(),
        *growing.merge_contradictions(),
        *growing.drop_contradictions(),
        *growing.merged_name_contradictions(),
        *growing.unlabelled_contradictions(),
    ]
    if problems:
        count = f"{len(problems)} contradiction(s) with the label space of the weights"
        raise LabelError(problem_list(f"labels: {count}", problems))
    try:
        space = growing.space()
    except LabelError as error:
        raise LabelError(f"the label rules of the config, together with those of the weights: {error}") from None
    return _on_top_of(known, space)


class _Growing:
    """What the weights know and what a config says, by name; lives for one call of `grown`.

    meaning: source class `dataset/name` of the weights -> unified name, None where they dropped it.
    said_unlabelled: (dataset, unified name) of all entries of `absent` and `unlabelled`.
    groups: the merge groups, without what the weights' merged classes say already.
    """

    def __init__(self, known: LabelSpace, datasets: Mapping[str, Sequence[str]], rules: LabelRules) -> None:
        self.known, self.datasets, self.rules = known, datasets, rules
        self.absent: Rule = rules.get("absent") or {}
        self.unlabelled: Rule = rules.get("unlabelled") or {}
        self.labelled = rules.get("labelled") or {}
        self.distinct = list(rules.get("distinct") or ())
        self.federated = list(rules.get("federated") or ())
        self.meaning = {
            f"{dataset}/{name}": None if c == DROPPED else known.classes[c]
            for dataset, sources in zip(known.datasets, known.sources, strict=True)
            for name, c in sources.items()
        }
        self.dropped = [source for source, unified in self.meaning.items() if unified is None]
        self.said_unlabelled = [
            (dataset, name)
            for rule in (self.absent, self.unlabelled)
            for dataset, names in rule.items()
            for name in _listed(names)
        ]
        self.drop = [*(rules.get("drop") or ()), *self._listed_merges()]
        merge = rules.get("merge") or {}
        self.same_names = merge.get("same_names", False)
        self.groups = dict(self._new_groups({n: m for n, m in merge.items() if not isinstance(m, bool)}))

    def _new_groups(self, merge: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Merged car and truck may be written out as `vehicle: [old/car, old/truck]`. Nor is a source class of a
        dataset, of which the rules say that it does not label the group's class, a member."""
        for target, members in merge.items():
            said = {
                source
                for fold in self.known.folds
                if fold.name == target
                for c in fold.members
                if self.known.classes[c] != target
                for source in self.known.sources_of(c)
            }
            left = [source for source in members if source not in said]
            if left or not said:
                lists = [dataset for dataset, name in self.said_unlabelled if name == target]
                listed = {source for source in self.dropped if source.partition("/")[0] in lists}
                yield target, tuple(source for source in left if source not in listed)

    def _listed_merges(self) -> list[str]:
        """New source classes with the name of a merged class that are listed without a box and said not to be
        labelled: there is nothing to make a member of."""
        merged = {fold.name for fold in self.known.folds} - set(self.known.classes)
        return [
            f"{dataset}/{name}"
            for dataset, name in self.said_unlabelled
            if name in merged
            and name in self.datasets.get(dataset, ())
            and name not in self.labelled.get(dataset, ())
            and f"{dataset}/{name}" not in self.meaning
        ]

    def _meanings(self, name: str) -> dict[str, str]:
        """Source classes of the weights with this name of their own -> unified name."""
        return {
            s: unified for s, unified in self.meaning.items() if unified is not None and s.partition("/")[2] == name
        }

    # ------------------------------------------------------------------ the new space

    def space(self) -> LabelSpace:
        """The grown space, its classes in any order. Raises `LabelError` with all mistakes of the rules."""
        known = self.known
        names = {name: list(sources) for name, sources in zip(known.datasets, known.sources, strict=True)}
        for dataset, classes in self.datasets.items():
            names[dataset] = list(dict.fromkeys([*names.get(dataset, ()), *classes]))
        merged = {name: known.sources_of(c) for c, name in enumerate(known.classes)}
        for target, members in self.groups.items():
            merged[target] = list(dict.fromkeys([*merged.get(target, ()), *members]))
        taken = {*(source for members in merged.values() for source in members), *self.dropped, *self.drop}
        build = partial(
            LabelSpace.build,
            names,
            merge={**merged, "same_names": self.same_names},
            distinct=[entry for entry in self.distinct if not _settled(entry, names, taken)],
            drop=list(dict.fromkeys([*self.dropped, *self.drop])),
            federated=[*(known.datasets[row] for row in sorted(known.federated)), *self.federated],
        )
        absent, unlabelled = self.absent, self.unlabelled
        in_part: Rule = self.rules.get("not_exhaustive") or {}
        overlap = self.rules.get("overlap") or ()
        if known.folds:
            # a name that is said not to be labelled needs no merge, and these rules are not read yet
            roughly = build(merge={**merged, "same_names": True})
            absent, unlabelled, in_part, overlap = self._of_members(roughly, in_part, overlap)
        return build(
            absent=_joined(known, known.absent_pairs, absent),
            not_exhaustive=_joined(known, known.not_exhaustive_pairs, in_part),
            overlap=[*([known.classes[a], known.classes[b]] for a, b in sorted(known.overlap_pairs)), *overlap],
            unlabelled=unlabelled,
            labelled=self.rules.get("labelled"),
        )

    def _of_members(
        self, space: LabelSpace, not_exhaustive: Rule, overlap: Sequence[Sequence[str]]
    ) -> tuple[Rule, Rule, Rule, list[list[str]]]:
        """absent, unlabelled, not_exhaustive and overlap with the members in place of the names of merged classes.

        Where a member has the name of its merged class, it alone is meant by rules of a dataset: a rule that makes
        negatives says no more than it must. `overlap`, which takes negatives away, always means all members.

        space: the grown one, as far as it is known without these rules.
        """
        folds = {fold.name: [self.known.classes[c] for c in fold.members] for fold in self.known.folds}
        for name, members in folds.items():
            members += [name] if name in space.classes and name not in members else []
        whole = {name: members for name, members in folds.items() if name not in self.known.classes}

        def of_all(rule: Rule) -> Rule:
            return {d: [m for n in _listed(names) for m in whole.get(n, [n])] for d, names in rule.items()}

        def labelled(dataset: str, members: list[str]) -> list[str]:
            row = space.annotated_array[space.datasets.index(dataset)] if dataset in space.datasets else ()
            return [name for name in members if len(row) and row[space.id_of(name)]] or members

        return (
            of_all(self.absent),
            of_all(self.unlabelled),
            {
                d: [m for n in _listed(names) for m in (labelled(d, whole[n]) if n in whole else [n])]
                for d, names in not_exhaustive.items()
            },
            [
                [a, b]
                for one, two in overlap
                for a, b in product(folds.get(one, [one]), folds.get(two, [two]))
                if a != b or one == two
            ],
        )

    # ------------------------------------------------------------------ contradictions

    def dataset_contradictions(self) -> Iterator[str]:
        known = self.known
        for dataset, given in self.datasets.items():
            if dataset not in known.datasets:
                continue
            row = known.datasets.index(dataset)
            here = known.sources[row].items()
            lost = [n for n, c in here if n not in given and c != DROPPED and not is_unused(n)]
            if lost:
                yield (
                    f"datasets.{dataset}: the weights know it with class {quoted(lost)}, which its files no longer "
                    f"have, so its background would be a negative for what it does not label; give the dataset "
                    f"another name"
                )
            if (row in known.federated) != (dataset in self.federated):
                was = "is federated in the weights and not in the config"
                if row not in known.federated:
                    was = "is federated, but not in the weights"
                yield f"datasets.{dataset}: {was}; give the dataset another name"

    def merge_contradictions(self) -> Iterator[str]:
        for target, members in self.groups.items():
            for source in members:
                yield from self._member_contradictions(target, source)
            other = self._meanings(target)
            if target not in self.known.classes and other and target not in self.distinct:
                yield (
                    f"merge.{target}: the weights know {_shown(other)}; use that class, or list {target!r} under "
                    f"`distinct` if it means something else here"
                )

    def _member_contradictions(self, target: str, source: str) -> Iterator[str]:
        name = source.partition("/")[2]
        meanings = self._meanings(name)
        if source in self.dropped:
            yield (
                f"merge.{target}: the weights dropped {source}, so its objects were background; give the "
                f"dataset another name to read it anew"
            )
        elif source in meanings:
            if meanings[source] != target:
                yield (
                    f"merge.{target}: the weights know {source} as {meanings[source]!r}, not as {target!r}; {EDITS}"
                )
        elif meanings and target not in meanings.values() and name not in self.distinct:
            yield (
                f"merge.{target}: {source} would be {target!r}, but the weights know {_shown(meanings)}; "
                f"merge it there, or list {name!r} under `distinct` if it means something else here"
            )

    def drop_contradictions(self) -> Iterator[str]:
        learnt = {source: unified for source, unified in self.meaning.items() if unified is not None}
        for source in self.drop:
            if source in learnt:
                name = learnt[source]
                yield f"drop: the weights learnt {source} as {name!r}; a class of the weights cannot be dropped"
        new = [f"{d}/{n}" for d, classes in self.datasets.items() for n in classes if f"{d}/{n}" not in learnt]
        for entry in self.distinct:
            mine = {s: u for s, u in learnt.items() if entry in (s, s.partition("/")[2]) and u != s}
            if mine and not any(entry in (s, s.partition("/")[2]) for s in new):
                yield (
                    f"distinct: {entry!r} would be a class of its own, but the weights know {_shown(mine)}; {EDITS}"
                )

    def merged_name_contradictions(self) -> Iterator[str]:
        """New source classes with the name of a merged class of which nothing is said."""
        if self.same_names:
            return
        settled = {*self.distinct, *self.drop}
        said = {*settled, *(source for members in self.groups.values() for source in members)}
        for fold in self.known.folds:
            name, members = fold.name, [self.known.classes[c] for c in fold.members]
            if name in self.known.classes or name in settled:  # a class with a known name, as always
                continue
            for dataset, classes in self.datasets.items():
                source = f"{dataset}/{name}"
                if name in classes and source not in said and source not in self.meaning:
                    one, further = (flow({of: [source]}) for of in (members[0], name))
                    yield (
                        f"class {name!r} of {dataset}: the weights know it as merged from {', '.join(members)}. If "
                        f"its objects are of one of these, say so (`merge: {one}`); if they may be any, make it a "
                        f"further member (`merge: {further}`); or list it under `distinct`"
                    )

    def unlabelled_contradictions(self) -> Iterator[str]:
        """Datasets of which the weights were told that they do not label a class, and of which something else is
        true now."""
        known = self.known
        for row, name, _ in sorted(known.listed_only):
            dataset = known.datasets[row]
            if dataset in self.datasets and name in self.labelled.get(dataset, ()):
                yield (
                    f"datasets.{dataset}: the weights know it as one that lists {name!r} and does not label it, "
                    f"but its files have boxes of it now; give the dataset another name to read it anew"
                )
        yield from self._learnt_contradictions()
        absent = {(known.datasets[row], known.classes[c]) for row, c in known.absent_pairs}
        for dataset, names in self.unlabelled.items():
            for name in _listed(names):
                if (dataset, name) in absent and name not in _listed(self.absent.get(dataset)):
                    yield (
                        f"unlabelled.{dataset}: the weights know {name!r} as absent from this dataset, so its "
                        f"background was trusted; give the dataset another name to read it anew"
                    )

    def _learnt_contradictions(self) -> Iterator[str]:
        """Old classes that a dataset is said not to label, that the weights know it with, and of which no file is
        there to say otherwise: given without a box it may have listed them alone."""
        known, annotated = self.known, self.known.annotated_array
        for rule, said in (("absent", self.absent), ("unlabelled", self.unlabelled)):
            for dataset, names in said.items():
                gone = dataset in known.datasets and dataset not in self.datasets
                row = known.datasets.index(dataset) if gone else None
                for name in _listed(names) if row is not None else ():
                    if name in known.classes and annotated[row, known.classes.index(name)]:
                        yield (
                            f"{rule}.{dataset}: the weights know this dataset as one that labels {name!r}, and it "
                            f"is not in the config; take the entry out, or give the dataset with its pictures"
                        )


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _shown(meanings: Mapping[str, str]) -> str:
    return ", ".join(f"{source} as {unified!r}" for source, unified in meanings.items())


def _joined(known: LabelSpace, pairs: Iterable[tuple[int, int]], more: Rule) -> dict[str, list[str]]:
    """Dataset -> unified names, of what is known and what the config adds."""
    rules: dict[str, list[str]] = {}
    for row, c in sorted(pairs):
        rules.setdefault(known.datasets[row], []).append(known.classes[c])
    for dataset, names in more.items():
        rules[dataset] = list(dict.fromkeys([*rules.get(dataset, []), *_listed(names)]))
    return rules


def _settled(entry: str, names: Mapping[str, Sequence[str]], taken: set[str]) -> bool:
    """Whether nothing is left for an entry of `distinct` to decide: all its source classes have their place."""
    sources = [f"{d}/{n}" for d, classes in names.items() for n in classes if entry in (n, f"{d}/{n}")]
    return bool(sources) and all(source in taken for source in sources)


def _on_top_of(known: LabelSpace, space: LabelSpace) -> LabelSpace:
    """The grown space with the known classes first, in their order, and merged as they were."""
    new = [name for name in space.classes if name not in known.classes]
    space = _with_classes(space, (*known.classes, *new))
    folds = list(known.folds)
    for place, fold in enumerate(folds):
        if fold.name in space.classes:  # a further member
            members = sorted({*fold.members, space.id_of(fold.name)})
            folds[place] = replace(fold, members=tuple(members))
    overlap = space.overlap_pairs | _pairs_among(folds)
    return replace(
        space, folds=tuple(folds), overlap_pairs=overlap, listed_only=space.listed_only | known.listed_only
    )


def _with_classes(space: LabelSpace, classes: tuple[str, ...]) -> LabelSpace:
    """The same space with its classes in another order."""
    ids = {old: classes.index(name) for old, name in enumerate(space.classes)}
    return replace(
        space,
        classes=classes,
        sources=tuple({n: ids.get(c, DROPPED) for n, c in sources.items()} for sources in space.sources),
        absent_pairs=frozenset((row, ids[c]) for row, c in space.absent_pairs),
        not_exhaustive_pairs=frozenset((row, ids[c]) for row, c in space.not_exhaustive_pairs),
        overlap_pairs=frozenset((min(ids[a], ids[b]), max(ids[a], ids[b])) for a, b in space.overlap_pairs),
        listed_only=frozenset((row, name, ids[c]) for row, name, c in space.listed_only),
    )


def growth(known: LabelSpace, space: LabelSpace) -> list[str]:
    """What a grown label space brings, for people: its new classes, and what joins the known ones.

    A class with other source names than its own is shown with them, so that a slip in a name of `merge` is seen.
    """
    old = {source for c in range(len(known.classes)) for source in known.sources_of(c)}
    new, joined = [], []
    for c, name in enumerate(space.classes):
        sources = [source for source in space.sources_of(c) if source not in old]
        if c < len(known.classes):
            joined += [f"{name} <- {', '.join(sources)}"] if sources else []
        else:
            plain = all(name in (source, source.partition("/")[2]) for source in sources)
            text = name if plain else f"{name} <- {', '.join(sources)}"
            others = [space.classes[m] for fold in space.folds if c in fold.members for m in fold.members if m != c]
            new.append(f"{text} (merged with {', '.join(others)})" if others else text)
    lines = [f"new classes: {'; '.join(new) or 'none'}"]
    return [*lines, f"into known classes: {'; '.join(joined)}"] if joined else lines


# ------------------------------------------------------------------------------------------- renaming, merging


def edited(space: LabelSpace, renames: Renames, merges: Merges) -> LabelSpace:
    """A label space with classes renamed and merged; all ids stay.

    A merged class is a `Fold` over its members: they stay classes of the head and keep what every dataset is to
    them (labelled, avoided, absent), and each of their detections is reported under the merged name. From now
    on they are no negatives of each other's objects (`overlap`), as those of one class are none: where they
    mean nearly the same, an extension would else train the one on the other's objects as background. A merged
    class that is merged further is replaced by its members.

    renames: (old, new), of classes, merged classes or members of these; where a merged class has the name of a
    member the merged class is meant. merges: (new, the reported classes that it joins, or patterns of their
    names); the new name may be that of a member.

    Raises:
        UserError: lists unknown names, names used twice, and names that would stand for two classes.
    """
    if space.has_members:
        raise UserError("these weights have directions or classes per dataset, which cannot be renamed or merged")
    renames = [(old, class_name(new)) for old, new in renames]
    merges = [(class_name(new), matching(members, space.reported)) for new, members in merges]
    problems = _edit_problems(space, renames, merges)
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s); the classes are unchanged", problems))
    classes, folds = _edited_names(space, renames, merges)
    overlap = space.overlap_pairs | _pairs_among(folds)
    return replace(space, classes=classes, folds=folds, overlap_pairs=overlap)


def _edited_names(space: LabelSpace, renames: Renames, merges: Merges) -> tuple[tuple[str, ...], tuple[Fold, ...]]:
    """Classes and merged classes after the edits; unknown names are passed over."""
    known = {fold.name: fold.members for fold in space.folds}
    name_of = dict(renames)
    classes = tuple(name if name in known else name_of.get(name, name) for name in space.classes)
    single = {name: (c,) for c, name in enumerate(space.classes)}
    joined = {name for _, names in merges for name in names}
    folds = [Fold(name_of.get(name, name), ids) for name, ids in known.items() if name not in joined]
    for new, names in merges:
        members = {c for name in names for c in known.get(name, single.get(name, ()))}
        folds.append(Fold(new, tuple(sorted(members))))
    return classes, tuple(sorted(folds, key=lambda fold: fold.members))


def _pairs_among(folds: Iterable[Fold]) -> set[tuple[int, int]]:
    """The pairs of members of one merged class."""
    return {pair for fold in folds if fold.is_merge for pair in combinations(sorted(fold.members), 2)}


def _edit_problems(space: LabelSpace, renames: Renames, merges: Merges) -> list[str]:
    used = [old for old, _ in renames] + [member for _, members in merges for member in members]
    known = list(dict.fromkeys([*space.reported, *space.classes]))
    problems = [unknown("class", name, known) for name in dict.fromkeys(used) if name not in known]
    problems += [f"class {name!r} is named {count} times" for name, count in Counter(used).items() if count > 1]
    for new, members in merges:
        if len(members) < 2:
            problems.append(f"merge {new!r}: expected at least two classes, got {', '.join(members) or 'none'}")
        problems += [
            f"merge {new!r}: {name!r} is a part of {fold.name!r} already; merge that, or another class"
            for name in members
            if name not in space.reported
            for fold in space.folds
            if name in {space.classes[c] for c in fold.members}
        ]
    given = [new for _, new in renames] + [new for new, _ in merges]
    problems += ["a class needs a name that is not empty" for new in given if not new.strip()]
    problems += [
        f"{new!r}: `{sign}` {use} and cannot be in a name"
        for new in given
        for sign, use in ((",", "separates classes"), ("@", "stands before a direction or a dataset"))
        if sign in new
    ]
    classes, folds = _edited_names(space, renames, merges)
    final = Counter(classes)
    final.update(fold.name for fold in folds if fold.name not in {classes[c] for c in fold.members})
    problems += [f"{name!r} would be the name of {count} classes" for name, count in final.items() if count > 1]
    return problems
