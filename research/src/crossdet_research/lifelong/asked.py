"""What is asked of the modes in a lifelong sequence, and whether it was met: yes or no only where everything that
the queue was asked for is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from crossdet_research.lifelong.plan import JOINT, METHODS
from crossdet_research.lifelong.results import Results, kept_to_end, old_classes, unchanged, worst_class

LEAST_OF_JOINT, LEAST_KEPT, MOST_LOST = 0.95, 0.90, 0.5
"""What is asked of replay (new classes, share of joint training), of distill (old classes, share of before), and of
replay again (old classes, points)."""
SUBSETS = {False: "old classes", True: "old classes without new labels"}

Seeds = Mapping[int, Any]
"""Seed -> value."""


@dataclass(frozen=True)
class Asked:
    """One requirement. value: what came out, over the seeds and the worst generation. met: None where something of
    what the queue was asked for is missing. have, wanted: generations times seeds that there are, and that were
    asked for."""

    text: str
    value: str
    met: bool | None
    have: int
    wanted: int


def asked(results: Results, place: str) -> list[Asked]:
    """The requirements on the modes."""
    subsets = [False, *([True] if _differ(results, place) else [])]
    rows = [row for unlabelled in subsets for row in _losses(results, place, unlabelled)]
    joint, replay = results.wanted(JOINT.name), results.wanted("replay")
    both = {g: replay[g] & joint[g] for g in replay if g in joint}
    shares = {g: results.of_joint("replay", g, place) for g in both}
    rows.append(
        _judged(
            f"replay: new classes reach {100 * LEAST_OF_JOINT:.0f} % of joint training",
            shares,
            _shown_by(results, place, both),
            min,
            lambda share: share >= LEAST_OF_JOINT,
            _percent,
        )
    )
    rows += [row for unlabelled in subsets for row in _kept(results, place, unlabelled)]
    for method in (method for method in METHODS if method.mode == "frozen"):
        wanted = results.wanted(method.name)
        if wanted or method.name == "frozen":
            same = {g: unchanged(results, method.name, g) for g in wanted}
            text = f"{method.title}: the weights of old classes are the same bit for bit"
            rows.append(_counted(text, same, wanted, bool, all_of_them=True))
    return rows


def _differ(results: Results, place: str) -> bool:
    """Whether some newest dataset labels an old class again."""
    return any(
        (rest := results.old_names(g, place, unlabelled=True)) is not None and rest != results.old_names(g, place)
        for g in range(2, results.last + 1)
    )


def _losses(results: Results, place: str, unlabelled: bool) -> list[Asked]:
    """What replay may lose."""
    who = SUBSETS[unlabelled]
    wanted = _with_old(results, "replay", place, unlabelled)
    found = {g: old_classes(results, "replay", g, place, unlabelled) for g in wanted}
    lows = [-old.low for seeds in found.values() for old in seeds.values() if old.low is not None]
    worst = {g: row for g, seeds in found.items() if (row := worst_class(seeds)) is not None}

    def lost(values: Sequence[float], g: int) -> str:
        return f"{_lost(values)} in generation {g}; within the intervals at most {max([0.0, *lows]):.2f}"

    rows = [
        _judged(
            f"replay: {who} lose at most {MOST_LOST:g} AP50 in a generation",
            {g: {s: -old.difference for s, old in seeds.items()} for g, seeds in found.items()},
            wanted,
            max,
            _little,
            lost,
        ),
        _counted(
            f"replay: no loss of the mean of {who} that is significant over images",
            found,
            wanted,
            lambda old: old.is_loss,
        ),
    ]
    if not unlabelled:
        by_class = {
            g: {s: -old.differences[worst[g][0]] for s, old in found[g].items()} for g in found if g in worst
        }
        rows.insert(
            1,
            _judged(
                f"replay: no old class loses more than {MOST_LOST:g} AP50 in a generation",
                by_class,
                wanted,
                max,
                _little,
                lambda values, g: f"{_lost(values)} by {worst[g][0]} in generation {g}",
            ),
        )
    return rows


def _lost(values: Sequence[float]) -> str:
    gained = mean(values) < 0
    return f"{_spread([-v for v in values])} gained" if gained else f"{_spread(values)} lost"


def _little(lost: float) -> bool:
    return round(lost, 9) <= MOST_LOST  # 70.5 - 70 is a little more than half a point in binary


def _kept(results: Results, place: str, unlabelled: bool) -> list[Asked]:
    """What distill has to keep."""
    who, least = SUBSETS[unlabelled], f"{100 * LEAST_KEPT:.0f} % of their AP50"
    wanted = _with_old(results, "distill", place, unlabelled)
    kept = {
        g: {s: old.after / old.before for s, old in found.items() if old.before}
        for g in wanted
        if (found := old_classes(results, "distill", g, place, unlabelled))
    }
    last = {g: seeds for g, seeds in results.wanted("distill").items() if g == results.last}
    ends = {g: kept_to_end(results, "distill", place, unlabelled) for g in last}

    def enough(share: float) -> bool:
        return share >= LEAST_KEPT

    later = "that never get new labels " if unlabelled else ""
    return [
        _judged(
            f"distill: {who} keep {least} in a generation, no old images", kept, wanted, min, enough, _percent
        ),
        _judged(
            f"distill: classes {later}keep {least} from their arrival to the end", ends, last, min, enough,
            _percent,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------- evidence


def _with_old(results: Results, method: str, place: str, unlabelled: bool) -> dict[int, set[int]]:
    """What was wanted of a method, without generations that have no such old class in the place."""
    return {
        g: seeds for g, seeds in results.wanted(method).items() if results.old_names(g, place, unlabelled) != []
    }


def _shown_by(results: Results, place: str, wanted: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Without generations that bring no new class with objects in the place."""

    def shows(generation: int) -> bool:
        new = results.new(generation)
        runs = [(m, s) for m in results.methods() for s in results.seeds if results.run(m, s, generation)]
        return bool(new) and (
            not runs or any(results.mean_of(m, s, generation, place, new) is not None for m, s in runs)
        )

    return {g: seeds for g, seeds in wanted.items() if shows(g)}


