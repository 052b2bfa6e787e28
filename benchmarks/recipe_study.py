"""Which numbers of a training recipe hold on sets of photographs: many small trainings side by side on one card.

    CROSSDET_BENCH=... CROSSDET_WEIGHTS=... python benchmarks/recipe_study.py collapse -o FOLDER [--workers 3]

`collapse`, `collapse_dealt`, `tuning`, `around` and `untuned` are lists of trainings (`PLANS`; on one H200 some 130
steps per second, so 20 to 300 seconds each); `smoke` is a tiny one for any machine.
Needs the folders of `SETS` below ${CROSSDET_BENCH}, each with `train.json`, `val.json` (COCO; `write_coco` of an
opened split makes them) and the pictures in `train` and `val`; and mobilenetv2_100.imagenet.safetensors in
${CROSSDET_WEIGHTS}. Writes `FOLDER/runs.jsonl` while it runs and `FOLDER/summary.json` at the end.

The detector, its start, the labels of the anchors and the scores are the package's. What differs from
`crossdet train`, so that hundreds of trainings fit into minutes:
- The pictures are decoded and resized once, every one also mirrored, padded to one canvas per set, and stay on the
  card with the labels of their anchors. Batches are full: epochs follow each other without a smaller last batch.
- The loss is written out over all anchors, so that all shapes are fixed (the start compares it with the package's),
  and a whole step (forward, backward, update, average) is replayed as one CUDA graph. A process trains several
  detectors at once, each on its own stream.
- Optimisers, schedules and what is frozen are options here (`Options`).
- Pictures have at most 384 pixels on the longer side; scale and colours are not varied.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from recipe_trainings.pictures import LONGER, deal_out, prepare
from recipe_trainings.plans import PLANS, Options, Run
from recipe_trainings.running import Shared, check_loss, show, streams_pay, worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plans", nargs="+", help=f"any of {', '.join(PLANS)}, or a JSON file of jobs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="for prepared data; default: FOLDER/work")
    parser.add_argument("--workers", type=int, default=3, help="processes")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which trainings are scored as they are")
    args = parser.parse_args()
    args.work = args.work or args.output / "work"
    started = time.time()
    check_loss()
    args.output.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    jobs = [run for plan in args.plans for run in (PLANS[plan]() if plan in PLANS else read_runs(Path(plan)))]
    context = mp.get_context("spawn")
    shared = Shared(args.work, device, started + args.seconds)
    shared.jobs, shared.results = context.Queue(), context.Queue()
    rates = prepare_all(context, shared, list(dict.fromkeys(run.data for run in jobs)))
    for job in jobs:
        shared.jobs.put(job)
    workers = [context.Process(target=worker, args=(shared,)) for _ in range(args.workers)]
    for process in workers:
        process.start()
    print(f"[{time.time() - started:.0f}] {len(jobs)} runs, {args.workers} x {shared.slots} at once", flush=True)
    records = collect(shared, args.output / "runs.jsonl", len(workers), started)
    for process in workers:
        process.join(5)
    content = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "seconds": round(time.time() - started, 1),
        "at_once": [args.workers, shared.slots],
        "steps_per_second_of_random_data": rates,
        "input": {"shorter": 320, "longer": LONGER},
        "runs": sorted((r for r in records if "error" not in r), key=lambda r: (r["data"], r["name"], r["seed"])),
        "failed": [r for r in records if "error" in r],
    }
    (args.output / "summary.json").write_text(json.dumps(content))


def prepare_all(context: Any, shared: Shared, sets: Sequence[str]) -> dict[int, float] | None:
    """Prepares the pictures of all sets, and meanwhile finds out how many trainings at once pay in a process."""
    deal, rates = shared.folder / "deal", None
    if any("/" in data for data in sets):
        deal_out(deal)
    with context.Pool(min(len(sets), os.cpu_count() or 1)) as pool:
        files = [shared.folder / f"{data.replace('/', '_')}.pt" for data in sets]
        waiting = [pool.apply_async(prepare, (data, deal, file)) for data, file in zip(sets, files, strict=True)]
        if shared.device.type == "cuda":
            rates = streams_pay(deal)
            print(f"steps per second by detectors at once: {rates}", flush=True)
            if rates is None:
                raise SystemExit("a step cannot be captured here")
            shared.slots = 8 if rates[8] > 1.15 * rates[4] else 4
        else:
            shared.graphs, shared.slots = False, 1
        for one in waiting:
            print(one.get(), flush=True)
    return rates


def collect(shared: Shared, file: Path, workers: int, started: float) -> list[dict[str, Any]]:
    """The records of all trainings, written as they come."""
    records: list[dict[str, Any]] = []
    with file.open("w") as lines:
        while workers:
            record = shared.results.get()
            if record is None:
                workers -= 1
                continue
            records.append(record)
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            show(record, started)
    return records


def read_runs(file: Path) -> list[Run]:
    """Runs from JSON: `[{"data": ..., "name": ..., "options": {option: value, ...}, "seed": ...}, ...]`."""
    rows = json.loads(file.read_text())
    return [Run(**{**row, "options": Options(**row["options"])}) for row in rows]


if __name__ == "__main__":
    main()
