"""Scripts of the repository in the process of the tests: to import torch again takes longer than most of them."""

import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forks
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """As `python benchmarks/NAME ARGUMENTS`; its own processes are forks of one that has imported torch.

    Raises `SystemExit` where that ends with an error.
    """
    run = subprocess.run

    def forked(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return (forks.run if command[0] == sys.executable else run)(command, **options)

    monkeypatch.setattr(subprocess, "run", forked)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
