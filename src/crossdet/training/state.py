"""Where a training stands: weights, averages, optimiser and progress, saved and restored as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from crossdet.data.canvases import Canvas
from crossdet.data.hybrid import HybridDataset
from crossdet.errors import Diverged, Interrupted, UserError
from crossdet.models.card import Card
from crossdet.models.contract import Network
from crossdet.models.weights import BEST_FILE, STATE_FILE, kept, load_state, save_state, save_weights
from crossdet.training.compiling import Compiling
from crossdet.training.identity import Identity, check_identity
from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Clock, Judged, Schedule
from crossdet.training.watch import Watch


class Average(AveragedModel):
    """An exponential moving average of a network's weights, which follows it by `update_parameters`.

    The first update takes the weights as they are. The decay after n updates is at most
    (1 + n) / (10 + n), as with `num_updates` of TensorFlow's ExponentialMovingAverage: the average reaches back
    over a tenth of the updates so far, and a short training forgets its random beginning.
    Floating-point buffers are averaged, too; others (counts, which box subnet a class has) are copied, since a mean
    of them means nothing.

    torch's own update walks through both networks and sorts their tensors anew at every step, which took 3.3 ms on
    a CPU for a ResNet-50 and kept a GPU waiting; here that is done once.
    """

    def __init__(self, network: Network, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay
        self._pairs: tuple[tuple[list[Tensor], list[Tensor]], ...] = ()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """model: the same network every time."""
        if not self._pairs:
            self._pairs = _by_kind(_tensors(self.module), _tensors(model))
        means, copies = self._pairs
        count = int(self.n_averaged)  # it lies on the CPU
        if means[0] and count:
            torch._foreach_lerp_(*means, 1 - min(self.decay, (1 + count) / (10 + count)))
        elif means[0]:
            torch._foreach_copy_(*means)
        if copies[0]:
            torch._foreach_copy_(*copies)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*network.parameters(), *network.buffers())]


def _by_kind(averages: list[Tensor], current: list[Tensor]) -> tuple[tuple[list[Tensor], list[Tensor]], ...]:
    """Those that are averaged, and those that are copied."""
    pairs = list(zip(averages, current, strict=True))
    parts = [[pair for pair in pairs if pair[0].is_floating_point() is mean] for mean in (True, False)]
    return tuple(([one for one, _ in part], [other for _, other in part]) for part in parts)


def sum_over_ranks(fabric: Fabric, tensor: Tensor) -> Tensor:
    # all_reduce works in place on some strategies, and the local sums are still needed
    return cast(Tensor, fabric.all_reduce(tensor.clone(), reduce_op="sum"))


def lines_of_all_ranks(fabric: Fabric, lines: list[str]) -> list[str]:
    """Those of every process, each once."""
    if fabric.world_size == 1:
        return lines
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, lines)
    return list(dict.fromkeys(line for part in everyone for line in part))


@dataclass
class Progress:
    """Where a run stands: everything of the resumable state that is not a tensor.

    best_epoch: the one whose weights are kept as the best, from 1. unreadable: one line per image that could not be
    read so far. clock: of the time so far, and of a recipe's minutes. guard: what `Watch` remembers. canvases: of
    its batches, empty without; None: not chosen yet. epochs: how many the training is to have, None where steps or
    minutes end it. pieces: micro-batches, of all processes, that the batches of the epoch were made for; None: not
    known of an older state.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_epoch: int | None = None
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    guard: dict[str, Any] = field(default_factory=dict)
    canvases: tuple[Canvas, ...] | None = None
    epochs: int | None = None
    pieces: int | None = None

    @classmethod
    def from_state(cls, stored: dict[str, Any]) -> Progress:
        """Of a state; one of an older version knows the best mean instead of its epoch, and no canvases."""
        values = {"canvases": (), **stored}
        if "best" in values:
            best = values.pop("best")
            of_best = [r["epoch"] for r in values["history"] if r.get("metrics", {}).get("mean") == best]
            values["best_epoch"] = of_best[0] if of_best else None
        clock: dict[str, Any] = values.pop("clock", {})
        return cls(**values, clock=Clock(**clock))


