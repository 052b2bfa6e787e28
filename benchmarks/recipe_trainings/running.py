"""Trainings side by side: the slots of a process, the queue, the records."""

from __future__ import annotations

import gc
import queue
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdet.losses import dataset_aware_focal_loss
from crossdet.models.retinanet.anchors import pyramid_grids
from crossdet.models.retinanet.network import Outputs, RetinaNet
from crossdet.types import BACKGROUND, IGNORE
from recipe_trainings.pictures import LONGER, Judge, Pictures
from recipe_trainings.plans import BASE, CONFIGURED, Run
from recipe_trainings.training import Training, features_of, focal_loss


class Slot:
    """A training under way in a process: what it still has to do, and its record so far."""

    def __init__(self, run: Run, shared: Shared, pictures: Pictures, judge: Judge) -> None:
        begun = time.perf_counter()
        self.run, self.judge, self.at = run, judge, 0
        self.training = Training(run.data, shared.folder / "deal", pictures, run.options, run.seed)
        if shared.graphs:
            self.training.capture()
        steps = run.options.steps
        self.score_at = {round(share * steps) for share in run.scores}
        self.look_at = {round(share * steps) for share in run.looks}
        self.begun = time.perf_counter()
        self.record: dict[str, Any] = {
            "data": run.data,
            "name": run.name,
            "seed": run.seed,
            "options": asdict(run.options),
            "start_s": round(self.begun - begun, 1),
            "looks": {},
            "scores": {},
        }
        if 0 in self.look_at:
            self.record["looks"][0] = features_of(self.training, judge.probe())

    @property
    def done(self) -> bool:
        return self.at >= self.run.options.steps

    def advance(self, most: int) -> None:
        """Queues steps up to the next stop."""
        stop = min(s for s in (*self.score_at, *self.look_at, self.run.options.steps) if s > self.at)
        count = min(most, stop - self.at)
        self.training.advance(count)
        self.at += count

    def look(self, last: bool, scorer: ThreadPoolExecutor) -> None:
        """Features and scores that are due. last: time is up."""
        last = last or self.done
        if self.at in self.look_at or last:
            self.record["looks"][self.at] = features_of(self.training, self.judge.probe())
        if self.run.scores and (self.at in self.score_at or last):
            self._score("raw", self.training.detector.eval(), scorer)
            self.training.train_mode()
            if last:
                self._score("ema", self.training.average, scorer)

    def _score(self, name: str, model: RetinaNet, scorer: ThreadPoolExecutor) -> None:
        outputs = self.judge.outputs(model, self.training.autocast())
        scorer.submit(write_scores, self.record, self.at, name, self.judge, outputs)

    def finish(self, scorer: ThreadPoolExecutor, results: Any) -> None:
        """Hands the record over once it is scored; the one thread of `scorer` keeps the order."""
        self.record |= {
            "steps_done": self.at,
            "train_s": round(time.perf_counter() - self.begun, 1),
            "log": _thinned(self.training.log[: self.at]),
        }
        scorer.submit(results.put, self.record)


def write_scores(record: dict[str, Any], at: int, name: str, judge: Judge, outputs: list[Outputs]) -> None:
    try:
        record["scores"].setdefault(at, {})[name] = judge.scores(outputs)
    except Exception:
        record["error"] = traceback.format_exc()


def worker(shared: Shared) -> None:
    """Keeps `shared.slots` trainings under way until there are no more, or time is up."""
    torch.set_num_threads(1)
    gc.disable()  # else the scorer's thread may free memory of the card while a step is captured
    loaded: dict[str, tuple[Pictures, Judge]] = {}
    slots: list[Slot] = []
    with ThreadPoolExecutor(1) as scorer:
        while True:
            late = time.time() > shared.until
            while not late and len(slots) < shared.slots and (slot := next_slot(shared, loaded)):
                slots.append(slot)
            if not slots:
                break
            for slot in slots if not late else ():
                slot.advance(20)
            if shared.device.type == "cuda":
                torch.cuda.synchronize()
            for slot in slots:
                slot.look(late, scorer)
                if late or slot.done:
                    slot.finish(scorer, shared.results)
            slots = [slot for slot in slots if not late and not slot.done]
    shared.results.put(None)


