"""A real training, `crossdet.train` from config to weights: does augmentation slow it down, is the card busy?

    python benchmarks/whole_training.py [--size 320] [--batch 16] [--workers 8] [--compile] [--json FILE]
    python benchmarks/whole_training.py --images DIR --annotations FILE.json     # real pictures, not generated ones

The default recipe with MobileNetV2 from random weights, on photographs of 640x480: with flips alone, and with scale
jitter (0.5 to 1.5) and colour as well. The two take turns, the order changes every round. With `--compile` it is
jitter and colour, eager and with `train.compile`, which begins; the first such training finds an empty cache of
torch.compile, later ones what it left. Every canvas of `--canvases` is compiled.

FILE is written after every training, with what there is by then, so that a time limit does not lose it.

Pictures a second: of all epochs but the first, which chooses kernels and fills caches, and the last; from the first
wait for pictures of an epoch to the end of its last step on the device. What lies between epochs (weights and state
written) is left out. `waiting` is the share of that time that the loop waited for pictures, as `steps.csv` has it.

How busy the card is, is measured twice. `busy_nvml`: the mean of NVML's utilisation (the share of its last sample
period in which a kernel ran), asked for ten times a second through the driver's library, in the same epochs; left
out where there is no such library. `busy_profiler`: in the last epoch, the share of the time of some steps in which
a kernel ran, by torch.profiler; it makes the steps slower, so this is rather too low. `busy` is the smaller one.

Compiling: the seconds until the first step was done (loader processes and compilation included), and how many
graphs torch.compile made in the first epoch and after it.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._dynamo.utils import counters

from bench import card_of
from crossdet import Config, train
from crossdet.data.canvases import CANVASES
from crossdet.files import write_atomically
from crossdet.training import loop
from crossdet.training.log import RunLog, Step
from loading import longest, write_generated_photos
from train_step import empty_compile_cache

AUGMENTED = {"scale_jitter": [0.5, 1.5], "photometric": True}
PLAIN, FULL, COMPILED = "flips alone", "jitter and colour", "jitter and colour, compiled"
SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    PLAIN: ({}, False),
    FULL: (AUGMENTED, False),
    COMPILED: (AUGMENTED, True),
}
"""Name -> `augment` and `train.compile`."""
PROFILED = 20
"""Steps, or all but the first where the last epoch has fewer."""


# ------------------------------------------------------------------------------------------ what is noted


class Notes:
    """What one training did, epoch by epoch. last: number of the last epoch, counted from 0."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.images: list[int] = []
        self.waited: list[float] = []
        self.graphs: list[int] = []
        self.first_step: float | None = None
        self.busy: float | None = None
        self._before = counters["stats"]["unique_graphs"]
        self._profile: torch.profiler.profile | None = None
        self._since = 0.0

    def epoch(self) -> None:
        self.begun.append(time.monotonic())
        self.images.append(0)

    def step(self, at: Step, images: int) -> None:
        self.images[-1] += images
        if self.first_step is None:
            self.first_step = now() - self.begun[0]
        if at.step_in_epoch == at.steps_in_epoch:
            self.ended.append(now())
            self.waited.append(at.waited)
            self.graphs.append(counters["stats"]["unique_graphs"] - self._before)
        if at.epoch == self.last and torch.cuda.is_available():
            before = max(1, at.steps_in_epoch - PROFILED)  # the loader has got going by then
            if at.step_in_epoch == before < at.steps_in_epoch:
                self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self._profile.start()
                self._since = now()
            elif at.step_in_epoch == at.steps_in_epoch and self._profile is not None:
                self._end_profile()

    def _end_profile(self) -> None:
        assert self._profile is not None
        wall = now() - self._since
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            self._profile.export_chrome_trace(str(file))
            self.busy = kernel_seconds(json.loads(file.read_text())["traceEvents"]) / wall

    def measured(self) -> list[int]:
        return list(range(1, self.last))

    def rate(self) -> float:
        """Pictures a second."""
        return sum(self.images[epoch] for epoch in self.measured()) / self._seconds()

    def waiting(self) -> float:
        return sum(self.waited[epoch] for epoch in self.measured()) / self._seconds()

    def _seconds(self) -> float:
        return sum(self.ended[epoch] - self.begun[epoch] for epoch in self.measured())


def now() -> float:
    """With all that is queued on the device done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def kernel_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """Seconds in which at least one kernel ran, of the events of a trace (microseconds)."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    total, until = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total / 1e6


