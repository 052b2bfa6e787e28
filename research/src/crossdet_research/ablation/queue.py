"""The ablation: the configs of its methods on a split, and the queue of methods x seeds.

No torch before a training or a measurement starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from crossdet.config import CONFIG_FILE, Config, UnionTestConfig, load_config
from crossdet.errors import UserError
from crossdet.evaluation.union import UnionTest
from crossdet.models.card import WEIGHTS_FILE
from crossdet.training.recipe import WARMUP_SHARE, Recipe
from crossdet_research import jobs, study
from crossdet_research.ablation import measure
from crossdet_research.ablation.methods import Method, check_teaching, expert, reaching, shared_classes, stands_for
from crossdet_research.split.configs import as_many_steps
from crossdet_research.split.files import MARKER, TOOL
from crossdet_research.study import Job
from crossdet_research.tables import Run

ROOT = "SPLIT"
"""Stands for the split's folder in stored configs."""


@dataclass(frozen=True)
class SplitFolder:
    """A folder that `crossdet-research split` wrote. summary: its `split.json` without what only splitting needs.
    runs: where its trainings go."""

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

    @cached_property
    def test(self) -> UnionTest:
        return measure.open_test(self.folder, self.parts)

    def run_dir(self, method: Method, seed: int) -> Path:
        return self.runs / f"{method.name}_seed{seed}"


def open_split_folder(folder: Path, runs: Path | None = None) -> SplitFolder:
    """runs: None is `runs` in the folder. Raises `UserError` where there is no split, or an unfinished one."""
    content = jobs.read_json(folder / MARKER)
    if content.get("tool") != TOOL:
        raise UserError(
            f"{folder} holds no split; `crossdet-research split CONFIG ... --output {folder}` makes one"
        )
    if not content.get("complete"):
        raise UserError(f"{folder}: the split was not written to its end; make it again with --overwrite")
    summary = {k: v for k, v in content.items() if k not in ("tool", "complete", "wrote")}
    return SplitFolder(folder, summary, runs or folder / "runs")


