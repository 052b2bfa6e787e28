"""A lifelong sequence: which datasets arrive in which generation, how each method learns them, and the config of
every training. No torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdet.config import Config, DatasetConfig, Override, UnionTestConfig, load_config
from crossdet.config.chosen import start_of
from crossdet.config.mistakes import suggest
from crossdet.config.sources import classes_of, open_sources, union_test_index
from crossdet.data.index import Index
from crossdet.errors import LabelError, UserError
from crossdet.labels.patterns import expanded
from crossdet.labels.rules import LabelRules
from crossdet.labels.space import DROPPED, LabelSpace
from crossdet.training.modes import ExtendSettings
from crossdet_research import jobs, study

VAL, UNION = "val", "union"
"""Places where a generation is judged."""
LR_SHARE = 0.25
"""Of the config's learning rate: an extension begins with it, unless --extend-set says otherwise."""
SHARE = "1/4"
"""Of the old images that replay sees; the n-th part with seed 0, the next with seed 1."""


@dataclass(frozen=True)
class Method(study.Method):
    """One way to learn what arrives. mode: of `crossdet extend`; None: a training from the start. replays: old
    images are seen again. overrides: on top of the config. slower: with `LR_SHARE` of the learning rate. remark:
    said before a training."""

    mode: str | None
    replays: bool = False
    overrides: tuple[str, ...] = ()
    slower: bool = True
    remark: str = ""


START = Method("start", "first generation", None)
JOINT = Method("joint", "joint training on everything", None)
METHODS: tuple[Method, ...] = (
    # all background trusted and batch norm adapted, as where nobody thinks of the old classes
    Method(
        "fine_tune",
        "fine-tuning on the newest",
        "replay",
        overrides=("train.plain=true", "extend.fixed_statistics=false"),
        remark="without old images on purpose: the note of `extend` about them, below, can be ignored",
    ),
    Method("replay", "replay", "replay", replays=True),
    Method("distill", "distill, no old images", "distill"),
    Method("distill_replay", "distill and replay", "distill", replays=True),
    Method("frozen", "frozen", "frozen", overrides=("extend.adapter=0",), slower=False),
    Method("frozen_adapter", "frozen, with an adapter", "frozen", overrides=("extend.adapter=32",), slower=False),
    JOINT,
)


