"""The JSONs of the ablation: reading them, what the tables show of them, and differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from crossdet.errors import UserError
from crossdet_research import study, tables
from crossdet_research.ablation.methods import FURTHER, methods_of, of_teachers, shared_classes
from crossdet_research.paired import LEAST_PAIRS, Difference, difference
from crossdet_research.tables import Column, Run

Keys = tuple[str, ...]
EXPERTS = "experts"
PAIRS = (
    ("aware", "naive"), ("same_positives", "naive"), ("aware", "same_positives"), ("full", "same_positives"),
    ("aware", "aware_no_foreground"), ("aware", "aware_distinct"), ("naive_merged", "naive"),
    ("aware", "naive_merged"), ("aware", EXPERTS), ("aware_pseudo", "aware"), ("aware_pseudo_self", "aware"),
    ("aware_pseudo", "same_positives"), ("aware_pseudo_self", "same_positives"),
    ("aware_pseudo", "aware_pseudo_self"), ("aware_pseudo_positives", "aware"),
    ("aware_pseudo_self_positives", "aware"), ("aware_pseudo", "aware_pseudo_positives"),
    ("aware", "aware_any_queries"), ("aware", "aware_any_flips"), ("aware", "aware_free_quality"),
    ("aware", "aware_on_object"),
)  # fmt: skip
"""Differences that are shown where both were run."""


@dataclass(frozen=True)
class Results:
    """The JSONs of one split. runs: method -> seed -> JSON. summary: of `split.json`."""

    name: str
    summary: Mapping[str, Any]
    runs: Mapping[str, Mapping[int, Run]]

    @property
    def looks(self) -> list[str]:
        return list(dict.fromkeys(part["look"] for part in self.summary["parts"].values()))

    @property
    def classes(self) -> list[str]:
        return list(dict.fromkeys(c for part in self.summary["parts"].values() for c in part["classes"]))

    def is_home(self, name: str, look: str) -> bool:
        """Whether some part with this look labels the class."""
        return any(p["look"] == look and name in p["classes"] for p in self.summary["parts"].values())

    def places(self) -> list[tuple[str, str]]:
        """Key and words of what is measured apart where looks differ; nothing where every class is at home."""
        if all(self.is_home(name, look) for name in self.classes for look in self.looks):
            return []
        return [("home", "where labelled"), ("foreign", "in a foreign look")]

    def title(self, method: str) -> str:
        if method == EXPERTS:
            return "experts (each part by its own model)"
        known = {m.name: m.title for m in (*methods_of(self.summary), *FURTHER)}
        return known.get(method) or next(iter(self.runs[method].values()))["title"]

    def of(self, method: str) -> Mapping[int, Run]:
        return experts_together(self) if method == EXPERTS else self.runs.get(method, {})

    def methods(self) -> list[str]:
        """Those that can be run on this split, experts aside, and others that have a JSON."""
        possible = [m.name for m in methods_of(self.summary) if m.part is None]
        possible += [m.name for m in FURTHER if m.name in self.runs]
        return [*possible, *(name for name in self.runs if name not in (*self.experts(), *possible))]

    def experts(self) -> list[str]:
        return [m.name for m in methods_of(self.summary) if m.part is not None]


def read_results(folder: Path) -> Results:
    """Raises `UserError` where there is no result, or results of different splits or settings."""
    runs: dict[str, dict[int, Run]] = {}
    found = study.read_results(folder, "*_seed*.json", "ablation", ("tool", "method", "seed", "summary", "union"))
    for run in found:
        if run["summary"] != found[0]["summary"]:
            raise UserError(f"{folder}: {run['file'].name} is of another split than the others; move it away")
        runs.setdefault(run["method"], {})[int(run["seed"])] = run
    _check_overrides(found, 0)
    known = {method.name for method in FURTHER if method.own_teaching}
    _check_overrides([run for run in found if run["method"] in known or given_settings(run)[1]], 1)
    return Results(folder.resolve().name, found[0]["summary"], runs)


def given_settings(run: Run) -> tuple[list[str], list[str]]:
    """The user's overrides of a training: those of every method, and those of methods with teachers alone."""
    given = run.get("overrides", [])
    return [t for t in given if not of_teachers(t)], [t for t in given if of_teachers(t)]


