"""All benchmarks one after the other, each in a process of its own, as one report: `make bench`.

    python benchmarks/bench.py [--rows processor|card] [--output bench] [--only loss ...] [--missing] [--quick]

Writes OUTPUT/NAME.json of every benchmark as soon as it is done, OUTPUT/bench.json with all of them and the
machine, and OUTPUT/bench.md: ratios with their targets, then what every benchmark printed. What others are measured
against runs in the same process as ours, in turns. A benchmark that fails is reported and the others go on.
`--only` runs some; the others keep what an earlier run of this machine left in OUTPUT. `--missing` runs those that
left nothing, or were ended at their limit. Leave the machine alone meanwhile.

`--rows processor` (where there is no GPU): about 40 minutes on 2 CPU cores; a GPU is hidden from them.

`--rows card` (where there is one): other rows, in the files bench_gpu.json and bench_gpu.md; docs/make_results.py
reads docs/data/bench_gpu.json. The most important come first. By an estimate made without a card they take about 25
minutes of an H200, and none more than its limit of at most 6; then it is ended with all that it started, and counts
as failed unless it had written something. For a card that is lent in pieces: with `--minutes 9` one is begun only
if its limit ends within so many minutes, so that the command takes no longer; what does not fit is passed over for
shorter ones. The same command with `--missing` goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

HERE = Path(__file__).parent
LATE = "not done after its limit"
Results = Mapping[str, Any]


class Benchmark(NamedTuple):
    """command: script and arguments. quick: arguments of a run that only shows that it works. limit: seconds."""

    name: str
    command: tuple[str, ...]
    quick: tuple[str, ...]
    limit: float | None = None


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
BF16 = ("--dtype", "bfloat16", "--rounds", "20")
LARGE = ("--size", "800", "1344", "--batch", "8")
SMALL = ("--size", "320", "416", "--batch", "16")
MOBILE = ("--backbone", "mobilenetv2_100")
ON_CANVAS = ("--compile", "canvas", "--labelled")
UNION_20 = ("union.py", "--datasets", "1", "5", "20", "50", "--steps", "8", "--labelled")
TINY_UNION = ("--datasets", "1", "20", *TINY[:5], "--backbone", "resnet18", "--steps", "1")


def _step(name: str, *arguments: str, limit: float = 120, quick: tuple[str, ...] = TINY) -> Benchmark:
    return Benchmark(f"card_step_{name}", ("train_step.py", *arguments), quick, limit)


SMALLEST = ("--backbone", "resnet18", *TINY)
CARD = [
    _step("resnet50_800", *LARGE, *BF16),
    _step("resnet50_320", *SMALL, *BF16),
    _step("mobilenetv2_320", *MOBILE, *SMALL, *BF16),
    _step("union", *LARGE, *BF16, "--datasets", "10", "--classes", "1000"),
    Benchmark("card_union", (*UNION_20, "--dtype", "bfloat16"), TINY_UNION, 180),
    Benchmark("card_loss", ("loss.py", "--rounds", "30"), ("--rounds", "1"), 90),
    Benchmark("card_training", ("whole_training.py",), ("--quick",), 360),
    Benchmark(
        "card_folder",
        ("inference.py", "--folder-peer", "--sizes", "640", "--batches", "16", "--files", "512", *BF16[:2]),
        ("--quick", "--rounds", "1"),
        150,
    ),
    Benchmark(
        "card_detr_step",
        ("detr_step.py", "--size", "small", "--square", "640", "--batch", "16", "--rounds", "20"),
        ("--size", "nano", "--square", "256", "--batch", "1", "--rounds", "1"),
        120,
    ),
    _step("resnet50_800_compiled", *LARGE, *BF16, *ON_CANVAS, limit=240, quick=SMALLEST),
    _step("resnet50_320_compiled", *SMALL, *BF16, *ON_CANVAS, limit=180, quick=SMALLEST),
    _step("mobilenetv2_320_compiled", *MOBILE, *SMALL, *BF16, *ON_CANVAS, limit=180, quick=SMALLEST),
    Benchmark(
        "card_training_compiled",
        ("whole_training.py", "--compile", "--canvases", "2", "--rounds", "1"),  # each canvas is compiled
        ("--quick",),
        360,
    ),
    Benchmark("card_floor", ("floor.py", *LARGE, *BF16, "--top", "30"), TINY, 90),
    _step("resnet50_800_labelled", *LARGE, *BF16, "--labelled"),
    Benchmark("card_union_float32", UNION_20, TINY_UNION, 180),
    _step("resnet50_800_float32", *LARGE, "--rounds", "20"),
    Benchmark(
        "card_inference",
        ("inference.py", "--sizes", "320", "800", "--union-sizes", "320", "--files", "64"),
        ("--quick", "--rounds", "1"),
        180,
    ),
    Benchmark("card_loss_compiled", ("loss.py", "--rounds", "30", "--compile", "--crowd"), ("--rounds", "1"), 120),
    _step("resnet50_800_group_norm", *LARGE, *BF16, "--group-norm"),
    _step("mobilenetv2_320_group_norm", *MOBILE, *SMALL, *BF16, "--group-norm"),
    Benchmark("card_floor_mobilenetv2", ("floor.py", *MOBILE, *SMALL, *BF16, "--top", "30"), TINY, 90),
]  # fmt: skip


def _union_growth(key: str, name: str = "union") -> Callable[[Results], float]:
    """The worst of 20 and 50 datasets over 1."""

    def growth(results: Results) -> float:
        rows = {row["datasets"]: row[key] for row in results[name]}
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


def card_of(device: str | torch.device) -> str | None:
    """The card's name; None where the device is none."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None