def chosen_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, all without names. Raises `UserError` for unknown ones."""
    return study.chosen_methods(names, {method.name: [method] for method in METHODS}) or list(METHODS)


# ------------------------------------------------------------------------------------------- the sequence


@dataclass(frozen=True)
class Plan:
    """generations: datasets that arrive, by generation. classes: unified classes that they bring, old ones aside.
    sources: dataset -> its own class names."""

    generations: tuple[tuple[str, ...], ...]
    classes: tuple[tuple[str, ...], ...]
    sources: Mapping[str, Sequence[str]]

    def datasets(self, generation: int) -> list[str]:
        """All that have arrived by a generation, counted from 1."""
        return [name for arrived in self.generations[:generation] for name in arrived]

    def known(self, generation: int) -> list[str]:
        """The classes after a generation."""
        return [name for new in self.classes[:generation] for name in new]

    def to_json(self) -> dict[str, Any]:
        return {"generations": [*map(list, self.generations)], "classes": [*map(list, self.classes)]}


def order_of_arrival(config: Config, groups: Sequence[str]) -> list[list[str]]:
    """Datasets by generation: one at a time as the config has them, or as grouped (`peds,objects`). Raises
    `UserError` for unknown, missing and repeated datasets, and for fewer than two generations."""
    names = list(config.datasets)
    given = [[name.strip() for name in text.split(",") if name.strip()] for text in groups]
    order = [group for group in given if group] or [[name] for name in names]
    listed = [name for group in order for name in group]
    unknown = [name for name in dict.fromkeys(listed) if name not in names]
    twice = [name for name in dict.fromkeys(listed) if listed.count(name) > 1]
    problems = [f"--generation: no dataset {name!r}; {suggest(name, names, 'datasets')}" for name in unknown]
    problems += [f"--generation: {name!r} arrives {listed.count(name)} times" for name in twice]
    missing = [name for name in names if name not in listed]
    problems += [
        f"--generation: {name!r} is in no generation; add it, or take it out of the config" for name in missing
    ]
    if not problems and len(order) < 2:
        problems = ["a sequence needs at least two generations; the config has one dataset"]
    for name, dataset in config.datasets.items():
        if dataset.train is None:
            problems.append(f"datasets.{name}: no `train` split, it cannot be learnt")
        if dataset.val is None and config.union_test is None:
            problems.append(
                f"datasets.{name}: no `val` split and no `union_test`, what is forgotten of it cannot be measured"
            )
    study.refuse(problems)
    return order


def make_plan(config: Config, groups: Sequence[str], methods: Sequence[Method]) -> Plan:
    """Reads all data and grows the label space through all generations as the trainings will: a mistake in the
    label rules is told before the first of them. Raises `UserError`."""
    order = order_of_arrival(config, groups)
    sources = open_sources(config)
    space, names = sources.space, classes_of(sources.space)
    classes: list[list[str]] = []
    for group in order:
        known = [name for new in classes for name in new]
        mine = {c for name in group for c in space.sources[space.dataset_index(name)].values()} - {DROPPED}
        classes.append([name for c, name in enumerate(space.classes) if c in mine and name not in known])
    frozen = ",".join(method.name for method in methods if method.mode == "frozen")
    plan = Plan(tuple(map(tuple, order)), tuple(map(tuple, classes)), names)
    problems = [
        f"--methods {frozen}: generation {number} ({', '.join(group)}) brings no new class, there is nothing "
        "to train"
        for number, (group, new) in enumerate(zip(order, classes, strict=True), 1)
        if number > 1 and not new and frozen
    ]
    grown: LabelSpace | None = None
    for generation in range(1, len(order) + 1):
        try:
            step = restricted(config, plan, plan.datasets(generation), generation)
            grown = open_sources(step, known=grown).space
        except LabelError as error:
            problems.append(f"generation {generation} ({', '.join(order[generation - 1])}): {error}")
            break
        if set(grown.classes) != set(plan.known(generation)):
            problems.append(
                f"generation {generation}: its classes are {', '.join(grown.classes)}, but with all datasets at "
                f"once they are {', '.join(plan.known(generation))}; make the names the same by `labels.merge`"
            )
            break
    study.refuse(problems, "mistake(s) in the sequence")
    return plan


@dataclass(frozen=True)
class UnionImages:
    """What stands for fully labelled images. index: of the config's `union_test`. parts: name -> rows of it. vals:
    a config whose `val` images, all together, are taken for fully labelled ones."""

    index: Index | None = None
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    vals: Config | None = None


def read_union_test(config: Config, plan: Plan, settings: Settings) -> UnionImages:
    """The fully labelled images of the config; nothing without. Raises `UserError` where they cannot be read, or
    show no class of the sequence."""
    if settings.union_of_val:
        if config.union_test is not None or settings.places:
            raise UserError("--union-of-val: takes the place of `union_test` and --place; leave these out")
        return UnionImages(vals=restricted(config, plan, list(config.datasets), len(plan.generations)))
    if config.union_test is None:
        if settings.places:
            raise UserError("--place: a part of the `union_test`, but the config has none")
        return UnionImages()
    index = union_test_index(config.union_test)
    known = plan.known(len(plan.generations))
    if not set(index.classes) & set(known):
        raise UserError(
            f"union_test: none of its classes ({', '.join(index.classes)}) is one of the sequence "
            f"({', '.join(known)}); it needs the unified names"
        )
    return UnionImages(index, _union_parts(config.union_test, index, settings.places))


def _union_parts(given: UnionTestConfig | Index, index: Index, places: Sequence[str]) -> dict[str, list[int]]:
    """NAME=FILE -> NAME: rows of the union test's images that FILE lists. Raises `UserError` with all mistakes."""
    rows = {index.names[row]: row for row in range(len(index))}
    parts: dict[str, list[int]] = {}
    problems = []
    for text in places:
        name, _, file = text.partition("=")
        if not name or not file or name in parts:
            problems.append(f"--place {text}: expected NAME=FILE, each name once")
        elif isinstance(given, Index):
            problems.append(f"--place {text}: `union_test` is no files")
        else:
            key = "image_set" if given.format == "voc" else "annotations"
            part = union_test_index(given.model_copy(update={key: (Path(file),)}))
            names = [part.names[row] for row in range(len(part))]
            foreign = [one for one in names if one not in rows]
            if foreign or not names:
                problems.append(f"--place {text}: {len(foreign)} of {len(names)} images are not in `union_test`")
            parts[name] = [rows[one] for one in names if one in rows]
    study.refuse(problems)
    return parts


