"""What becomes of the label space of a trained detector: it grows, or its classes are renamed and merged. No
torch.

Everything goes by name. Growing keeps all ids that there are and gives new classes the ids after them; a
config that reads an old name differently is refused, since the weights already mean something by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossdet.errors import LabelError, UserError, problem_list
from crossdet.label_rules import DROPPED, fold, quoted, unknown
from crossdet.labels import LabelSpace

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
    those that are not among `datasets`.

    Raises:
        LabelError: lists everything that contradicts `known`, else all mistakes of the rules.
    """
    groups = {
        name: tuple(m for m in members if m not in _listed_only(known, name, absent, unlabelled))
        for name, members in (merge or {}).items()
        if not isinstance(members, bool)
    }
    federated = list(federated)
    problems = [
        *_dataset_contradictions(known, datasets, federated),
        *_merge_contradictions(known, groups, distinct),
        *_drop_contradictions(known, drop, distinct, datasets),
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
    taken = {source for members in merged.values() for source in members}
    try:
        space = LabelSpace.build(
            names,
            merge={**merged, "same_names": (merge or {}).get("same_names", False)},
            absent=_joined(known, known.absent_pairs, absent),
            distinct=[entry for entry in distinct if not _settled(entry, names, taken)],
            drop=[*_dropped(known), *(source for source in drop if source not in _dropped(known))],
            not_exhaustive=_joined(known, known.not_exhaustive_pairs, not_exhaustive),
            overlap=[
                *([known.classes[a], known.classes[b]] for a, b in sorted(known.overlap_pairs)),
                *overlap,
            ],
            federated=[*(known.datasets[row] for row in sorted(known.federated)), *federated],
            unlabelled=unlabelled,
            labelled=labelled,
        )
    except LabelError as error:
        raise LabelError(
            f"the label rules of the config, together with those of the weights: {error}"
        ) from None
    new = [name for name in space.classes if name not in known.classes]
    return _with_classes(space, (*known.classes, *new))


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
            new.append(name if plain else f"{name} <- {', '.join(sources)}")
    lines = [f"new classes: {'; '.join(new) or 'none'}"]
    return [*lines, f"into known classes: {'; '.join(joined)}"] if joined else lines


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
    )


def _joined(known: LabelSpace, pairs: Iterable[tuple[int, int]], more: Rules | None) -> dict[str, list[str]]:
    """Dataset -> unified names, of what is known and what the config adds."""
    rules: dict[str, list[str]] = {}
    for row, c in sorted(pairs):
        rules.setdefault(known.datasets[row], []).append(known.classes[c])
    for dataset, names in (more or {}).items():
        listed = [names] if isinstance(names, str) else list(names or ())
        rules[dataset] = list(dict.fromkeys([*rules.get(dataset, []), *listed]))
    return rules


def _dropped(known: LabelSpace) -> list[str]:
    return known.sources_of(DROPPED)


def _listed_only(known: LabelSpace, name: str, absent: Rules | None, unlabelled: Rules | None) -> list[str]:
    """Source classes that the weights leave out because the rules say, as they did before, that their dataset
    does not label the unified class `name`."""
    said = [d for rule in (absent, unlabelled) for d, names in (rule or {}).items() if name in (names or ())]
    return [source for source in _dropped(known) if source.partition("/")[0] in said]


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
            was = (
                "is federated in the weights and not"
                if row in known.federated
                else "is federated, but not in"
            )
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
            elif (
                source not in meaning and meaning and target not in meaning.values() and name not in distinct
            ):
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


def differences(old: LabelSpace, new: LabelSpace) -> list[str]:
    """What is another in `new`, a line each, for people; the order of the classes counts, it is that of the head's
    rows."""
    found = []
    if old.classes != new.classes:
        found.append(f"classes: {', '.join(old.classes)} then, {', '.join(new.classes)} now")
    if old.datasets != new.datasets:
        found.append(f"datasets: {', '.join(old.datasets)} then, {', '.join(new.datasets)} now")
    meant, means = _by_source(old), _by_source(new)
    for source in dict.fromkeys([*meant, *means]):
        was, now = meant.get(source, "not there"), means.get(source, "not there")
        found += [f"{source}: {was} then, {now} now"] if was != now else []
    said, says = _statements(old), _statements(new)
    found += [f"no longer said: {text}" for text in said if text not in says]
    return found + [f"newly said: {text}" for text in says if text not in said]


def _by_source(space: LabelSpace) -> dict[str, str]:
    """Source class `dataset/name` -> its unified name, or that it is dropped."""
    return {
        f"{dataset}/{name}": "dropped" if c == DROPPED else repr(space.classes[c])
        for dataset, sources in zip(space.datasets, space.sources, strict=True)
        for name, c in sources.items()
    }