def _have(found: Mapping[int, Seeds], wanted: Mapping[int, set[int]]) -> tuple[list[tuple[int, Any]], int]:
    """(generation, value) of what was wanted and is there, and how much was wanted."""
    there = [(g, found[g][s]) for g in sorted(wanted) for s in sorted(wanted[g]) if s in found.get(g, {})]
    return there, sum(map(len, wanted.values()))


def _judged(
    text: str,
    found: Mapping[int, Seeds],
    wanted: Mapping[int, set[int]],
    worst: Callable[..., Any],
    holds: Callable[[float], bool],
    shown: Callable[[Sequence[float], int], str],
) -> Asked:
    """By the mean over the seeds in the worst generation."""
    there, many = _have(found, wanted)
    if not there:
        return Asked(text, "", None, 0, many)
    by_generation: dict[int, list[float]] = {}
    for generation, value in there:
        by_generation.setdefault(generation, []).append(value)
    chosen = worst(by_generation, key=lambda g: mean(by_generation[g]))
    values, complete = by_generation[chosen], len(there) == many
    value = shown(values, chosen) + ("" if complete else f"; {len(there)} of {many}")
    return Asked(text, value, holds(mean(values)) if complete else None, len(there), many)


def _counted(
    text: str,
    found: Mapping[int, Seeds],
    wanted: Mapping[int, set[int]],
    counts: Callable[[Any], bool],
    all_of_them: bool = False,
) -> Asked:
    """By how many there are: none, or all of them."""
    there, many = _have(found, wanted)
    if not there:
        return Asked(text, "", None, 0, many)
    number, complete = sum(counts(one) for _, one in there), len(there) == many
    value = f"{number} of {len(there)} generations and seeds" + ("" if complete else f"; {len(there)} of {many}")
    met = number == (len(there) if all_of_them else 0)
    return Asked(text, value, met if complete else None, len(there), many)


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard error over the seeds, two digits: the limit has one."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{error}"


def _percent(values: Sequence[float], generation: int) -> str:
    error = f" ± {100 * stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{error} % in generation {generation}"
