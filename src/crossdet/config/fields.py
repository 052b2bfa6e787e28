"""Types of single values in a config, beyond those of `models.settings`: names, rules, files of a split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainValidator, StrictStr, ValidationInfo
from pydantic_core import PydanticCustomError

from crossdet.data.formats import FORMATS
from crossdet.data.groups import expression_problem, is_file
from crossdet.data.rotation_geometry import EQUAL_STEPS, direction_problem, equal_directions
from crossdet.errors import show
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.labels.common import COMMON
from crossdet.models.settings import Positives, Text, expand, filled, listed, path_or_hub_id, resolved_path


def _image_set(value: Any, info: ValidationInfo) -> str:
    """A name (`trainval`) stays a name; what has a slash or a suffix is a path."""
    text = expand(value) if isinstance(value, str) else value
    if isinstance(text, str) and text and "/" not in text and not Path(text).suffix:
        return text
    return str(resolved_path(value, info))


def _teachers(value: Any, info: ValidationInfo) -> str | tuple[Path | str, ...]:
    if value == "self":
        return "self"
    entries = listed(value)
    if not isinstance(entries, tuple) or not entries:
        raise ValueError(f"expected `self` or a list of runs, weights files or hub ids, got {show(value)}")
    return tuple(path_or_hub_id(entry, info) for entry in entries)


def _merge(value: Any) -> dict[str, tuple[str, ...] | str | bool]:
    value = _no_rules(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {show(value)}")
    problems = []
    merged: dict[str, tuple[str, ...] | str | bool] = {}
    for name, sources in value.items():
        entries = listed(sources)
        if name == "same_names" and (isinstance(sources, bool) or sources == COMMON):
            merged[name] = sources
        elif name == "same_names":
            problems.append((name, f"expected true, false or {COMMON}, got {show(sources)}"))
        elif not isinstance(entries, tuple) or not entries or not all(isinstance(e, str) for e in entries):
            problems.append((name, f"expected a list of source classes `dataset/name`, got {show(sources)}"))
        else:
            merged[name] = entries
    if problems:
        raise PydanticCustomError("entries", "see the list", {"entries": problems})
    return merged


def _dropped(value: Any) -> Any:
    """`{dataset: [names]}` is short for `[dataset/name, ...]`."""
    if not isinstance(value, dict):
        return listed(value)
    flat = []
    for dataset, names in value.items():
        entries = listed(names)
        if not isinstance(entries, tuple):
            raise ValueError(f"expected a list of class names under {show(dataset)}, got {show(names)}")
        flat += [f"{dataset}/{name}" if isinstance(name, str) else name for name in entries]
    return tuple(flat)


def _format(value: Any) -> str:
    if not isinstance(value, str) or value not in FORMATS:
        *names, last = (repr(name) for name in FORMATS)
        raise ValueError(f"expected {', '.join(names)} or {last}, got {show(value)}")
    return value


def _protocols(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if name not in PROTOCOLS:
            raise ValueError(f"expected one of {', '.join(sorted(PROTOCOLS))}, got {show(name)}")
        if value.count(name) > 1:
            raise ValueError(f"{show(name)} is named twice")
    return filled(value)


def _pair(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(value) != 2:
        raise ValueError(f"expected two values, got {show(value)}")
    return value


def _part(value: str) -> str:
    match = re.fullmatch(r"(\d+)/(\d+)", value)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f'expected "i/n" with i from 1 to n, such as "1/2", got {show(value)}')
    return value


def held_out(value: str) -> str:
    """A share of the training pictures that is validated on, of which some are left to train on."""
    if re.fullmatch(r"\d+/\d+", value) is None:
        text = "expected a mapping of its files, or a share of the training pictures, such as 1/6"
        raise ValueError(f"{text}, got {show(value)}")
    if value.endswith("/1"):
        raise ValueError(f"expected a share that leaves pictures to train on, such as 1/6, got {show(value)}")
    return _part(value)


def _group_by(value: Any, info: ValidationInfo) -> str:
    """A .csv or .json file, or a regular expression."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a regular expression or a .csv or .json file, got {show(value)}")
    if is_file(value):
        return str(resolved_path(value, info))
    if problem := expression_problem(value):
        raise ValueError(f"{problem}, in {show(value)}")
    return value


def _directions(value: Any) -> tuple[int, ...]:
    """`4` is short for 0, 90, 180, 270."""
    if isinstance(value, int) and not isinstance(value, bool) and value in EQUAL_STEPS:
        return equal_directions(value)
    listed = list(value) if isinstance(value, (list, tuple)) else None
    whole = listed is not None and all(isinstance(d, int) and not isinstance(d, bool) for d in listed)
    if listed is None or not whole or direction_problem(listed):
        raise ValueError(f"expected 4, 8, 12 or a list of different whole degrees from 0 to 359, got {show(value)}")
    return tuple(sorted(listed))


def _dataset_name(value: str) -> str:
    if not value or "/" in value:
        raise ValueError(f'expected a dataset name that is not empty and has no "/", got {show(value)}')
    return value


def _no_rules(value: Any) -> Any:
    return {} if value is None else value


Range = Annotated[Positives, AfterValidator(_pair)]

FormatName = Annotated[str, PlainValidator(_format)]
DatasetName = Annotated[StrictStr, AfterValidator(_dataset_name)]
Names = Annotated[tuple[Text, ...], BeforeValidator(listed)]
SomeNames = Annotated[Names, AfterValidator(filled)]
Protocols = Annotated[tuple[Text, ...], BeforeValidator(listed), AfterValidator(_protocols)]
Part = Annotated[StrictStr, AfterValidator(_part)]
GroupBy = Annotated[str, PlainValidator(_group_by)]
Directions = Annotated[tuple[int, ...], PlainValidator(_directions)]

MergeGroups = Annotated[dict[str, tuple[str, ...] | str | bool], PlainValidator(_merge)]
SourceClasses = Annotated[tuple[Text, ...], BeforeValidator(_dropped)]
ClassesOfDatasets = Annotated[dict[str, Names], BeforeValidator(_no_rules)]
Pairs = Annotated[tuple[Annotated[Names, AfterValidator(_pair)], ...], BeforeValidator(listed)]

File = Annotated[Path, PlainValidator(resolved_path)]
Files = Annotated[tuple[File, ...], BeforeValidator(listed)]
ImageSets = Annotated[tuple[Annotated[str, PlainValidator(_image_set)], ...], BeforeValidator(listed)]
Teachers = Annotated[str | tuple[Path | str, ...], PlainValidator(_teachers)]
