"""The ablation: the methods, their configs on a split, and the queue of methods x seeds.

No torch before a training or a measurement starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdet.config import Config, UnionTestConfig, load_config
from crossdet.config.mistakes import suggest
from crossdet.errors import UserError, problem_list
from crossdet.experiments import jobs, measure
from crossdet.experiments.split_configs import as_many_steps
from crossdet.experiments.split_files import MARKER
from crossdet.experiments.split_files import TOOL as SPLIT_TOOL
from crossdet.jsonfiles import write_json

TOOL = "crossdet ablation"
ROOT = "SPLIT"
"""Stands for the split's folder in stored configs."""


@dataclass(frozen=True)
class Method:
    """One way to train on a split.

    base: name of the split's config. overrides: on top of it. merged: classes that several parts label are one
    class; where no class is shared this changes nothing. part: the only part it sees (an expert). taught: its
    teachers are the experts of the same seed, which are trained before.
    """

    name: str
    title: str
    base: str
    overrides: tuple[str, ...] = ()
    merged: bool = True
    part: str | None = None
    taught: bool = False


METHODS: tuple[Method, ...] = (
    Method("naive", "naive concatenation", "naive", merged=False),
    Method("aware", "aware (paper)", "aware"),
    Method("same_positives", "reference: same positives", "same_positives"),
    Method("full", "reference: full labels", "full"),
    Method("naive_merged", "naive, merged labels", "naive"),
    Method(
        "aware_no_foreground",
        "aware without foreground negatives",
        "aware",
        ("loss.foreground_negatives=false",),
    ),
    Method("aware_distinct", "aware without merging", "aware", merged=False),
)
"""In the order of the queue, without the experts."""
FURTHER: tuple[Method, ...] = (
    Method("aware_pseudo", "aware, labels by the experts", "aware", taught=True),
    Method("aware_pseudo_self", "aware, labels by itself", "aware", ("pseudo.teachers=self",)),
)
"""Methods that are run where they are named only; the tables show them where they were run."""
SAME_WITHOUT_SHARED = {"naive_merged": "naive", "aware_distinct": "aware"}
"""Where no class is shared the first is the same training as the second."""
SAME_WHERE_MARKED = {"naive": "naive_merged"}
"""On a split by `mark`: what is marked are regions of merged classes."""


def expert(part: str) -> Method:
    return Method(f"expert_{part}", f"expert: {part}", f"expert_{part}", part=part)


@dataclass(frozen=True)
class SplitFolder:
    """A folder that `crossdet split` wrote.

    summary: its `split.json` without what only splitting needs. runs: where its trainings go.
    """

    folder: Path
    summary: Mapping[str, Any]
    runs: Path

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        parts: Mapping[str, Mapping[str, Any]] = self.summary["parts"]
        return parts

    @property
    def roots(self) -> dict[Path, str]:
        return {self.folder: ROOT, self.runs: "RUNS"}

    def run_dir(self, method: Method, seed: int) -> Path:
        return self.runs / f"{method.name}_seed{seed}"


def open_split_folder(folder: Path, runs: Path | None = None) -> SplitFolder:
    """runs: None is `runs` in the folder. Raises `UserError` where there is no split, or an unfinished one."""
    content = jobs.read_json(folder / MARKER)
    if content.get("tool") != SPLIT_TOOL:
        raise UserError(f"{folder} holds no split; `crossdet split CONFIG ... --output {folder}` makes one")
    if not content.get("complete"):
        raise UserError(f"{folder}: the split was not written to its end; make it again with --overwrite")
    summary = {k: v for k, v in content.items() if k not in ("tool", "complete", "wrote")}
    return SplitFolder(folder, summary, runs or folder / "runs")


def shared_classes(summary: Mapping[str, Any]) -> list[str]:
    """Classes that several parts label."""
    names = [name for part in summary["parts"].values() for name in part["classes"]]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def same_trainings(summary: Mapping[str, Any]) -> tuple[Mapping[str, str], str]:
    """Method -> the method whose training it is on the split; and why."""
    if not shared_classes(summary):
        return SAME_WITHOUT_SHARED, "no class is labelled by several parts"
    if summary.get("conflict_by") == "mark":
        return SAME_WHERE_MARKED, "marked objects are regions of merged classes"
    return {}, ""


