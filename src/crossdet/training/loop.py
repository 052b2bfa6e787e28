"""The training loop, in plain sight: `fit` is setup, the epochs, and what is written when."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from crossdet.data.hybrid import HybridDataset
from crossdet.data.loading import MicroBatches, epoch_batches, is_dead_worker, make_loader, next_batch
from crossdet.errors import Diverged, RunError, UserError
from crossdet.evaluation.choosing import is_better
from crossdet.files import write_json
from crossdet.models.retinanet.matching import label_and_weigh
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.weights import BEST_FILE, METRICS_FILE, STATE_FILE, WEIGHTS_FILE, save_state
from crossdet.training.identity import Identity
from crossdet.training.log import RunLog
from crossdet.training.recipe import Recipe as Recipe
from crossdet.training.recipe import learning_rate as learning_rate
from crossdet.training.signals import stop_signals
from crossdet.training.state import DatasetTotals, Progress, RunState, averaged, sum_over_ranks
from crossdet.types import Batch

Evaluate = Callable[[RetinaNet, str], dict[str, Any]]
"""(detector, when) -> metrics; `evaluation.choosing` decides by them which weights are the best."""
Describe = Callable[[dict[str, Any]], dict[str, str]]
"""metrics -> entries of the metadata of the weights that they are of."""
FurtherLoss = Callable[[RetinaNet, list[Tensor], Batch], Tensor]
"""(detector, its features of the batch, batch) -> a scalar that is added to the class loss."""


class EpochData(NamedTuple):
    """What an epoch trains on. background_weight: `[K, C]` float32 by dataset, see `Batch`; None: all 1."""

    dataset: HybridDataset
    background_weight: Tensor | None = None


DataOfEpoch = Callable[[int, int, RetinaNet], EpochData]
"""(epoch from 0, its steps done, the weights that teach) -> what the epoch trains on. Exact resuming wants the same
answer of the same weights, and after the first step the one of before it."""


class Sealed:
    """Carries a batch through Fabric's forward.

    Under mixed precision Fabric walks into the arguments to convert floats and refuses frozen dataclasses
    (2.6.6); an object it does not know passes as it is, and boxes stay float32.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class TrainStep(nn.Module):
    """The one forward that autocast and DDP see: features, head, losses."""

    def __init__(
        self, detector: RetinaNet, compiled: bool = False, further_loss: FurtherLoss | None = None
    ) -> None:
        """compiled: backbone and pyramid as one graph, and the focal terms as one kernel, by `torch.compile`."""
        super().__init__()
        self.detector = detector
        self.compiled = compiled
        self.further_loss = further_loss
        # dynamic: batches come in many sizes, and a graph for each would take minutes each
        self._features = torch.compile(detector.features, dynamic=True) if compiled else detector.features

    def forward(self, batch: Batch | Sealed) -> dict[str, Tensor]:
        """Scalars `classification` and `box` to be summed and differentiated, and per image, detached,
        `image_loss [B]` (not normalised) and `image_positives [B]`, for the logs."""
        batch = batch.batch if isinstance(batch, Sealed) else batch
        features = self._features(batch.images)
        sums = self.detector.image_losses(features, batch, self.compiled)
        losses = self.detector.normalise(sums)
        if self.further_loss is not None:
            further = self.further_loss(self.detector, features, batch)
            losses["classification"] = losses["classification"] + further
        return {
            **losses,
            "image_loss": (sums.classification + sums.box * self.detector.box_weight).detach(),
            "image_positives": sums.positives,
        }