def restricted(config: Config, plan: Plan, names: Sequence[str], generation: int) -> Config:
    """The config with some of its datasets, and what its label rules say of them and of the classes that there are
    by the generation."""
    known, labels = set(plan.known(generation)), config.labels
    listed: Any = {key: getattr(labels, key) for key in LabelRules.__annotations__ if hasattr(labels, key)}
    labels = labels.model_copy(update={**expanded(listed, plan.sources)[0]})
    arrived = plan.datasets(generation)
    own = {text for name in arrived for c in plan.sources[name] for text in (c, f"{name}/{c}")}

    def of(source: str) -> bool:
        return source.partition("/")[0] in names

    merge = {
        target: members if isinstance(members, bool) else kept
        for target, members in labels.merge.items()
        if isinstance(members, bool) or (kept := tuple(filter(of, members)))
    }
    rules: dict[str, Any] = {
        "merge": merge,
        "absent": _of_known(labels.absent, names, known),
        "unlabelled": _of_known(labels.unlabelled, names, known),
        "not_exhaustive": _of_known(labels.not_exhaustive, names, known),
        "distinct": tuple(entry for entry in labels.distinct if entry in own),
        "drop": tuple(filter(of, labels.drop)),
        "overlap": tuple(pair for pair in labels.overlap if set(pair) <= known),
    }
    return config.model_copy(
        update={
            "datasets": {name: config.datasets[name] for name in names},
            "labels": labels.model_copy(update=rules),
        }
    )


def _of_known(
    rule: Mapping[str, tuple[str, ...]], datasets: Sequence[str], known: Collection[str]
) -> dict[str, tuple[str, ...]]:
    kept = {name: tuple(c for c in rule[name] if c in known) for name in datasets if name in rule}
    return {name: classes for name, classes in kept.items() if classes}


# ------------------------------------------------------------------------------------------- configs


@dataclass(frozen=True)
class Settings:
    """What the user gave. overrides: of all trainings; extend_overrides: of extensions, on top: `key=value`, or
    `method:key=value` of one method. share, replay_weight: of the old images that replay sees, and the factor on
    their chance to be drawn. union_of_val, places: see `read_union_test`.
    """

    file: Path
    overrides: Sequence[str] = ()
    extend_overrides: Sequence[str] = ()
    share: str = SHARE
    replay_weight: float = 1.0
    union_of_val: bool = False
    places: Sequence[str] = ()

    def config(self, more: Sequence[Override] = ()) -> Config:
        return load_config(self.file, [*self.overrides, *more])

    def typed(self, method: Method) -> list[tuple[str, str]]:
        """The overrides of one method's extensions, those of all methods first, each after the words that a mistake
        in it is told with."""
        if method.mode is None:
            return []
        given = [(f"--extend-set {text}", *override_of(text)) for text in self.extend_overrides]
        return [(words, text) for wanted in (None, method.name) for words, name, text in given if name == wanted]


