"""Scripts of the repository in the process of the tests: to import torch again takes longer than most of them."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """As `python benchmarks/NAME ARGUMENTS`. Raises `SystemExit` where that ends with an error."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