def resolve(split: SplitFolder, method: Method, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The validated config of one training; overrides of the user come last but for the length of experts. Those of
    `pseudo` do not reach methods without teachers. Raises `ConfigError`."""
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


@dataclass(frozen=True)
class AblationJob(Job):
    """One training on a split. given: the user's overrides that reach it. teachers: the experts of its seed, of a
    method that they label for. trains: false where finished trainings are only measured. again: measure it anew."""

    split: SplitFolder
    method: Method
    given: tuple[str, ...]
    teachers: tuple[AblationJob, ...] = ()
    trains: bool = True
    again: bool = False

    tool = "crossdet ablation"
    of_queue = "of the ablation's queue"

    @property
    def title(self) -> str:
        return f"{self.split.name}, {super().title}"

    @property
    def record(self) -> dict[str, Any] | None:
        """The last record of a training that has ended."""
        return jobs.finished_record(self.run_dir)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to train."""
        return self.file.exists() or self.record is not None

    @property
    def missing_teachers(self) -> list[AblationJob]:
        """Those that have no finished run."""
        return [job for job in self.teachers if job.record is None]

    @property
    def remark(self) -> str:
        return ": measured" if self.record else ""

    @property
    def what_of_run(self) -> dict[str, Any]:
        """With the split: runs stay where it is replaced."""
        return {**self.what, "split": dict(self.split.summary)}

    def left_out(self) -> str | None:
        if (self.file.exists() and not self.again) or self.record is not None:
            return None
        if not self.trains or self.file.exists():
            return "no finished training, left out"
        names = ", ".join(teacher.method.name for teacher in self.missing_teachers)
        return f"left out; no finished training of what is to teach it: {names}" if names else None

    def problems(self) -> Iterator[str]:
        if self.file.exists():
            before = jobs.read_json(self.file)
            jobs.check_same(self.what, before.get("config"), self.file)
            if before.get("summary") != self.split.summary:
                yield f"{self.file} is of another split; use another folder with --output"
        if self.again or not self.file.exists():
            self._check_run()
        yield from self._problems_of_teachers()

    def _check_run(self) -> None:
        """The run directory may also be of a plain `crossdet train`."""
        if not (self.run_dir / CONFIG_FILE).exists():
            return
        before = self.note.get("config")
        if not isinstance(before, dict):
            config = load_config(self.run_dir / CONFIG_FILE)
            test, roots = config.union_test, dict(self.roots)
            if isinstance(test, UnionTestConfig) and test.annotations:
                roots[test.annotations[0].parents[1]] = ROOT  # where the split lay when the run was made
            before = _comparable(config, roots)
        jobs.check_same(self.what_of_run, before, self.run_dir)

    def _problems_of_teachers(self) -> Iterator[str]:
        """A teacher made with other settings, or with a result but no run here: then it would not be trained."""
        if self.is_done:
            return
        for teacher in self.teachers:
            teacher._check_run()
        for teacher in self.missing_teachers:
            if teacher.file.exists() and not jobs.read_json(teacher.file).get("diverged"):
                yield (
                    f"{self.title}: its teacher {teacher.method.name} has a result, {teacher.file}, but no "
                    f"finished run in {self.split.runs}; put the run there, or move the result away to train it "
                    f"again"
                )
                return

    def result(self, record: Run | None, diverged: str | None) -> dict[str, Any]:
        from crossdet.training.teachers import last_teacher_labels

        note, parts, train = self.note, self.split.parts, self.config.train
        epochs = jobs.read_json(self.run_dir / "metrics.json").get("epochs", [])
        rows = measure.read_steps(self.run_dir)
        steps = record["step"] if record else (int(rows[-1]["step"]) if rows else 0)
        metrics = study.metrics_of(record)
        return super().result(record, diverged) | {
            "split": self.split.name,
            "summary": dict(self.split.summary),
            "stands_for": stands_for(self.method, self.split.summary),
            "overrides": list(self.given),
            "steps": steps,
            "steps_with_teachers": self._with_teachers(steps),
            "metrics": metrics,
            "protocols": measure.own_numbers(metrics, parts),
            "curve": measure.learning_curve(epochs, parts),
            "stability": measure.stability(rows, _warmup_epochs(train, len(epochs)), train.clip_norm),
            "taught": self._without_runs(last_teacher_labels(self.run_dir)),
            "union": measure.measure_union(self.run_dir, self.split.test, parts, self.config.eval)
            if record
            else None,
            "training_seconds": measure.training_seconds(rows, epochs),
            "hardware": note.get("hardware") or jobs.hardware(),
            "hardware_is": "of the training" if note else "of the measurement",
        }

    def _with_teachers(self, steps: int) -> int | None:
        """The steps and those of its teachers; None without any, and where one of them has no finished run here."""
        known = [int(job.record["step"]) for job in self.teachers if job.record is not None]
        return steps + sum(known) if known and len(known) == len(self.teachers) else None

    def _without_runs(self, taught: dict[str, Any] | None) -> dict[str, Any] | None:
        """Who labelled what, with teachers by the names of their runs."""
        if taught is None:
            return None
        text = json.dumps(taught).replace(f"/{WEIGHTS_FILE}", "")
        for folder in dict.fromkeys((self.split.runs.absolute(), self.split.runs.resolve())):
            text = text.replace(json.dumps(f"{folder}/")[1:-1], "")
        return dict(json.loads(text))


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

    Raises `UserError` of mistakes in config or data, and what `study.check` and `study.run` raise.
    """
    study.on_one_device("the ablation")
    check_teaching(methods, overrides)

    def job(method: Method, seed: int) -> AblationJob:
        config = resolve(split, method, seed, overrides)
        made = AblationJob(
            method=method,
            seed=seed,
            config=config,
            what=_comparable(config, split.roots),
            run_dir=split.run_dir(method, seed),
            file=results / split.name / f"{method.name}_seed{seed}.json",
            roots=split.roots,
            split=split,
            given=(),
            teachers=tuple(job(expert(part), seed) for part in split.parts) if method.taught else (),
            trains=train,
            again=again,
        )
        return replace(made, given=tuple(map(made.portable, reaching(method, overrides))))

    queue: list[AblationJob] = []
    for seed in seeds:
        queue += _with_their_teachers([job(method, seed) for method in methods], say if train else None)
    study.check(queue)
    return study.run(queue, say, again)


def _with_their_teachers(mine: Sequence[AblationJob], say: Callable[[str], None] | None) -> list[AblationJob]:
    """The jobs of one seed, those with teachers last, and before them the experts that are missing for them, which
    is said (None: without these)."""
    methods = [job.method for job in mine]
    added: dict[str, AblationJob] = {}
    taught = [job for job in mine if job.method.taught]
    for job in taught:
        missing = [] if say is None or job.is_done else job.missing_teachers
        names = [one.method.name for one in missing if one.method not in methods]
        if names and say is not None:
            say(f"{job.title}: it is taught by {', '.join(names)}, in the queue as well")
        added |= {one.method.name: one for one in missing if one.method not in methods}
    return [*(job for job in mine if not job.method.taught), *added.values(), *taught]


def _warmup_epochs(train: Recipe, epochs: int) -> float:
    """Of a training of so many epochs; where the recipe counts steps, at most this."""
    return WARMUP_SHARE * epochs if train.warmup_epochs is None else train.warmup_epochs


def _comparable(config: Config, roots: Mapping[Path, str]) -> dict[str, Any]:
    """`jobs.comparable`; a teacher counts by the name of its run."""
    what = jobs.comparable(config, roots)
    if config.pseudo is not None and not isinstance(config.pseudo.teachers, str):
        what["pseudo"]["teachers"] = [Path(source).parent.name for source in config.pseudo.teachers]
    return what
