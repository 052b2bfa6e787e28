"""The first of two processes fails, while the other waits for it: what `test_distributed.py` looks at.

    python one_fails.py CONFIG FILE

The second process writes its number into FILE.
"""

import os
import sys
import time
from pathlib import Path

from crossdet import load_config
from crossdet.runs import building

if __name__ == "__main__":
    building.GRACE = 0.5
    fabric = building.build_fabric(load_config(sys.argv[1]))
    place = Path(sys.argv[2])
    if fabric.global_rank == 1:
        place.with_suffix(".new").write_text(str(os.getpid()))
        place.with_suffix(".new").rename(place)
        time.sleep(300)  # as in a collective on GPUs, which does not notice that the other one is gone
    while not place.exists():
        time.sleep(0.05)
    raise OSError("no space left on device")
