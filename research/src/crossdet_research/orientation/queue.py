"""Directions as classes against rotation as augmentation, and classes per dataset against merging (paper, sec. 5).

All trainings of one comparison come from one config and take equally many optimiser steps; all are judged on the
same pictures and boxes, as one class. No torch before a training or a measurement starts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdet.config import Config, SplitConfig, load_config
from crossdet.config.mistakes import suggest
from crossdet.errors import UserError, problem_list
from crossdet.files import write_json
from crossdet_research import jobs

TOOL = "crossdet orientation"
"""Mark of its files; older than the name of the command, so that earlier results stay readable."""
ROLLS, DOMAINS = "rolls", "domains"
"""The two comparisons: over in-plane rotations, and over datasets that share a class."""


@dataclass(frozen=True)
class Method:
    """One way to train from a config. asks: which comparison it belongs to."""

    name: str
    title: str
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
    """What a method changes in the config.

    Validation during the training is upright, or the first direction where 0 is none: it is not what is compared.
    """
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


# ------------------------------------------------------------------------------------------- queue


@dataclass(frozen=True)
class Job:
    """One training and its JSON. what: its config as it is compared. split_classes: `labels.per_dataset` of the
    base config, also of methods that do without."""

    method: Method
    seed: int
    config: Config
    what: dict[str, Any]
    run_dir: Path
    file: Path
    split_classes: tuple[str, ...] = ()


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

    Raises:
        UserError: mistakes in config or data, or runs and results of other settings.
        RunError: an interruption; run again to go on.
    """
    if jobs.processes() > 1:
        raise UserError("this queue runs on one device; start it without torchrun")
    base = load_config(config_file, overrides)
    if all(dataset.val is None for dataset in base.datasets.values()):
        raise UserError(f"{config_file}: no dataset has a `val` split to measure on")
    chosen = _chosen(methods, methods_of(base))
    judged_by = measured_config(config_file, overrides, base)
    roots = {**_roots(base), output: "OUTPUT"}
    queue = []
    for seed in seeds:
        for method in chosen:
            name = f"{method.name}_seed{seed}"
            words = [*overrides, *overrides_of(method, base), f"seed={seed}"]
            config = load_config(config_file, words)
            what = jobs.comparable(config, roots)
            place = (runs or output / "runs") / name
            file = output / f"{name}.json"
            queue.append(Job(method, seed, config, what, place, file, tuple(base.labels.per_dataset)))
    _check_all(queue)
    for number, job in enumerate(queue, 1):
        title = f"[{number}/{len(queue)}] {job.method.name}, seed {job.seed}"
        if job.file.exists():
            say(f"{title}: finished, skipped")
            continue
        say(title)
        record, diverged = _train(job)
        if diverged:
            say(f"{title}: diverged: {diverged}")
        looks = job.method.name == LOOKS_OF
        from crossdet_research.orientation.measure import measure

        measures = measure(job.run_dir, judged_by, looks) if record else {"datasets": None}
        write_json(job.file, _result(job, config_file.stem, record, diverged, measures))
    return [job.file for job in queue]


def _chosen(names: Sequence[str], possible: Sequence[Method]) -> list[Method]:
    known = {method.name: method for method in possible}
    wrong = [name for name in names if name not in known]
    if wrong:
        lines = [f"--methods {name}: not with this config; {suggest(name, [*known], 'methods')}" for name in wrong]
        raise UserError(problem_list(f"{len(wrong)} mistake(s)", lines))
    return [known[name] for name in dict.fromkeys(names)] if names else list(possible)


def _roots(config: Config) -> dict[Path, str]:
    """Folder that holds the files of a dataset -> its name, so that no path of a machine is written down."""
    found = {}
    for name, dataset in config.datasets.items():
        splits = [split for split in (dataset.train, dataset.val) if isinstance(split, SplitConfig)]
        files = [file for split in splits for file in (*split.images, *split.annotations, *split.ignore)]
        if files:
            common = Path(os.path.commonpath([str(file) for file in files]))
            found[common if common not in files else common.parent] = name
    return found


def _check_all(queue: Sequence[Job]) -> None:
    """Raises `UserError` with every result and run that was made with other settings."""
    problems = []
    for job in queue:
        for place, before in (
            (job.file, jobs.read_json(job.file) if job.file.exists() else None),
            (job.run_dir, jobs.read_json(job.run_dir / jobs.NOTE) if job.run_dir.exists() else None),
        ):
            if before is None:
                continue
            try:
                jobs.check_same(job.what, before.get("config"), place)
            except UserError as error:
                problems.append(str(error))
    jobs.refuse(problems)


def _train(job: Job) -> tuple[dict[str, Any] | None, str | None]:
    """As `jobs.outcome`."""
    record, diverged = jobs.outcome(lambda: jobs.train_on(job.config, job.run_dir, job.what), "a queue")
    return record, diverged and diverged.replace(f"{job.run_dir}", job.run_dir.name)


def _result(
    job: Job, name: str, record: Mapping[str, Any] | None, diverged: str | None, measures: Mapping[str, Any]
) -> dict[str, Any]:
    note = jobs.read_json(job.run_dir / jobs.NOTE)
    return {
        "tool": TOOL,
        "name": name,
        "method": job.method.name,
        "title": job.method.title,
        "seed": job.seed,
        "epochs": record["epoch"] if record else None,
        "steps": record["step"] if record else None,
        "diverged": diverged,
        "split_classes": list(job.split_classes),
        **measures,
        "seconds": note.get("seconds"),
        "hardware": note.get("hardware"),
        "version": {"training": note.get("version"), "measurement": jobs.version()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": job.what,
    }