def _check_overrides(runs: Sequence[Run], which: int) -> None:
    """Raises `UserError` unless all were made with the same. which: of the two of `given_settings`."""
    for run in runs:
        mine, first = (given_settings(one)[which] for one in (run, runs[0]))
        if mine != first:
            raise UserError(
                f"{run['file'].parent}: {run['file'].name} was made with --set {mine or 'nothing'}, others with "
                f"{first or 'nothing'}; they cannot be compared, keep them in different folders"
            )


def read_all(folder: Path) -> list[Results]:
    """The results of all splits in a results folder, by conflict. Raises `UserError` where there is none."""
    folders = sorted({file.parent for file in folder.glob("*/*_seed*.json")})
    found = [read_results(one) for one in folders]
    if not found:
        raise UserError(f"{folder}: no results of `crossdet-research ablation run` in the folders below it")
    return sorted(found, key=lambda one: (float(one.summary["conflict"]), one.name))


def sweep_key(results: Results) -> tuple[str, ...]:
    """What the levels of one sweep have in common: every part's classes, look and number of images."""
    parts = results.summary["parts"]
    return tuple(f"{name}: {', '.join(p['classes'])}; {p['look']}; {p['images']}" for name, p in parts.items())


def all_levels(splits: Sequence[Results]) -> list[Results]:
    """The splits; levels made by `mark` with what other levels say of them.

    All levels of one deal have the same pictures and labelled objects, so aware, full and same positives are the
    same trainings at each, and with everything marked naive training is same positives: that level, 0, is added.
    Where classes are shared, naive training is the merged one at every level, since marks are of merged classes.
    """
    found: dict[tuple[str, ...], list[Results]] = {}
    for one in splits:
        found.setdefault(_deal(one), []).append(one)
    return [level for many in found.values() for level in _completed(many)]


def _deal(results: Results) -> tuple[str, ...]:
    """What splits that differ by marks alone have in common; a split of another kind has its own."""
    summary = results.summary
    as_they_come = summary.get("conflict_by") == "choose" and summary.get("conflict_wanted") == 1
    if not (as_they_come or summary.get("conflict_by") == "mark"):
        return (results.name,)
    labelled = [str(part.get("boxes_labelled")) for part in summary["parts"].values()]
    run = next(run for runs in results.runs.values() for run in runs.values())
    return (*sweep_key(results), *labelled, str(summary.get("seed")), str(given_settings(run)[0]))


def _completed(levels: Sequence[Results]) -> list[Results]:
    if not any(one.summary.get("conflict_by") == "mark" for one in levels):
        return list(levels)
    merged = bool(shared_classes(levels[0].summary))
    known: dict[str, dict[int, Run]] = {}
    for one in levels:
        for name, runs in one.runs.items():
            if not name.startswith("naive"):
                known.setdefault(name, {}).update(runs)
    made = []
    for one in levels:
        naive = one.runs.get("naive_merged" if merged else "naive")
        made.append(replace(one, runs={**known, **({"naive": naive} if naive else {})}))
    if "same_positives" in known and all(one.summary["conflict"] for one in levels):
        come = max(levels, key=lambda one: float(one.summary["conflict"]))
        every = {**known, "naive": known["same_positives"]}
        made.append(Results(f"{come.name}, all marked", {**come.summary, "conflict": 0.0}, every))
    return made


def experts_together(results: Results) -> dict[int, Run]:
    """Seed -> the experts as if they were one detector: every dataset and class by the one that was trained on it.
    A class that several know is the mean of them. The union AP only where all experts have been run."""
    names = results.experts()
    together: dict[int, Run] = {}
    for seed in sorted({seed for name in names for seed in results.runs.get(name, {})}):
        runs = (results.runs.get(name, {}).get(seed) for name in names)
        known = [run for run in runs if run and run["union"]]
        per_class: dict[str, Any] = {}
        for c in results.classes:
            if rows := [run["union"]["per_class"][c] for run in known if c in run["union"]["per_class"]]:
                per_class[c] = {key: tables.average([row[key] for row in rows]) for key in ("AP", "AP50")}
        everything = len(known) == len(names) and len(per_class) == len(results.classes)
        union = {
            key: tables.average([row[key] for row in per_class.values()]) for key in ("AP", "AP50") if everything
        }
        protocols = {name: value for run in known for name, value in run["protocols"].items()}
        whole = {"complete": everything, **union, "per_class": per_class}
        together[seed] = {"seed": seed, "union": whole, "protocols": protocols}
    return together