class DatasetTotals:
    """Loss, positives, images and what else the network notes, per dataset within one epoch.

    noted: names of `Losses.noted` that are summed; others are left out.
    """

    def __init__(self, names: Sequence[str], device: torch.device, noted: Sequence[str] = ()) -> None:
        self.names, self.noted = list(names), list(noted)
        self.sums = torch.zeros(3 + len(noted), len(names), dtype=torch.float64, device=device)

    def add(
        self, dataset_ids: Tensor, image_loss: Tensor, image_positives: Tensor, noted: Mapping[str, Tensor]
    ) -> None:
        ones = torch.ones_like(image_loss)
        rows = [image_loss, image_positives, ones, *(noted[name] for name in self.noted)]
        self.sums.index_add_(1, dataset_ids, torch.stack([row.to(ones.dtype) for row in rows]).double())

    def rows(self, sums: Tensor) -> dict[str, dict[str, float]]:
        """Per dataset that gave images: loss per positive, positives, images, and means over the images."""
        found = {}
        for name, (loss, positives, images, *more) in zip(self.names, sums.T.tolist(), strict=True):
            if images:
                means = {key: value / images for key, value in zip(self.noted, more, strict=True)}
                of_loss = {"loss": loss / max(1.0, positives), "positives": positives, "images": images}
                found[name] = of_loss | means
        return found


class EpochData(NamedTuple):
    """What an epoch trains on. background_weight: `[K, C]` float32 by dataset, see `Batch`; None: all 1."""

    dataset: HybridDataset
    background_weight: Tensor | None = None


DataOfEpoch = Callable[[int, int, Network, int | None], EpochData]
"""(epoch from 0, its steps done, the weights that teach, the epoch of the saved state) -> what the epoch trains on.

A resumed run asks again: before the first step of an epoch the same weights must give the same answer, and after it
the answer must be the one that the epoch began with.
"""


@dataclass(frozen=True)
class Course:
    """What a training does besides following its recipe.

    after_step: called after every update of the weights, before they are averaged or saved.
    hold_to: a network of the first classes, and the weight of holding to its answers (`Growable.hold_to`).
    fixed_statistics: see `Network.training_mode`.
    data_of: what each epoch trains on, if not always the same.
    teacher_decay: of averaged weights that only label for the training itself; without `Recipe.ema`.
    labels_from: epochs after which the network labels for itself. watch: looks at it and warns.
    """

    after_step: Callable[[], None] | None = None
    hold_to: tuple[Network, float] | None = None
    fixed_statistics: bool = False
    data_of: DataOfEpoch | None = None
    teacher_decay: float | None = None
    labels_from: int | None = None
    watch: Watch = field(default_factory=Watch)


