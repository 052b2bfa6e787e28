"""The JSONs of a lifelong sequence: reading them, and what became of old and new classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from crossdet.errors import UserError
from crossdet.experiments import jobs
from crossdet.experiments.lifelong import TOOL
from crossdet.experiments.lifelong_plan import JOINT, METHODS, START

Run = Mapping[str, Any]
VAL, UNION = "val", "union"
NUMBER = "AP50"
PLACES = {
    UNION: "on the union test",
    VAL: "on the validation images of the datasets that label a class",
}
LEAST_OF_JOINT, LEAST_KEPT, MOST_LOST = 0.95, 0.90, 0.5
"""What is asked of replay (new classes, share of joint training), of distill (old classes, share of before), and of
replay again (old classes, points)."""


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
        """The JSON, the common first generation for every method; None without one, or where it diverged."""
        found = self.runs.get((START.name if generation == 1 else method, seed, generation))
        return None if found is None or found.get("diverged") else found

    def known(self, generation: int) -> list[str]:
        return [name for new in self.classes[:generation] for name in new]

    def new(self, generation: int) -> list[str]:
        return list(self.classes[generation - 1])

    def value(self, method: str, seed: int, generation: int, place: str, name: str) -> float | None:
        """AP50 of one class in points."""
        row = ((self.run(method, seed, generation) or {}).get(place) or {}).get("per_class", {}).get(name, {})
        return None if row.get(NUMBER) is None else 100 * float(row[NUMBER])

    def mean_of(
        self, method: str, seed: int, generation: int, place: str, names: Sequence[str]
    ) -> float | None:
        """Mean AP50 of the classes that have one in the place; None without any, or without a run."""
        values = [self.value(method, seed, generation, place, name) for name in names]
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    def by_seed(self, method: str, generation: int, place: str, names: Sequence[str]) -> dict[int, float]:
        """Seed -> `mean_of`."""
        found = {s: self.mean_of(method, s, generation, place, names) for s in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def of_joint(self, method: str, generation: int, place: str) -> dict[int, float]:
        """Seed -> AP50 of the new classes as a share of what joint training on the same datasets gives them."""
        new = self.new(generation)
        mine, joint = (self.by_seed(m, generation, place, new) for m in (method, JOINT.name))
        return {seed: mine[seed] / joint[seed] for seed in mine if joint.get(seed)}


def read_results(folder: Path) -> Results:
    """Raises `UserError` where there is no result, or results of different sequences or settings."""
    runs: dict[tuple[str, int, int], Run] = {}
    first: Run | None = None
    for file in sorted(folder.glob("*_seed*_gen*.json")):
        content = jobs.read_json(file)
        if content.get("tool") != TOOL or not {"method", "seed", "generation", "sequence"} <= content.keys():
            raise UserError(f"{file}: not a result of `crossdet lifelong run`; move it away")
        first = first or content
        for key in ("sequence", "overrides", "extend_overrides", "share"):
            if content.get(key) != first.get(key):
                raise UserError(
                    f"{folder}: {file.name} has another {key} than the others ({content.get(key)}, not "
                    f"{first.get(key)}); they cannot be compared, keep them in different folders"
                )
        runs[content["method"], int(content["seed"]), int(content["generation"])] = content
    if first is None:
        raise UserError(f"{folder}: no result of `crossdet lifelong run`")
    sequence = first["sequence"]
    return Results(folder.resolve().name, sequence["generations"], sequence["classes"], runs)


# ------------------------------------------------------------------------------------------- old classes


@dataclass(frozen=True)
class Old:
    """The old classes of one extension, mean AP50 in points.

    low, high: 95 % interval of after - before over the images. lost: the classes whose interval lies below 0.
    """

    before: float
    after: float
    low: float | None
    high: float | None
    lost: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def is_loss(self) -> bool:
        return self.high is not None and self.high < 0


def old_classes(results: Results, method: str, generation: int, place: str) -> dict[int, Old]:
    """Seed -> the old classes against the weights that the generation started from; empty for joint training."""
    found = {}
    for seed in results.seeds:
        content = ((results.run(method, seed, generation) or {}).get("old") or {}).get(place)
        if not content or content["mean"][NUMBER]["before"] is None:
            continue
        row = content["mean"][NUMBER]
        low, high = (None if row[key] is None else 100 * row[key] for key in ("low", "high"))
        lost = tuple(
            name
            for name, c in content["classes"].items()
            if c[NUMBER]["high"] is not None and c[NUMBER]["high"] < 0
        )
        found[seed] = Old(100 * row["before"], 100 * row["after"], low, high, lost)
    return found


def unchanged(results: Results, method: str, generation: int) -> list[bool]:
    """Of every seed whether the old weights are the same bit for bit."""
    runs = [results.run(method, seed, generation) for seed in results.seeds]
    return [run["old_weights_unchanged"] for run in runs if run and "old_weights_unchanged" in run]


# ------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Asked:
    """One requirement. value: what came out, over the seeds and the worst generation. met: None where not run."""

    text: str
    value: str
    met: bool | None


def asked(results: Results, place: str) -> list[Asked]:
    """The requirements on the modes, each in its worst generation."""
    extensions = range(2, results.last + 1)
    rows = []
    replay = [old_classes(results, "replay", g, place) for g in extensions]
    losses = [mean(-old.difference for old in seeds.values()) for seeds in replay if seeds]
    rows.append(
        _asked(
            f"replay: old classes lose at most {MOST_LOST:g} AP50 in a generation, mean over the seeds",
            [(max(losses), f"{max(losses):.1f} lost")] if losses else [],
            lambda lost: lost <= MOST_LOST,
        )
    )
    many = [old for seeds in replay for old in seeds.values()]
    count = sum(old.is_loss for old in many)
    rows.append(
        _asked(
            "replay: no loss of the old classes' mean that is significant over images",
            [(count, f"{count} of {len(many)} generations and seeds")] if many else [],
            lambda number: number == 0,
        )
    )
    shares = [mean(found.values()) for g in extensions if (found := results.of_joint("replay", g, place))]
    rows.append(
        _asked(
            f"replay: new classes reach {100 * LEAST_OF_JOINT:.0f} % of joint training",
            [(min(shares), f"{100 * min(shares):.0f} %")] if shares else [],
            lambda share: share >= LEAST_OF_JOINT,
        )
    )
    distill = [old_classes(results, "distill", g, place) for g in extensions]
    kept = [mean(o.after / o.before for o in seeds.values() if o.before) for seeds in distill if _any(seeds)]
    rows.append(
        _asked(
            f"distill: old classes keep {100 * LEAST_KEPT:.0f} % of their AP50 in a generation, no old images",
            [(min(kept), f"{100 * min(kept):.0f} %")] if kept else [],
            lambda share: share >= LEAST_KEPT,
        )
    )
    same = [one for g in extensions for one in unchanged(results, "frozen", g)]
    rows.append(
        _asked(
            "frozen: the weights of old classes are the same bit for bit",
            [(all(same), f"{sum(same)} of {len(same)} generations and seeds")] if same else [],
            bool,
        )
    )
    return rows


def _any(seeds: Mapping[int, Old]) -> bool:
    return any(old.before for old in seeds.values())


def _asked(text: str, found: Sequence[tuple[Any, str]], holds: Any) -> Asked:
    """found: the value and how it is written; empty where nothing was run."""
    if not found:
        return Asked(text, "", None)
    (value, shown), *_ = found
    return Asked(text, shown, bool(holds(value)))
