"""`crossdet` in a process that waits after one optimiser step, so that a test can end it at a known place.

A fork of the tests' process: to import torch anew takes longer than what is tested.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

from crossdet.commands.main import main
from crossdet.training.log import RunLog, Step


def begin(pause: int, flag: Path, printed: Path, *arguments: str | Path) -> ForkProcess:
    """`crossdet ARGUMENTS` in a process group of its own. After step `pause` is logged it writes `flag` and goes on
    when that is gone. What it prints goes into `printed`."""
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(pause, flag, printed, [str(word) for word in arguments])
    )
    process.start()
    return process


def _run(pause: int, flag: Path, printed: Path, words: list[str]) -> None:
    os.setsid()
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # noqa: SIM115
    log_step = RunLog.step

    def step(self: RunLog, at: Step, *arguments: object) -> None:
        log_step(self, at, *arguments)  # type: ignore[arg-type]
        if at.step == pause:
            flag.write_text("here")
            end = time.monotonic() + 120
            while flag.exists() and time.monotonic() < end:
                time.sleep(0.005)

    RunLog.step = step  # type: ignore[method-assign,assignment]
    sys.argv = ["crossdet", *words]
    main()
