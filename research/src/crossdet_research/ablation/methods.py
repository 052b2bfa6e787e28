"""The ablation's methods: what differs between them, which are the same training on a split, what reaches whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossdet_research import study


@dataclass(frozen=True)
class Method(study.Method):
    """One way to train on a split. base: name of the split's config. overrides: on top of it. merged: classes that
    several parts label are one class; where no class is shared this changes nothing. part: the only part it sees
    (an expert). taught: its teachers are the experts of the same seed, which are trained before."""

    base: str
    overrides: tuple[str, ...] = ()
    merged: bool = True
    part: str | None = None
    taught: bool = False

    @property
    def own_teaching(self) -> list[str]:
        """The keys below `pseudo` that make it the method it is; none without teachers."""
        keys = [text.partition("=")[0] for text in self.overrides if of_teachers(text)]
        return [*keys, "pseudo.teachers"] if self.taught else keys


def of_teachers(override: str) -> bool:
    """Whether an override is of the section `pseudo`: it is for methods with teachers alone."""
    return override.partition("=")[0].strip().split(".")[0] == "pseudo"


BY_ITSELF, POSITIVES = "pseudo.teachers=self", "pseudo.negative_weight=0.0"
METHODS: tuple[Method, ...] = (
    Method("naive", "naive concatenation", "naive", merged=False),
    Method("aware", "aware (paper)", "aware"),
    Method("same_positives", "reference: same positives", "same_positives"),
    Method("full", "reference: full labels", "full"),
    Method("naive_merged", "naive, merged labels", "naive"),
    Method(
        "aware_no_foreground", "aware without foreground negatives", "aware", ("loss.foreground_negatives=false",)
    ),
    Method("aware_distinct", "aware without merging", "aware", merged=False),
)
"""In the order of the queue, without the experts."""
FURTHER: tuple[Method, ...] = (
    Method("aware_pseudo", "aware, labels by the experts", "aware", taught=True),
    Method("aware_pseudo_self", "aware, labels by itself", "aware", (BY_ITSELF,)),
    Method("aware_pseudo_positives", "aware, only positives of the experts", "aware", (POSITIVES,), taught=True),
    Method("aware_pseudo_self_positives", "aware, only positives of its own", "aware", (BY_ITSELF, POSITIVES)),
    # networks of queries: the rule with one of its parts left open
    Method("aware_any_queries", "aware, queries chosen by all classes", "aware", ("loss.selection=union",)),
    Method("aware_any_flips", "aware, denoising with classes of others", "aware", ("loss.flips=any",)),
    Method("aware_free_quality", "aware, quality learnt from all images", "aware", ("loss.free_quality=true",)),
    Method("aware_on_object", "aware, finds on objects negative for all", "aware", ("loss.foreground=on_object",)),
)
"""Methods that are run where they are named only; the tables show them where they were run."""
SAME_WITHOUT_SHARED = {"naive_merged": "naive", "aware_distinct": "aware"}
"""Where no class is shared the first is the same training as the second."""
SAME_WHERE_MARKED = {"naive": "naive_merged"}
"""On a split by `mark`: what is marked are regions of merged classes."""


def expert(part: str) -> Method:
    return Method(f"expert_{part}", f"expert: {part}", f"expert_{part}", part=part)


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
    """The methods of these names, all but `FURTHER` without names; `expert` stands for all experts. Says which of
    them are the same training. Raises `UserError` for unknown names."""
    possible = {method.name: method for method in (*methods_of(summary), *FURTHER)}
    same, why = same_trainings(summary)
    for other, name in same.items():
        if not names or other in names:
            say(f"{why}: {other} is the same training as {name}")
    known = {name: [method] for name, method in possible.items()}
    known |= {other: [possible[name]] for other, name in same.items()}
    known["expert"] = [method for method in possible.values() if method.part]
    return study.chosen_methods(names, known) if names else methods_of(summary)


def reaching(method: Method, overrides: Sequence[str]) -> list[str]:
    """The user's overrides that are for a method."""
    return [text for text in overrides if method.own_teaching or not of_teachers(text)]


def check_teaching(methods: Sequence[Method], overrides: Sequence[str]) -> None:
    """Raises `UserError` for overrides of `pseudo` that would reach no method, or make one of them another."""
    problems = []
    with_teachers = [method for method in methods if method.own_teaching]
    for text in filter(of_teachers, overrides):
        if not with_teachers:
            names = ", ".join(method.name for method in FURTHER if method.own_teaching)
            problems.append(f"--set {text}: none of the methods has teachers; name one of {names}, or remove it")
        key = text.partition("=")[0].strip()
        for method in with_teachers:
            own = [one for one in method.own_teaching if f"{one}.".startswith(f"{key}.")]
            problems += [f"--set {text}: {method.name} has its own {one}; leave out one of the two" for one in own]
    study.refuse(problems)
