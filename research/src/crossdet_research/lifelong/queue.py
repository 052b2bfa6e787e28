"""A lifelong sequence as an experiment: a queue of methods x generations x seeds, one JSON each.

The first generation is trained once per seed. From there every method goes its own way, each generation from the
weights file of the one before alone; joint training on everything is the ceiling. No torch before a training
starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdet.config import Config
from crossdet.errors import UserError
from crossdet.files import write_json
from crossdet.models.provenance import WEIGHTS_FILE, file_digest
from crossdet_research import jobs
from crossdet_research.lifelong.plan import (
    JOINT,
    START,
    Method,
    Plan,
    Settings,
    UnionImages,
    check_settings,
    make_plan,
    read_union_test,
    resolve,
    restricted,
    roots_of,
    what_of,
)

if TYPE_CHECKING:
    from crossdet_research.lifelong.measure import Looker

TOOL = "crossdet lifelong"
"""Mark of its files; older than the name of the command, so that earlier results stay readable."""
REPORT_FILE = "forgetting.json"
"""The last file of an extension: without it the run has not ended."""


@dataclass(frozen=True)
class Job:
    """One generation of a method and its JSON. parent: weights that it starts from; None: random or ImageNet's.

    what: its config and the sequence, as compared. roots: names of this machine's folders.
    """

    method: Method
    seed: int
    generation: int
    config: Config
    what: dict[str, Any]
    file: Path
    run_dir: Path
    parent: Path | None
    roots: Mapping[Path, str]

    @property
    def title(self) -> str:
        return f"{self.method.name}, generation {self.generation}, seed {self.seed}"

    @property
    def weights(self) -> Path:
        return self.run_dir / WEIGHTS_FILE

    @property
    def note(self) -> dict[str, Any]:
        return jobs.read_json(self.run_dir / jobs.NOTE)


def run_lifelong(
    settings: Settings,
    results: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    groups: Sequence[str] = (),
    every_joint: bool = False,
    runs: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Trains and measures what has no JSON in `results` yet, all methods with the first seed first.

    groups: the datasets of each generation; none: one at a time, as the config has them. every_joint: joint
    training for every generation, else for the last. runs: where the trainings go; None: `runs` in `results`. An
    unfinished training is continued. One that diverges is a result; what would start from it is left out, though
    weights of its last good epoch are there.

    Returns:
        the JSONs.

    Raises:
        UserError: mistakes in config, data or sequence, or runs and results of other settings.
        RunError: an interruption; run again to go on.
    """
    if jobs.processes() > 1:
        raise UserError("a lifelong sequence runs on one device; start it without torchrun")
    check_settings(settings)
    config = settings.config()
    plan = make_plan(config, groups, methods)
    union = read_union_test(config, plan, settings)
    for number, (names, new) in enumerate(zip(plan.generations, plan.classes, strict=True), 1):
        say(f"generation {number}: {', '.join(names)}; new classes: {', '.join(new) or 'none'}")
    queue = _queue(settings, plan, results, runs or results / "runs", methods, seeds, every_joint)
    _check_all(queue, settings)
    asked = {"seeds": [*seeds], "methods": [m.name for m in methods], "every_joint": every_joint}
    measure = _measurer(config, plan, union)
    written = []
    dead: dict[Path, str] = {}
    for number, job in enumerate(queue, 1):
        title = f"[{number}/{len(queue)}] {job.title}"
        if (reason := _left_out(job, dead)) is not None:
            say(f"{title}: left out, {reason}")
            dead[job.weights] = "the generation before was left out"
            continue
        if job.file.exists():
            say(f"{title}: finished, skipped")
            diverged = jobs.read_json(job.file).get("diverged")
        else:
            say(f"{title}: {job.method.remark}" if job.method.remark else title)
            record, diverged = _train(job)
            content = _result(job, record, diverged, plan, settings) | {"queue": asked}
            if record is not None:
                content |= measure(job)
            write_json(job.file, content)
        written.append(job.file)
        if diverged:
            say(f"{title}: diverged: {diverged}")
            dead[job.weights] = "the generation before diverged"
    return written


def _measurer(config: Config, plan: Plan, union: UnionImages) -> Callable[[Job], dict[str, Any]]:
    """Training -> the numbers of its weights. What weights found in a split is remembered."""
    looker: Looker | None = None

    def measure(job: Job) -> dict[str, Any]:
        nonlocal looker
        from crossdet_research.lifelong.measure import Looker, measure_generation

        looker = looker or Looker(config.eval)
        seen = restricted(config, plan, plan.datasets(job.generation), job.generation)
        newest = plan.generations[job.generation - 1]
        return measure_generation(job.weights, job.parent, seen, union, looker, newest)

    return measure


def _left_out(job: Job, dead: Mapping[Path, str]) -> str | None:
    """Why a training cannot start; None: it can, or has ended. dead: weights that nothing may start from."""
    if job.parent is None:
        return None
    if job.parent in dead:
        return dead[job.parent]
    return None if job.file.exists() or job.parent.exists() else "the generation before has no weights"


