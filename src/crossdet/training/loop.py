"""The training loop, in plain sight: `fit` is setup, the epochs, and what is written when."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from crossdet.data.hybrid import Draw, HybridDataset
from crossdet.data.loading import MicroBatches, epoch_batches, is_dead_worker
from crossdet.errors import Diverged, RunError, UserError
from crossdet.files import write_json
from crossdet.models.card import Card
from crossdet.models.contract import Growable, Network, step_divisor
from crossdet.models.weights import BEST_FILE, METRICS_FILE, STATE_FILE, WEIGHTS_FILE, kept, save_state
from crossdet.training.choosing import is_better
from crossdet.training.compiling import Compiling
from crossdet.training.feed import Feed
from crossdet.training.identity import Identity
from crossdet.training.log import RunLog, Step
from crossdet.training.optimiser import make_optimiser, set_rate
from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Schedule
from crossdet.training.signals import stop_signals
from crossdet.training.state import (
    Average,
    Course,
    DatasetTotals,
    EpochData,
    Progress,
    RunState,
    lines_of_all_ranks,
    sum_over_ranks,
)
from crossdet.types import Batch

Evaluate = Callable[[Network, str], dict[str, Any]]
"""(network, when) -> metrics; `choosing` decides by them which weights are the best."""
Describe = Callable[[dict[str, Any]], Card]
"""metrics -> the card of the weights that they are of."""
SECONDS_TO_END = 5.0
"""A process that is being killed may take until it has ended."""
STEPS_APART = 100
"""Epochs without an evaluation, but for the first, write weights and state only so many steps after the last time:
with a handful of pictures, writing would take longer than training."""


class StepLosses(NamedTuple):
    """What `TrainStep` gives. terms: a scalar for each term of the loss, to be summed and differentiated. For the
    logs, detached, per image: the sum of all terms `[B]` (not normalised), the positives `[B]`, `Losses.noted`."""

    terms: dict[str, Tensor]
    image_loss: Tensor
    positives: Tensor
    noted: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        return cast(Tensor, sum(self.terms.values()))


class Sealed:
    """Carries a batch through Fabric's forward.

    Under mixed precision Fabric walks into the arguments to convert floats and refuses frozen dataclasses
    (2.6.6); an object it does not know passes as it is, and boxes stay float32.
    """

    def __init__(self, batch: Batch, divisor: Tensor | None = None) -> None:
        """divisor: see `Losses.normalised`."""
        self.batch, self.divisor = batch, divisor


class TrainStep(nn.Module):
    """The one forward that autocast and DDP see."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch | Sealed) -> StepLosses:
        """Raises `ValueError` for a batch whose colours were drawn and not changed (`data.colour.coloured`)."""
        seen, divisor = (batch.batch, batch.divisor) if isinstance(batch, Sealed) else (batch, None)
        if seen.colours is not None:
            raise ValueError("the batch is not in its colours yet: colour.coloured(batch, batch.sizes.tolist())")
        losses = self.network.losses(seen)
        terms = losses.normalised(self.network.normaliser, divisor)
        return StepLosses(terms, losses.of_images(), losses.positives, losses.noted)