def override_of(text: str) -> tuple[str | None, str]:
    """(method, `key=value`) of an override; method: None without one. What holds a dot is a key, since a dataset's
    name may hold a colon."""
    method, colon, rest = text.partition(":")
    return (method, rest) if colon and not set(method) & set(".=") else (None, text)


def check_settings(settings: Settings) -> None:
    """Raises `UserError` with all mistakes in what is no config value."""
    problems = []
    share, weight = settings.share, settings.replay_weight
    first, count = map(int, share.split("/")) if re.fullmatch(r"[1-9]\d*/[1-9]\d*", share) else (2, 1)
    if first > count:
        problems.append(f"--replay-share {share}: expected the n-th of so many parts, such as 1/4; 1/1: all images")
    if not (weight > 0 and math.isfinite(weight)):
        problems.append(f"--replay-weight {weight:g}: expected a number > 0")
    known = [method.name for method in METHODS if method.mode is not None]
    for text in settings.extend_overrides:
        name, _ = override_of(text)
        if name is not None and name not in known:
            hint = suggest(name, known, "extensions")
            problems.append(f"--extend-set {text}: no extension is called {name!r}; {hint}")
    study.refuse(problems)


def resolve(settings: Settings, plan: Plan, method: Method, seed: int, generation: int) -> Config:
    """The config of one training: of all datasets so far, or of an extension by the newest.

    An extension has old datasets only where it replays: without, their `val` images are none of its business
    either, or they would set its thresholds.

    Raises `ConfigError`.
    """
    if method.mode is None:
        config = settings.config([f"seed={seed}"])
        return restricted(config, plan, plan.datasets(generation), generation)
    words: list[Override] = list(method.overrides)
    if method.slower:
        given = settings.config()
        words.append(f"train.lr={given.train.rate(start_of(given, extends=False)) * LR_SHARE!r}")
    config = settings.config([*words, *settings.typed(method), f"seed={seed}"])
    datasets, names = dict(config.datasets), list(plan.generations[generation - 1])
    if method.replays:
        old = plan.datasets(generation - 1)
        for name in old:
            shared = with_share(datasets[name], settings.share, seed)
            datasets[name] = shared.model_copy(update={"weight": shared.weight * settings.replay_weight})
        names = [*old, *names]
    own: dict[str, Any] = {"mode": method.mode}
    if method.mode != "frozen":
        own["adapter"] = 0
    if method.mode != "distill":  # the config's `extend` may be meant for distill
        own |= {key: getattr(ExtendSettings(), key) for key in ("match", "pseudo", "trust")}
    extend = (config.extend or ExtendSettings()).model_copy(update=own)
    return restricted(config.model_copy(update={"datasets": datasets, "extend": extend}), plan, names, generation)


def with_share(dataset: DatasetConfig, share: str, seed: int = 0) -> DatasetConfig:
    """The dataset with a share of what it trains on; the share of a `part` is a part again. Each seed has the next
    share, so that the seeds' spread is also that of which images are kept."""
    first, count = map(int, share.split("/"))
    remainder, divisor = dataset.part_of or (0, 1)
    number = (first - 1 + seed) % count
    part = f"{remainder + divisor * number + 1}/{divisor * count}"
    return dataset.model_copy(update={"part": None if part == "1/1" else part})


def roots_of(config: Config, runs: Path) -> dict[Path, str]:
    """What stands for this machine's folders in stored configs: the one of the runs, and that of all data."""
    by_dataset = jobs.data_files(config)
    files = [file.absolute().parent for files in by_dataset.values() for file in files]
    roots = {runs: "RUNS"}
    if files:
        roots[Path(os.path.commonpath(files))] = "DATA"
    return roots


def what_of(config: Config, plan: Plan, roots: Mapping[Path, str]) -> dict[str, Any]:
    """The config and the sequence as plain values that can be compared between machines."""
    return {**jobs.comparable(config, roots), "sequence": plan.to_json()}
