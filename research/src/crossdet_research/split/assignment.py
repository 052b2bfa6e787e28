"""Which training image goes to which part, and how many of a part's images show what it does not label.

Arrays only. `home [I]` says where every image is: the number of its part, `SHARED` (in every part) or `UNUSED`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array, csr_array, eye_array, hstack, vstack

UNUSED, SHARED = -1, -2

SWAPS, CANDIDATES, PATIENCE = 4000, 512, 300
"""Of `balance`: most images looked at, partners looked at for each, and vain tries in a row after which it ends."""

Home = NDArray[np.int64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


def nearest(value: float) -> int:
    """The nearest whole number, halves up."""
    return math.floor(value + 0.5)


def group_sizes(total: int, parts: int, share: float, size: int | None = None) -> tuple[int, Counts]:
    """(images in every part, `[P]` images that only part p has).

    share: of the used images, the share that is in every part.
    size: images per part, so that some may stay unused; None: all images are used, and the parts' sizes differ
        by at most one.
    """
    if size is None:
        shared = nearest(share * total)
        return shared, np.bincount(np.arange(total - shared) % parts, minlength=parts).astype(np.int64)
    shared = min(size, nearest(size * share * parts / (share * parts + 1 - share)))
    return shared, np.full(parts, size - shared, np.int64)


def largest_size(total: int, parts: int, share: float) -> int:
    """Most images per part that there can be if all parts have as many."""
    size = total
    while size:
        shared, own = group_sizes(total, parts, share, size)
        if shared + own.sum() <= total:
            break
        size -= 1
    return size


def deal(total: int, parts: int, share: float, size: int | None, rng: np.random.Generator) -> Home:
    """`[I]` home of every image, at random."""
    shared, own = group_sizes(total, parts, share, size)
    order = rng.permutation(total)
    home = np.full(total, UNUSED, np.int64)
    home[order[:shared]] = SHARED
    rest = order[shared : shared + int(own.sum())]
    home[rest] = np.arange(len(rest)) % parts
    return home


def deal_groups(
    of: NDArray[np.int64], parts: int, share: float, size: int | None, rng: np.random.Generator
) -> Home:
    """As `deal`, at random and with all images of a group at one home. of: `[I]` groups, numbered from 0.

    Large groups come first, each to the part that has the fewest images, so that sizes differ by no more than the
    largest group; a group that is too large for what is left of `size` or of the images in every part is not there.
    """
    room, own = group_sizes(len(of), parts, share, size)
    sizes = np.bincount(of)
    order = rng.permutation(len(sizes))
    home, taken = np.full(len(sizes), UNUSED, np.int64), np.zeros(parts, np.int64)
    for number in order[np.argsort(-sizes[order], kind="stable")].tolist():
        part = int(taken.argmin())
        if sizes[number] <= room:
            home[number], room = SHARED, room - sizes[number]
        elif size is None or taken[part] + sizes[number] <= own[part]:
            home[number] = part
            taken[part] += sizes[number]
    dealt: Home = home[of]
    return dealt


def members(home: Home, part: int) -> NDArray[np.int64]:
    """Rows of the part's images, rising."""
    return np.flatnonzero((home == part) | (home == SHARED))


@dataclass(frozen=True)
class Problem:
    """Images that can be moved, by kind: images of one kind are in conflict with the same parts. pool: `[Q]` rows
    of all images that are not shared. kind: `[Q]`. conflict: `[T, P]` of every kind. sizes: `[P]` images of every
    part, own: `[P]` of them not shared; fixed: `[P]` shared ones in conflict."""

    pool: NDArray[np.int64]
    kind: NDArray[np.int64]
    conflict: Bools
    sizes: Counts
    own: Counts
    fixed: Counts

    @classmethod
    def of(cls, home: Home, conflict: Bools) -> Problem:
        parts = len(conflict)
        pool = np.flatnonzero(home != SHARED)
        kinds, kind = np.unique(conflict[:, pool], axis=1, return_inverse=True)
        own = np.array([np.count_nonzero(home == p) for p in range(parts)], np.int64)
        shared = home == SHARED
        fixed = conflict[:, shared].sum(axis=1).astype(np.int64)
        return cls(pool, np.asarray(kind, np.int64).ravel(), kinds.T, own + int(shared.sum()), own, fixed)

    @property
    def supply(self) -> Counts:
        return np.bincount(self.kind, minlength=len(self.conflict)).astype(np.int64)

    def per_kind(self, home: Home) -> Counts:
        """`[T, P]` images of every kind in every part, without the shared ones."""
        counts = np.zeros(self.conflict.shape, np.int64)
        here = home[self.pool]
        used = here >= 0
        np.add.at(counts, (self.kind[used], here[used]), 1)
        return counts