def fit(
    fabric: Fabric,
    detector: RetinaNet,
    dataset: HybridDataset,
    dataset_names: Sequence[str],
    recipe: Recipe,
    run_dir: Path,
    evaluate: Evaluate | None = None,
    metadata: dict[str, str] | None = None,
    resume: bool = False,
    after_step: Callable[[], None] | None = None,
    further_loss: FurtherLoss | None = None,
    data_of: DataOfEpoch | None = None,
    fixed_statistics: bool = False,
    identity: Identity | None = None,
    describe: Describe | None = None,
) -> dict[str, Any]:
    """Trains `detector` (what of it requires a gradient) and returns the last epoch's record (losses, metrics).

    Writes into `run_dir`: `state.pt` (resumable), `model.safetensors` (newest weights), `best.safetensors`,
    `metrics.json`, `steps.csv`, TensorBoard logs. With `resume` it continues exactly where `state.pt` stands.
    after_step: called after every update of the weights, before they are averaged or saved. data_of: what each
    epoch trains on instead of `dataset`. fixed_statistics: batch norm of the backbone uses its running statistics
    and leaves them as they are; its scale and shift train. identity: kept in the state; a run with another one is
    not resumed. describe: what the weights' metadata gets of an evaluation, besides `metadata`.

    Raises:
        UserError: the state is that of another run (`check_identity`).
        RunError: non-finite loss (the batch is saved), interruption, or a file that cannot be written.
    """
    # Fabric cannot clip gradients that a fused optimiser unscales itself
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    optimizer = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        # one pass over weights, gradients and momentum, and no temporary of the weights' size
        fused=not (scaled and recipe.clip_norm is not None),
    )
    step_module, optimizer = fabric.setup(TrainStep(detector, recipe.compile, further_loss), optimizer)
    average, teacher = None, None
    if recipe.ema is not None:
        average = averaged(detector, recipe.ema)
    elif recipe.teacher_ema is not None:
        teacher = averaged(detector, recipe.teacher_ema, warm_up=True)
    run = RunState(
        fabric,
        detector,
        optimizer,
        average,
        run_dir,
        metadata or {},
        after_step,
        fixed_statistics,
        identity,
        teacher,
    )
    if resume and (run_dir / STATE_FILE).exists():
        run.restore()
    logs = RunLog(fabric, run_dir, run.progress.step)
    data = EpochData(dataset)
    with stop_signals() as stop, _dead_workers_told(run_dir):
        while run.progress.epoch < recipe.epochs and not run.progress.finished:
            if data_of is not None:
                data = data_of(run.progress.epoch, run.progress.step_in_epoch, run.teacher_detector())
            record = _train_epoch(run, step_module, data, dataset_names, recipe, logs, stop)
            _finish_epoch(run, recipe, record, evaluate, describe, logs)
    run.progress.finished = True
    run.save_state()
    logs.close()
    return run.progress.history[-1] if run.progress.history else {}


@contextmanager
def _dead_workers_told(run_dir: Path) -> Iterator[None]:
    """A loader process that was killed is no traceback."""
    try:
        yield
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises again for every other worker that ends
        raise RunError(
            f"a loader process ended before its time ({str(error).strip()}): too little memory is the usual "
            f"reason, so try fewer `train.workers`. Continue from the last saved state in {run_dir} with "
            f"the same command and --resume"
        ) from None


def _train_epoch(
    run: RunState,
    step_module: Any,
    data: EpochData,
    dataset_names: Sequence[str],
    recipe: Recipe,
    logs: RunLog,
    stop: threading.Event,
) -> dict[str, Any]:
    """The steps of one epoch (the rest of it, after a resume)."""
    fabric, progress, device = run.fabric, run.progress, run.fabric.device
    dataset, finish = data.dataset, run.detector.labeller()
    if data.background_weight is not None:
        finish = partial(label_and_weigh, label=finish, weights=data.background_weight)
    batches = epoch_batches(
        dataset.sizes(),
        dataset.draw_weights(),
        recipe.batch_size,
        recipe.seed,
        progress.epoch,
        recipe.group_aspect,
        min_batch=fabric.world_size * recipe.accumulate,
    )
    micro_batches = MicroBatches(
        batches[progress.step_in_epoch :], recipe.accumulate, fabric.global_rank, fabric.world_size
    )
    loader = make_loader(
        dataset, micro_batches, recipe.workers, device.type == "cuda", run.detector.mean_colour, finish
    )
    totals = run.totals or DatasetTotals(dataset_names, device)
    run.totals = totals
    # a frozen backbone stays in evaluation mode, or its batch norm would go on counting
    run.detector.train(any(p.requires_grad for p in run.detector.backbone.parameters()))
    for module in run.detector.backbone.modules() if run.fixed_statistics else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    stream = iter(loader)
    logs.start_epoch(len(batches) - progress.step_in_epoch, (recipe.epochs - progress.epoch - 1) * len(batches))
    for step_in_epoch in range(progress.step_in_epoch, len(batches)):
        # a last batch of a few images is no reason for a full step
        share = min(1.0, len(batches[step_in_epoch]) / recipe.batch_size)
        rate = share * learning_rate(recipe, progress.epoch + step_in_epoch / len(batches))
        losses, norm = _optimiser_step(run, step_module, stream, dataset, recipe, rate, totals, logs)
        progress.step_in_epoch, progress.step = step_in_epoch + 1, progress.step + 1
        enough = recipe.max_steps is not None and progress.step >= recipe.max_steps
        logs.step(
            progress.step,
            progress.epoch,
            progress.step_in_epoch,
            len(batches),
            rate,
            losses,
            norm,
            len(batches[step_in_epoch]),
            1 if enough else recipe.log_every,
        )
        if enough:
            progress.finished = True
            break
        run.save_if_due(recipe, stop)
    run.totals = None
    progress.unreadable = _lines_of_all_ranks(fabric, progress.unreadable)
    return {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "datasets": totals.rows(sum_over_ranks(fabric, totals.sums)),
        "unreadable": len(progress.unreadable),
    }


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
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    losses: dict[str, Tensor] = {}
    for micro in range(recipe.accumulate):
        batch = next_batch(stream).to(run.fabric.device, non_blocking=True)
        for line in batch.unreadable:
            if line not in run.progress.unreadable:
                run.progress.unreadable.append(line)
                logs.unreadable(line)
        with run.fabric.no_backward_sync(step_module, enabled=micro + 1 < recipe.accumulate):
            output = _forward(step_module, batch)
            loss = (output["classification"] + output["box"]) / recipe.accumulate
            run.fabric.backward(loss)
            # looks at the value, so it waits for the device: with the backward pass queued, before any update
            _stop_if_not_finite(run, loss, batch, dataset)
        totals.add(batch.dataset_ids, output["image_loss"], output["image_positives"])
        for name in ("classification", "box"):
            losses[name] = losses.get(name, 0) + output[name].detach() / recipe.accumulate
    if run.fabric.world_size > 1:  # each process knows its share only; what is logged is the loss of all
        everyone = run.fabric.all_reduce(torch.stack(list(losses.values())), reduce_op="mean")
        losses = dict(zip(losses, cast(Tensor, everyone).unbind(), strict=True))
    norm = None
    if recipe.clip_norm is not None:
        norm = run.fabric.clip_gradients(step_module, run.optimizer, max_norm=recipe.clip_norm)
    run.optimizer.step()
    if run.after_step is not None:
        run.after_step()
    run.optimizer.zero_grad(set_to_none=True)
    for average in (run.average, run.teacher):
        if average is not None:
            average.update_parameters(run.detector)
    return losses, norm