def methods_of(summary: Mapping[str, Any]) -> list[Method]:
    """The methods that differ on a split, in the order of the queue."""
    same, _ = same_trainings(summary)
    return [*(method for method in METHODS if method.name not in same), *map(expert, summary["parts"])]


def stands_for(method: Method, summary: Mapping[str, Any]) -> list[str]:
    """The methods that are this training on the split, itself first."""
    same, _ = same_trainings(summary)
    return [method.name, *(other for other, name in same.items() if name == method.name)]


def chosen_methods(
    names: Sequence[str], summary: Mapping[str, Any], say: Callable[[str], None] = print
) -> list[Method]:
    """The methods of these names, all but `FURTHER` without names; `expert` stands for all experts.

    Says which of them are the same training. Raises `UserError` for unknown names.
    """
    possible = {method.name: method for method in (*methods_of(summary), *FURTHER)}
    same, why = same_trainings(summary)
    for other, name in same.items():
        if not names or other in names:
            say(f"{why}: {other} is the same training as {name}")
    wanted: list[Method] = []
    problems = []
    for name in names:
        known = same.get(name, name)
        found = [m for m in possible.values() if m.name == known or (name == "expert" and m.part)]
        if not found:
            problems.append(
                f"--methods {name}: unknown method; {suggest(name, [*possible, *same], 'methods')}"
            )
        wanted += found
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s)", problems))
    return list(dict.fromkeys(wanted)) if names else methods_of(summary)


# ------------------------------------------------------------------------------------------- configs