def choose(home: Home, conflict: Bools, wanted: float, rng: np.random.Generator) -> Home | None:
    """Moves as few images as possible so that of every part's images the nearest whole number to the share
    `wanted` is in conflict; the sizes of the parts and the shared images stay. None: that cannot be.

    conflict: `[P, I]` whether image i shows an object that part p does not label.

    How many images of every kind go where is a transport problem: its constraints are totally unimodular, so
    that the answer is exact.
    """
    problem = Problem.of(home, conflict)
    before = problem.per_kind(home)
    after = _transport(problem, *_exactly(problem, wanted), before)
    return None if after is None else _moved(home, problem, before, after, rng)


def avoid(home: Home, bad: Bools, rng: np.random.Generator) -> Home:
    """Moves as few images as possible so that the part with the most bad images has the fewest it can have. bad:
    `[P, I]`. The sizes of the parts and the shared images stay."""
    problem = Problem.of(home, bad)
    before = problem.per_kind(home)
    per_kind, per_part, bad_per_part = _sums(problem)
    count, parts = before.size, len(problem.own)
    column = csr_array(np.full((parts, 1), -1.0))  # the last variable: bad images of the worst part
    found = milp(
        np.append(np.zeros(count), 1.0),
        integrality=np.ones(count + 1),
        constraints=[
            LinearConstraint(_wider(per_kind, 1), -np.inf, problem.supply),
            LinearConstraint(_wider(per_part, 1), problem.own, problem.own),
            LinearConstraint(hstack([bad_per_part, column]), -np.inf, -problem.fixed),
        ],
    )
    limit = np.full(parts, nearest(float(found.x[-1])), np.int64) - problem.fixed
    after = _transport(problem, np.zeros(parts, np.int64), limit, before)
    return home if after is None else _moved(home, problem, before, after, rng)


def _exactly(problem: Problem, wanted: float) -> tuple[Counts, Counts]:
    """Limits for the images in conflict that are not shared: the nearest whole number to the wanted share."""
    bad = np.array([nearest(wanted * int(size)) for size in problem.sizes], np.int64) - problem.fixed
    return bad, bad


def _transport(problem: Problem, low: Counts, high: Counts, before: Counts) -> Counts | None:
    """`[T, P]` images of every kind in every part, of which low to high `[P]` in conflict; near `before`."""
    if (high < 0).any() or (low > problem.own).any():
        return None
    count = before.size
    per_kind, per_part, bad_per_part = _sums(problem)
    same = eye_array(count)
    flat = before.ravel().astype(float)
    # the second half of the variables is |x - before|
    distance = vstack([hstack([same, -same]), hstack([-same, -same])])
    found = milp(
        np.concatenate([np.zeros(count), np.ones(count)]),
        integrality=np.concatenate([np.ones(count), np.zeros(count)]),
        constraints=[
            LinearConstraint(_wider(per_kind, count), -np.inf, problem.supply),
            LinearConstraint(_wider(per_part, count), problem.own, problem.own),
            LinearConstraint(_wider(bad_per_part, count), low, high),
            LinearConstraint(distance, -np.inf, np.concatenate([flat, -flat])),
        ],
    )
    return None if found.x is None else np.rint(found.x[:count]).astype(np.int64).reshape(before.shape)


def _wider(matrix: csr_array, columns: int) -> csr_array:
    """The matrix with columns of zeros appended."""
    return csr_array(hstack([matrix, csr_array((matrix.shape[0], columns))]))


def _sums(problem: Problem) -> tuple[csr_array, csr_array, csr_array]:
    """Rows that sum the variables `x[T, P]` per kind, per part, and per part over the kinds in conflict."""
    kinds, parts = problem.conflict.shape
    kind, part = (axis.ravel() for axis in np.indices((kinds, parts)))
    column = np.arange(kinds * parts)
    ones = np.ones(len(column))

    def rows(of: NDArray[np.int64], values: NDArray[np.float64], count: int) -> csr_array:
        return csr_array(coo_array((values, (of, column)), shape=(count, len(column))))

    return (
        rows(kind, ones, kinds),
        rows(part, ones, parts),
        rows(part, problem.conflict.ravel().astype(float), parts),
    )


def _moved(home: Home, problem: Problem, before: Counts, after: Counts, rng: np.random.Generator) -> Home:
    home = home.copy()
    order = rng.permutation(len(problem.pool))
    for kind in np.flatnonzero((before != after).any(axis=1)).tolist():
        rows = problem.pool[order[problem.kind[order] == kind]]
        for part, surplus in enumerate((before - after)[kind].tolist()):
            if surplus > 0:
                home[rows[home[rows] == part][:surplus]] = UNUSED
        for part, missing in enumerate((after - before)[kind].tolist()):
            if missing > 0:
                home[rows[home[rows] == UNUSED][:missing]] = part
    return home


