"""Line charts: points where they belong, odd values left out."""

import math
import re

from crossdet.evaluation.html import HEIGHT, LEFT, WIDTH, Line, line_chart
from crossdet.evaluation.report_page import RunRecord, _training


def points(svg):
    return [tuple(map(float, pair.split(","))) for pair in re.search(r"points='([^']+)'", svg).group(1).split()]


def test_the_corners_of_the_chart_are_the_ends_of_the_ranges():
    svg = line_chart("t", [Line("a", (0, 1, 2), (0.0, math.nan, 10.0))], "step")
    (left, bottom), (right, top) = points(svg)
    assert (left, right) == (LEFT, WIDTH - 8)
    assert top < bottom < HEIGHT
    assert ">10<" in svg


def test_what_is_outside_a_given_range_lies_on_its_edge():
    (_, low), (_, high) = points(line_chart("t", [Line("a", (0, 1), (-5, 5))], "x", (0, 1), (0, 1)))
    (_, zero), (_, one) = points(line_chart("t", [Line("a", (0, 1), (0, 1))], "x", (0, 1), (0, 1)))
    assert (low, high) == (zero, one)


def test_nothing_to_draw():
    assert line_chart("t", [], "x") == ""
    assert line_chart("t", [Line("a", (0, 1), (math.nan, math.inf))], "x") == ""
    assert "<circle" in line_chart("t", [Line("a", (3,), (0.0,))], "x")


def test_names_are_text():
    svg = line_chart("<b>", [Line("<script>", (0, 1), (0, 1))], "&")
    assert "<script>" not in svg
    assert "&lt;b&gt;" in svg


def test_an_epoch_without_a_mean_score_is_no_point():
    """None is no score; it was drawn as 0."""
    means = [None, 0.25, 0.5, None]
    history = [{"epoch": e, "metrics": {"mean": mean}} for e, mean in enumerate(means, 1)]
    judged = [Line("run", [2, 3], [25.0, 50.0], "#2a6fb0")]

    def drawn(records):
        return points(_training([RunRecord("run", None, records, 2, {}, ())]))

    assert drawn([{"epoch": 0}, *history]) == points(line_chart("mean", judged, "epoch"))
    assert "<svg" not in _training([RunRecord("run", None, history[:1], 1, {}, ())])
