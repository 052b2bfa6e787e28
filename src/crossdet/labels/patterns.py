"""How class names are written, and wildcards in lists of them: `white_*` stands for every name that it matches. No
torch.

`matching` is what they mean, wherever names are listed; `expanded` applies it to label rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from crossdet.labels.rules import LabelRules
    from crossdet.labels.space import LabelSpace

_SIGNS = "*?["
_OF_DATASETS = ("absent", "unlabelled", "not_exhaustive")


def composed(text: str) -> str:
    """With one sign for a letter and its accent (Unicode NFC): macOS writes two, which look the same."""
    return unicodedata.normalize("NFC", text)


def class_name(text: str) -> str:
    """A class name as it is read wherever it stands: composed, and without white space around it. Other spellings
    look the same and would be another class, each a negative of the other."""
    return composed(text).strip()


def all_composed(value: Any) -> Any:
    """The same of every text in lists and maps, as JSON has them. Raises `ValueError` where two keys become one."""
    if isinstance(value, str):
        return composed(value)
    if isinstance(value, Mapping):
        made = {all_composed(key): all_composed(own) for key, own in value.items()}
        if len(made) < len(value):
            raise ValueError("two names differ in how an accent is written alone")
        return made
    return [all_composed(own) for own in value] if isinstance(value, (list, tuple)) else value


def is_pattern(text: object) -> bool:
    """Whether a text has a sign of `fnmatch`; it may be a name all the same."""
    return isinstance(text, str) and any(sign in text for sign in _SIGNS)


def matching(entries: Iterable[Any], known: Sequence[str]) -> list[Any]:
    """The names that a list means: a known one stands for itself, whatever signs it has; a pattern of `fnmatch`
    (`*`, `?`, `[abc]`; case counts) for the known names that it matches, in their order, each once. What matches
    nothing stays, for the reader of the list to refuse. What is not known is read as `class_name`.
    """
    names = dict.fromkeys(known)
    entries = [e if not isinstance(e, str) or e in names else _as_read(e, names) for e in entries]
    written = {entry for entry in entries if isinstance(entry, str) and entry in names}
    found: list[Any] = []
    for entry in entries:
        pattern = is_pattern(entry) and entry not in written
        own = [name for name in names if fnmatchcase(name, entry)] if pattern else []
        found += [name for name in own if name not in written and name not in found] if own else [entry]
    return found


def _as_read(entry: str, known: Collection[str]) -> str:
    """An entry that is not known; in `dataset/ name` both parts are names."""
    dataset, slash, own = map(class_name, entry.partition("/"))
    return dataset + slash + own if dataset + slash + own in known else class_name(entry)


def nothing_matches(what: str, pattern: str, known: Sequence[str]) -> str:
    """The message for a pattern that matches none of the known names."""
    plain = "".join(sign for sign in pattern if sign not in "*?[]!")
    close = get_close_matches(plain, known, 3, 0.4)
    hint = f"near: {', '.join(map(repr, close))}" if close else f"known: {', '.join(known)}"
    return f"no {what} matches {pattern!r}; {hint}"


# ------------------------------------------------------------------------------------------- in label rules


@dataclass(frozen=True)
class Expansion:
    """What one pattern of the label rules stands for. rule: such as `merge.person`."""

    rule: str
    pattern: str
    names: tuple[str, ...]


def expanded(
    rules: LabelRules, datasets: Mapping[str, Sequence[str]], known: LabelSpace | None = None
) -> tuple[LabelRules, tuple[Expansion, ...]]:
    """The rules with names in place of patterns: source classes `dataset/name` in `merge` and `drop`, these or
    names alone in `distinct`, unified classes in `absent`, `unlabelled`, `not_exhaustive` and `overlap` (all pairs
    of what two patterns match). Whatever is malformed stays as it is.

    datasets: dataset -> its own class names. known: the label space that grows; its names count, too.
    """
    reader, given = _Expander(), dict(rules)
    learnt = {} if known is None else {s: name for c, name in enumerate(known.classes) for s in known.sources_of(c)}
    before = () if known is None else zip(known.datasets, known.sources, strict=True)
    listed = [f"{dataset}/{name}" for dataset, own in (*before, *datasets.items()) for name in own]
    sources = list(dict.fromkeys(listed))
    unified = [] if known is None else [*known.classes, *known.reported]
    if isinstance(merge := given.get("merge"), Mapping):
        given["merge"] = {
            _target(target, unified): reader.names(f"merge.{target}", members, sources)
            if _is_list(members)
            else members
            for target, members in merge.items()
        }
    if isinstance(drop := given.get("drop"), Mapping):
        given["drop"] = {d: reader.names(f"drop.{d}", own, datasets.get(d, ())) for d, own in drop.items()}
    else:
        given["drop"] = reader.names("drop", drop, sources)
    if distinct := given.get("distinct"):
        new = [source for source in sources if source not in learnt]  # others are what the weights made of them
        alone = dict.fromkeys(source.partition("/")[2] for source in new)
        names = reader.names("distinct", distinct, [*alone])
        # what matches no name alone is looked for among `dataset/name`: `c*` is no pattern of datasets
        given["distinct"] = reader.names("distinct", names, new) if _is_list(names) else names
    unified += _unified_names(given, [source for source in sources if source not in learnt])
    for rule in _OF_DATASETS:
        if isinstance(said := given.get(rule), Mapping):
            given[rule] = {d: reader.names(f"{rule}.{d}", own, unified) for d, own in said.items()}
    overlap = given.get("overlap")
    if isinstance(overlap, Sequence) and not isinstance(overlap, (str, bytes)):
        pairs = [pair for entry in overlap for pair in reader.pairs("overlap", entry, unified)]
        given["overlap"] = tuple(pairs) if isinstance(overlap, tuple) else pairs
    return cast("LabelRules", given), tuple(reader.found)


def expanded_names(rule: str, given: Any, known: Sequence[str]) -> tuple[Any, tuple[Expansion, ...]]:
    """The same of a list of names. rule: what it is called."""
    reader = _Expander()
    return reader.names(rule, given, known), tuple(reader.found)


class _Expander:
    """Notes what every pattern stands for."""

    def __init__(self) -> None:
        self.found: list[Expansion] = []

    def names(self, rule: str, given: Any, known: Sequence[str]) -> Any:
        entries = [given] if isinstance(given, str) else given
        if not isinstance(entries, Iterable) or isinstance(entries, (Mapping, bytes)):
            return given
        entries = list(entries)
        for entry in entries:
            if is_pattern(entry) and entry not in known and (names := matching([entry], known)) != [entry]:
                self.found.append(Expansion(rule, entry, tuple(names)))
        return matching(entries, known)

    def pairs(self, rule: str, given: Any, known: Sequence[str]) -> list[Any]:
        """A pair of names, each of which may be a pattern: all pairs of different names, each once."""
        if not _is_list(given) or len(given) != 2 or not all(isinstance(e, str) for e in given):
            return [given]
        firsts, seconds = (self.names(rule, entry, known) for entry in given)
        as_given = tuple if isinstance(given, tuple) else list
        found = {frozenset((a, b)): as_given((a, b)) for a in firsts for b in seconds if a != b}
        return list(found.values()) or [given]


def _unified_names(rules: Mapping[str, Any], sources: Sequence[str]) -> list[str]:
    """The names that source classes have in the union, by `merge`, `distinct` and `drop` without patterns."""
    merge, distinct, drop = (rules.get(key) or () for key in ("merge", "distinct", "drop"))
    groups = merge.items() if isinstance(merge, Mapping) else ()
    into = {str(source): target for target, members in groups if _is_list(members) for source in members}
    apart = {distinct} if isinstance(distinct, str) else set(map(str, distinct if _is_list(distinct) else ()))
    of_datasets = drop.items() if isinstance(drop, Mapping) else ()
    dropped = {f"{dataset}/{name}" for dataset, own in of_datasets if _is_list(own) for name in own}
    dropped |= set(map(str, drop)) if _is_list(drop) else set()
    names = []
    for source in sources:
        own = source.partition("/")[2]
        if source not in dropped:
            names.append(into.get(source) or (source if apart & {source, own} else own))
    return names


def _target(name: object, known: Sequence[str]) -> object:
    return name if name in known or not isinstance(name, str) else class_name(name)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
