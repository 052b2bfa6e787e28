"""Reading and writing the YAML file.

Two rules differ from plain YAML 1.1: a key of a mapping is text as it is written (`no: ...` names a dataset
"no"), and `1e-4` is a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from yaml.reader import ReaderError

from crossdet.config.mistakes import Key, Problem, dotted, section_below, suggest
from crossdet.config.schema import ALL_SPLITS, Config, config_type, validated_config
from crossdet.data.formats import FORMATS
from crossdet.data.index import Index
from crossdet.errors import ConfigError, problem_list
from crossdet.models.settings import expand, listed
from crossdet.yaml_text import EXPONENT, FLOAT, Dumper, check_aliases

_TEXT = "tag:yaml.org,2002:str"
_OF_FILES = ("images", "annotations", "ignore", "lists")
Override = str | tuple[str, str]
CONFIG_FILE = "config.yaml"
"""The resolved config in the directory of a run."""
_NOWHERE = re.compile("[\0\ud800-\udfff]")  # it ends a name, or UTF-8 has no bytes for it


class _Loader(yaml.SafeLoader):
    """Safe loading; `1e-4` is a number, a date, `1:30`, `=` and `<<` are text, `010` is ten, and what PyYAML cannot
    read is told with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # `!!bool x`, `!!int ""`, a number of 5,000 digits: almost anything
            problem = f"a value that cannot be read ({type(error).__name__}: {error})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        if isinstance(value, str) and _NOWHERE.search(value):
            problem = "a text with a character that no name of a file or class can have"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


_Loader.add_implicit_resolver(FLOAT, EXPONENT, list("-+0123456789"))
for _kind in ("timestamp", "value", "merge"):  # the last two are a bare `=` and `<<`
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda _loader, node: str(node.value))


def _number(read: Callable[[yaml.SafeLoader, Any], float]) -> Callable[[_Loader, Any], float | str]:
    """As YAML 1.2 reads it: 1.1 takes `1:30` for ninety and `010` for eight."""

    def construct(loader: _Loader, node: Any) -> float | str:
        text = str(node.value)
        if ":" in text:
            return text
        digits = text.replace("_", "")
        return int(digits, 10) if re.fullmatch(r"[-+]?0[0-9]+", digits) else read(loader, node)

    return construct