def column(title: str, path: Keys, scale: float = 100.0, digits: int = 1) -> Column:
    """path: where a run's JSON has the number."""
    return Column(title, lambda run: value_at(run, path), scale, digits)


WEIGHTED = ("union", "weighted_AP50")
"""Not in the JSONs: of the classes there, weighted by their objects."""
UNION_AP, UNION_AP50 = column("union AP", ("union", "AP")), column("union AP50", ("union", "AP50"))


@dataclass(frozen=True)
class Section:
    """A table: columns over methods. note: what a reader must know."""

    key: str
    title: str
    columns: tuple[Column, ...]
    methods: tuple[str, ...]
    note: str = ""


def value_at(run: Run, path: Keys) -> float | None:
    """The number of a run; None where it has none. An expert knows not all classes: it has no union number."""
    of_all = path[0] == "union" and path[1] not in ("per_class", "per_look")
    if of_all and not (run.get("union") or {}).get("complete", True):
        return None
    if path == WEIGHTED:
        return _weighted_ap50((run.get("union") or {}).get("per_class", {}))
    if path == ("stability", "loss_spikes") and (run.get("stability") or {}).get("losses_judged") == 0:
        return None  # none was looked at: too few logged losses
    value = tables.number_at(run, path)
    return None if value is None or value != value else value


def _weighted_ap50(per_class: Mapping[str, Run]) -> float | None:
    """Mean AP50 of the classes weighted by their objects in the test; None where these are not known."""
    known = [row for row in per_class.values() if row["AP50"] is not None]
    if not known or not all("boxes" in row for row in known):
        return None
    return float(sum(row["boxes"] * row["AP50"] for row in known) / sum(row["boxes"] for row in known))


def sections(results: Results) -> list[Section]:
    """All tables of a split; columns without any value are left out."""
    rows = (*results.methods(), EXPERTS)
    with_teachers = any(WITH_TEACHERS.values(results.of(name)) for name in results.methods())
    stability = f"{STABILITY}; {TEACHERS}" if with_teachers else STABILITY
    made = [
        Section("scores", "AP of each part's own classes, and on the union test", _scores(results), rows, SCORES),
        Section("confidence", "Confidence, and false positives per image", _confidence(results), rows, CONFIDENCE),
        Section("calibration", "Are scores of different classes comparable", CALIBRATION, rows, ONE_RANKING),
        *(
            Section(
                f"classes_{key}",
                f"{key} per class on the union test",
                tuple(column(c, ("union", "per_class", c, key)) for c in results.classes),
                rows,
            )
            for key in ("AP", "AP50")
        ),
        Section("looks", "AP50 per class and look on the union test", _looks(results), rows, FOREIGN),
        Section("training", "Training", TRAINING, (*results.methods(), *results.experts()), stability),
    ]
    return [kept for one in made if (kept := _with_values(results, one)).columns]


SCORES = "union test: fully labelled, every look, all classes at once, best 100 detections per image"
CONFIDENCE = (
    "in brackets: the score threshold; own: each class's best F1 on the run's own validation data, which for the "
    "references shows all classes"
)
ONE_RANKING = (
    "one ranking: below the mean weighted by objects, scores of different classes do not mean the same; where one "
    "class has most of the objects, neither says much of the others"
)
FOREIGN = "*: no part with this look labels the class"
STABILITY = (
    "gradient norms are those before clipping; loss spikes: logged losses after the warm-up above three times the "
    "median of the 20 before"
)
TEACHERS = "steps with teachers: with those of the experts that label for it"
WITH_TEACHERS = column("steps with teachers", ("steps_with_teachers",), 1, 0)
CALIBRATION = (
    column("AP50, mean of classes", ("union", "AP50")),
    column("AP50, mean weighted by objects", WEIGHTED),
    column("AP50, all classes in one ranking", ("union", "pooled_AP50")),
    column("calibration error", ("union", "calibration_error")),
    column("range of best thresholds", ("union", "threshold_range"), 1, 3),
)
TRAINING = (
    column("steps", ("steps",), 1, 0),
    WITH_TEACHERS,
    column("logged steps", ("stability", "logged"), 1, 0),
    column("gradient norm, median", ("stability", "gradient_norm_median"), 1, 2),
    column("99 %", ("stability", "gradient_norm_p99"), 1, 2),
    column("largest", ("stability", "gradient_norm_max"), 1, 2),
    column("clipped steps, %", ("stability", "clipped")),
    column("loss spikes", ("stability", "loss_spikes"), 1, 1),
    column("minutes of steps", ("training_seconds",), 1 / 60, 1),
)