def fit(
    fabric: Fabric,
    network: Network,
    dataset: HybridDataset,
    dataset_names: Sequence[str],
    schedule: Schedule,
    seed: int,
    run_dir: Path,
    card: Card,
    evaluate: Evaluate | None = None,
    describe: Describe | None = None,
    course: Course | None = None,
    resume: bool = False,
    identity: Identity | None = None,
) -> dict[str, Any]:
    """Trains `network` (what of it requires a gradient) and returns the last epoch's record (losses, metrics).

    Writes into `run_dir`: `state.pt` (resumable), `model.safetensors` (newest weights), `best.safetensors`,
    `metrics.json`, `steps.csv`, TensorBoard logs. With `resume` it continues exactly where `state.pt` stands.
    card: what the weights say about themselves. evaluate: -> metrics; describe: metrics -> the card with them.
    identity: kept in the state; a run with another one is not resumed.

    Raises:
        UserError: the state is that of another run (`check_identity`).
        RunError: non-finite loss (the batch is saved), interruption, or a file that cannot be written.
    """
    course, recipe = course or Course(), schedule.recipe
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    step_module, optimizer = fabric.setup(
        TrainStep(network), make_optimiser(network, recipe, scaled, schedule.start)
    )
    average, teacher = None, None
    if recipe.ema is not None:
        average = Average(network, recipe.ema)
    elif course.teacher_decay is not None:
        teacher = Average(network, course.teacher_decay)
    # after the averages, which are copies of the network and need neither this nor compiled parts
    if course.hold_to is not None:
        cast(Growable, network).hold_to(*course.hold_to)
    run = RunState(fabric, network, optimizer, average, run_dir, card, course, identity, teacher)
    if resume and (run_dir / STATE_FILE).exists():
        run.restore(recipe)
        if (told := run.lengthen(schedule)) and fabric.is_global_zero:
            print(told, flush=True)
    run.progress.epochs = schedule.epochs
    if run.progress.canvases is None:
        run.progress.canvases = dataset.choose_canvases(0 if network.stretched_to else recipe.canvases)
    run.compiling = Compiling(fabric, network, recipe, len(run.progress.canvases))
    with RunLog(fabric, run_dir, run.progress.step, network.terms, recipe.loggers) as logs:
        data = EpochData(dataset)
        micro_batches = MicroBatches([], recipe.accumulate, fabric.global_rank, fabric.world_size)
        feed = Feed(network, micro_batches, recipe.loader_workers(fabric.device.type == "cuda"))
        course.watch.begin(run)
        with closing(feed), stop_signals() as run.stop, _dead_workers_told(run_dir, feed):
            while run.progress.epoch != schedule.epochs and not run.progress.finished:
                if course.data_of is not None:
                    at = run.progress.epoch, run.progress.step_in_epoch
                    data = course.data_of(*at, run.teacher_network(), run.saved_epoch)
                record = _train_epoch(run, step_module, data, feed, dataset_names, schedule, seed, logs)
                _finish_epoch(run, schedule, record, evaluate, describe, logs)
        run.progress.finished = True
        run.save_state()
        course.watch.end(run)
    return run.progress.history[-1] if run.progress.history else {}


@contextmanager
def _dead_workers_told(run_dir: Path, feed: Feed) -> Iterator[None]:
    """A loader process that was killed is no traceback, wherever that is noticed. As a rule torch says it at once;
    where that is lost, the batch that the process had promised cannot be fetched from it."""
    try:
        try:
            yield
        except (ConnectionError, EOFError):
            # What a killed one had begun to send is found torn before its end is known. While that is waited for
            # torch's handler of SIGCHLD may raise, which is told below.
            feed.lost_a_process(SECONDS_TO_END)
            raise
    except (UserError, RunError):
        raise
    except Exception as error:
        with _deaf_to_children():
            if not is_dead_worker(error) and not feed.lost_a_process():
                raise
            feed.abandon()
        raise RunError(
            f"a loader process ended before its time ({str(error).strip()}): too little memory is the usual "
            f"reason, so try fewer `train.workers`. In {run_dir} {kept(run_dir)}; go on with the same command and "
            f"--resume"
        ) from None