def _on_card(name: str, value: Callable[[Results], float]) -> Callable[[Results], float]:
    """The value; a `KeyError` where that benchmark ran on something else, as a quick run may."""

    def found(results: Results) -> float:
        row = results[name]
        if not (row[0] if isinstance(row, list) else row)["gpu"]:
            raise KeyError(f"{name}: not measured on a card")
        return value(results)

    return found


def _card_ratio(name: str) -> Callable[[Results], float]:
    return _on_card(name, lambda r: r[name]["ratio"])


def _on_training(name: str, value: Callable[[Any, Any], float]) -> Callable[[Results], float]:
    """value: of the whole result, and of the medians of its second setting."""
    return _on_card(name, lambda r: value(r[name], list(r[name]["medians"].values())[1]))


CARD_TARGETS = {
    "step_800": Target("step, ResNet-50, 800x1344, batch 8, bf16: torchvision / crossdet",
                       _card_ratio("card_step_resnet50_800"), True, 2.8),
    "step_320": Target("step, ResNet-50, 320x416, batch 16, bf16",
                       _card_ratio("card_step_resnet50_320"), True, 2.5),
    "step_mobile": Target("step, MobileNetV2, 320x416, batch 16, bf16",
                          _card_ratio("card_step_mobilenetv2_320"), True, 2.5),
    "step_union": Target("union of 10 x 100 classes at 800x1344 / torchvision with 1,000",
                         _card_ratio("card_step_union"), True, 6),
    "union": Target("step time, 20 and 50 datasets / 1, 320x416, bf16",
                    _on_card("card_union", _union_growth("step_seconds", "card_union")), False, 1.25),
    "union_float32": Target("the same, float32", _on_card("card_union_float32",
                            _union_growth("step_seconds", "card_union_float32")), False, 1.25),
    "loss": Target("match + loss: torchvision / crossdet",
                   _on_card("card_loss", lambda r: r["card_loss"]["torchvision_over_crossdet"]), True, 4),
    "pictures": Target("pictures a second of a training with jitter and colour / without",
                       _on_training("card_training", lambda r, _: r["second_over_first"]), True, 0.9),
    "busy": Target("share of such a training's time in which the card is busy",
                   _on_training("card_training", lambda _, full: full["busy"]), True, 0.85),
    "folder": Target("prediction of a folder at 640 px, bf16, batch 16: torchvision with a DataLoader / crossdet",
                     _on_card("card_folder", lambda r:
                              r["card_folder"]["folder"]["ratio"]["torchvision, DataLoader"]), True, 2.5),
    "detr": Target("step, D-FINE small, 640x640, batch 16, bf16: transformers / crossdet",
                   _on_card("card_detr_step", lambda r:
                            r["card_detr_step"]["transformers_over_crossdet"]), True, 1),
    "compiled_800": Target("step, ResNet-50, 800x1344, ours compiled, anchors labelled by the loader",
                           _card_ratio("card_step_resnet50_800_compiled"), True, 2.8),
    "compiled_320": Target("step, ResNet-50, 320x416, ours compiled, anchors labelled by the loader",
                           _card_ratio("card_step_resnet50_320_compiled"), True, 2.5),
    "compiled_mobile": Target("step, MobileNetV2, 320x416, ours compiled, anchors labelled by the loader",
                              _card_ratio("card_step_mobilenetv2_320_compiled"), True, 2.5),
    "start_up": Target("seconds until the first compiled step, ResNet-50, 800x1344",
                       _on_card("card_step_resnet50_800_compiled",
                                lambda r: r["card_step_resnet50_800_compiled"]["first_seconds"]), False, 60),
    "recompiled": Target("graphs compiled after a training's first epoch",
                         _on_training("card_training_compiled", lambda r, _: max(
                             one["graphs_after"] for one in list(r["rounds"].values())[1])), False, 0),
    "compiled_training": Target("pictures a second of a compiled training / eager",
                                _on_training("card_training_compiled", lambda r, _:
                                             r["second_over_first"]), True, 1),
}  # fmt: skip
"""Name, by which docs/performance.md asks for it -> target; where the result was measured on a card."""


