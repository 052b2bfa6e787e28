"""All benchmarks one after the other, each in a process of its own, as one report: `make bench`.

    python benchmarks/bench.py [--output bench] [--only step loss ...] [--quick]

Writes OUTPUT/NAME.json of every benchmark, OUTPUT/bench.json with all of them and the machine, and OUTPUT/bench.md:
ratios with their targets, then what every benchmark printed. What others are measured against runs in the same
process as ours, in turns. A benchmark that fails is reported and the others go on. On a GPU the step is also
measured at 800 pixels, in bfloat16 and compiled. `--only` runs some; the others keep what an earlier run of this
machine left in OUTPUT. Leave the machine alone meanwhile: about 40 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

HERE = Path(__file__).parent
Results = Mapping[str, Any]


class Benchmark(NamedTuple):
    """command: script and arguments. quick: arguments of a run that only shows that it works."""

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...]


class Target(NamedTuple):
    """A ratio of the report. best: whether it shall be at least or at most the target."""

    what: str
    value: Callable[[Results], float]
    at_least: bool
    target: float


TINY = ("--size", "64", "96", "--batch", "1", "--rounds", "1")
UNION = ("union.py", "--datasets", "1", "5", "20", "50", "--classes", "100", "--steps", "2", "--full")
CPU = [
    Benchmark("loss", ("loss.py", "--rounds", "30", "--compile", "--crowd"), ("--rounds", "1")),
    Benchmark("step_resnet50", ("train_step.py", "--rounds", "5"), ("--backbone", "resnet18", *TINY)),
    Benchmark("step_resnet50_best", ("train_step.py", "--rounds", "5", "--dtype", "best"), TINY),
    Benchmark("step_resnet50_compiled", ("train_step.py", "--rounds", "3", "--compile"), TINY),
    Benchmark("step_mobilenetv2", ("train_step.py", "--backbone", "mobilenetv2_100"), TINY),
    Benchmark(
        "step_mobilenetv2_best", ("train_step.py", "--backbone", "mobilenetv2_100", "--dtype", "best"), TINY
    ),
    Benchmark(
        "step_union", ("train_step.py", "--datasets", "10", "--classes", "1000", "--rounds", "3"), TINY
    ),
    Benchmark("floor_resnet50", ("floor.py",), TINY),
    Benchmark("floor_mobilenetv2", ("floor.py", "--backbone", "mobilenetv2_100"), TINY),
    Benchmark("loading", ("loading.py",), ("--quick",)),
    Benchmark("index", ("index.py",), ("--quick",)),
    Benchmark(
        "inference", ("inference.py", "--sizes", "320", "640", "--rounds", "2", "--files", "16"), ("--quick",)
    ),
    Benchmark(
        "exported", ("exported.py",), ("--size", "96", "--backbone", "test_efficientnet", "--rounds", "1")
    ),
    Benchmark("evaluation", ("evaluation.py",), ("--quick",)),
    Benchmark("union", UNION, ("--size", "64", "96", "--batch", "2", "--backbone", "resnet18", "--steps", "1")),
    Benchmark(
        "union_crowd",
        ("union.py", "--datasets", "1", "20", "--boxes", "300", "--steps", "1"),
        ("--size", "64", "96", "--batch", "2", "--backbone", "resnet18"),
    ),
]  # fmt: skip
GPU = [
    Benchmark(
        f"step_resnet50_800_{dtype}{extra[0].replace('--', '_').replace('-', '_') if extra else ''}",
        ("train_step.py", "--size", "800", "1344", "--batch", "8", "--dtype", dtype, *extra),
        TINY,
    )
    for dtype in ("float32", "bfloat16")
    for extra in ((), ("--compile",), ("--group-norm",))
]


def _union_growth(key: str) -> Callable[[Results], float]:
    """The worst of 20 and 50 datasets over 1."""

    def growth(results: Results) -> float:
        rows = {row["datasets"]: row[key] for row in results["union"]}
        return max(rows[n] for n in rows if n >= 20) / rows[1]

    return growth


def _loading(peer: str) -> Callable[[Results], float]:
    """Of the runs in one process."""
    return lambda r: min(row["ratio"][peer] for row in r["loading"]["runs"] if row["workers"] == 0)


def _matching_share(results: Results) -> float:
    phases = results["floor_resnet50"]["phases"]
    return phases["labelling"] / sum(phases.values())


TARGETS = [
    Target("training step, ResNet-50: torchvision / crossdet", lambda r: r["step_resnet50"]["ratio"], True, 1),
    Target("the same, each at its best number type", lambda r: r["step_resnet50_best"]["ratio"], True, 1),
    Target("the same, ours compiled", lambda r: r["step_resnet50_compiled"]["ratio"], True, 1),
    Target("training step, MobileNetV2, float32", lambda r: r["step_mobilenetv2"]["ratio"], True, 1),
    Target("the same, each at its best number type", lambda r: r["step_mobilenetv2_best"]["ratio"], True, 1),
    Target("union of 10 x 100 classes / torchvision with 1,000", lambda r: r["step_union"]["ratio"], True, 2.5),
    Target("match + loss: torchvision / crossdet", lambda r: r["loss"]["torchvision_over_crossdet"], True, 3.5),
    Target("match + loss, ours compiled", lambda r: r["loss"]["torchvision_over_compiled"], True, 5),
    Target("aware / plain focal loss", lambda r: r["loss"]["aware_over_plain"], False, 1.03),
    Target("share of matching in the step", _matching_share, False, 0.05),
    Target("MB that 2,000 faces add to matching", lambda r: r["loss"]["crowd_adds_mb"], False, 300),
    Target("step time, 20 and 50 datasets / 1", _union_growth("step_seconds"), False, 1.25),
    Target("activation memory, 20 and 50 datasets / 1", _union_growth("activation_mb"), False, 1.25),
    Target("input pipeline: crossdet / torchvision (PIL), worst size", _loading("torchvision, PIL"), True, 1.5),
    Target("the same / torchvision (tensors)", _loading("torchvision, tensors"), True, 1.5),
    Target("RetinaNet MobileNetV2, 320 px: torch eager / OpenVINO", lambda r:
           r["exported"]["torch_over_openvino"], True, 1.5),
    Target("COCO evaluation: crossdet / faster-coco-eval by itself", lambda r:
           r["evaluation"]["coco"]["ours_over_faster_coco_eval"], False, 1.1),
    Target("COCO evaluation: pycocotools / crossdet", lambda r:
           r["evaluation"]["coco"]["times_faster_than_pycocotools"], True, 4),
    Target("WIDER FACE evaluation: plain loop / crossdet", lambda r:
           r["evaluation"]["wider_face"]["times_faster"], True, 30),
]  # fmt: skip


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "load_before": os.getloadavg()[0],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(benchmark: Benchmark, folder: Path, quick: bool) -> tuple[Any, str]:
    """What it wrote as JSON, and what it printed. None: it failed."""
    script, *arguments = benchmark.command
    file = folder / f"{benchmark.name}.json"
    command = [sys.executable, str(HERE / script), *arguments, *(benchmark.quick if quick else ())]
    file.unlink(missing_ok=True)
    done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
    if done.returncode or not file.exists():
        return None, f"failed:\n{done.stderr[-2000:]}"
    printed = f"$ python benchmarks/{' '.join(command[1:]).removeprefix(f'{HERE}/')}\n\n{done.stdout.rstrip()}"
    file.with_suffix(".txt").write_text(printed + "\n")
    return json.loads(file.read_text()), printed


def targets_table(results: Results) -> list[str]:
    """Markdown lines: what was measured beside its target, as far as it was run."""
    lines = ["| what | measured | target | |", "|---|---|---|---|"]
    for target in TARGETS:
        try:
            value = target.value(results)
        except (KeyError, TypeError, ValueError):
            continue  # that benchmark was not run, or failed
        met = value >= target.target if target.at_least else value <= target.target
        sign = "at least" if target.at_least else "at most"
        lines.append(f"| {target.what} | {value:.3g} | {sign} {target.target:g} | {'met' if met else 'missed'} |")
    return lines


def report(about: Mapping[str, Any], results: Results, texts: Mapping[str, str]) -> str:
    """The Markdown page."""
    lines = ["# Benchmarks", "", "Machine: " + ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    lines += targets_table(results)
    for name, text in texts.items():
        lines += ["", f"## {name}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    args = parser.parse_args()
    benchmarks = CPU + (GPU if torch.cuda.is_available() else [])
    unknown = sorted(set(args.only or ()) - {b.name for b in benchmarks})
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(b.name for b in benchmarks)}")
    folder = args.output / "quick" if args.quick else args.output  # never beside real results
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    results, texts = {}, {}
    for benchmark in benchmarks:
        kept = folder / f"{benchmark.name}.json"
        if args.only is None or benchmark.name in args.only:
            start = time.monotonic()
            result, text = run(benchmark, folder, args.quick)
            print(f"{benchmark.name}: {time.monotonic() - start:.0f} s\n{text}\n", flush=True)
        elif kept.exists():
            result, text = json.loads(kept.read_text()), kept.with_suffix(".txt").read_text().rstrip()
        else:
            continue
        results[benchmark.name], texts[benchmark.name] = result, text
        content = {"machine": about, "results": results}
        (folder / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "bench.md").write_text(report(about, results, texts))
    print(f"{folder}/bench.md and bench.json")
    if None in results.values():
        sys.exit(1)


if __name__ == "__main__":
    main()