def _scores(results: Results) -> tuple[Column, ...]:
    parts = [column(name, ("protocols", name)) for name in results.summary["parts"]]
    places = [column(f"AP50 {text}", ("union", f"{key}_AP50")) for key, text in results.places()]
    return (*parts, UNION_AP, UNION_AP50, *places)


def _confidence(results: Results) -> tuple[Column, ...]:
    places = [
        column(f"found at 0.3 {text}", ("union", f"{key}_found_confidently")) for key, text in results.places()
    ]
    false = [
        column(f"{what} ({threshold})", ("union", "false_positives", key, where), 1, 2)
        for threshold, key in (("own", "own_threshold"), ("0.3", "confident"))
        for where, what in (("on_other_objects", "on other objects"), ("elsewhere", "elsewhere"))
    ]
    return (
        column("recall at precision 0.9", ("union", "recall_at_precision")),
        column("found at 0.3", ("union", "found_confidently")),
        *places,
        column("mean best score", ("union", "best_score"), 1, 3),
        *false,
    )


def _looks(results: Results) -> tuple[Column, ...]:
    if len(results.looks) < 2:
        return ()
    return tuple(
        column(
            f"{name}, {look}{'' if results.is_home(name, look) else ' *'}",
            ("union", "per_look", look, "per_class", name, "AP50"),
        )
        for name in results.classes
        for look in results.looks
    )


def _with_values(results: Results, section: Section) -> Section:
    runs = [results.of(name) for name in section.methods]
    columns = tuple(c for c in section.columns if any(c.values(many) for many in runs))
    methods = section.methods
    if not any(c.values(results.of(EXPERTS)) for c in columns):
        methods = tuple(name for name in methods if name != EXPERTS)
    return Section(section.key, section.title, columns, methods, section.note)


def recovered_share(
    naive: Mapping[int, float], aware: Mapping[int, float], reference: Mapping[int, float]
) -> dict[str, Any]:
    """How much of the gap naive -> reference the aware method recovers, on the seeds that all three have. share:
    None where the paired t-test does not tell the gap from 0, or it is negative; `why` says so. low, high: of the
    gap."""
    seeds = sorted(naive.keys() & aware.keys() & reference.keys())
    result: dict[str, Any] = {"seeds": seeds, "share": None, "gap": None, "low": None, "high": None, "why": ""}
    low, mine, high = ({s: group[s] for s in seeds} for group in (naive, aware, reference))
    gap = difference(high, low)
    if gap is None:
        return result | {"why": "not all three have been run"}
    result |= {"gap": gap.mean, "low": gap.low, "high": gap.high}
    if gap.verdict == "yes" and gap.mean > 0:
        return result | {"share": mean(mine[s] - low[s] for s in seeds) / gap.mean}
    if gap.verdict == "yes":
        return result | {"why": f"there is no gap: {gap.words}"}
    return result | {
        "why": f"the gap of {gap.words} {'is not judged' if len(seeds) < LEAST_PAIRS else 'may be none'}"
    }


def recovered(results: Results) -> dict[str, Any]:
    """`recovered_share` of union AP."""
    naive, aware, reference = (UNION_AP.values(results.of(m)) for m in ("naive", "aware", "same_positives"))
    return recovered_share(naive, aware, reference)


def differences(results: Results) -> list[tuple[str, str, Column, Difference]]:
    """All pairs of `PAIRS` that were run, on union AP and AP50."""
    return [
        (a, b, column, delta)
        for a, b in PAIRS
        for column in (UNION_AP, UNION_AP50)
        if (delta := difference(column.values(results.of(a)), column.values(results.of(b)))) is not None
    ]
