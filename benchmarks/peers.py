"""crossdet against what users would pick instead: same pictures, labels, start, device and time, one judge.

    python benchmarks/peers.py --data FOLDER --weights mobilenetv2_100.imagenet.safetensors --minutes 15 --size 320
    python benchmarks/peers.py --table [--output docs/data/peers.json]

Needs requirements-peers.txt in an environment beside crossdet, and in FOLDER (default: ${CROSSDET_BENCH}) the sets
of `peer_methods/sets.py`. Every (set, method) is a process of its own. Results go into one JSON as they come; what
it has with the same settings is skipped, so a queue can be stopped and goes on another day. What fails is told,
noted and tried again by the next call. `--keep DIR` leaves what each training wrote, with pictures of detections.

| method | what |
|---|---|
| `crossdet` | a config of ten lines: `train.recipe: auto` and `train.minutes` |
| `retinanet`, `fcos` | torchvision's, by its reference recipe, on timm's MobileNetV2 |
| `yolo` | Ultralytics' newest nano model, by its own trainer with `time=` |
| `dfine`, `dfine_fast` | Hugging Face's D-FINE-N on timm's MobileNetV2, by transformers' example; at more rate |

The same for all: full labels; batches of 8; pictures whose longer side is `--size`; float32; loaders in the process
(`--workers`); the last weights, never those that scored best; detections that score more than 0.001, 100 per
picture; AP and AP50 of crossdet's COCO protocol, which equals pycocotools. The clock starts when the first batch is
asked for and stops at the end of the training: reading annotations, converting them and building the model are not
counted, nor is the evaluation.

What is not the same, and whom it favours:
- YOLO starts from random weights: its backbone has no ImageNet weights of its own. That costs it most of all in a
  short training; what its users do is to start from COCO's. The others start from ImageNet. `--weights none` starts
  all from random weights.
- Each recipe is its author's, made for a longer training: torchvision's and D-FINE's for COCO, D-FINE's at 5e-5 for
  weights of COCO. Only the ends of their schedules are fitted to the clock. `crossdet`'s recipe is fitted to it by
  design, and was made by the people who made this comparison, on two of these sets (`recipe_study.py`).
- D-FINE-N is made for 640 pixels and hours of training; its attention is slow on a CPU, so it sees fewer pictures.
  So do torchvision's heads of 256 channels. Pictures seen stand in the table.
- Padding differs: D-FINE and the training of YOLO pad to a square; YOLO's mosaics put four pictures into one.
- YOLO updates after 64 pictures and knows its schedule from the second epoch on only: until then it assumes 100.
- By itself Ultralytics uses one thread less than there are cores; here it gets as many as the others.
- crossdet knows its steps before its time is over, and may end seconds before or after it: 899 to 902 s of 900.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_methods.job import Job, Settings

HERE = Path(__file__).parent
SETS = ("bccd", "aquarium", "dice", "playing_cards", "voc_animals", "site_safety")
METHODS = ("crossdet", "retinanet", "fcos", "yolo", "dfine", "dfine_fast")
Entry = Mapping[str, Any]


def read_entries(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["results"] if file.exists() else []
    return found


def write_entries(file: Path, entries: Sequence[Entry]) -> None:
    """Whole or not at all: a queue of hours writes into it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps({"tool": "benchmarks/peers.py", "results": list(entries)}, indent=1) + "\n")
    beside.replace(file)


def same_work(entry: Entry, name: str, method: str, settings: Settings) -> bool:
    wanted = {"set": name, "method": method, "settings": settings.shown(method)}
    return all(entry[key] == value for key, value in wanted.items())


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def run(name: str, method: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """One training in a process of its own; with `error` instead of numbers where that failed."""
    job, result, log = folder / "job.json", folder / "result.json", folder / "log.txt"
    if job.exists():  # what an earlier try left
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    Job(name, method, settings, str(folder.absolute())).write(job)
    threads = str(settings.threads)
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    entry = {"set": name, "method": method, "settings": settings.shown(method), "machine": machine()}
    command = [sys.executable, "-m", "peer_methods.worker", str(job.absolute()), str(result.absolute())]
    with log.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False)
    if done.returncode or not result.exists():
        return {**entry, "error": log.read_text(errors="replace")[-1500:]}
    return {**entry, **json.loads(result.read_text())}


def queue(args: argparse.Namespace, settings: Settings) -> bool:
    """Runs what has no result yet, set by set; returns whether all went well."""
    entries = read_entries(args.output)
    well = True
    for name in args.sets:
        for method in args.methods:
            if any(same_work(e, name, method, settings) and "error" not in e for e in entries):
                print(f"{name}, {method}: done before", flush=True)
                continue
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                folder = args.keep / f"{name}_{method}" if args.keep else Path(scratch)
                entry = run(name, method, settings, folder)
            entry["whole_seconds"] = round(time.monotonic() - begun)
            entries = [e for e in read_entries(args.output) if not same_work(e, name, method, settings)]
            write_entries(args.output, [*entries, entry])
            entries.append(entry)
            well &= "error" not in entry
            print(f"{name}, {method}: {_in_words(entry)}", flush=True)
    return well