def machine(gpu: bool = True) -> dict[str, Any]:
    """gpu: it is used where there is one."""
    gpu = gpu and torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        **(_driver() if gpu else {}),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "load_before": round(os.getloadavg()[0], 2),
    }


def _driver() -> dict[str, str]:
    """What nvidia-smi says, if it is there."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"nvidia_smi": "; ".join(done.stdout.split("\n")).strip("; ")} if not done.returncode else {}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM ends this process by way of its `finally` and `except`."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_group(
    command: Sequence[str], timeout: float | None, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured output, but what ends it early (the timeout, Ctrl-C, SIGTERM) ends all
    processes that it started as well: they would keep the card."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with _terminated_by_exception(), subprocess.Popen(command, env=env, start_new_session=True, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


def run(benchmark: Benchmark, folder: Path, quick: bool) -> tuple[Any, str]:
    """What it wrote as JSON, and what it printed. None: it failed. What it wrote before its limit is kept."""
    script, *arguments = benchmark.command
    file = folder / f"{benchmark.name}.json"
    command = [sys.executable, str(HERE / script), *arguments, *(benchmark.quick if quick else ())]
    written = file.with_suffix(".part")  # no result as long as it may change
    for one in (file, written):
        one.unlink(missing_ok=True)
    environment = os.environ if benchmark in CARD else os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = run_group([*command, "--json", str(written)], benchmark.limit, environment)
    except subprocess.TimeoutExpired:
        late = f"{LATE} of {benchmark.limit:.0f} s"
        if not written.exists():
            return None, f"failed: {late}"
        output = f"{late}; the JSON has what was measured until then"
    else:
        if done.returncode or not written.exists():
            return None, f"failed:\n{done.stderr[-2000:]}"
        output = done.stdout.rstrip()
    printed = f"$ python benchmarks/{' '.join(command[1:]).removeprefix(f'{HERE}/')}\n\n{output}"
    file.with_suffix(".txt").write_text(printed + "\n")
    written.replace(file)
    return json.loads(file.read_text()), printed


def judged(target: Target, results: Results) -> tuple[float, str] | None:
    """What was measured, and whether the target is met; None where that benchmark was not run, or failed."""
    try:
        value = target.value(results)
        met = value >= target.target if target.at_least else value <= target.target
    except (KeyError, TypeError, ValueError):
        return None
    return value, "met" if met else "missed"


def targets_table(results: Results, targets: Iterable[Target] = tuple(TARGETS)) -> list[str]:
    """Markdown lines: what was measured beside its target, as far as it was run."""
    lines = ["| what | measured | target | |", "|---|---|---|---|"]
    for target in targets:
        if (found := judged(target, results)) is not None:
            sign = "at least" if target.at_least else "at most"
            lines.append(f"| {target.what} | {found[0]:.3g} | {sign} {target.target:g} | {found[1]} |")
    return lines


def report(about: Mapping[str, Any], results: Results, texts: Mapping[str, str], targets: Iterable[Target]) -> str:
    """The Markdown page."""
    lines = ["# Benchmarks", "", "Machine: " + ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    lines += targets_table(results, targets)
    for name, text in texts.items():
        lines += ["", f"## {name}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = "card" if torch.cuda.is_available() else "processor"
    parser.add_argument("--rows", default=here, choices=["processor", "card"], help=f"default here: {here}")
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--missing", action="store_true", help="only those without a whole result in OUTPUT")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="none is begun that may take longer")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    args = parser.parse_args()
    if args.rows == "card" and not (args.quick or torch.cuda.is_available()):
        parser.error("--rows card: torch sees no GPU here; with --quick these rows run tiny on the CPU")
    names = [b.name for b in (CARD if args.rows == "card" else CPU)]
    if unknown := sorted(set(args.only or ()) - set(names)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    return args


def _is_cut_off(kept: Path) -> bool:
    """Whether a result is there that ended at its limit; it comes behind what was not run at all."""
    return kept.exists() and LATE in kept.with_suffix(".txt").read_text()


def _not_begun(left: Iterable[Benchmark], minutes: float) -> list[str]:
    """Lines on benchmarks without a result. That of a limit as long as `minutes` finds no room in any run."""
    never = [one for one in left if (one.limit or 0) >= 60 * minutes]
    later = [one.name for one in left if one not in never]
    lines = [f"not begun: {', '.join(later)}; the same command with --missing goes on"] if later else []
    for one in never:
        lines.append(f"never begun with --minutes {minutes:g}: {one.name}, whose limit is {one.limit:.0f} s")
    return lines


def _cut_off(names: Iterable[str], folder: Path) -> list[str]:
    cut = [name for name in names if _is_cut_off(folder / f"{name}.json")]
    return [f"ended at their limit: {', '.join(cut)}; --missing runs them again, behind the others"] if cut else []


def main() -> None:
    args = arguments()
    on_card = args.rows == "card"
    benchmarks, targets = (CARD, list(CARD_TARGETS.values())) if on_card else (CPU, TARGETS)
    page = "bench_gpu" if on_card else "bench"
    folder = args.output / "quick" if args.quick else args.output  # never beside real results
    folder.mkdir(parents=True, exist_ok=True)
    about, end = machine(on_card), time.monotonic() + 60 * args.minutes
    results, texts = {}, {}
    for benchmark in sorted(benchmarks, key=lambda one: _is_cut_off(folder / f"{one.name}.json")):
        kept = folder / f"{benchmark.name}.json"
        wanted = args.only is None or benchmark.name in args.only
        fits = time.monotonic() + (benchmark.limit or 0) <= end
        if wanted and fits and not (args.missing and kept.exists() and not _is_cut_off(kept)):
            start = time.monotonic()
            result, text = run(benchmark, folder, args.quick)
            print(f"{benchmark.name}: {time.monotonic() - start:.0f} s\n{text}\n", flush=True)
        elif kept.exists():
            result, text = json.loads(kept.read_text()), kept.with_suffix(".txt").read_text().rstrip()
        else:
            continue
        results[benchmark.name], texts[benchmark.name] = result, text
        results, texts = (
            {b.name: found[b.name] for b in benchmarks if b.name in found} for found in (results, texts)
        )
        content = {"machine": about, "results": results}
        (folder / f"{page}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{page}.md").write_text(report(about, results, texts, targets))
    print(f"{folder}/{page}.md and {page}.json")
    left = [b for b in benchmarks if b.name not in results and (args.only is None or b.name in args.only)]
    for line in [*_not_begun(left, args.minutes), *_cut_off(results, folder)]:
        print(line)
    if None in results.values():
        sys.exit(1)


if __name__ == "__main__":
    main()
