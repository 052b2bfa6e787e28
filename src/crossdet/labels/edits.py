"""What becomes of the label space of a trained detector: it grows, or its classes are renamed and merged. No
torch.

Everything goes by name. Growing keeps all ids that there are and gives new classes the ids after them; a
config that reads an old name differently is refused, since the weights already mean something by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

from crossdet.errors import LabelError, UserError, problem_list
from crossdet.labels.folds import Fold
from crossdet.labels.rules import DROPPED, quoted, unknown
from crossdet.labels.space import LabelSpace, Names

Rules = Mapping[str, Any]
EDITS = "`crossdet labels` renames and merges classes of trained weights"


# ------------------------------------------------------------------------------------------- growing


def grown(
    known: LabelSpace,
    datasets: Mapping[str, Sequence[str]],
    merge: Rules | None = None,
    absent: Rules | None = None,
    distinct: Sequence[str] = (),
    drop: Sequence[str] = (),
    not_exhaustive: Rules | None = None,
    overlap: Sequence[Sequence[str]] = (),
    federated: Iterable[str] = (),
    unlabelled: Rules | None = None,
    labelled: Mapping[str, Collection[str]] | None = None,
) -> LabelSpace:
    """The label space `known` with more datasets, more classes, or both.

    The arguments are those of `LabelSpace.build`; the rules may speak of old datasets and classes as well.
    What they leave out about these stays as it is. Old classes keep their ids, old datasets their rows, also
    those that are not among `datasets`. Classes merged after training stay merged, and `merge`
    names their members; into the merged name itself it makes a further member, for objects that may be any of
    them. In the other rules the merged name stands for all members.

    Raises:
        LabelError: lists everything that contradicts `known`, else all mistakes of the rules.
    """
    drop = [*drop, *_listed_merges(known, datasets, absent, unlabelled, labelled)]
    groups = {
        name: tuple(m for m in members if m not in _listed_only(known, name, absent, unlabelled))
        for name, members in _new_groups(known, merge).items()
    }
    federated = list(federated)
    same_names = (merge or {}).get("same_names", False)
    problems = [
        *_dataset_contradictions(known, datasets, federated),
        *_merge_contradictions(known, groups, distinct),
        *_drop_contradictions(known, drop, distinct, datasets),
        *([] if same_names else _merged_name_contradictions(known, datasets, groups, [*distinct, *drop])),
        *_listed_contradictions(known, datasets, absent, unlabelled, labelled),
    ]
    if problems:
        count = f"{len(problems)} contradiction(s) with the label space of the weights"
        raise LabelError(problem_list(f"labels: {count}", problems))

    names = {name: list(sources) for name, sources in zip(known.datasets, known.sources, strict=True)}
    for dataset, classes in datasets.items():
        names[dataset] = list(dict.fromkeys([*names.get(dataset, ()), *classes]))
    merged = {name: known.sources_of(c) for c, name in enumerate(known.classes)}
    for target, members in groups.items():
        merged[target] = list(dict.fromkeys([*merged.get(target, ()), *members]))
    taken = {*(source for members in merged.values() for source in members), *_dropped(known), *drop}
    build = partial(
        LabelSpace.build,
        names,
        merge={**merged, "same_names": same_names},
        distinct=[entry for entry in distinct if not _settled(entry, names, taken)],
        drop=[*_dropped(known), *(source for source in drop if source not in _dropped(known))],
        federated=[*(known.datasets[row] for row in sorted(known.federated)), *federated],
    )
    try:
        if known.folds:
            absent, unlabelled, not_exhaustive, overlap = _of_members(
                known, build(), absent, unlabelled, not_exhaustive, overlap
            )
        space = build(
            absent=_joined(known, known.absent_pairs, absent),
            not_exhaustive=_joined(known, known.not_exhaustive_pairs, not_exhaustive),
            overlap=[*([known.classes[a], known.classes[b]] for a, b in sorted(known.overlap_pairs)), *overlap],
            unlabelled=unlabelled,
            labelled=labelled,
        )
    except LabelError as error:
        raise LabelError(f"the label rules of the config, together with those of the weights: {error}") from None
    return _on_top_of(known, space)


def _new_groups(known: LabelSpace, merge: Rules | None) -> dict[str, tuple[str, ...]]:
    """The merge groups, without what the weights' merged classes say already: merged car and truck may be
    written out as `vehicle: [old/car, old/truck]`."""
    groups = {}
    for target, members in (merge or {}).items():
        if isinstance(members, bool):
            continue
        said = {
            source
            for fold in known.folds
            if fold.name == target
            for c in fold.members
            if known.classes[c] != target
            for source in known.sources_of(c)
        }
        left = tuple(source for source in members if source not in said)
        if left or not said:
            groups[target] = left
    return groups


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


def _on_top_of(known: LabelSpace, space: LabelSpace) -> LabelSpace:
    """The grown space with the known classes first, in their order, and merged as they were."""
    new = [name for name in space.classes if name not in known.classes]
    space = _with_classes(space, (*known.classes, *new))
    folds = tuple(_with_namesake(fold, space) for fold in known.folds)
    overlap = space.overlap_pairs | _pairs_among(folds)
    listed_only = space.listed_only | known.listed_only
    return replace(space, folds=folds, overlap_pairs=overlap, listed_only=listed_only)


def _with_namesake(fold: Fold, space: LabelSpace) -> Fold:
    """The fold with the class of its own name as a further member, where there is one."""
    if fold.name not in space.classes:
        return fold
    return replace(fold, members=tuple(sorted({*fold.members, space.id_of(fold.name)})))


def _of_members(
    known: LabelSpace,
    space: LabelSpace,
    absent: Rules | None,
    unlabelled: Rules | None,
    not_exhaustive: Rules | None,
    overlap: Iterable[Sequence[str]],
) -> tuple[Rules, Rules, Rules, list[list[str]]]:
    """The rules with the members in place of the names of merged classes.

    Where a member has the name of its merged class, it alone is meant by rules of a dataset: a rule that makes
    negatives says no more than it must. `overlap`, which takes negatives away, always means all members.

    space: the grown one, as far as it is known without these rules.
    """
    folds = {fold.name: [known.classes[c] for c in fold.members] for fold in known.folds}
    for name, members in folds.items():
        members += [name] if name in space.classes and name not in members else []
    whole = {name: members for name, members in folds.items() if name not in known.classes}

    def of_all(rule: Rules | None) -> Rules:
        return {d: [m for n in _listed(names) for m in whole.get(n, [n])] for d, names in (rule or {}).items()}

    def labelled(dataset: str, members: list[str]) -> list[str]:
        row = space.annotated_array[space.datasets.index(dataset)] if dataset in space.datasets else ()
        return [name for name in members if len(row) and row[space.id_of(name)]] or members

    return (
        of_all(absent),
        of_all(unlabelled),
        {
            d: [m for n in _listed(names) for m in (labelled(d, whole[n]) if n in whole else [n])]
            for d, names in (not_exhaustive or {}).items()
        },
        [[a, b] for one, two in overlap for a, b in product(folds.get(one, [one]), folds.get(two, [two]))],
    )


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _merged_name_contradictions(
    known: LabelSpace,
    datasets: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]],
    settled: Sequence[str],
) -> list[str]:
    """New source classes with the name of a merged class of which nothing is said.

    settled: entries of `distinct` and `drop`.
    """
    said = {*settled, *(source for members in groups.values() for source in members)}
    problems = []
    for fold in known.folds:
        name, members = fold.name, [known.classes[c] for c in fold.members]
        if name in known.classes or name in settled:  # a class with a known name, as always
            continue
        problems += [
            f"class {name!r} of {dataset}: the weights know it as merged from {', '.join(members)}. If its objects "
            f"are of one of these, say so (`merge: {{{members[0]}: [{dataset}/{name}]}}`); if they may be any, "
            f"make it a further member (`merge: {{{name}: [{dataset}/{name}]}}`); or list it under `distinct`"
            for dataset, classes in datasets.items()
            if name in classes and f"{dataset}/{name}" not in said and not _knows(known, dataset, name)
        ]
    return problems


def _knows(known: LabelSpace, dataset: str, name: str) -> bool:
    """Whether a source class is one that the weights were trained on, or dropped."""
    return dataset in known.datasets and name in known.sources[known.datasets.index(dataset)]


def _with_classes(space: LabelSpace, classes: tuple[str, ...]) -> LabelSpace:
    """The same space with its classes in another order."""
    ids = {old: classes.index(name) for old, name in enumerate(space.classes)}
    return replace(
        space,
        classes=classes,
        sources=tuple({n: ids.get(c, DROPPED) for n, c in sources.items()} for sources in space.sources),
        absent_pairs=frozenset((row, ids[c]) for row, c in space.absent_pairs),
        not_exhaustive_pairs=frozenset((row, ids[c]) for row, c in space.not_exhaustive_pairs),
        overlap_pairs=frozenset(_sorted_pair(ids[a], ids[b]) for a, b in space.overlap_pairs),
        listed_only=frozenset((row, name, ids[c]) for row, name, c in space.listed_only),
    )


def _joined(known: LabelSpace, pairs: Iterable[tuple[int, int]], more: Rules | None) -> dict[str, list[str]]:
    """Dataset -> unified names, of what is known and what the config adds."""
    rules: dict[str, list[str]] = {}
    for row, c in sorted(pairs):
        rules.setdefault(known.datasets[row], []).append(known.classes[c])
    for dataset, names in (more or {}).items():
        rules[dataset] = list(dict.fromkeys([*rules.get(dataset, []), *_listed(names)]))
    return rules


def _dropped(known: LabelSpace) -> list[str]:
    return known.sources_of(DROPPED)


def _listed_only(known: LabelSpace, name: str, absent: Rules | None, unlabelled: Rules | None) -> list[str]:
    """Source classes that the weights leave out because the rules say, as they did before, that their dataset
    does not label the unified class `name`."""
    said = [d for rule in (absent, unlabelled) for d, names in (rule or {}).items() if name in _listed(names)]
    return [source for source in _dropped(known) if source.partition("/")[0] in said]


def _listed_merges(
    known: LabelSpace,
    datasets: Mapping[str, Sequence[str]],
    absent: Rules | None,
    unlabelled: Rules | None,
    labelled: Mapping[str, Collection[str]] | None,
) -> list[str]:
    """New source classes with the name of a merged class that are listed without a box and said not to be
    labelled: there is nothing to make a member of."""
    merged = {fold.name for fold in known.folds} - set(known.classes)
    return [
        f"{dataset}/{name}"
        for rule in (absent, unlabelled)
        for dataset, names in (rule or {}).items()
        for name in _listed(names)
        if name in merged
        and name in datasets.get(dataset, ())
        and name not in (labelled or {}).get(dataset, ())
        and not _knows(known, dataset, name)
    ]


def _listed_contradictions(
    known: LabelSpace,
    datasets: Mapping[str, Sequence[str]],
    absent: Rules | None,
    unlabelled: Rules | None,
    labelled: Mapping[str, Collection[str]] | None,
) -> list[str]:
    """Datasets of which the weights were told that they do not label a class, and of which something else is true
    now."""
    problems = [
        f"datasets.{known.datasets[row]}: the weights know it as one that lists {name!r} and does not label it, "
        f"but its files have boxes of it now; give the dataset another name to read it anew"
        for row, name, _ in sorted(known.listed_only)
        if known.datasets[row] in datasets and name in (labelled or {}).get(known.datasets[row], ())
    ]
    for dataset, names in (unlabelled or {}).items():
        for name in _listed(names):
            row = known.datasets.index(dataset) if dataset in known.datasets else -1
            said = name in known.classes and (row, known.classes.index(name)) in known.absent_pairs
            if said and name not in _listed((absent or {}).get(dataset)):
                problems.append(
                    f"unlabelled.{dataset}: the weights know {name!r} as absent from this dataset, so its "
                    f"background was trusted; give the dataset another name to read it anew"
                )
    return problems


def _settled(entry: str, names: Mapping[str, Sequence[str]], taken: set[str]) -> bool:
    """Whether nothing is left for an entry of `distinct` to decide: all its source classes have their place."""
    sources = [f"{d}/{n}" for d, classes in names.items() for n in classes if entry in (n, f"{d}/{n}")]
    return bool(sources) and all(source in taken for source in sources)


def _meanings(known: LabelSpace) -> dict[str, dict[str, str]]:
    """The datasets' own class name -> its source class `dataset/name` -> unified name."""
    meanings: dict[str, dict[str, str]] = {}
    for dataset, sources in zip(known.datasets, known.sources, strict=True):
        for name, c in sources.items():
            if c != DROPPED:
                meanings.setdefault(name, {})[f"{dataset}/{name}"] = known.classes[c]
    return meanings