def equal_range(home: Home, conflict: Bools) -> tuple[float, float] | None:
    """Least and greatest share that `choose` can reach in all parts at once; None: there is none."""
    problem = Problem.of(home, conflict)
    sizes = problem.sizes.astype(float)
    per_kind, per_part, bad = _sums(problem)
    count = per_kind.shape[1]
    share = csr_array(-sizes.reshape(-1, 1))
    ends = []
    for sign in (1.0, -1.0):
        found = milp(
            np.concatenate([np.zeros(count), [sign]]),
            constraints=[
                LinearConstraint(_wider(per_kind, 1), -np.inf, problem.supply),
                LinearConstraint(_wider(per_part, 1), problem.own, problem.own),
                LinearConstraint(hstack([bad, share]), -problem.fixed, -problem.fixed),
            ],
        )  # fmt: skip
        if found.x is None:
            return None
        ends.append(float(found.x[-1]))
    # between the two ends in whole images; rounding per part may cost an image at either end
    most = int(sizes.max())
    before = problem.per_kind(home)
    low, high = max(0, math.floor(ends[0] * most)), min(most, math.ceil(ends[1] * most))
    levels = [low + step for step in range(high - low + 1)]
    first = next((n for n in levels if _transport(problem, *_exactly(problem, n / most), before) is not None), None)
    last = next(
        (n for n in reversed(levels) if _transport(problem, *_exactly(problem, n / most), before) is not None), None
    )
    return None if first is None or last is None else (first / most, last / most)


def range_of_part(home: Home, conflict: Bools, part: int) -> tuple[float, float]:
    """Least and greatest share of one part, whatever the others get."""
    problem = Problem.of(home, conflict)
    per_kind, per_part, bad = _sums(problem)
    limits = [
        LinearConstraint(per_kind, -np.inf, problem.supply),
        LinearConstraint(per_part, problem.own, problem.own),
    ]
    objective = bad.toarray()[part]
    found: list[OptimizeResult] = [milp(sign * objective, constraints=limits) for sign in (1.0, -1.0)]
    ends = [nearest(float(objective @ one.x)) + int(problem.fixed[part]) for one in found]
    return ends[0] / int(problem.sizes[part]), ends[1] / int(problem.sizes[part])


def largest_size_with(bad: Bools, share: float, wanted: float, seed: int, fewer: bool = False) -> int:
    """Most images per part with which the share `wanted` of bad images can be reached; 0: with none. bad: `[P, I]`.
    fewer: a smaller share does as well."""
    parts, total = bad.shape

    def works(size: int) -> bool:
        home = deal(total, parts, share, size, np.random.default_rng(seed))
        problem = Problem.of(home, bad)
        low, high = _exactly(problem, wanted)
        return _transport(problem, low * (not fewer), high, problem.per_kind(home)) is not None

    low, high = 0, largest_size(total, parts, share)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low


def balance(
    home: Home, conflict: Bools, boxes: Counts, wanted: Counts, labelled: Bools, rng: np.random.Generator
) -> Home:
    """Swaps images between parts (and with unused ones) towards the wanted labelled boxes per part and class. Only
    swaps that leave every part's size and number of images in conflict; the sum of squared relative differences
    falls with each. boxes: `[I, C]` objects of every image; wanted, labelled: `[P, C]`."""
    home = home.copy()
    weight = labelled / np.maximum(wanted, 1) ** 2
    gap = np.stack([boxes[members(home, p)].sum(axis=0) for p in range(len(wanted))]) - wanted
    used, pool = np.flatnonzero(home >= 0), np.flatnonzero(home != SHARED)
    vain = 0
    for _ in range(SWAPS if len(used) else 0):
        if vain == PATIENCE or not (gap * labelled).any():
            break
        vain += 1
        at = int(rng.integers(len(used)))
        one = int(used[at])
        others = pool if len(pool) <= CANDIDATES else rng.choice(pool, CANDIDATES, replace=False)
        here, there = int(home[one]), home[others]
        fits = (there != here) & (conflict[here, others] == conflict[here, one])
        fits &= (there == UNUSED) | (conflict[there, others] == conflict[there, one])
        others, there = others[fits], there[fits]
        if not len(others):
            continue
        change = boxes[others] - boxes[one]
        gain = (weight[here] * ((gap[here] + change) ** 2 - gap[here] ** 2)).sum(axis=1)
        back = (weight[there] * ((gap[there] - change) ** 2 - gap[there] ** 2)).sum(axis=1)
        gain += np.where(there == UNUSED, 0, back)
        best = int(gain.argmin())
        if gain[best] >= -1e-12:
            continue
        vain = 0
        gap[here] += change[best]
        if there[best] == UNUSED:
            used[at] = others[best]
        else:
            gap[there[best]] -= change[best]
        home[others[best]], home[one] = here, there[best]
    return home
