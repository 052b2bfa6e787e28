"""A lifelong sequence as an experiment: a queue of methods x generations x seeds, one JSON each.

The first generation is trained once per seed. From there every method goes its own way, each generation from the
weights file of the one before alone; joint training on everything is the ceiling. No torch before a training
starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdet.config import Config
from crossdet.models.card import WEIGHTS_FILE, file_digest
from crossdet_research import jobs, study
from crossdet_research.lifelong import plan as lifelong
from crossdet_research.study import Job
from crossdet_research.tables import Run

if TYPE_CHECKING:
    from crossdet_research.lifelong.measure import Looker

REPORT_FILE = "forgetting.json"
"""The last file of an extension: without it the run has not ended."""


@dataclass(frozen=True)
class Arrivals:
    """What all trainings of a queue have in common. asked: what the queue was asked to train."""

    settings: lifelong.Settings
    config: Config
    plan: lifelong.Plan
    union: lifelong.UnionImages
    asked: dict[str, Any]

    @cached_property
    def looker(self) -> Looker:
        """What weights found in a split is remembered."""
        from crossdet_research.lifelong.measure import Looker

        return Looker(self.config.eval)


@dataclass(frozen=True)
class GenerationJob(Job):
    """One generation of a method. before: the generation whose weights it starts from; None: a training from random
    or ImageNet's weights."""

    method: lifelong.Method
    sequence: Arrivals
    generation: int
    before: GenerationJob | None

    tool = "crossdet lifelong"
    of_queue = "of the sequence's queue"

    @property
    def title(self) -> str:
        return f"{self.method.name}, generation {self.generation}, seed {self.seed}"

    @property
    def remark(self) -> str:
        return f": {self.method.remark}" if self.method.remark else ""

    @property
    def weights(self) -> Path:
        return self.run_dir / WEIGHTS_FILE

    @property
    def parent(self) -> str | None:
        """Digest of the weights that it starts from, where they are there."""
        return file_digest(self.before.weights) if self.before and self.before.weights.exists() else None

    def left_out(self) -> str | None:
        if self.before is None:
            return None
        if jobs.read_json(self.before.file).get("diverged"):
            return "left out, the generation before diverged"
        if self.before.left_out():
            return "left out, the generation before was left out"
        there = self.file.exists() or self.before.weights.exists()
        return None if there else "left out, the generation before has no weights"

    def problems(self) -> Iterator[str]:
        """Also results from other weights, or from weights of a training that diverged."""
        result = jobs.read_json(self.file) if self.file.exists() else None
        before = self.note if result is None else result
        if not before and result is None:
            return
        place = self.run_dir if result is None else self.file
        jobs.check_same(self.what, before.get("config"), place)
        if self.before is not None and self.parent not in (None, before.get("parent")):
            made = "begun" if result is None else "made"
            yield f"{place} was {made} from other weights than {self.before.weights}; move it away"
        if result is None:
            return
        if self.before is not None and jobs.read_json(self.before.file).get("diverged"):
            name = self.before.file.name
            yield f"{place} was made from weights of a training that diverged ({name}); move it away"
        if result.get("union_of_val", False) != self.sequence.settings.union_of_val:
            yield f"{place} was measured with the other choice of --union-of-val"

    def train(self) -> dict[str, Any]:
        if self.before is None:
            return super().train()
        from crossdet.runs.extend import extend

        record = jobs.finished_record(self.run_dir)
        if record is not None and (self.run_dir / REPORT_FILE).exists():
            return record
        with jobs.noted(self.run_dir, {"config": self.what, "parent": self.parent}):
            return extend(self.before.weights, self.config, output=self.run_dir, resume=True)

    def result(self, record: Run | None, diverged: str | None) -> dict[str, Any]:
        settings, report = self.sequence.settings, self.run_dir / REPORT_FILE
        content = super().result(record, diverged) | {
            "name": settings.file.stem,
            "sequence": self.sequence.plan.to_json(),
            "generation": self.generation,
            "overrides": [*map(self.portable, settings.overrides)],
            "extend_overrides": [self.portable(text) for _, text in settings.typed(self.method)],
            "share": settings.share if self.method.replays else None,
            "replay_weight": settings.replay_weight if self.method.replays else None,
            "union_of_val": settings.union_of_val,
            "parent": self.note.get("parent"),
            "forgetting": json.loads(report.read_text()) if report.exists() else None,
            "queue": self.sequence.asked,
        }
        return content if record is None else content | self._measured()

    def _measured(self) -> dict[str, Any]:
        from crossdet_research.lifelong.measure import measure_generation

        of, plan = self.sequence, self.sequence.plan
        seen = lifelong.restricted(of.config, plan, plan.datasets(self.generation), self.generation)
        parent = None if self.before is None else self.before.weights
        newest = plan.generations[self.generation - 1]
        return measure_generation(self.weights, parent, seen, of.union, of.looker, newest)


def run_lifelong(
    settings: lifelong.Settings,
    results: Path,
    methods: Sequence[lifelong.Method],
    seeds: Sequence[int],
    groups: Sequence[str] = (),
    every_joint: bool = False,
    runs: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Trains and measures what has no JSON in `results`, all methods with the first seed first; returns the JSONs.

    groups: the datasets of each generation; none: one at a time, as the config has them. every_joint: joint
    training for every generation, else for the last. runs: where the trainings go; None: `runs` in `results`. An
    unfinished training is continued. One that diverges is a result; what would start from it is left out, though
    weights of its last good epoch are there.

    Raises `UserError` of mistakes in config or data, and what `study.check` and `study.run` raise.
    """
    study.on_one_device("a lifelong sequence")
    lifelong.check_settings(settings)
    config = settings.config()
    plan = lifelong.make_plan(config, groups, methods)
    asked = {"seeds": [*seeds], "methods": [m.name for m in methods], "every_joint": every_joint}
    sequence = Arrivals(settings, config, plan, lifelong.read_union_test(config, plan, settings), asked)
    for number, (names, new) in enumerate(zip(plan.generations, plan.classes, strict=True), 1):
        say(f"generation {number}: {', '.join(names)}; new classes: {', '.join(new) or 'none'}")
    queue = _queue(sequence, results, runs or results / "runs", methods, seeds, every_joint)
    study.check(queue)
    return study.run(queue, say)


def _queue(
    sequence: Arrivals,
    results: Path,
    runs: Path,
    methods: Sequence[lifelong.Method],
    seeds: Sequence[int],
    every_joint: bool,
) -> list[GenerationJob]:
    """In the order of training: what starts from a generation comes after it."""
    plan, roots = sequence.plan, lifelong.roots_of(sequence.config, runs)
    last = len(plan.generations)

    def job(method: lifelong.Method, seed: int, generation: int, before: GenerationJob | None) -> GenerationJob:
        name = f"{method.name}_seed{seed}_gen{generation}"
        config = lifelong.resolve(sequence.settings, plan, method, seed, generation)
        return GenerationJob(
            method=method,
            seed=seed,
            config=config,
            what=lifelong.what_of(config, plan, roots),
            run_dir=runs / name,
            file=results / f"{name}.json",
            roots=roots,
            sequence=sequence,
            generation=generation,
            before=None if method.mode is None else before,
        )

    queue = []
    for seed in seeds:
        queue.append(start := job(lifelong.START, seed, 1, None))
        for method in methods:
            before = start
            for generation in range(last if method is lifelong.JOINT and not every_joint else 2, last + 1):
                queue.append(before := job(method, seed, generation, before))
    return queue
