"""Differences between two methods over seeds: paired t-test, interval, and when a difference may be called one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.05
LEAST_PAIRS = 3
"""Two pairs leave one degree of freedom: the interval is then 13 standard errors wide to either side."""
NOTE = (
    "pairs: same seed; interval and verdict: two-sided paired t-test at 5 %, from three pairs on; without any "
    "difference about one test in twenty says yes"
)

COLUMNS = ["percent points, paired by seed", "pairs", "95 % interval", "different"]
"""Of `Difference.cells`."""


@dataclass(frozen=True)
class Difference:
    """Of two methods on the seeds that both have, in percent points. counts: how many seeds either has. std: of the
    paired differences. low, high: 95 % interval of their mean. p: two-sided. std, low, high and p are None with one
    seed."""

    seeds: tuple[int, ...]
    counts: tuple[int, int]
    mean: float
    std: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def verdict(self) -> str:
        """Whether the methods differ: `yes` or `no` from three pairs on; nothing with one."""
        if self.p is None:
            return ""
        if len(self.seeds) < LEAST_PAIRS:
            return f"{len(self.seeds)} seeds: not judged"
        return "yes" if self.p < LEVEL else "no"

    @property
    def interval(self) -> str:
        """`-0.1 to +14.0`; blank where nothing is judged."""
        judged = self.low is not None and len(self.seeds) >= LEAST_PAIRS
        return f"{self.low:+.1f} to {self.high:+.1f}" if judged else ""

    @property
    def pairs(self) -> str:
        """`3`, or `2 (of 3 and 2)` where not every seed has its pair."""
        many = len(self.seeds)
        return str(many) if self.counts == (many, many) else f"{many} (of {self.counts[0]} and {self.counts[1]})"

    @property
    def cells(self) -> list[str]:
        """For a table, under `COLUMNS`."""
        text = f"{self.mean:+.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")
        return [text, self.pairs, self.interval, self.verdict]

    @property
    def words(self) -> str:
        """`+7.0 (-0.1 to +14.0, 3 seeds)`; without an interval where nothing is judged."""
        many = len(self.seeds)
        judged = f"{self.interval}, {many} seeds" if self.interval else self.verdict or f"{many} seed"
        return f"{self.mean:+.1f} ({judged})"


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """a - b, paired by seed; None without a common seed."""
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    deltas = [a[s] - b[s] for s in seeds]
    middle, counts = mean(deltas), (len(a), len(b))
    if len(deltas) == 1:
        return Difference(seeds, counts, middle, None, None, None, None)
    std, freedom = stdev(deltas), len(deltas) - 1
    from scipy.special import stdtr, stdtrit  # `--help` does without

    error = std / math.sqrt(len(deltas))
    half = error * float(stdtrit(freedom, 1 - LEVEL / 2))
    if error:
        p = 2 * float(stdtr(freedom, -abs(middle) / error))
    else:
        p = 0.0 if middle else 1.0
    return Difference(seeds, counts, middle, std, middle - half, middle + half, p)
