"""Directions as classes against rotation as augmentation, and classes per dataset against merging (paper, sec. 5).

All trainings of one comparison come from one config and take equally many optimiser steps; all are judged on the
same pictures and boxes, as one class. No torch before a training or a measurement starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdet.config import Config, SplitConfig, load_config
from crossdet.errors import UserError
from crossdet_research import jobs, study
from crossdet_research.study import Job
from crossdet_research.tables import Run

ROLLS, DOMAINS = "rolls", "domains"
"""The two comparisons: over in-plane rotations, and over datasets that share a class."""


@dataclass(frozen=True)
class Method(study.Method):
    """One way to train from a config. asks: which comparison it belongs to."""

    asks: str


METHODS = (
    Method("upright", "upright pictures only", ROLLS),
    Method("rotated", "rotation as augmentation", ROLLS),
    Method("directions", "directions as classes", ROLLS),
    Method("merged", "merged classes", DOMAINS),
    Method("per_dataset", "classes per dataset, folded", DOMAINS),
    Method("per_dataset_open", "the same, no negatives of each other", DOMAINS),
)
LOOKS_OF = "upright"
"""The method that is also measured with a look at every roll of a picture."""


def turning(config: Config) -> dict[str, tuple[int, ...]]:
    """Dataset -> directions, of those that have some."""
    return {name: d.directions for name, d in config.datasets.items() if d.directions is not None}


def methods_of(config: Config) -> list[Method]:
    """The methods that a config can compare. Raises `UserError` where there are none."""
    asked = {ROLLS: bool(turning(config)), DOMAINS: bool(config.labels.per_dataset)}
    found = [method for method in METHODS if asked[method.asks]]
    if not found:
        raise UserError(
            "this config has nothing to compare: give a dataset `directions` (such as 4), or name classes that "
            "several datasets share under `labels.per_dataset`"
        )
    return found


def overrides_of(method: Method, config: Config) -> list[str]:
    """What a method changes in the config. Validation during the training is upright, or the first direction where
    0 is none: it is not what is compared."""
    words = [f"labels.open_members={json.dumps(method.name == 'per_dataset_open')}"]
    if method.asks == ROLLS or method.name == "merged":
        words.append("labels.per_dataset=[]")
    for name, directions in turning(config).items():
        at = f"datasets.{name}"
        first = "null" if 0 in directions else f"[{directions[0]}]"
        if method.name == "upright":
            words += [f"{at}.directions=null", f"{at}.val_directions=null"]
        elif method.asks == ROLLS:
            words.append(f"{at}.direction_classes={json.dumps(method.name == 'directions')}")
            words.append(f"{at}.val_directions={first}")
    return words


def measured_config(file: Path, overrides: Sequence[str], config: Config) -> Config:
    """The config that all methods are measured with: directions known, every validation picture in each."""
    words = list(overrides)
    for name, directions in turning(config).items():
        at = f"datasets.{name}"
        words += [f"{at}.direction_classes=true", f"{at}.val_directions={list(directions)}"]
    return load_config(file, [*words, "labels.per_dataset=[]", "labels.open_members=false"])


@dataclass(frozen=True)
class OrientationJob(Job):
    """name: of the config. split_classes: `labels.per_dataset` of the base config, also of methods that do without.
    judged_by: the config that all methods are measured with."""

    name: str
    split_classes: tuple[str, ...]
    judged_by: Config

    tool = "crossdet orientation"

    def result(self, record: Run | None, diverged: str | None) -> dict[str, Any]:
        from crossdet_research.orientation.measure import measure

        looks = self.method.name == LOOKS_OF
        measures = measure(self.run_dir, self.judged_by, looks) if record else {"datasets": None}
        own = {"name": self.name, "split_classes": list(self.split_classes)}
        return super().result(record, diverged) | own | measures


def run_orientation(
    config_file: Path,
    output: Path,
    seeds: Sequence[int],
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    runs: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Trains and measures what has no JSON in `output`, all methods with the first seed first; returns the JSONs.

    runs: where the trainings go; None: `runs` in `output`. An unfinished training is continued, a finished one only
    measured; one that diverges is a result and does not stop the others.

    Raises `UserError` of mistakes in config or data, and what `study.check` and `study.run` raise.
    """
    study.on_one_device("this queue")
    base = load_config(config_file, overrides)
    if all(dataset.val is None for dataset in base.datasets.values()):
        raise UserError(f"{config_file}: no dataset has a `val` split to measure on")
    possible = methods_of(base)
    known = {method.name: [method] for method in possible}
    chosen = study.chosen_methods(methods, known, "not with this config") or possible
    judged_by = measured_config(config_file, overrides, base)
    roots = {**_roots(base), output: "OUTPUT"}
    queue = []
    for seed in seeds:
        for method in chosen:
            name = f"{method.name}_seed{seed}"
            config = load_config(config_file, [*overrides, *overrides_of(method, base), f"seed={seed}"])
            job = OrientationJob(
                method=method,
                seed=seed,
                config=config,
                what=jobs.comparable(config, roots),
                run_dir=(runs or output / "runs") / name,
                file=output / f"{name}.json",
                roots=roots,
                name=config_file.stem,
                split_classes=tuple(base.labels.per_dataset),
                judged_by=judged_by,
            )
            queue.append(job)
    study.check(queue)
    return study.run(queue, say)


def _roots(config: Config) -> dict[Path, str]:
    """Folder that holds the files of a dataset -> its name, so that no path of a machine is written down."""
    found = {}
    for name, dataset in config.datasets.items():
        splits = [split for split in (dataset.train, dataset.val) if isinstance(split, SplitConfig)]
        files = [file for split in splits for file in (*split.images, *split.annotations, *split.ignore)]
        if not files:
            continue
        common = Path(os.path.commonpath([str(file) for file in files]))
        found[common if common not in files else common.parent] = name
    return found