def _in_words(entry: Entry) -> str:
    if "error" in entry:
        return f"failed after {entry['whole_seconds']} s:\n{entry['error']}"
    return (
        f"AP {100 * entry['AP']:.1f}, AP50 {100 * entry['AP50']:.1f}, {entry['steps']} steps, {entry['pictures']} "
        f"pictures, {entry['seconds']:.0f} of {entry['whole_seconds']} s, {entry['peak_memory_mb']} MB, loss "
        f"{entry['loss_first_tenth']:.3g} -> {entry['loss_last_tenth']:.3g}"
    )


def tables(entries: Sequence[Entry]) -> str:
    """Markdown: for all settings that were run AP, AP50 and pictures seen, sets x methods, with the mean over the
    sets that every method has. Several seeds: their mean and standard deviation."""
    texts = []
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        shown = {key: value for key, value in entry["settings"].items() if key not in ("seed", "given")}
        groups.setdefault(json.dumps(shown, sort_keys=True), []).append(entry)
    for group in groups.values():
        first = group[0]["settings"]
        head = (
            f"{first['minutes']:g} minutes, {first['size']} px, {first['device']}, {first['threads']} threads, "
            f"start: {first['weights']}"
        )
        texts.append(f"**{head}**")
        for title, key, scale in (("AP", "AP", 100), ("AP50", "AP50", 100), ("pictures seen", "pictures", 1)):
            texts.append("\n".join(_table(title, group, key, scale)))
    return "\n\n".join(texts) + "\n"


def _column(entry: Entry) -> str:
    """The method, and what was given to crossdet: that is another method."""
    return " ".join([entry["method"], *entry["settings"]["given"]])


def _table(title: str, entries: Sequence[Entry], key: str, scale: float) -> list[str]:
    methods = sorted({_column(e) for e in entries}, key=lambda name: (METHODS.index(name.split()[0]), name))
    sets = [name for name in SETS if any(e["set"] == name for e in entries)]
    digits = 1 if scale > 1 else 0
    values = {
        (name, method): [
            scale * e[key] for e in entries if e["set"] == name and _column(e) == method and "error" not in e
        ]
        for name in sets
        for method in methods
    }

    def cell(numbers: Sequence[float]) -> str:
        if not numbers:
            return ""
        spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        return f"{statistics.mean(numbers):.{digits}f}{spread}"

    lines = [f"| {title} | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(values[name, m]) for m in methods)} |" for name in sets]
    shared = [name for name in sets if all(values[name, m] for m in methods)]
    means = [
        f"{statistics.mean(statistics.mean(values[n, m]) for n in shared):.{digits}f}" for m in methods if shared
    ]
    if means:
        lines.append(f"| mean of {len(shared)} | {' | '.join(means)} |")
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CROSSDET_BENCH"), help="folder of the sets")
    parser.add_argument("--weights", default="none", help="MobileNetV2's .safetensors, or none: random for all")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--size", type=int, default=320, help="longer side in pixels, a multiple of 32")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0: in the training's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs/data/peers.json")
    parser.add_argument("--keep", type=Path, help="leave what the trainings write in DIR/SET_METHOD")
    parser.add_argument("--set", nargs="+", default=(), metavar="KEY=VALUE", help="of crossdet's config")
    parser.add_argument("--table", action="store_true", help="print what the JSON holds and run nothing")
    args = parser.parse_args()
    if args.table:
        return args
    if args.data is None or not Path(args.data).is_dir():
        parser.error(f"--data {args.data}: no such folder; name the one that holds {', '.join(SETS)}")
    if args.weights != "none" and not Path(args.weights).is_file():
        parser.error(f"--weights {args.weights}: no such file; `none` starts all methods from random weights")
    if args.size % 32 or args.size < 32:
        parser.error(f"--size {args.size}: YOLO and D-FINE need a multiple of 32")
    return args


def main() -> None:
    args = parse()
    if args.table:
        print(tables(read_entries(args.output)), end="")
        return
    weights = None if args.weights == "none" else str(Path(args.weights).absolute())
    data = str(Path(args.data).absolute())
    settings = Settings(
        data, weights, args.minutes, args.size, args.threads, args.workers,
        seed=args.seed, device=args.device, given=tuple(args.set),
    )  # fmt: skip
    well = queue(args, settings)
    print(f"\n{tables(read_entries(args.output))}\n{args.output}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