def _forward(step_module: Any, batch: Batch) -> dict[str, Tensor]:
    """Raises `UserError` where `torch.compile` finds no compiler."""
    try:
        output: dict[str, Tensor] = step_module(Sealed(batch))
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"train.compile: torch.compile failed here ({reason}); it needs a C++ compiler on a CPU, Triton on a "
            f"GPU. Install it, or set train.compile=false"
        ) from None
    return output


def _lines_of_all_ranks(fabric: Fabric, lines: list[str]) -> list[str]:
    if fabric.world_size == 1:
        return lines
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, lines)
    return list(dict.fromkeys(line for part in everyone for line in part))


def _finish_epoch(
    run: RunState,
    recipe: Recipe,
    record: dict[str, Any],
    evaluate: Evaluate | None,
    describe: Describe | None,
    logs: RunLog,
) -> None:
    """Evaluates if it is time, keeps the best weights, and writes the state at the epoch's end."""
    run.stop_if_diverged()
    progress = run.progress
    progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
    last = progress.finished or progress.epoch == recipe.epochs
    due = recipe.eval_every > 0 and progress.epoch % recipe.eval_every == 0
    extra = {}
    better = False
    if evaluate is not None and (last or due):
        record["metrics"] = evaluate(run.final_detector(), "last" if last else f"epoch {progress.epoch}")
        extra = {} if describe is None else describe(record["metrics"])
        better = _is_best(progress, record)
    progress.history.append(record)
    logs.epoch(record)
    run.save_weights(WEIGHTS_FILE, extra)
    if better:
        progress.best_epoch = record["epoch"]
        run.save_weights(BEST_FILE, extra)
    if run.fabric.is_global_zero:
        best = next((r["metrics"] for r in progress.history if r["epoch"] == progress.best_epoch), None)
        content = {
            "best_epoch": progress.best_epoch,
            "best": None if best is None else best.get("mean"),
            "epochs": progress.history,
        }
        write_json(run.run_dir / METRICS_FILE, content)
    run.save_state()


def _is_best(progress: Progress, record: dict[str, Any]) -> bool:
    """Whether the weights of an evaluated epoch are better than those that are kept."""
    judged = [earlier for earlier in progress.history if "metrics" in earlier]
    epochs = [earlier["epoch"] for earlier in judged]
    kept = None if progress.best_epoch is None else epochs.index(progress.best_epoch)
    return is_better([earlier["metrics"] for earlier in judged], kept, record["metrics"])


def _stop_if_not_finite(run: RunState, loss: Tensor, batch: Batch, dataset: HybridDataset) -> None:
    finite = torch.isfinite(loss.detach())
    if run.fabric.world_size > 1:  # all processes must stop together, or the others wait for this one
        finite_everywhere = sum_over_ranks(run.fabric, finite.float()) == run.fabric.world_size
    else:
        finite_everywhere = finite
    if bool(finite_everywhere):
        return
    names = []
    for row in batch.image_ids.tolist():
        part, image = dataset.locate(row)
        names.append(str(dataset.parts[part].index.path(image)))
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
            "step": run.progress.step,
        },
    )
    raise Diverged(
        f"the loss is not finite at step {run.progress.step} (epoch {run.progress.epoch + 1}); the batch is "
        f"saved in {file}, its images: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}. A lower "
        f"`train.lr`, a longer `train.warmup_epochs` or `train.clip_norm: 1.0` usually helps; the last saved "
        f"state is kept"
    )
