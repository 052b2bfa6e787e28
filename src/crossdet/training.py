"""The training loop, in plain sight: `fit` is setup, the epochs, and what is written when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from crossdet.checkpoint import (
    BEST_FILE,
    METRICS_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    load_state,
    save_state,
    save_weights,
)
from crossdet.data.hybrid import HybridDataset
from crossdet.data.loading import MicroBatches, epoch_batches, is_dead_worker, make_loader, next_batch
from crossdet.errors import Diverged, RunError, UserError
from crossdet.evaluation.choosing import is_better
from crossdet.jsonfiles import write_json
from crossdet.models.matching import label_and_weigh
from crossdet.models.retinanet import RetinaNet
from crossdet.recipe import Recipe as Recipe
from crossdet.recipe import learning_rate as learning_rate
from crossdet.run_identity import Identity, check_identity
from crossdet.runlog import RunLog
from crossdet.stopping import stop_signals
from crossdet.types import Batch

Evaluate = Callable[[RetinaNet, str], dict[str, Any]]
"""(detector, when) -> metrics; `evaluation.choosing` decides by them which weights are the best."""
Describe = Callable[[dict[str, Any]], dict[str, str]]
"""metrics -> entries of the metadata of the weights that they are of."""
Tensors = tuple[Tensor, ...] | list[Tensor]
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


@dataclass
class Progress:
    """Where a run stands: everything of the resumable state that is not a tensor.

    best_epoch: the one whose weights are kept as the best, from 1. unreadable: one line per image that could not be
    read so far.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_epoch: int | None = None
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def from_state(cls, stored: dict[str, Any]) -> Progress:
        """Of a state; one of an older version knows the best mean instead of its epoch."""
        values = dict(stored)
        if "best" in values:
            best = values.pop("best")
            of_best = [r["epoch"] for r in values["history"] if r.get("metrics", {}).get("mean") == best]
            values["best_epoch"] = of_best[0] if of_best else None
        return cls(**values)