_Loader.add_constructor("tag:yaml.org,2002:int", _number(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(yaml.SafeLoader.construct_yaml_float))


FROM_PYTHON = ", given from Python"
"""Ends what stands in a run's config for an index."""


def load_config(path: Path | str, overrides: Sequence[Override] = (), known_datasets: Sequence[str] = ()) -> Config:
    """Reads a config file.

    path: the YAML file; its folder is the base of relative paths, also of those in overrides.
    overrides: `a.b=value`, the value in YAML; a key of the file or of its schema (`datasets.faces.weight=2`).
        Mistakes in it are told as in `--set a.b=value`; of a pair (words, `a.b=value`), as in these words.
    known_datasets: those of trained weights that the config is about; its label rules may name them, too.

    Raises `ConfigError`: the file cannot be read or is no YAML mapping; else one error that lists all
    mistakes with line (or override), key, value and what is expected.
    """
    path = Path(path)
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: {overrides!r} is a text; give a list, [{overrides!r}]")
    data, places, problems = _read(path)
    for override in overrides:
        shown, text = (f"--set {override}", override) if isinstance(override, str) else override
        problems += _override(data, places, shown, text)
    config, found = validated_config(data, path.absolute().parent, known_datasets)
    lines = [p.text for p in problems] + [f"{_place(p, places)}{p.text}" for p in found]
    if config is None and (names := _given_from_python(data)):
        raise ConfigError(
            f"{path}: data of {', '.join(names)} were given from Python, so this config names no files; write one "
            f"that does, and take it in its place (`crossdet report RUN --data CONFIG`)"
        )
    if config is None or lines:  # what reading would find out next is told at once
        gone = _files_not_there(data, path.absolute().parent)
        lines += [f"{_place(p, places)}{p.text}" for p in gone if not any(p.keys[0] in q.keys for q in found)]
        raise ConfigError(problem_list(f"{path}: {len(lines)} mistake(s)", lines))
    if config.output is None:
        config = config.model_copy(update={"output": Path.cwd() / "runs" / path.stem})
    return config


def as_config(config: Config | str | Path, known_datasets: Sequence[str] = ()) -> Config:
    """The config itself, or the one in a file. known_datasets: see `load_config`. Raises as `load_config`, and
    `ConfigError` for what is neither."""
    if isinstance(config, str | Path):
        return load_config(config, known_datasets=known_datasets)
    if not isinstance(config, Config):
        made = "; `Config.from_dict` makes one of a dict" if isinstance(config, Mapping) else ""
        raise ConfigError(f"expected a `Config` or the path of its file, got a {type(config).__name__}{made}")
    return config


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a config file with `overrides` of `load_config`. Raises `ConfigError` where one is no such."""
    data: dict[str, Any] = _copied(values)
    problems = [problem.text for given in overrides for problem in _override(data, {}, f"--set {given}", given)]
    if problems:
        raise ConfigError(problem_list(f"{len(problems)} mistake(s)", problems))
    return data


def dump_config(config: Config) -> str:
    """YAML that `load_config` reads back to an equal config; all paths are absolute.

    A split given as an `Index` is written as a note and cannot be read back.
    """
    return yaml.dump(_plain(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def parsed(text: str) -> dict[str, Any]:
    """The values of a config's text that `crossdet` wrote."""
    found: dict[str, Any] = _parse(text, {}, [])
    return found


def _given_from_python(data: Mapping[str, Any]) -> list[str]:
    """The datasets of a run's config of which it has no files."""
    datasets = data.get("datasets")
    some = datasets.items() if isinstance(datasets, dict) else ()
    values = [(str(name), one) for name, one in some if isinstance(one, dict)]
    return [name for name, one in values if _is_index(*map(one.get, ALL_SPLITS))]


def _is_index(*splits: Any) -> bool:
    return any(isinstance(split, str) and split.endswith(FROM_PYTHON) for split in splits)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Index):
        return f"an index of {len(value)} images{FROM_PYTHON}"
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(child) for child in value]
    return str(value) if isinstance(value, Path) else value


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, str], list[Problem]]:
    """The file's values, the place ("line 3") of every key, and the keys that stand twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise ConfigError(f"{path}: a directory; expected a YAML config file") from None
    except OSError as error:
        hint = _of_like_name(path) or ("" if path.suffix else "; expected a YAML config file")
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    places: dict[Key, str] = {}
    problems: list[Problem] = []
    _refuse_annotations(path, _as_json(text))
    try:
        data = _parse(text, places, problems)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from None
    if data is None:
        data = {}
    _refuse_annotations(path, data)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping (`key: value` lines), got a {type(data).__name__}")
    return data, places, problems


def _of_like_name(path: Path) -> str:
    """A config beside the missing one with nearly its name, as the end of a message."""
    names: list[str] = []
    with suppress(OSError, ValueError):
        names = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml"))
    same = [name for name in names if name.casefold() in (path.name.casefold(), f"{path.name.casefold()}.yaml")]
    close = same or [name for name in get_close_matches(path.name, names, 1, 0.8) if name != path.name]
    return f"; did you mean {path.with_name(close[0])}?" if close and close[0] != path.name else ""


def _files_not_there(data: dict[str, Any], base: Path) -> Iterator[Problem]:
    """Files and folders of splits that do not exist. data: values of a config, of any kind. base: its folder."""
    datasets = data.get("datasets")
    sections: dict[tuple[str, ...], Any] = {("union_test",): data.get("union_test")}
    for name, dataset in datasets.items() if isinstance(datasets, dict) else ():
        for split in ALL_SPLITS if isinstance(dataset, dict) else ():
            sections["datasets", name, split] = dataset.get(split)
    for where, files in sections.items():
        for key in _OF_FILES if isinstance(files, dict) else ():
            at = (*where, key)
            for value in listed(files.get(key)) or ():
                with suppress(ValueError, OSError, TypeError):  # told already
                    file = base / expand(value)
                    if not file.exists():
                        yield Problem((at,), f"`{dotted(at)}`: {file} is not there")


def _as_json(text: str) -> Any:
    """None where it is none. YAML would read a file of annotations for hours."""
    if text.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return None


def _refuse_annotations(path: Path, data: Any) -> None:
    """Raises `ConfigError` where the file holds the annotations of a data set instead of a config."""
    if not isinstance(data, dict) or "datasets" in data:
        return
    for name, kind in FORMATS.items():
        if kind.marks and all(mark in data for mark in kind.marks):
            way = "`crossdet new DIR`, with the folder of this file and its pictures, writes a config"
            raise ConfigError(f"{path}: a data set in the format `{name}`, no config of crossdet; {way}")


def _parse(text: str, places: dict[Key, str], problems: list[Problem]) -> Any:
    try:
        loader = _Loader(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        sign = f"U+{error.character:04X}"
        raise yaml.YAMLError(f"line {line}: a character that YAML does not allow ({sign}); remove it") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check_aliases(node)
        _Survey(places, problems).look(node, ())
        return _copied(loader.construct_document(node))
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None
    finally:
        loader.dispose()


@dataclass
class _Survey:
    """Notes the line of every key, makes keys text, and finds keys that stand twice in one mapping."""

    places: dict[Key, str]
    problems: list[Problem]
    told: set[int] = field(default_factory=set)  # mappings that were looked at: an alias is one again

    def look(self, node: yaml.Node, at: Key) -> None:
        if isinstance(node, yaml.SequenceNode):
            for number, child in enumerate(node.value):
                self.places[(*at, number)] = f"line {child.start_mark.line + 1}"
                self.look(child, (*at, number))
        elif isinstance(node, yaml.MappingNode):
            pairs = [(key, child) for key, child in node.value if isinstance(key, yaml.ScalarNode)]
            self._find_twice(node, pairs, at)
            for key, child in pairs:  # first: the mapping's own keys take the place of merged ones
                if _is_merge(key):
                    self._look_at_merged(child, at)
            for key, child in pairs:
                if not _is_merge(key):
                    key.tag = _TEXT
                    self.places[(*at, key.value)] = f"line {key.start_mark.line + 1}"
                    self.look(child, (*at, key.value))

    def _look_at_merged(self, merged: yaml.Node, at: Key) -> None:
        several = merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
        for one in reversed(several):  # of those in a list the first wins
            if isinstance(one, yaml.MappingNode):  # else PyYAML says what is expected
                self.look(one, at)

    def _find_twice(self, node: yaml.Node, pairs: Sequence[tuple[yaml.ScalarNode, yaml.Node]], at: Key) -> None:
        if id(node) in self.told:
            return
        self.told.add(id(node))
        first: dict[str, int] = {}
        for key, _ in pairs:
            line = key.start_mark.line + 1
            if key.value in first:
                hint = "; several go into a list, `<<: [*a, *b]`" if _is_merge(key) else ""
                text = f"`{dotted((*at, key.value))}` stands twice, first in line {first[key.value]}{hint}"
                self.problems.append(Problem((), f"line {line}: {text}"))
            first.setdefault(key.value, line)


def _is_merge(key: yaml.ScalarNode) -> bool:
    return bool(key.tag.endswith(":merge"))


def _copied(value: Any) -> Any:
    """YAML aliases share their value; an override must change one place only."""
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    return [_copied(child) for child in value] if isinstance(value, list) else value


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    text = f"line {mark.line + 1}: {getattr(error, 'problem', None) or error}"
    if " escape " in text:  # "unknown escape character", "expected escape sequence of 8 hexadecimal numbers"
        text += "; between double quotes a backslash begins one: quote paths with ' or write them with /"
    return text


def _override(data: dict[str, Any], places: dict[Key, str], shown: str, text: str) -> list[Problem]:
    """Sets one `a.b=value` in `data`; returns its mistakes, in which it is called `shown`.

    The schema checks key and value later.
    """
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        return [Problem((), f"{shown}: expected `key=value`")]
    problems: list[Problem] = []
    try:
        value = _parse(raw, {}, problems)
    except yaml.YAMLError as error:
        return [Problem((), f"{shown}: the value is not valid YAML: {_yaml_problem(error)}")]
    if problems:
        return [Problem((), f"{shown}: {problem.text}") for problem in problems]
    level, kind = data, config_type(data)
    at: Key = ()
    parts = name.strip().split(".")
    while True:
        # a dataset's name may contain dots: the longest key that exists wins
        length = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in level), 1)
        key, parts = ".".join(parts[:length]), parts[length:]
        at = (*at, key)
        if not parts:
            break
        if key not in level and get_origin(kind) is dict:  # a section's unknown keys are told with it
            hint = _unknown_name(key, level, at[:-1], section_below(kind, key), ".".join((key, *parts)))
            return [Problem((), f"{shown}: unknown key `{dotted(at)}`; {hint}")]
        if level.get(key) is None:
            level[key] = {}
            places[at] = shown
        if not isinstance(level[key], dict):
            return [Problem((), f"{shown}: `{dotted(at)}` has no keys below it")]
        level, kind = level[key], section_below(kind, key)
    level[key] = value
    for place in [p for p in places if p[: len(at)] == at]:
        del places[place]
    places[at] = shown
    return []


def _unknown_name(key: str, level: Mapping[str, Any], at: Key, section: Any, whole: str) -> str:
    """What to say of a key that none of the names at `at` is. section: what a name has below it; None: no keys, so
    that the dots of `whole` belong to a name."""
    hint = suggest(key, list(level), "names") if level else "there are no names yet"
    if section is not None:
        return hint
    others = ", which replaces the others" if level else ""
    return f"{hint}; a new name with a dot is given as '{dotted(at)}={{{whole}: ...}}'{others}"


def _place(problem: Problem, places: dict[Key, str]) -> str:
    """Where the first key that stands somewhere stands; else the closest section that does."""
    for key in problem.keys:
        if key in places:
            return f"{places[key]}: "
    first = problem.keys[0] if problem.keys else ()
    for length in range(len(first) - 1, 0, -1):
        if first[:length] in places:
            return f"{places[first[:length]]}: "
    return ""