@contextmanager
def _deaf_to_children() -> Iterator[None]:
    """Without torch's handler of SIGCHLD, which raises for every process that is killed, in the midst of
    anything."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:  # not in the main thread, where it does not raise either
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


@contextmanager
def _memory_told(run: RunState, recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        each = -(-recipe.batch_size // (run.fabric.world_size * recipe.accumulate))
        fewer = f"`train.accumulate: {2 * recipe.accumulate}` (batches as large, half of it at once), " * (each > 1)
        fewer = "`train.compile: false` (with which this run can be resumed), " * run.compiling.unasked + fewer
        raise RunError(
            f"{run.fabric.device} ran out of memory at step {run.progress.step + 1}, with {each} pictures at once "
            f"({str(error).splitlines()[0]}). Less is needed by {fewer}a lower `train.batch_size` or "
            f"`input.shorter`, in a run that begins anew, and by `train.precision: bf16-mixed`, with which this "
            f"one can be resumed"
        ) from None


def _train_epoch(
    run: RunState,
    step_module: Any,
    data: EpochData,
    feed: Feed,
    dataset_names: Sequence[str],
    schedule: Schedule,
    seed: int,
    logs: RunLog,
) -> dict[str, Any]:
    """The steps of one epoch (the rest of it, after a resume)."""
    fabric, progress, recipe, device = run.fabric, run.progress, schedule.recipe, run.fabric.device
    dataset = data.dataset
    batches = _batches(run, recipe, dataset, seed)
    totals = run.totals or DatasetTotals(dataset_names, device, run.network.noted)
    run.totals = totals
    run.network.training_mode(run.course.fixed_statistics)
    stream = feed.epoch(data, batches[progress.step_in_epoch :])
    logs.start_epoch()
    first = progress.step_in_epoch
    for step_in_epoch in range(first, len(batches)):
        # a last batch of a few images is no reason for a full step
        share = min(1.0, len(batches[step_in_epoch]) / recipe.batch_size)
        epoch = progress.epoch + step_in_epoch / len(batches)
        rate = schedule.rate(epoch, progress.step, schedule.done(epoch, progress.step, progress.clock))
        began, waited = time.perf_counter(), feed.waited if step_in_epoch > first else 0.0
        with _memory_told(run, recipe):
            losses, norm = _optimiser_step(run, step_module, stream, dataset, recipe, share * rate, totals, logs)
        seconds, waited = time.perf_counter() - began, feed.waited - waited
        progress.step_in_epoch, progress.step = step_in_epoch + 1, progress.step + 1
        run.look_at_clock(recipe, schedule.judged(progress.epoch, step_in_epoch + 1, len(batches)))
        progress.finished = schedule.is_over(progress.step, progress.clock)
        left = schedule.steps_left(progress.epoch, step_in_epoch + 1, len(batches), progress.step, progress.clock)
        place = (progress.step, progress.epoch, progress.step_in_epoch, len(batches))
        step = Step(*place, rate, losses, norm, left, feed.waited)
        logs.step(step, len(batches[step_in_epoch]), 1 if progress.finished else recipe.log_every)
        run.course.watch.step(run, losses)
        run.compiling.step(seconds, waited, left)
        if progress.finished:
            break
        run.save_if_due(recipe)
    run.totals = None
    progress.unreadable = lines_of_all_ranks(fabric, progress.unreadable)
    return {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "datasets": totals.rows(sum_over_ranks(fabric, totals.sums)),
        "unreadable": len(progress.unreadable),
    }


def _batches(run: RunState, recipe: Recipe, dataset: HybridDataset, seed: int) -> list[list[Draw]]:
    """Of the epoch. One that other processes have begun has the batches that it had: they depend on how many there
    are, and some pictures would come twice and others never."""
    progress, pieces = run.progress, run.fabric.world_size * recipe.accumulate

    def of(pieces: int) -> list[list[Draw]]:
        return epoch_batches(
            dataset.sizes(),
            dataset.draw_weights(),
            recipe.batch_size,
            seed,
            progress.epoch,
            recipe.group_aspect,
            min_batch=pieces,
            placing=dataset.placing(progress.canvases or ()),
        )

    if progress.step_in_epoch and progress.pieces not in (None, pieces):
        begun = of(cast(int, progress.pieces))
        if min(map(len, begun)) >= pieces:
            return begun
        run.say(
            "the rest of this epoch is in other batches than it began: some pictures may come twice, others never"
        )
    progress.pieces = pieces
    return of(pieces)


def _optimiser_step(
    run: RunState,
    step_module: Any,
    stream: Iterator[Batch],
    dataset: HybridDataset,
    recipe: Recipe,
    rate: float,
    totals: DatasetTotals,
    logs: RunLog,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Forward and backward of `accumulate` micro-batches and one update; the mean losses and the gradient norm."""
    set_rate(run.optimizer, rate)
    losses: dict[str, Tensor] = {}
    whole: list[Tensor] = []
    batches = [next(stream) for _ in range(recipe.accumulate)]
    divisor = None if recipe.accumulate == 1 else _divisor_of(run.network, batches)
    for line in dict.fromkeys(line for batch in batches for line in batch.unreadable):
        if line not in run.progress.unreadable:
            run.progress.unreadable.append(line)
            logs.unreadable(line)
    for micro, batch in enumerate(batches):
        with run.fabric.no_backward_sync(step_module, enabled=micro + 1 < recipe.accumulate):
            found = _forward_and_back(run, step_module, Sealed(batch, divisor), recipe.accumulate)
            whole.append(found.loss.detach())
        totals.add(batch.dataset_ids, found.image_loss, found.positives, found.noted)
        for name, value in found.terms.items():
            losses[name] = losses.get(name, 0) + value.detach() / recipe.accumulate
    # looks at the values, so it waits for the device: once, with all backward passes queued, before any update
    if not run.all_finite(torch.stack(whole), recipe):
        broken = [batch for batch, loss in zip(batches, whole, strict=True) if not bool(loss.isfinite())]
        _stop_with(run, broken[0] if broken else None, dataset)
    if run.fabric.world_size > 1:  # each process knows its share only; what is logged is the loss of all
        everyone = run.fabric.all_reduce(torch.stack(list(losses.values())), reduce_op="mean")
        losses = dict(zip(losses, cast(Tensor, everyone).unbind(), strict=True))
    norm = None
    if recipe.clip_norm is not None:
        # a gradient that is not finite is no traceback: float16 skips such a step, others stop at the next loss,
        # and asking for it would wait for the device
        norm = run.fabric.clip_gradients(
            step_module, run.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
        )
    run.optimizer.step()
    run.after_update()
    return losses, norm