class DatasetTotals:
    """Loss, positives and images per dataset within one epoch."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.sums = torch.zeros(3, len(names), dtype=torch.float64, device=device)

    def add(self, dataset_ids: Tensor, image_loss: Tensor, image_positives: Tensor) -> None:
        ones = torch.ones_like(image_loss)
        self.sums.index_add_(
            1, dataset_ids, torch.stack([image_loss, image_positives.to(ones.dtype), ones]).double()
        )

    def rows(self, sums: Tensor) -> dict[str, dict[str, float]]:
        """Per dataset that gave images: loss per positive, positives and images."""
        return {
            name: {"loss": loss / max(1.0, positives), "positives": positives, "images": images}
            for name, (loss, positives, images) in zip(self.names, sums.T.tolist(), strict=True)
            if images
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
    run = _Run(
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
        raise RunError(
            f"a loader process ended before its time ({str(error).strip()}): too little memory is the usual "
            f"reason, so try fewer `train.workers`. Continue from the last saved state in {run_dir} with "
            f"the same command and --resume"
        ) from None


def averaged(detector: RetinaNet, decay: float, warm_up: bool = False) -> AveragedModel:
    """An exponential moving average of a detector's weights, which follows it by `update_parameters`.

    The first update takes the weights as they are. warm_up: the decay after n updates is at most
    (1 + n) / (10 + n), as with `num_updates` of TensorFlow's ExponentialMovingAverage: the average reaches back
    over a tenth of the updates so far, and a short training forgets its random beginning.
    Floating-point buffers are averaged, too; others (counts, which box subnet a class has) are copied, since a mean
    of them means nothing.
    """

    @torch.no_grad()
    def update(averages: Tensors, current: Tensors, _: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # they come grouped by dtype
            torch._foreach_copy_(averages, current)
            return
        count = int(
            average.n_averaged
        )  # on the CPU; the argument lies on the device, and would be waited for
        kept = min(decay, (1 + count) / (10 + count)) if warm_up else decay
        torch._foreach_lerp_(averages, current, 1 - kept)

    average = AveragedModel(detector, multi_avg_fn=update, use_buffers=True)
    return average


def _train_epoch(
    run: _Run,
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
    logs.start_epoch(
        len(batches) - progress.step_in_epoch, (recipe.epochs - progress.epoch - 1) * len(batches)
    )
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
        "datasets": totals.rows(_sum_over_ranks(fabric, totals.sums)),
        "unreadable": len(progress.unreadable),
    }


def _optimiser_step(
    run: _Run,
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


def _sum_over_ranks(fabric: Fabric, tensor: Tensor) -> Tensor:
    # all_reduce works in place on some strategies, and the local sums are still needed
    return cast(Tensor, fabric.all_reduce(tensor.clone(), reduce_op="sum"))


def _lines_of_all_ranks(fabric: Fabric, lines: list[str]) -> list[str]:
    if fabric.world_size == 1:
        return lines
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, lines)
    return list(dict.fromkeys(line for part in everyone for line in part))


def _finish_epoch(
    run: _Run,
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


def _stop_if_not_finite(run: _Run, loss: Tensor, batch: Batch, dataset: HybridDataset) -> None:
    finite = torch.isfinite(loss.detach())
    if run.fabric.world_size > 1:  # all processes must stop together, or the others wait for this one
        finite_everywhere = _sum_over_ranks(run.fabric, finite.float()) == run.fabric.world_size
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


# ------------------------------------------------------------------------------------------ state


@dataclass
class _Run:
    """What a checkpoint holds, and where it goes."""

    fabric: Fabric
    detector: RetinaNet
    optimizer: Any
    average: AveragedModel | None
    run_dir: Path
    metadata: dict[str, str]
    after_step: Callable[[], None] | None = None
    fixed_statistics: bool = False
    identity: Identity | None = None
    teacher: AveragedModel | None = None
    progress: Progress = field(default_factory=Progress)
    totals: DatasetTotals | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def final_detector(self) -> RetinaNet:
        """The weights that count: the moving average where there is one."""
        if self.average is None:
            return self.detector
        return cast(RetinaNet, self.average.module)

    def teacher_detector(self) -> RetinaNet:
        """The weights that label for the training itself: an average of their own where none counts."""
        return self.final_detector() if self.teacher is None else cast(RetinaNet, self.teacher.module)

    def save_weights(self, name: str, extra: dict[str, str]) -> None:
        if self.fabric.is_global_zero:
            metadata = self.metadata | extra
            save_weights(self.run_dir / name, self.final_detector().state_dict(), metadata)

    def stop_if_diverged(self) -> None:
        """The loss is checked before a step; the step itself can still overflow (alike on all ranks)."""
        broken = [name for name, p in self.detector.named_parameters() if not bool(torch.isfinite(p).all())]
        if broken:
            raise Diverged(
                f"the weights are no longer finite after step {self.progress.step} ({broken[0]}"
                f"{', ...' if len(broken) > 1 else ''}); nothing is saved, the last good state is kept. A lower "
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
            sums = _sum_over_ranks(self.fabric, self.totals.sums)
        if self.fabric.is_global_zero:
            state = {
                "model": self.detector.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "teacher": None if self.teacher is None else self.teacher.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "progress": dict(vars(self.progress)),
                "totals": None if sums is None else sums.cpu(),
                "names": None if self.totals is None else self.totals.names,
                "random": random_states,
                "identity": self.identity,
            }
            save_state(self.run_dir / STATE_FILE, state)
        self.saved_at = time.monotonic()
        self.fabric.barrier()

    def restore(self) -> None:
        state = load_state(self.run_dir / STATE_FILE)
        if self.identity is not None:
            check_identity(self.run_dir, state.get("identity"), self.identity)
        self.detector.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if self.teacher is not None:
            if state.get("teacher") is not None:
                self.teacher.load_state_dict(state["teacher"])
            else:  # the state of a run that had none begins it
                self.teacher.update_parameters(self.detector)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.progress = Progress.from_state(state["progress"])
        if len(state["random"]) == self.fabric.world_size:
            mine = state["random"][self.fabric.global_rank]
            torch.set_rng_state(mine[0])
            if self.fabric.device.type == "cuda" and len(mine) > 1:
                torch.cuda.set_rng_state(mine[1], self.fabric.device)
        if state["totals"] is not None:
            self.totals = DatasetTotals(state["names"], self.fabric.device)
            if self.fabric.is_global_zero:
                self.totals.sums += state["totals"].to(self.fabric.device)

    def save_if_due(self, recipe: Recipe, stop: threading.Event) -> None:
        """Saves every `checkpoint_steps` steps or `checkpoint_minutes`, and when asked to stop."""
        due = recipe.checkpoint_steps is not None and self.progress.step % recipe.checkpoint_steps == 0
        late = time.monotonic() - self.saved_at > 60 * recipe.checkpoint_minutes
        if self.fabric.world_size > 1:  # clocks and signals differ between processes, decisions must not
            wish = torch.tensor([float(late), float(stop.is_set())], device=self.fabric.device)
            late, stopped = (v > 0 for v in _sum_over_ranks(self.fabric, wish).tolist())
        else:
            stopped = stop.is_set()
        if due or late or stopped:
            self.save_state()
        if stopped:
            raise RunError(
                f"interrupted after step {self.progress.step}; the state is saved in {self.run_dir}, "
                f"continue with the same command and --resume"
            )
