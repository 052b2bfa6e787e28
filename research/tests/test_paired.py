"""The paired t-test over seeds: against scipy and by hand, and when a difference may be called one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from crossdet_research.paired import Difference, difference


def of(*deltas: float) -> Difference:
    found = difference(dict(enumerate(deltas)), dict.fromkeys(range(len(deltas)), 0.0))
    assert found is not None
    return found


def test_by_hand() -> None:
    # mean 3, standard deviation 1, error 1 / sqrt(3); t(2 degrees of freedom, 97.5 %) = 4.302653, so 3 -+ 2.484138;
    # for 2 degrees of freedom p = 1 - t / sqrt(2 + t^2) with t = 3 sqrt(3)
    found = of(2.0, 3.0, 4.0)
    assert (found.mean, found.std) == (3.0, 1.0)
    assert (found.low, found.high) == (pytest.approx(0.515862, abs=1e-6), pytest.approx(5.484138, abs=1e-6))
    assert found.p == pytest.approx(1 - 27**0.5 / 29**0.5)
    assert (found.verdict, found.words) == ("yes", "+3.0 (+0.5 to +5.5, 3 seeds)")
    # twice the pooled spread of 1.4 would have said yes to the seeds of bccd_look's aware - same_positives
    wide = of(3.0, 6.5, 9.6)
    assert (wide.verdict, wide.interval) == ("no", "-1.8 to +14.6")


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-100, 100).map(lambda v: round(v, 3))] * 2), min_size=2, max_size=8))
def test_as_scipy(pairs: list[tuple[float, float]]) -> None:
    found = difference(dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs)))
    assert found is not None
    assert found.std is not None
    if found.std < 1e-9:  # scipy warns of cancellation, and has no p for differences that are all 0
        return
    wanted = ttest_rel(*zip(*pairs, strict=True))
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-6)
    assert [found.low, found.high] == pytest.approx(list(wanted.confidence_interval(0.95)), rel=1e-6, abs=1e-6)
    wanted_verdict = "yes" if wanted.pvalue < 0.05 else "no"
    assert found.verdict == (wanted_verdict if len(pairs) > 2 else "2 seeds: not judged")


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_two_seeds_are_never_judged(a: float, b: float) -> None:
    found = of(a, b)
    assert (found.verdict, found.interval) == ("2 seeds: not judged", "")
    assert "to" not in found.words.replace("not", "")


def test_one_seed_says_nothing_and_none_is_no_difference() -> None:
    found = of(4.0)
    assert (found.std, found.p, found.verdict, found.interval) == (None, None, "", "")
    assert found.words == "+4.0 (1 seed)"
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_seeds_without_their_pair_are_left_out_and_counted() -> None:
    found = difference({0: 10.0, 1: 12.0, 7: 99.0}, {0: 8.0, 1: 9.0, 2: 0.0, 3: 0.0})
    assert found is not None
    assert (found.seeds, found.mean, found.std) == ((0, 1), 2.5, pytest.approx(0.5**0.5))
    assert found.pairs == "2 (of 3 and 4)"
    assert of(1.0, 2.0, 3.0).pairs == "3"


def test_equal_differences_have_no_spread() -> None:
    assert (of(2.0, 2.0, 2.0).p, of(2.0, 2.0, 2.0).interval) == (0.0, "+2.0 to +2.0")
    assert (of(0.0, 0.0, 0.0).p, of(0.0, 0.0, 0.0).verdict) == (1.0, "no")


def test_help_does_without_scipy() -> None:
    code = (
        "import sys\nfrom crossdet.commands.main import app\n"
        "try:\n    app(['ablation', 'table', '--help'])\nexcept SystemExit:\n    pass\n"
        "import crossdet_research.paired\n"
        "sys.exit('scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
