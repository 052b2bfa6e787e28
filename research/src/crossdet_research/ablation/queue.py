"""The ablation: the configs of its methods on a split, and the queue of methods x seeds.

No torch before a training or a measurement starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdet.config import CONFIG_FILE, Config, UnionTestConfig, load_config
from crossdet.errors import UserError
from crossdet.evaluation.union import UnionTest
from crossdet.files import write_json
from crossdet.models.provenance import WEIGHTS_FILE
from crossdet_research import jobs
from crossdet_research.ablation import measure
from crossdet_research.ablation.methods import Method, check_teaching, expert, reaching, shared_classes, stands_for
from crossdet_research.split.configs import as_many_steps
from crossdet_research.split.files import MARKER
from crossdet_research.split.files import TOOL as SPLIT_TOOL

TOOL = "crossdet ablation"
"""Mark of its files; older than the name of the command, so that earlier results stay readable."""
ROOT = "SPLIT"
"""Stands for the split's folder in stored configs."""


@dataclass(frozen=True)
class SplitFolder:
    """A folder that `crossdet-research split` wrote.

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
        raise UserError(
            f"{folder} holds no split; `crossdet-research split CONFIG ... --output {folder}` makes one"
        )
    if not content.get("complete"):
        raise UserError(f"{folder}: the split was not written to its end; make it again with --overwrite")
    summary = {k: v for k, v in content.items() if k not in ("tool", "complete", "wrote")}
    return SplitFolder(folder, summary, runs or folder / "runs")


# ------------------------------------------------------------------------------------------- configs


def resolve(split: SplitFolder, method: Method, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The validated config of one training; overrides of the user come last but for the length of experts. Those
    of `pseudo` do not reach methods without teachers.

    Raises `ConfigError`.
    """
    file = split.folder / f"{method.base}.yaml"
    shared = shared_classes(split.summary)
    distinct = [f"labels.distinct={json.dumps(shared)}"] if shared and not method.merged else []
    teachers = []
    if method.taught:
        folders = [split.run_dir(expert(part), seed).absolute() for part in split.parts]
        runs = [str(folder / WEIGHTS_FILE) for folder in folders]  # the newest weights, as everything here
        teachers = [f"pseudo.teachers={json.dumps(runs)}"]
    words = [*method.overrides, *teachers, *distinct, f"seed={seed}", *reaching(method, overrides)]
    config = load_config(file, words)
    if method.part is not None:
        factor = sum(row["images"] for row in split.parts.values()) / split.parts[method.part]["images"]
        config = load_config(file, [*words, *as_many_steps(config.train, factor)])
    return config


# ------------------------------------------------------------------------------------------- queue


@dataclass(frozen=True)
class Job:
    """One training and its JSON. what: its config as it is compared. given: the user's overrides that reach it.
    teachers: of a taught method, the experts of its seed."""

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
        UserError: mistakes in overrides, configs or data, or runs and results of other settings.
        RunError: an interruption; run again to go on.
    """
    if jobs.processes() > 1:
        raise UserError("the ablation runs on one device; start it without torchrun")
    check_teaching(methods, overrides)
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
        test = test or measure.open_test(split.folder, split.parts)
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
        added: dict[str, Job] = {}
        for job in taught:
            if say is None or job.is_done:
                continue
            missing = [one for one in job.missing_teachers if one.method not in methods]
            if missing:
                names = ", ".join(one.method.name for one in missing)
                say(f"{job.title}: it is taught by {names}, in the queue as well")
            added |= {one.method.name: one for one in missing}
        queue += [*(job for job in mine if not job.method.taught), *added.values(), *taught]
    return queue


def _job(split: SplitFolder, results: Path, method: Method, seed: int, overrides: Sequence[str]) -> Job:
    config = resolve(split, method, seed, overrides)
    file = results / split.name / f"{method.name}_seed{seed}.json"
    mine = reaching(method, overrides)
    given = tuple(jobs.without_roots(_without_folders(text), split.roots) for text in mine)
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
        what["pseudo"]["teachers"] = [path.parent.name for path in config.pseudo.teachers]
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
            if (again or not job.file.exists()) and (job.run_dir / CONFIG_FILE).exists():
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
        if (teacher.run_dir / CONFIG_FILE).exists():
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
    config = load_config(job.run_dir / CONFIG_FILE)
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


def _result(job: Job, record: Mapping[str, Any] | None, diverged: str | None, test: UnionTest) -> dict[str, Any]:
    """What is written down of one training. record: of its last epoch; None where it diverged."""
    from crossdet.training.teachers import last_taught

    note = jobs.read_json(job.run_dir / jobs.NOTE)
    epochs = jobs.read_json(job.run_dir / "metrics.json").get("epochs", [])
    rows = measure.read_steps(job.run_dir)
    train = job.config.train
    steps = record["step"] if record else (int(rows[-1]["step"]) if rows else 0)
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
        "steps": steps,
        "steps_with_teachers": _with_teachers(job, steps),
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


def _with_teachers(job: Job, steps: int) -> int | None:
    """The steps and those of its teachers; None without any, and where one of them has no finished run here."""
    records = [jobs.finished_record(teacher.run_dir) for teacher in job.teachers]
    known = [int(record["step"]) for record in records if record is not None]
    return steps + sum(known) if known and len(known) == len(records) else None


def _without_runs(taught: dict[str, Any] | None, split: SplitFolder) -> dict[str, Any] | None:
    """Who labelled what, with teachers by the names of their runs."""
    if taught is None:
        return None
    text = json.dumps(taught).replace(f"/{WEIGHTS_FILE}", "")
    for folder in dict.fromkeys((split.runs.absolute(), split.runs.resolve())):
        text = text.replace(json.dumps(f"{folder}/")[1:-1], "")
    return dict(json.loads(text))
