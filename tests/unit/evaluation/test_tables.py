"""Percent, and tables without lines, as all commands show them."""

import io

import pytest
from rich.console import Console

from crossdet.evaluation.tables import lineless_table, percent


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(0.1234, 1, "12.3"), (0.1234, 2, "12.34"), (1, 1, "100.0"), (float("nan"), 1, "-"), (None, 2, "-")],
)
def test_percent(value, digits, shown):
    assert percent(value, digits) == shown


def test_names_are_no_markup_and_numbers_stand_right():
    table = lineless_table("class", "[b]", "AP", title="scores", left=2)
    table.add_row("car", "x", percent(0.5))
    table.add_row("a cat", "y", percent(1.0))
    console = Console(file=io.StringIO(), width=40)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == ["scores", "class  [b]     AP", "car    x     50.0", "a cat  y    100.0"]


def test_texts_that_look_like_markup_are_shown_as_they_are():
    """Names of classes and datasets come from other people's files."""
    table = lineless_table("class", "[bold]", title="[blue]")
    table.add_row("[/x]", "[red]")
    console = Console(width=60, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert [word for word in ("[blue]", "[bold]", "[/x]", "[red]") if word not in text] == []