def noting(notes: Notes) -> type[RunLog]:
    """In the place of the loop's own log, which is asked at the same moments."""

    class NotingLog(RunLog):
        def start_epoch(self) -> None:
            notes.epoch()
            super().start_epoch()

        def step(self, at: Step, images: int, every: int) -> None:
            super().step(at, images, every)
            notes.step(at, images)

    return NotingLog


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Utilisation:
    """Samples (time, share) of what NVML says of the current card, in a thread. Empty where it says nothing."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    def mean(self, spans: Iterable[tuple[float, float]]) -> float | None:
        """Within these times."""
        spans = list(spans)
        found = [share for moment, share in self.samples if any(a <= moment <= b for a, b in spans)]
        return statistics.mean(found) if found else None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        if not torch.cuda.is_available():
            return
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        card, rates = ctypes.c_void_p(), _Rates()
        name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}".encode()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(card)):
            return
        while not self._over.wait(0.1):
            if not library.nvmlDeviceGetUtilizationRates(card, ctypes.byref(rates)):
                self.samples.append((time.monotonic(), rates.gpu / 100))


# ---------------------------------------------------------------------------------------------- trainings


def config_of(args: argparse.Namespace, images: Path, annotations: Path, name: str) -> Config:
    augment, compiled = SETTINGS[name]
    return Config.from_dict(
        {
            "datasets": {
                "photos": {"format": "coco", "train": {"images": str(images), "annotations": str(annotations)}}
            },
            "model": {"backbone": args.backbone, "weights": "none"},
            "input": {"shorter": args.size, "longer": longest(args.size)},
            "augment": augment,
            "train": {
                "epochs": args.epochs,
                "batch_size": args.batch,
                "workers": args.workers,
                "canvases": args.canvases,
                "loggers": [],
                "compile": compiled,
            },
        }
    )


def training(args: argparse.Namespace, images: Path, annotations: Path, name: str) -> dict[str, Any]:
    """Numbers of one training."""
    torch._dynamo.reset()  # graphs of an earlier training in this process are not found
    notes, utilisation = Notes(args.epochs - 1), Utilisation()
    with ExitStack() as during:
        folder = during.enter_context(tempfile.TemporaryDirectory())
        during.enter_context(mock.patch.object(loop, "RunLog", noting(notes)))
        during.enter_context(utilisation.sampling())
        during.enter_context(redirect_stdout(io.StringIO()))
        train(config_of(args, images, annotations, name), Path(folder, "run"))
    nvml = utilisation.mean((notes.begun[epoch], notes.ended[epoch]) for epoch in notes.measured())
    known = [share for share in (nvml, notes.busy) if share is not None]
    return {
        "pictures_per_second": notes.rate(),
        "waiting": notes.waiting(),
        "busy_nvml": nvml,
        "busy_profiler": notes.busy,
        "busy": min(known, default=None),
        "first_step_seconds": notes.first_step,
        "epoch_seconds": [end - begin for begin, end in zip(notes.begun, notes.ended, strict=True)],
        "graphs_of_first_epoch": notes.graphs[0],
        "graphs_after": notes.graphs[-1] - notes.graphs[0],
    }


def compared(rounds: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the rounds, and the rate of the second setting over that of the first in those that both have."""
    first, second = rounds
    pairs = zip(rounds[first], rounds[second], strict=False)
    ratio = _median([b["pictures_per_second"] / a["pictures_per_second"] for a, b in pairs])
    medians = {}
    for name, results in rounds.items():
        keys = ("pictures_per_second", "waiting", "busy", "busy_nvml", "busy_profiler")
        medians[name] = {key: _median([one[key] for one in results]) for key in keys}
    return {"second_over_first": ratio, "medians": medians, "rounds": dict(rounds)}


def _median(values: Sequence[float | None]) -> float | None:
    """None where there is none, or one of them is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def result_of(args: argparse.Namespace, rounds: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """All that is written."""
    return compared(rounds) | {
        "pictures": "generated" if args.images is None else "real",
        **{key: getattr(args, key) for key in ("backbone", "size", "batch", "epochs", "workers", "canvases")},
        "gpu": card_of("cuda" if torch.cuda.is_available() else "cpu"),
        "torch": torch.__version__,
    }


def trainings(args: argparse.Namespace) -> dict[str, Any]:
    """The result of all of them; written after each."""
    names = [FULL, COMPILED] if args.compile else [PLAIN, FULL]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, empty_compile_cache() if args.compile else nullcontext():
        images, annotations = args.images, args.annotations
        if images is None:
            images, annotations = write_generated_photos(Path(folder, "data"), args.photos, different=128)
        for number in range(args.rounds):
            # compiled first: if time runs out, how many graphs it made is known
            for name in names[::-1] if (number + args.compile) % 2 else names:
                found[name].append(training(args, images, annotations, name))
                if args.json:
                    write_atomically(args.json, (json.dumps(result_of(args, found), indent=1) + "\n").encode())
    return result_of(args, found)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of real pictures, with --annotations")
    parser.add_argument("--annotations", type=Path, help="COCO instances file of --images")
    parser.add_argument("--photos", type=int, default=1024, help="generated ones; 128 are different")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=320, help="shorter side, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=5, help="of a training; at least 3")
    parser.add_argument("--workers", type=int, default=min(8, max(1, (os.cpu_count() or 1) - 1)))
    parser.add_argument("--canvases", type=int, default=CANVASES, help="`train.canvases`")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="eager against compiled, both with augmentation")
    parser.add_argument("--quick", action="store_true", help="few pictures, small backbone: does it run?")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.quick:
        args.backbone, args.size, args.batch, args.photos = "test_efficientnet", 64, 4, 8
        args.epochs, args.workers, args.rounds = 3, min(1, args.workers), 1
    if args.epochs < 3:
        parser.error(f"--epochs {args.epochs}: expected at least 3, the first and the last are not measured")
    return args


def main() -> None:
    print_result(trainings(arguments()))


def print_result(result: Mapping[str, Any]) -> None:
    about = f"{result['backbone']}, {result['size']} px, batch {result['batch']}, {result['workers']} workers"
    print(f"{about}, {result['gpu'] or 'cpu'}, torch {result['torch']}")
    for name, row in result["medians"].items():
        busy = "".join(f", {key} {row[key]:.0%}" for key in ("busy_nvml", "busy_profiler") if row[key] is not None)
        print(f"{name:28} {row['pictures_per_second']:7.1f} pictures/s, waiting {row['waiting']:.0%}{busy}")
        for one in result["rounds"][name]:
            graphs = f"graphs {one['graphs_of_first_epoch']} in the first epoch, {one['graphs_after']} after it"
            print(f"{'':28} first step after {one['first_step_seconds']:.1f} s; {graphs}")
    print(f"the second is {result['second_over_first']:.3f} times as fast as the first (median of rounds)")


if __name__ == "__main__":
    main()
