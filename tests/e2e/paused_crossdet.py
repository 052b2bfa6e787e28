"""`crossdet` that waits after one optimiser step, so that a test can end it at a known place.

    python paused_crossdet.py STEP FILE train CONFIG ...

After step STEP is logged it writes FILE and goes on when FILE is gone.
"""

import sys
import time
from pathlib import Path

from crossdet.commands.main import main
from crossdet.training.log import RunLog, Step

pause, file = int(sys.argv[1]), Path(sys.argv[2])
log_step = RunLog.step


def step(self: RunLog, at: Step, *arguments: object) -> None:
    log_step(self, at, *arguments)  # type: ignore[arg-type]
    if at.step == pause:
        file.write_text("here")
        end = time.monotonic() + 120
        while file.exists() and time.monotonic() < end:
            time.sleep(0.005)


RunLog.step = step  # type: ignore[method-assign,assignment]
sys.argv = ["crossdet", *sys.argv[3:]]
main()