def _statements(space: LabelSpace) -> list[str]:
    """The relations of a label space, a line each."""
    pairs = {"absent": space.absent_pairs, "not exhaustive": space.not_exhaustive_pairs}
    lines = [
        f"{space.classes[c]} is {rule} in {space.datasets[row]}"
        for rule, of_rule in pairs.items()
        for row, c in sorted(of_rule)
    ]
    lines += [f"{space.classes[a]} and {space.classes[b]} overlap" for a, b in sorted(space.overlap_pairs)]
    lines += [f"{space.datasets[row]} is federated" for row in sorted(space.federated)]
    names = [(fold.name, [space.classes[c] for c in fold.members]) for fold in space.folds]
    return lines + [f"{name} stands for {', '.join(members)}" for name, members in names]


# ------------------------------------------------------------------------------------------- renaming, merging


def edited(
    space: LabelSpace, renames: Sequence[tuple[str, str]], merges: Sequence[tuple[str, Sequence[str]]]
) -> tuple[LabelSpace, tuple[tuple[int, ...], ...]]:
    """A label space with classes renamed and merged, and for each of its classes the old ids that it is made
    of.

    A merged class stands where the first of its members stood. A dataset trusts its background for it if it
    labels, or is known not to contain, all that is merged. Where no dataset has more than one of the merged
    names they count as synonyms (as in `LabelSpace.partial_merges`), and labelling one of them is enough.

    renames: (old, new). merges: (new, the classes that it joins).

    Raises:
        UserError: lists unknown names, names used twice, and names that would stand for two classes.
    """
    if space.folds:
        raise UserError(
            "these weights have directions or classes per dataset, which cannot be renamed or merged"
        )
    problems = _edit_problems(space, renames, merges)
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s); the classes are unchanged", problems))
    name_of = dict(renames)
    group_of = {member: (new, members) for new, members in merges for member in members}
    made: dict[str, tuple[int, ...]] = {}
    for c, name in enumerate(space.classes):
        if name in group_of:
            new, members = group_of[name]
            made.setdefault(new, tuple(space.classes.index(m) for m in members))
        else:
            made[name_of.get(name, name)] = (c,)
    ids = {old: new for new, group in enumerate(made.values()) for old in group}
    sources = tuple({n: ids.get(c, DROPPED) for n, c in row.items()} for row in space.sources)
    absent, in_part = set(), set()
    for place, group in enumerate(made.values()):
        for row in range(len(space.datasets)):
            state = _state(space, row, group)
            if state == "absent":
                absent.add((row, place))
            elif state == "in part":
                in_part.add((row, place))
    overlap = {_sorted_pair(ids[a], ids[b]) for a, b in space.overlap_pairs if ids[a] != ids[b]}
    changed = replace(
        space,
        classes=tuple(made),
        sources=sources,
        absent_pairs=frozenset(absent),
        not_exhaustive_pairs=frozenset(in_part),
        overlap_pairs=frozenset(overlap),
    )
    return changed, tuple(made.values())


def _state(space: LabelSpace, row: int, group: tuple[int, ...]) -> str:
    """What dataset `row` is to a class made of `group`: "absent", "in part" (labelled), or "" for neither."""
    labelled = [c for c in group if space.annotated_array[row, c]]
    absent = [c for c in group if (row, c) in space.absent_pairs]
    if not labelled:
        return "absent" if len(absent) == len(group) else ""
    if any((row, c) in space.not_exhaustive_pairs for c in labelled):
        return "in part"
    if len(labelled) + len(absent) == len(group):
        return ""
    names = [{fold(n) for n, c in sources.items() if c in group} for sources in space.sources]
    synonyms = max(len(own) for own in names) == 1
    return "" if synonyms or names[row] == set().union(*names) else "in part"


def _edit_problems(
    space: LabelSpace, renames: Sequence[tuple[str, str]], merges: Sequence[tuple[str, Sequence[str]]]
) -> list[str]:
    problems = []
    used = [old for old, _ in renames] + [member for _, members in merges for member in members]
    problems += [
        unknown("class", name, space.classes) for name in dict.fromkeys(used) if name not in space.classes
    ]
    problems += [
        f"class {name!r} is named {count} times" for name, count in Counter(used).items() if count > 1
    ]
    for new, members in merges:
        if len(members) < 2:
            problems.append(
                f"merge {new!r}: expected at least two classes, got {', '.join(members) or 'none'}"
            )
    given = [new for _, new in renames] + [new for new, _ in merges]
    problems += ["a class needs a name that is not empty" for new in given if not new.strip()]
    problems += [
        f"{new!r}: `{sign}` {use} and cannot be in a name"
        for new in given
        for sign, use in ((",", "separates classes"), ("@", "stands before a direction or a dataset"))
        if sign in new
    ]
    final = Counter([*(name for name in space.classes if name not in used), *given])
    problems += [
        f"{name!r} would be the name of {count} classes" for name, count in final.items() if count > 1
    ]
    return problems


def _sorted_pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
