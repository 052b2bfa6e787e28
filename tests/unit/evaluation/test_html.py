"""Line charts: points where they belong, odd values left out."""

import math
import re

from crossdet.evaluation.html import HEIGHT, LEFT, WIDTH, Line, line_chart


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