def _dataset_contradictions(
    known: LabelSpace, datasets: Mapping[str, Sequence[str]], federated: Sequence[str]
) -> list[str]:
    problems = []
    for dataset, given in datasets.items():
        if dataset not in known.datasets:
            continue
        row = known.datasets.index(dataset)
        lost = [n for n, c in known.sources[row].items() if n not in given and c != DROPPED]
        if lost:
            problems.append(
                f"datasets.{dataset}: the weights know it with class {quoted(lost)}, which its files no longer "
                f"have, so its background would be a negative for what it does not label; give the dataset "
                f"another name"
            )
        if (row in known.federated) != (dataset in federated):
            was = "is federated in the weights and not" if row in known.federated else "is federated, but not in"
            end = "in the config" if row in known.federated else "the weights"
            problems.append(f"datasets.{dataset}: {was} {end}; give the dataset another name")
    return problems


def _merge_contradictions(
    known: LabelSpace, groups: Mapping[str, Sequence[str]], distinct: Sequence[str]
) -> list[str]:
    problems = []
    meanings, dropped = _meanings(known), _dropped(known)
    for target, members in groups.items():
        for source in members:
            name = source.partition("/")[2]
            meaning = meanings.get(name, {})
            if source in dropped:
                problems.append(
                    f"merge.{target}: the weights dropped {source}, so its objects were background; give the "
                    f"dataset another name to read it anew"
                )
            elif source in meaning and meaning[source] != target:
                problems.append(
                    f"merge.{target}: the weights know {source} as {meaning[source]!r}, not as {target!r}; {EDITS}"
                )
            elif source not in meaning and meaning and target not in meaning.values() and name not in distinct:
                problems.append(
                    f"merge.{target}: {source} would be {target!r}, but the weights know {_shown(meaning)}; "
                    f"merge it there, or list {name!r} under `distinct` if it means something else here"
                )
        other = meanings.get(target, {})
        if target not in known.classes and other and target not in distinct:
            problems.append(
                f"merge.{target}: the weights know {_shown(other)}; use that class, or list {target!r} under "
                f"`distinct` if it means something else here"
            )
    return problems


