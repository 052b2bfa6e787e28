"""The JSONs of a lifelong sequence: reading them, and what became of old and new classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from crossdet.errors import UserError
from crossdet_research import study
from crossdet_research.lifelong.plan import JOINT, METHODS, START, UNION, VAL
from crossdet_research.tables import Run, average, number_at

NUMBER = "AP50"
PLACES = {UNION: "on the union test", VAL: "on the validation images of the datasets that label a class"}
EXTENSIONS = tuple(method.name for method in METHODS if method.mode is not None)
REPLAYING = tuple(method.name for method in METHODS if method.replays)


@dataclass(frozen=True)
class Results:
    """The JSONs of one sequence. runs: (method, seed, generation) -> JSON; the first generation is `start`'s."""

    name: str
    generations: Sequence[Sequence[str]]
    classes: Sequence[Sequence[str]]
    runs: Mapping[tuple[str, int, int], Run]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed, _ in self.runs})

    @property
    def last(self) -> int:
        return len(self.generations)

    def methods(self) -> list[str]:
        """Those with a result, in the order of the queue."""
        found = {name for name, _, _ in self.runs}
        return [method.name for method in METHODS if method.name in found]

    def title(self, method: str) -> str:
        return {m.name: m.title for m in METHODS}[method]

    def places(self) -> list[str]:
        return [place for place in PLACES if any(run.get(place) for run in self.runs.values())]

    def run(self, method: str, seed: int, generation: int) -> Run | None:
        """The JSON, the common first generation for every method; None without one, or where it diverged, or what
        it started from did."""
        first = 1 if method in EXTENSIONS else generation
        chain = [self.runs.get((START.name if g == 1 else method, seed, g)) for g in range(first, generation + 1)]
        return None if any(one and one.get("diverged") for one in chain) else chain[-1]

    def known(self, generation: int) -> list[str]:
        return [name for new in self.classes[:generation] for name in new]

    def new(self, generation: int) -> list[str]:
        return list(self.classes[generation - 1])

    def arrivals(self) -> list[tuple[int, str]]:
        """(generation, class) of every class, in their order."""
        return [(g, name) for g in range(1, self.last + 1) for name in self.new(g)]

    def value(self, method: str, seed: int, generation: int, place: str, name: str) -> float | None:
        """AP50 of one class in points. place: `val`, `union`, or a part of the union test."""
        run = self.run(method, seed, generation) or {}
        measured = run.get(place) if place in (VAL, UNION) else (run.get("union_parts") or {}).get(place)
        value = number_at(measured, ("per_class", name, NUMBER))
        return None if value is None else 100 * value

    def mean_of(self, method: str, seed: int, generation: int, place: str, names: Sequence[str]) -> float | None:
        """Mean AP50 of the classes that have one in the place; None without any, or without a run."""
        return average(self.value(method, seed, generation, place, name) for name in names)

    def by_seed(self, method: str, generation: int, place: str, names: Sequence[str]) -> dict[int, float]:
        """Seed -> `mean_of`."""
        found = {s: self.mean_of(method, s, generation, place, names) for s in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def part_names(self) -> list[str]:
        """The parts of the union test that were judged by themselves."""
        return list(dict.fromkeys(name for run in self.runs.values() for name in run.get("union_parts") or {}))

    def part_by_seed(self, method: str, generation: int, part: str) -> dict[int, float]:
        """Seed -> mean AP50 of all classes so far on a part of the union test, in points."""
        found = {s: self.run(method, s, generation) for s in self.seeds}
        rows = {s: (run.get("union_parts") or {}).get(part) for s, run in found.items() if run}
        return {s: 100 * row[NUMBER] for s, row in rows.items() if row and row[NUMBER] is not None}

    def old_names(self, generation: int, place: str, unlabelled: bool = False) -> list[str] | None:
        """The old classes with objects in a place; unlabelled: that the newest datasets do not label. None: no
        extension tells."""
        for method in EXTENSIONS:
            for seed in self.seeds:
                old = ((self.run(method, seed, generation) or {}).get("old") or {}).get(place)
                if old and (not unlabelled or "unlabelled" in old):
                    names = old["unlabelled"]["classes"] if unlabelled else old["classes"]
                    return [n for n in names if old["classes"][n][NUMBER]["before"] is not None]
        return None

    def of_joint(self, method: str, generation: int, place: str) -> dict[int, float]:
        """Seed -> AP50 of the new classes as a share of what joint training on the same datasets gives them."""
        new = self.new(generation)
        mine, joint = (self.by_seed(m, generation, place, new) for m in (method, JOINT.name))
        return {seed: mine[seed] / joint[seed] for seed in mine if joint.get(seed)}

    def steps_of(self, method: str, seed: int, generation: int) -> tuple[float, float] | None:
        """Optimiser steps of one generation, and with those of all generations before it that it rests on (joint
        training rests on none); None without a run, or where a JSON does not say."""
        own = (self.run(method, seed, generation) or {}).get("steps")
        if own is None or generation == 1 or method == JOINT.name:
            return None if own is None else (own, own)
        before = self.steps_of(method, seed, generation - 1)
        return None if before is None else (own, own + before[1])

    def old_classes(self, method: str, generation: int, place: str, unlabelled: bool = False) -> dict[int, Old]:
        """Seed -> the old classes against the weights that the generation started from; empty for joint training.
        unlabelled: only those that the newest datasets do not label."""
        found = {}
        for seed in self.seeds:
            content = ((self.run(method, seed, generation) or {}).get("old") or {}).get(place)
            of = content and (content.get("unlabelled") if unlabelled else content)
            if not content or not of or of["mean"][NUMBER]["before"] is None:
                continue
            row = of["mean"][NUMBER]
            low, high = (None if row[key] is None else 100 * row[key] for key in ("low", "high"))
            rows = {name: content["classes"][name][NUMBER] for name in of["classes"]}
            known = {name: one for name, one in rows.items() if one["before"] is not None}
            lost = tuple(name for name, one in known.items() if one["high"] is not None and one["high"] < 0)
            differences = {name: 100 * (one["after"] - one["before"]) for name, one in known.items()}
            found[seed] = Old(100 * row["before"], 100 * row["after"], low, high, lost, differences)
        return found

    def kept_to_end(self, method: str, place: str, unlabelled: bool = False) -> dict[int, float]:
        """Seed -> mean AP50 after the last generation of all classes that were there before it, as a share of what
        they had when they arrived. unlabelled: of those that no later dataset labels."""
        later = {g: set(self.old_names(g, place, unlabelled) or ()) for g in range(2, self.last + 1)}
        arrived = {
            name: g
            for g, name in self.arrivals()
            if g < self.last and all(name in later[after] for after in range(g + 1, self.last + 1))
        }
        shares = {}
        for seed in self.seeds:
            ends = [self.value(method, seed, self.last, place, name) for name in arrived]
            starts = [self.value(method, seed, g, place, name) for name, g in arrived.items()]
            pairs = [(s, e) for s, e in zip(starts, ends, strict=True) if s is not None and e is not None]
            if pairs and len(pairs) == len(arrived) and sum(s for s, _ in pairs):
                shares[seed] = sum(e for _, e in pairs) / sum(s for s, _ in pairs)
        return shares

    def unchanged(self, method: str, generation: int) -> dict[int, bool]:
        """Seed -> whether the old weights are the same bit for bit."""
        runs = {seed: self.run(method, seed, generation) for seed in self.seeds}
        key = "old_weights_unchanged"
        return {seed: run[key] for seed, run in runs.items() if run and key in run}


def read_results(folder: Path) -> Results:
    """Raises `UserError` where there is no result, or results of different sequences or settings."""
    runs: dict[tuple[str, int, int], Run] = {}
    of_method: dict[str, Run] = {}
    keys = ("tool", "method", "seed", "generation", "sequence")
    found = study.read_results(folder, "*_seed*_gen*.json", "lifelong", keys)
    for run in found:
        method = run["method"]
        _check_comparable(run, found[0], ("sequence", "overrides", "union_of_val"), "others")
        if method in EXTENSIONS:
            own = ("extend_overrides", *(("share", "replay_weight") if method in REPLAYING else ()))
            _check_comparable(run, of_method.setdefault(method, run), own, f"others of {method}")
        runs[method, int(run["seed"]), int(run["generation"])] = run
    sequence = found[0]["sequence"]
    return Results(folder.resolve().name, sequence["generations"], sequence["classes"], runs)


def _check_comparable(run: Run, other: Run, keys: Sequence[str], who: str) -> None:
    for key in keys:
        if run.get(key) != other.get(key):
            raise UserError(
                f"{run['file'].parent}: {run['file'].name} has another {key} than the {who} ({run.get(key)}, not "
                f"{other.get(key)}); they cannot be compared, keep them in different folders"
            )


@dataclass(frozen=True)
class Old:
    """The old classes of one extension, mean AP50 in points. low, high: 95 % interval of after - before over the
    images. lost: the classes whose interval lies below 0. differences: of every class."""

    before: float
    after: float
    low: float | None
    high: float | None
    lost: tuple[str, ...]
    differences: Mapping[str, float]

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def is_loss(self) -> bool:
        return self.high is not None and self.high < 0


def worst_class(old: Mapping[int, Old]) -> tuple[str, list[float]] | None:
    """The class that lost most, by the mean over the seeds, and its differences; None without classes."""
    names = dict.fromkeys(name for one in old.values() for name in one.differences)
    by_class = {n: [o.differences[n] for o in old.values() if n in o.differences] for n in names}
    name = min(by_class, key=lambda n: mean(by_class[n]), default=None)
    return None if name is None else (name, by_class[name])