def next_slot(shared: Shared, loaded: dict[str, tuple[Pictures, Judge]]) -> Slot | None:
    """The next training of the queue that can be started; None if there is none."""
    while True:
        try:
            run = shared.jobs.get(timeout=0.2)
        except queue.Empty:
            return None
        gc.collect()
        try:
            if run.data not in loaded:
                stored = torch.load(shared.folder / f"{run.data.replace('/', '_')}.pt")
                judge = Judge(run.data, shared.folder / "deal", shared.device)
                loaded[run.data] = Pictures(**stored).to(shared.device), judge
            return Slot(run, shared, *loaded[run.data])
        except Exception:
            shared.results.put({"data": run.data, "name": run.name, "error": traceback.format_exc()})


def _thinned(log: Tensor) -> dict[str, list[float]]:
    """Means over pieces of 50 steps (the first 10 steps one by one): class and box loss, gradient norms."""
    names = ("classification", "box", "gradient", "backbone_gradient")
    first, rest = log[:10], log[10:]
    pieces = [*first, *(piece.mean(0) for piece in rest.split(50) if len(piece))]
    if not pieces:
        return {}
    table = torch.stack(pieces).T.tolist()
    return {name: [float(f"{v:.4g}") for v in row] for name, row in zip(names, table, strict=True)}


@dataclass
class Shared:
    """What all processes know. until: time of the clock at which they stop. graphs: whether steps are captured.

    slots: trainings at once in each. jobs, results: queues of runs and of records.
    """

    folder: Path
    device: torch.device
    until: float
    graphs: bool = True
    slots: int = 4
    jobs: Any = None
    results: Any = None


def check_loss() -> None:
    """The loss here against the package's, on random labels, in float64."""
    torch.manual_seed(0)
    images, anchors, classes = 3, 500, 4
    labels = torch.randint(IGNORE, classes, (images, anchors))
    trusted = torch.rand(images, classes) < 0.6
    logits = torch.randn(images, anchors, classes, dtype=torch.float64)
    mine = focal_loss(logits, labels, trusted)
    theirs = dataset_aware_focal_loss(logits, labels, trusted)
    assert torch.allclose(mine, theirs), (mine, theirs)


def streams_pay(deal: Path) -> dict[int, float] | None:
    """Steps per second of 1, 2, 4 and 8 detectors at once in this process, on random data; None where a step
    cannot be captured. It runs while the pictures are prepared."""
    generator = torch.Generator().manual_seed(0)
    anchors = 9 * sum(rows * columns for rows, columns in pyramid_grids(LONGER, LONGER, 5))
    labels = torch.full((16, anchors), BACKGROUND, dtype=torch.int8)
    labels[:, :40] = 0
    pictures = Pictures(
        images=torch.randint(0, 256, (16, 3, LONGER, LONGER), generator=generator, dtype=torch.uint8),
        labels=labels,
        anchor=torch.arange(40, dtype=torch.int32).repeat(16, 1),
        count=torch.full((16,), 40),
        deltas=torch.zeros(16, 40, 4),
        trusted=torch.ones(16, 7, dtype=torch.bool),
    ).to(torch.device("cuda"))
    found = {}
    trainings: list[Training] = []
    try:
        for number in (1, 2, 4, 8):
            while len(trainings) < number:
                options = BASE if len(trainings) % 2 else CONFIGURED
                trainings.append(Training("site_safety", deal, pictures, options, len(trainings)))
                trainings[-1].capture()
            begun = time.perf_counter()
            for _ in range(20):
                for training in trainings:
                    training.advance(1)
            torch.cuda.synchronize()
            found[number] = round(20 * number / (time.perf_counter() - begun), 1)
        if not all(bool(torch.isfinite(t.log[:20]).all()) and float(t.log[19, 0]) > 0 for t in trainings):
            raise RuntimeError(f"a captured step gives {trainings[0].log[:20].tolist()}")
    except Exception:
        traceback.print_exc()
        return None
    return found


def show(record: dict[str, Any], started: float) -> None:
    if "error" in record:
        print(f"{record['data']} {record['name']}: {record['error'][-600:]}", flush=True)
        return
    last = list(record["scores"].values())[-1] if record["scores"] else {}
    look = list(record["looks"].values())[-1] if record["looks"] else {}
    scores = " ".join(f"{k} {v['AP']:.1f}/{v['AP50']:.1f}" for k, v in last.items())
    print(
        f"[{time.time() - started:.0f}] {record['data']} {record['name']} s{record['seed']} "
        f"{record['steps_done']} {scores} dead {100 * look.get('dead_in_blocks.6.0.bn1', -1):.0f}% "
        f"C5v {look.get('variation_C5', -1):.2f} in {record['train_s']} s",
        flush=True,
    )