# ------------------------------------------------------------------------------------------- queue


def _queue(
    settings: Settings,
    plan: Plan,
    results: Path,
    runs: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    every_joint: bool,
) -> list[Job]:
    """In the order of training: what starts from a generation comes after it."""
    last = len(plan.generations)
    roots = roots_of(settings.config(), runs)

    def job(method: Method, seed: int, generation: int) -> Job:
        name = f"{method.name}_seed{seed}_gen{generation}"
        before = START if generation == 2 else method
        parent = runs / f"{before.name}_seed{seed}_gen{generation - 1}" / WEIGHTS_FILE
        config = resolve(settings, plan, method, seed, generation)
        return Job(
            method=method,
            seed=seed,
            generation=generation,
            config=config,
            what=what_of(config, plan, roots),
            file=results / f"{name}.json",
            run_dir=runs / name,
            parent=None if method.mode is None else parent,
            roots=roots,
        )

    queue = []
    for seed in seeds:
        queue.append(job(START, seed, 1))
        for method in methods:
            first = last if method is JOINT and not every_joint else 2
            queue += [job(method, seed, generation) for generation in range(first, last + 1)]
    return queue


def _check_all(queue: Sequence[Job], settings: Settings) -> None:
    """Raises `UserError` with every result and run directory of other settings, from other weights, or from weights
    of a training that diverged."""
    problems = []
    for job in queue:
        parent = file_digest(job.parent) if job.parent is not None and job.parent.exists() else None
        try:
            if job.file.exists():
                before = jobs.read_json(job.file)
                jobs.check_same(job.what, before.get("config"), job.file)
                if parent is not None and before.get("parent") != parent:
                    problems.append(f"{job.file} was made from other weights than {job.parent}; move it away")
                problems += _of_diverged(job)
                if before.get("union_of_val", False) != settings.union_of_val:
                    problems.append(f"{job.file} was measured with the other choice of --union-of-val")
            elif job.note:
                jobs.check_same(job.what, job.note.get("config"), job.run_dir)
                if parent is not None and job.note.get("parent") != parent:
                    problems.append(f"{job.run_dir} was begun from other weights than {job.parent}; move it away")
        except UserError as error:
            problems.append(str(error))
    jobs.refuse(problems)


def _of_diverged(job: Job) -> list[str]:
    """What is wrong with a result whose parent diverged."""
    if job.parent is None:
        return []
    before = job.file.with_name(f"{job.parent.parent.name}.json")
    if not jobs.read_json(before).get("diverged"):
        return []
    return [f"{job.file} was made from weights of a training that diverged ({before.name}); move it away"]


# ------------------------------------------------------------------------------------------- one training


def _train(job: Job) -> tuple[dict[str, Any] | None, str | None]:
    """As `jobs.outcome`."""
    record, diverged = jobs.outcome(lambda: _train_on(job), "the sequence's queue")
    return record, diverged and jobs.without_roots(diverged, job.roots)


def _train_on(job: Job) -> dict[str, Any]:
    """`jobs.train_on`, and the same for an extension."""
    if job.parent is None:
        return jobs.train_on(job.config, job.run_dir, job.what)
    from crossdet.runs.extend import extend

    record = jobs.finished_record(job.run_dir)
    if record is not None and (job.run_dir / REPORT_FILE).exists():
        return record
    with jobs.noted(job.run_dir, {"config": job.what, "parent": file_digest(job.parent)}):
        return extend(job.parent, job.config, output=job.run_dir, resume=True)


def _result(
    job: Job, record: Mapping[str, Any] | None, diverged: str | None, plan: Plan, settings: Settings
) -> dict[str, Any]:
    """What is written down of one training, without what is measured."""
    report = job.run_dir / REPORT_FILE
    return {
        "tool": TOOL,
        "name": settings.file.stem,
        "sequence": plan.to_json(),
        "method": job.method.name,
        "title": job.method.title,
        "seed": job.seed,
        "generation": job.generation,
        "overrides": [_portable(text, job.roots) for text in settings.overrides],
        "extend_overrides": [_portable(text, job.roots) for text in settings.of_extensions(job.method)],
        "share": settings.share if job.method.replays else None,
        "replay_weight": settings.replay_weight if job.method.replays else None,
        "union_of_val": settings.union_of_val,
        "parent": job.note.get("parent"),
        "epochs": record["epoch"] if record else None,
        "steps": record["step"] if record else None,
        "diverged": diverged,
        "forgetting": json.loads(report.read_text()) if report.exists() else None,
        "seconds": job.note.get("seconds"),
        "hardware": job.note.get("hardware"),
        "version": {"training": job.note.get("version"), "measurement": jobs.version()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": job.what,
    }


def _portable(override: str, roots: Mapping[Path, str]) -> str:
    key, _, value = override.partition("=")
    return jobs.without_roots(f"{key}={Path(value).name if Path(value).is_absolute() else value}", roots)