def _divisor_of(network: Network, batches: Sequence[Batch]) -> Tensor:
    """Of the micro-batches of a step; all are counted before the first is computed."""
    return step_divisor([network.positives(batch).float() for batch in batches], network.normaliser)


def _forward_and_back(run: RunState, step_module: Any, sealed: Sealed, accumulate: int) -> StepLosses:
    """Where memory is not enough for parts that were compiled unasked, once more without them: in the first
    micro-batch, which is the first to use them."""
    again = run.compiling.unasked and all(p.grad is None for p in step_module.parameters())
    found: StepLosses | None = None
    try:
        found = _forward(step_module, sealed, run.compiling)
        run.fabric.backward(found.loss / accumulate)
    except torch.OutOfMemoryError:
        if not again:
            raise
        found = None  # and with it what the backward pass holds
    if found is not None:
        return found
    run.optimizer.zero_grad(set_to_none=True)  # of a backward pass that did not come to its end
    run.compiling.give_up("the memory of the device is not enough for it")
    torch.cuda.empty_cache()
    return _forward_and_back(run, step_module, sealed, accumulate)


def _forward(step_module: Any, sealed: Sealed, compiling: Compiling) -> StepLosses:
    """Raises `UserError` where `torch.compile` was asked for and finds no compiler, and batch norm nothing to take
    a mean of."""
    try:
        output: StepLosses = step_module(sealed)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if compiling.unasked:
            compiling.give_up(reason)
            return _forward(step_module, sealed, compiling)
        raise UserError(
            f"train.compile: torch.compile failed here ({reason}); it needs a C++ compiler on a CPU, Triton on a "
            f"GPU. Install it, or set train.compile=false"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch norm cannot be trained on one picture at once whose deepest map is a single cell: take more at "
            "once (`train.batch_size`, shared by `train.devices` and `train.accumulate`), a larger "
            "`input.shorter`, or `model.freeze_batch_norm: true`"
        ) from None
    return output