def _shown(meaning: Mapping[str, str]) -> str:
    return ", ".join(f"{source} as {unified!r}" for source, unified in meaning.items())


def _drop_contradictions(
    known: LabelSpace, drop: Sequence[str], distinct: Sequence[str], datasets: Mapping[str, Sequence[str]]
) -> list[str]:
    learnt = {source: name for meaning in _meanings(known).values() for source, name in meaning.items()}
    problems = [
        f"drop: the weights learnt {source} as {learnt[source]!r}; a class of the weights cannot be dropped"
        for source in drop
        if source in learnt
    ]
    new = [f"{d}/{n}" for d, classes in datasets.items() for n in classes if f"{d}/{n}" not in learnt]
    for entry in distinct:
        mine = [s for s in learnt if entry in (s, s.partition("/")[2]) and learnt[s] != s]
        if mine and not any(entry in (s, s.partition("/")[2]) for s in new):
            problems.append(
                f"distinct: {entry!r} would be a class of its own, but the weights know "
                f"{_shown({s: learnt[s] for s in mine})}; {EDITS}"
            )
    return problems


# ------------------------------------------------------------------------------------------- renaming, merging


def edited(
    space: LabelSpace, renames: Sequence[tuple[str, str]], merges: Sequence[tuple[str, Sequence[str]]]
) -> LabelSpace:
    """A label space with classes renamed and merged; all ids stay.

    A merged class is a `Fold` over its members: they stay classes of the head and keep what every dataset is to
    them (labelled, avoided, absent), and each of their detections is reported under the merged name. From now
    on they are no negatives of each other's objects (`overlap`), as those of one class are none: where they
    mean nearly the same, an extension would else train the one on the other's objects as background. A merged
    class that is merged further is replaced by its members.

    renames: (old, new), of classes, merged classes or members of these; where a merged class has the name of a
    member the merged class is meant. merges: (new, the reported classes that it joins); the new name may be
    that of a member.

    Raises:
        UserError: lists unknown names, names used twice, and names that would stand for two classes.
    """
    if space.has_members:
        raise UserError("these weights have directions or classes per dataset, which cannot be renamed or merged")
    problems = _edit_problems(space, renames, merges)
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s); the classes are unchanged", problems))
    classes, folds = _edited_names(space, renames, merges)
    overlap = space.overlap_pairs | _pairs_among(folds)
    return replace(space, classes=classes, folds=folds, overlap_pairs=overlap)


def _edited_names(
    space: LabelSpace, renames: Sequence[tuple[str, str]], merges: Sequence[tuple[str, Sequence[str]]]
) -> tuple[tuple[str, ...], tuple[Fold, ...]]:
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


def _edit_problems(
    space: LabelSpace, renames: Sequence[tuple[str, str]], merges: Sequence[tuple[str, Sequence[str]]]
) -> list[str]:
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


def _sorted_pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