@dataclass
class RunState:
    """What a checkpoint holds, and where it goes.

    compiling: see there; from the choice of canvases on. stop: somebody wants the training to end. asked: whether
    one of several processes has been long without a checkpoint, and whether one is to stop, as of the newest step.
    lost_best: the best weights of a resumed run are gone; the next that are judged take their place.
    """

    fabric: Fabric
    network: Network
    optimizer: Any
    average: Average | None
    run_dir: Path
    card: Card
    course: Course = field(default_factory=Course)
    identity: Identity | None = None
    teacher: Average | None = None
    compiling: Compiling = field(init=False)
    stop: threading.Event = field(default_factory=threading.Event)
    asked: tuple[bool, bool] = (False, False)
    progress: Progress = field(default_factory=Progress)
    totals: DatasetTotals | None = None
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0
    saved_epoch: int | None = None
    lost_best: bool = False
    seen_at: float = field(default_factory=lambda: time.monotonic())

    def final_network(self) -> Network:
        """The weights that count: the moving average where there is one."""
        if self.average is None:
            return self.network
        return cast(Network, self.average.module)

    def teacher_network(self) -> Network:
        """The weights that label for the training itself: an average of their own where none counts."""
        return self.final_network() if self.teacher is None else cast(Network, self.teacher.module)

    def after_update(self) -> None:
        """What follows an update of the weights: what the course says, and the averages."""
        if self.course.after_step is not None:
            self.course.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        for average in (self.average, self.teacher):
            if average is not None:
                average.update_parameters(self.network)

    def look_at_clock(self, recipe: Recipe, judged: Judged | None = None) -> None:
        """After every step: the time that it took, and where a recipe has minutes, the pace from time to time.
        judged: see `Clock.fit`."""
        self._read_clock()
        clock, step, minutes = self.progress.clock, self.progress.step, recipe.minutes
        if minutes is None or not (clock.line is None or clock.wants_fit(step, minutes, judged)):
            return
        if self.fabric.world_size > 1:  # clocks differ between processes, the schedule must not
            clock = self.progress.clock = self.fabric.broadcast(clock)
        if clock.wants_fit(step, minutes, judged):
            clock.fit(step, minutes, judged)

    def _read_clock(self) -> float:
        """Adds the time since the last reading to what is spent, and returns that."""
        clock, now = self.progress.clock, time.monotonic()
        clock.spent, self.seen_at = clock.spent + now - self.seen_at, now
        return clock.spent

    @contextmanager
    def evaluation(self, done: float) -> Iterator[None]:
        """Around an evaluation, when this share of the training is done."""
        began = self._read_clock()
        yield
        # all of it is spent before the state is saved: the pace is that of what was spent and not evaluated
        clock, ended = self.progress.clock, self._read_clock()
        clock.evaluated, clock.evaluations = clock.evaluated + ended - began, clock.evaluations + 1
        clock.judged_at = done
        if self.fabric.world_size > 1:
            self.progress.clock = self.fabric.broadcast(clock)

    def share_buffers(self) -> None:
        """The first process's running statistics for all: those that are saved, and so those that are judged.

        Under DDP each has its own after a step, and its averages have had their own all the time.
        """
        if self.fabric.world_size == 1:
            return
        for network in (self.network, self.average, self.teacher):
            for buffer in () if network is None else network.buffers():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)

    def save_weights(self, name: str, card: Card) -> None:
        if self.fabric.is_global_zero:
            save_weights(self.run_dir / name, self.final_network().state_dict(), card)

    def stop_if_diverged(self) -> None:
        """The loss is checked before a step; the step itself can still overflow (alike on all ranks)."""
        names, values = zip(*self.network.named_parameters(), strict=True)
        finite = torch.stack([torch.isfinite(value).all() for value in values]).tolist()  # waits once
        broken = [name for name, good in zip(names, finite, strict=True) if not good]
        if broken:
            raise Diverged(
                f"the weights are no longer finite after step {self.progress.step} ({broken[0]}"
                f"{', ...' if len(broken) > 1 else ''}); they are not saved; {kept(self.run_dir)}. A lower "
                f"`train.lr` or `train.clip_norm: 1.0` usually helps"
            )

    def save_state(self) -> None:
        """Everything that the next step depends on; the random state is for backbones with dropout."""
        self.stop_if_diverged()
        mine = [torch.get_rng_state()]
        if self.fabric.device.type == "cuda":
            mine.append(torch.cuda.get_rng_state(self.fabric.device))
        random_states: list[Any] = [mine]
        if self.fabric.world_size > 1:
            random_states = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(random_states, mine)
        sums = None
        if self.totals is not None:  # every process keeps its own share; the file has room for the sum only
            sums = sum_over_ranks(self.fabric, self.totals.sums)
        self.progress.unreadable = lines_of_all_ranks(self.fabric, self.progress.unreadable)
        if self.fabric.is_global_zero:
            state = {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "teacher": None if self.teacher is None else self.teacher.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "numbers": self.numbers,
                "progress": vars(self.progress) | {"clock": asdict(self.progress.clock)},
                "totals": None if sums is None else sums.cpu(),
                "names": None if self.totals is None else self.totals.names,
                "noted": None if self.totals is None else self.totals.noted,
                "random": random_states,
                "identity": self.identity,
            }
            save_state(self.run_dir / STATE_FILE, state)
        self.saved_at, self.saved_step = time.monotonic(), self.progress.step
        self.saved_epoch = self.progress.epoch
        self.fabric.barrier()

    def say(self, text: str) -> None:
        """On the terminal, once."""
        if self.fabric.is_global_zero:
            print(text, flush=True)

    @property
    def numbers(self) -> str:
        """The precision that is computed in, by Fabric's name."""
        return str(self.fabric.strategy.precision.precision)

    def restore(self, recipe: Recipe) -> None:
        """Raises `UserError` where the state is of another run, of another version or cannot go on as it was."""
        file = self.run_dir / STATE_FILE
        state = load_state(file)
        if self.identity is not None:
            check_identity(self.run_dir, state.get("identity"), self.identity)
        then = state.get("numbers", self.numbers)
        if recipe.precision == "auto" and then != self.numbers:
            raise UserError(
                f"{self.run_dir}: this run computed in {then}, and `train.precision: auto` means {self.numbers} on "
                f"this machine. Say `train.precision: {self.numbers}` to go on all the same"
            )
        try:
            self._take(state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
                raise  # of the device, not of the state
            kind, reason = type(error).__name__, " ".join(str(error).split())
            raise UserError(
                f"{file} does not fit what is trained here ({kind}: {reason[:200]}): it is damaged, or another "
                f"version of crossdet wrote it. Resume with that version, or begin anew with --overwrite"
            ) from None
        lost = self.progress.best_epoch is not None and not (self.run_dir / BEST_FILE).exists()
        self.lost_best = self.fabric.broadcast(lost)  # it may be on the first process's disk alone
        if self.lost_best and self.fabric.is_global_zero:
            print(
                f"warning: {self.run_dir / BEST_FILE}, of epoch {self.progress.best_epoch}, is gone: "
                f"the best from the next evaluation on will be kept",
                flush=True,
            )

    def _take(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        self._take_optimizer(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if self.teacher is not None:
            if state.get("teacher") is not None:
                self.teacher.load_state_dict(state["teacher"])
            else:  # the state of a run that had none begins it
                self.teacher.update_parameters(self.network)
        if state["precision"]:  # of float16; empty in other numbers
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.progress = Progress.from_state(state["progress"])
        self.saved_step, self.saved_epoch = self.progress.step, self.progress.epoch
        self._restore_random(state["random"])
        if state["totals"] is not None:
            # an older state counted nothing else so far: a mean of the rest of the epoch would pass for the whole
            self.totals = DatasetTotals(state["names"], self.fabric.device, state.get("noted", ()))
            if self.fabric.is_global_zero:
                self.totals.sums += state["totals"].to(self.fabric.device)

    def _take_optimizer(self, state: dict[str, Any]) -> None:
        """With the decay and the backbone's share that the run began with, also where this version means others by
        the same config; it says so, for others were printed."""
        meant = self._decay_and_share()
        self.optimizer.load_state_dict(state)
        if (begun := self._decay_and_share()) != meant:
            self.say(
                f"goes on as it began: weight decay {begun[0]:g}, the backbone at {begun[1]:g} of the learning "
                f"rate (this version would take {meant[0]:g} and {meant[1]:g})"
            )

    def _decay_and_share(self) -> tuple[float, float]:
        groups = self.optimizer.param_groups
        decay = max(group["weight_decay"] for group in groups)
        return decay, min(group.get("rate_factor", 1.0) for group in groups)

    def _restore_random(self, of_ranks: Sequence[Sequence[Tensor]]) -> None:
        """By as many processes as it was; by others nothing random is as it would have been."""
        if len(of_ranks) != self.fabric.world_size:
            self.say(
                f"resume: this run was of {len(of_ranks)} process(es) and goes on with {self.fabric.world_size}: "
                f"sums are rounded otherwise, and the last batches of an epoch may be others"
            )
        else:
            mine = of_ranks[self.fabric.global_rank]
            torch.set_rng_state(mine[0])
            if self.fabric.device.type == "cuda" and len(mine) > 1:
                torch.cuda.set_rng_state(mine[1], self.fabric.device)

    def lengthen(self, schedule: Schedule) -> str | None:
        """A restored run goes on to the end of a longer schedule; what that means. None: it is not longer.

        What is left has the learning rates of the new schedule, whether or not those so far were its own."""
        progress, more = self.progress, schedule.epochs
        before, progress.epochs = progress.epochs, more
        if before is None or more is None or more <= before:
            return None
        progress.finished = False
        progress.clock.judged_at *= before / more
        then, place = schedule.began_as(before), (float(progress.epoch), progress.step)
        if schedule.continues(then, *place):
            return (
                f"train.epochs: {before} -> {more}, as if it had begun with {more}: its learning rates are the same"
            )
        return (
            f"train.epochs: {before} -> {more}. So far the learning rate was that of {before} epochs (it would be "
            f"{then.rate_at(*place):.2g} now); it goes on as that of {more} ({schedule.rate_at(*place):.2g} now), "
            f"which is not the same as a training that begins with {more}"
        )

    def is_late(self, recipe: Recipe) -> bool:
        return time.monotonic() - self.saved_at > 60 * recipe.checkpoint_minutes

    def all_finite(self, loss: Tensor, recipe: Recipe) -> bool:
        """Whether the losses are finite in every process; they tell each other at once what they ask for.
        loss: of any shape."""
        finite = torch.isfinite(loss.detach()).all()
        if self.fabric.world_size == 1:
            return bool(finite)
        wishes = torch.tensor([float(self.is_late(recipe)), float(self.stop.is_set())])
        told = torch.cat([(~finite).float().view(1), wishes.to(finite.device, non_blocking=True)])
        broken, late, stopped = sum_over_ranks(self.fabric, told).tolist()
        self.asked = late > 0, stopped > 0
        return not broken

    def save_if_due(self, recipe: Recipe) -> None:
        """Saves every `checkpoint_steps` steps or `checkpoint_minutes`, and when asked to stop."""
        due = recipe.checkpoint_steps is not None and self.progress.step % recipe.checkpoint_steps == 0
        late, stopped = self.is_late(recipe), self.stop.is_set()
        if self.fabric.world_size > 1:  # clocks and signals differ between processes, decisions must not
            late, stopped = self.asked
        if due or late or stopped:
            self.save_state()
        if stopped:
            raise Interrupted(
                f"interrupted after step {self.progress.step}; the state is saved in {self.run_dir}, "
                f"continue with the same command and --resume"
            )