def _finish_epoch(
    run: RunState,
    schedule: Schedule,
    record: dict[str, Any],
    evaluate: Evaluate | None,
    describe: Describe | None,
    logs: RunLog,
) -> None:
    """Evaluates if it is time, keeps the best weights, and writes weights and state if enough is new."""
    run.stop_if_diverged()
    run.share_buffers()
    progress = run.progress
    progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
    last = progress.finished or progress.epoch == schedule.epochs
    done = schedule.done(progress.epoch, progress.step, progress.clock)
    card = run.card
    better = False
    if evaluate is not None and (last or schedule.evaluates(progress.epoch, done, progress.clock)):
        with run.evaluation(done):
            record["metrics"] = evaluate(run.final_network(), "last" if last else f"epoch {progress.epoch}")
        card = card if describe is None else describe(record["metrics"])
        better = _is_best(progress, record) or run.lost_best
    progress.history.append(record)
    if better:
        progress.best_epoch, run.lost_best = record["epoch"], False
    progress.finished |= _is_stuck(progress, schedule.recipe.patience)
    run.course.watch.epoch(run, done, record, over=last or progress.finished)
    logs.epoch(record)
    saves = last or "metrics" in record or progress.step - run.saved_step >= (STEPS_APART if run.saved_step else 1)
    if saves:
        run.save_weights(WEIGHTS_FILE, card)
    if better:
        run.save_weights(BEST_FILE, card)
    if run.fabric.is_global_zero:
        best = next((r["metrics"] for r in progress.history if r["epoch"] == progress.best_epoch), None)
        content = {
            "best_epoch": progress.best_epoch,
            "best": None if best is None else best.get("mean"),
            "epochs": progress.history,
            "recipe": schedule.lines(),
        }
        write_json(run.run_dir / METRICS_FILE, content)
    if saves:
        run.save_state()


def _is_best(progress: Progress, record: dict[str, Any]) -> bool:
    """Whether the weights of an evaluated epoch are better than those that are kept."""
    judged = [earlier for earlier in progress.history if "metrics" in earlier]
    epochs = [earlier["epoch"] for earlier in judged]
    kept = None if progress.best_epoch is None else epochs.index(progress.best_epoch)
    return is_better([earlier["metrics"] for earlier in judged], kept, record["metrics"])


def _is_stuck(progress: Progress, patience: int | None) -> bool:
    """Whether so many evaluations have passed since the best one."""
    later = sum("metrics" in record and record["epoch"] > (progress.best_epoch or 0) for record in progress.history)
    return patience is not None and "metrics" in progress.history[-1] and later >= patience


def _stop_with(run: RunState, batch: Batch | None, dataset: HybridDataset) -> NoReturn:
    """Raises `Diverged` with the batch in a file: in every process, or the others would wait for this one. None:
    the loss is finite in this process, and not in another one."""
    step = run.progress.step + 1
    if batch is None:
        run.fabric.barrier()  # until the other process has saved its batch
        raise Diverged(f"the loss of another process is not finite at step {step}; that one says of which pictures")
    assert batch.draws is not None  # of a training
    draws = zip(batch.image_ids.tolist(), batch.draws.tolist(), strict=True)
    names = [" + ".join(map(str, dataset.files(*draw))) for draw in draws]
    file = run.run_dir / f"non_finite_batch_rank{run.fabric.global_rank}.pt"
    save_state(
        file,
        {
            "images": batch.images.cpu(),
            "boxes": [t.boxes.cpu() for t in batch.targets],
            "labels": [t.labels.cpu() for t in batch.targets],
            "flags": [t.flags.cpu() for t in batch.targets],
            "trusted": batch.trusted.cpu(),
            "files": names,
            "step": step,
        },
    )
    run.fabric.barrier()
    raise Diverged(
        f"the loss is not finite at step {step} (epoch {run.progress.epoch + 1}); the batch is "
        f"saved in {file}, its images: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}. A lower "
        f"`train.lr`, more `train.warmup_steps` or `train.clip_norm: 1.0` usually helps; "
        f"{kept(run.run_dir)}"
    )