def resolve(split: SplitFolder, method: Method, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The validated config of one training; overrides of the user come last but for the length of experts.

    Raises `ConfigError`.
    """
    file = split.folder / f"{method.base}.yaml"
    shared = shared_classes(split.summary)
    distinct = [f"labels.distinct={json.dumps(shared)}"] if shared and not method.merged else []
    teachers = []
    if method.taught:
        runs = [str(split.run_dir(expert(part), seed).absolute()) for part in split.parts]
        teachers = [f"pseudo.teachers={json.dumps(runs)}"]
    words = [*method.overrides, *teachers, *distinct, f"seed={seed}", *overrides]
    config = load_config(file, words)
    if method.part is not None:
        factor = sum(row["images"] for row in split.parts.values()) / split.parts[method.part]["images"]
        config = load_config(file, [*words, *as_many_steps(config.train, factor)])
    return config


# ------------------------------------------------------------------------------------------- queue


@dataclass(frozen=True)
class Job:
    """One training and its JSON. what: its config as it is compared. given: the user's overrides. teachers: of a
    taught method, the experts of its seed."""

    split: SplitFolder
    method: Method
    seed: int
    config: Config
    what: dict[str, Any]
    given: tuple[str, ...]
    file: Path
    teachers: tuple[Job, ...] = ()

    @property
    def run_dir(self) -> Path:
        return self.split.run_dir(self.method, self.seed)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to train."""
        return self.file.exists() or jobs.finished_record(self.run_dir) is not None

    @property
    def missing_teachers(self) -> list[Job]:
        """Those that have no finished run."""
        return [job for job in self.teachers if jobs.finished_record(job.run_dir) is None]

    @property
    def title(self) -> str:
        return f"{self.split.name}, {self.method.name}, seed {self.seed}"

    @property
    def on_this_data(self) -> dict[str, Any]:
        """What a run directory is compared by: runs stay where a split is replaced."""
        return {**self.what, "split": dict(self.split.summary)}


def run_ablation(
    split: SplitFolder,
    results: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
    train: bool = True,
    again: bool = False,
) -> list[Path]:
    """Trains and measures what has no JSON yet, all methods with the first seed first; returns the JSONs.

    An unfinished training is continued; a finished one, also one of a plain `crossdet train`, is only measured. A
    training that diverges is a result and does not stop the others. train: false measures what has finished and
    trains nothing. again: measure finished trainings anew, also where there is a JSON. The experts that teach a
    method are trained before it.

    Raises:
        UserError: mistakes in configs or data, or runs and results of other settings.
        RunError: an interruption; run again to go on.
    """
    if jobs.processes() > 1:
        raise UserError("the ablation runs on one device; start it without torchrun")
    queue = _queue(split, results, methods, seeds, overrides, say if train else None)
    _check_all(queue, again)
    test = None
    written = []
    for number, job in enumerate(queue, 1):
        title = f"[{number}/{len(queue)}] {job.title}"
        if job.file.exists() and not again:
            say(f"{title}: finished, skipped")
            written.append(job.file)
            continue
        record, diverged = jobs.finished_record(job.run_dir), None
        if record is None and (not train or (again and job.file.exists())):
            say(f"{title}: no finished training, left out")
            continue
        if record is None and (missing := job.missing_teachers):
            names = ", ".join(teacher.method.name for teacher in missing)
            say(f"{title}: left out; no finished training of what is to teach it: {names}")
            continue
        say(f"{title}: measured" if record else title)
        if record is None:
            record, diverged = _train(job)
        if diverged:
            say(f"{title}: diverged: {diverged}")
        test = test or measure.open_union_test(split.folder, split.parts)
        write_json(job.file, _result(job, record, diverged, test))
        written.append(job.file)
    return written


def _queue(
    split: SplitFolder,
    results: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    overrides: Sequence[str],
    say: Callable[[str], None] | None,
) -> list[Job]:
    """All methods of one seed after the other, those who are taught last; with the experts that are missing for
    them, which is said (None: without)."""
    queue: list[Job] = []
    for seed in seeds:
        mine = [_job(split, results, method, seed, overrides) for method in methods]
        taught = [job for job in mine if job.method.taught]
        missing = [teacher for job in taught if not job.is_done for teacher in job.missing_teachers]
        added = [teacher for teacher in missing if teacher.method not in methods] if say else []
        if say and added:
            names = ", ".join(teacher.method.name for teacher in added)
            say(f"{taught[0].title}: it is taught by {names}, in the queue as well")
        queue += [*(job for job in mine if not job.method.taught), *added, *taught]
    return queue


def _job(split: SplitFolder, results: Path, method: Method, seed: int, overrides: Sequence[str]) -> Job:
    config = resolve(split, method, seed, overrides)
    file = results / split.name / f"{method.name}_seed{seed}.json"
    given = tuple(jobs.without_roots(_without_folders(text), split.roots) for text in overrides)
    teachers = map(expert, split.parts) if method.taught else ()
    return Job(
        split,
        method,
        seed,
        config,
        _comparable(config, split.roots),
        given,
        file,
        tuple(_job(split, results, teacher, seed, overrides) for teacher in teachers),
    )


def _comparable(config: Config, roots: Mapping[Path, str]) -> dict[str, Any]:
    """`jobs.comparable`; a teacher counts by the name of its run."""
    what = jobs.comparable(config, roots)
    if config.pseudo is not None and not isinstance(config.pseudo.teachers, str):
        what["pseudo"]["teachers"] = [path.name for path in config.pseudo.teachers]
    return what


def _without_folders(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}={Path(value).name if Path(value).is_absolute() else value}"


def _check_all(queue: Sequence[Job], again: bool) -> None:
    """Raises `UserError` with every result and run directory that was made with other settings or data."""
    problems = []
    for job in queue:
        try:
            if job.file.exists():
                before = jobs.read_json(job.file)
                jobs.check_same(job.what, before.get("config"), job.file)
                if before.get("summary") != job.split.summary:
                    problems.append(f"{job.file} is of another split; use another folder with --output")
            if (again or not job.file.exists()) and (job.run_dir / "config.yaml").exists():
                jobs.check_same(job.on_this_data, _settings_of_run(job), job.run_dir)
            _check_teachers(job)
        except UserError as error:
            problems.append(str(error))
    jobs.refuse(problems)


def _check_teachers(job: Job) -> None:
    """Raises `UserError` where a teacher was made with other settings, or has a result but no run here: then it
    would not be trained."""
    if job.is_done:
        return
    for teacher in job.teachers:
        if (teacher.run_dir / "config.yaml").exists():
            jobs.check_same(teacher.on_this_data, _settings_of_run(teacher), teacher.run_dir)
    for teacher in job.missing_teachers:
        if teacher.file.exists() and not jobs.read_json(teacher.file).get("diverged"):
            raise UserError(
                f"{job.title}: its teacher {teacher.method.name} has a result, {teacher.file}, but no finished run "
                f"in {job.split.runs}; put the run there, or move the result away to train it again"
            )


def _settings_of_run(job: Job) -> dict[str, Any]:
    """The settings of a run directory, of the queue or of a plain `crossdet train`."""
    note = jobs.read_json(job.run_dir / jobs.NOTE)
    if isinstance(note.get("config"), dict):
        return dict(note["config"])
    config = load_config(job.run_dir / "config.yaml")
    test, roots = config.union_test, dict(job.split.roots)
    if isinstance(test, UnionTestConfig) and test.annotations:
        roots[test.annotations[0].parents[1]] = ROOT  # where the split lay when the run was made
    return _comparable(config, roots)


def _train(job: Job) -> tuple[dict[str, Any] | None, str | None]:
    """As `jobs.outcome`."""
    record, diverged = jobs.outcome(
        lambda: jobs.train_on(job.config, job.run_dir, job.on_this_data), "the ablation's queue"
    )
    return record, diverged and jobs.without_roots(diverged, job.split.roots)


def _result(
    job: Job, record: Mapping[str, Any] | None, diverged: str | None, test: measure.UnionTest
) -> dict[str, Any]:
    """What is written down of one training. record: of its last epoch; None where it diverged."""
    from crossdet.teaching import last_taught

    note = jobs.read_json(job.run_dir / jobs.NOTE)
    epochs = jobs.read_json(job.run_dir / "metrics.json").get("epochs", [])
    rows = measure.read_steps(job.run_dir)
    train = job.config.train
    content: dict[str, Any] = {
        "tool": TOOL,
        "split": job.split.name,
        "summary": dict(job.split.summary),
        "method": job.method.name,
        "title": job.method.title,
        "stands_for": stands_for(job.method, job.split.summary),
        "seed": job.seed,
        "overrides": list(job.given),
        "epochs": record["epoch"] if record else None,
        "steps": record["step"] if record else (int(rows[-1]["step"]) if rows else 0),
        "diverged": diverged,
        "metrics": {k: v for k, v in (record or {}).get("metrics", {}).items() if k != "operating"},
        "protocols": measure.own_numbers((record or {}).get("metrics", {}), job.split.parts),
        "curve": measure.learning_curve(epochs, job.split.parts),
        "stability": measure.stability(rows, train.warmup_epochs, train.clip_norm),
        "taught": _without_runs(last_taught(job.run_dir), job.split),
        "union": None,
        "seconds": note.get("seconds"),
        "training_seconds": measure.training_seconds(rows, epochs),
        "hardware": note.get("hardware") or jobs.hardware(),
        "hardware_is": "of the training" if note else "of the measurement",
        "version": {"training": note.get("version"), "measurement": jobs.version()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": job.what,
    }
    if record:
        content["union"] = measure.measure_union(job.run_dir, test, job.split.parts, job.config.eval)
    return content


def _without_runs(taught: dict[str, Any] | None, split: SplitFolder) -> dict[str, Any] | None:
    """Who labelled what, with teachers by the names of their runs."""
    if taught is None:
        return None
    text = json.dumps(taught)
    for folder in dict.fromkeys((split.runs.absolute(), split.runs.resolve())):
        text = text.replace(json.dumps(f"{folder}/")[1:-1], "")
    return dict(json.loads(text))
