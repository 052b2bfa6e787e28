"""From pydantic's errors to sentences with the key, the value and what is expected; all mistakes at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from crossdet.errors import show

Key = tuple[str | int, ...]
"""Where a value stands: ("datasets", "faces", "weight")."""

Model = TypeVar("Model", bound=BaseModel)


class Problem(NamedTuple):
    """One mistake: the keys that take part in it (the first is named) and the sentence about it."""

    keys: tuple[Key, ...]
    text: str


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (quote what YAML reads as something else)",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "literal_error": "{expected}",
}
_SURE = 0.8  # likeness from which on a slip of the keyboard is likelier than a key of another section
_SLIP = 2  # letters that such a slip adds or leaves out
_SHOWN = 5  # keys of a section in a message


def validated(
    kind: type[Model], data: dict[str, Any], base: Path, known_datasets: Sequence[str] = ()
) -> tuple[Model | None, list[Problem]]:
    """The model made of `data`, or None and its mistakes.

    base: folder of relative paths. known_datasets: see `load_config`.
    pydantic checks single values first and contradictions between them only if all are good; the second
    round, without the bad values, finds the contradictions that have nothing to do with them.
    """
    problems: list[Problem] = []
    broken: set[Key] = set()
    context = {"base": base, "known_datasets": known_datasets}
    for _ in range(2):
        try:
            model = kind.model_validate(_without(data, broken), context=context)
            return (None if problems else model), problems
        except ValidationError as error:
            found = [p for item in error.errors(include_url=False) for p in _problems(dict(item), data, kind)]
        problems += [p for p in found if not any(_touch(key, bad) for key in p.keys for bad in broken)]
        broken |= {problem.keys[0] for problem in found}
    return None, problems


def _problems(error: dict[str, Any], data: Any, kind: type[BaseModel]) -> list[Problem]:
    """What one entry of `ValidationError.errors()` says, in words."""
    name, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if name == "contradictions":
        return list(context["problems"])
    at = _existing(error["loc"], data)
    if name == "entries":
        return [Problem(((*at, key),), f"`{dotted((*at, key))}`: {text}") for key, text in context["entries"]]
    if name == "extra_forbidden":
        return [Problem((at,), f"unknown key `{dotted(at)}`; {_suggest_key(at, kind)}")]
    if name == "value_error":
        text = str(context["error"])
    else:
        wanted = _EXPECTED[name].format(**context) if name in _EXPECTED else error["msg"]
        if name == "model_type" and (keys := _keys_below(at, kind)):
            wanted += f" ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        text = f"expected {wanted}, got {show(value)}"
    return [Problem((at,), f"`{dotted(at)}`: {text}")]


def _existing(place: Key, data: Any) -> Key:
    """pydantic's place without what the file does not have (the 0 of a single value taken as a list)."""
    at: Key = ()
    for part in place:
        inside = isinstance(data, dict) and part in data
        if not inside and not (isinstance(data, (list, tuple)) and isinstance(part, int)):
            break
        at, data = (*at, part), data[part]
    return at


def suggest(key: str, known: Sequence[str], what: str) -> str:
    """The closest of the known names, else all of them."""
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean `{close[0]}`?"
    return f"known {what}: {', '.join(known)}"


def _suggest_key(at: Key, root: type[BaseModel]) -> str:
    """The key in a section around, in one below, one of nearly that name beside it, or the key elsewhere."""
    *inside, key = map(str, at)
    own = _keys_below(at[:-1], root)
    around = [tuple(inside[:length]) for length in reversed(range(len(inside)))]
    below = [(*inside, section) for section in own]
    elsewhere = [(section,) for section in root.model_fields]
    near = [one for one in difflib.get_close_matches(key, own, 1, _SURE) if abs(len(one) - len(key)) <= _SLIP]
    for places in (around, below, () if near else elsewhere):
        if (place := next((one for one in places if key in _keys_below(one, root)), None)) is not None:
            return f"did you mean `{dotted((*place, key))}`{'' if place else ' at the top level'}?"
    return suggest(key, own, "keys")


def _keys_below(at: Key, kind: Any) -> list[str]:
    """The keys that a section may have."""
    for part in at:
        kind = section_below(kind, str(part))
    return list(getattr(kind, "model_fields", {}))


def section_below(kind: Any, key: str) -> Any:
    """The section class (or `dict[str, section]`) under `key` of a section class; None for plain values."""
    if get_origin(kind) is dict:
        return _section(get_args(kind)[1])
    field = getattr(kind, "model_fields", {}).get(key)
    return None if field is None else _section(field.annotation)


def _section(annotation: Any) -> Any:
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section(arg)) is not None), None)


def _without(value: Any, keys: set[Key]) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, child in value.items():
        tails = {k[1:] for k in keys if k and k[0] == key}
        if not tails:
            kept[key] = child
        elif () not in tails and isinstance(child, dict):
            kept[key] = _without(child, tails)
    return kept


def _touch(one: Key, other: Key) -> bool:
    """One of the two keys is, or lies in, the other."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def dotted(at: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
