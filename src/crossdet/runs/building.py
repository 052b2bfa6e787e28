"""From a config to built parts: the only place that builds."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import torch
from lightning_fabric import Fabric

from crossdet.config import Config, as_config
from crossdet.config.beginning import rows_begun
from crossdet.config.listed_only import listed_only_problem
from crossdet.config.sources import NO_BOX, Sources, check_not_empty, open_sources
from crossdet.data.augment import IMAGENET_MEAN, Augment
from crossdet.data.colour import coloured
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.loading import epoch_batches, make_loader
from crossdet.errors import UserError
from crossdet.evaluation.run import EvalSettings
from crossdet.labels.space import LabelSpace
from crossdet.models.architectures import ARCHITECTURES, DEFAULT
from crossdet.models.building import build_detector
from crossdet.models.card import Card, Generation, InputSettings, detector_hint, of_another_name
from crossdet.models.contract import Network
from crossdet.models.settings import NetworkSettings
from crossdet.training.identity import Identity
from crossdet.training.signals import end_at_sigterm
from crossdet.types import Batch

FIXED = "freeze_batch_norm"
GRACE = 10.0
"""Seconds that the other processes of a training have to end by themselves."""


def build_fabric(config: Config) -> Fabric:
    """Fabric for the config's devices and precision. Started by torchrun, it takes the processes from there."""
    settings = config.train
    if settings.missing_loggers:
        raise UserError("; ".join(settings.missing_loggers))
    if problem := device_problem(config):
        raise UserError(problem)
    if settings.batch_size % (share := processes(config) * settings.accumulate):
        expected = f"a multiple of accumulate x processes = {share}"
        raise UserError(f"`train.batch_size`: expected {expected}, got {settings.batch_size}")
    accelerator = "cuda" if on_gpu(config) else "cpu"  # Fabric's own `auto` may take others, which have no float64
    devices, nodes, strategy = devices_here(config), 1, "ddp" if settings.devices > 1 else "auto"
    if torch.distributed.is_torchelastic_launched():
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        strategy = "ddp"
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu(config) and torch.cuda.is_bf16_supported(False) else "32-true"
    choose_kernels(config)
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision, strategy=strategy
    )
    _leave_none_behind(fabric.strategy.launcher)
    fabric.launch()
    return fabric


def _leave_none_behind(launcher: Any) -> None:
    """Where this process fails or is told to end, those that it is about to start would wait for it, on GPUs for
    half an hour, at the start for ever. Nothing of it in these: in a collective they would not hear SIGTERM."""
    started = getattr(launcher, "procs", None)  # Fabric fills the list as it starts them
    if started is not None and not launcher.cluster_environment.creates_processes_externally:
        atexit.register(_end, started)
        end_at_sigterm()


def choose_kernels(config: Config) -> None:
    """Kernels that give the same bits every time, where `train.deterministic` asks for them. A processor's do.

    They stay for the process. Where torch has none it warns and goes on. cuBLAS wants its workspace said before a
    process first uses the card.
    """
    if config.train.deterministic and on_gpu(config):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # which checks torch's own code, at every tensor that is made
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _end(processes: list[Popen[bytes]]) -> None:
    """Ends the other processes at the end of this one. As a rule they end alike, and get a moment for it.

    The list is Fabric's, who looks into it and kills this process where one of them has failed.
    """
    others = list(processes)
    processes.clear()
    until = time.monotonic() + GRACE
    for process in others:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except TimeoutExpired:
            process.kill()
            process.wait()


def device_line(fabric: Fabric, config: Config) -> str:
    """For people: where a training computes, and in which numbers."""
    device = fabric.device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"{device}"
    many = f"{fabric.world_size} x {name}" if fabric.world_size > 1 else name
    return f"device: {many}, {fabric.strategy.precision.precision}, loader processes: {loader_workers(config)}"


def device_problem(config: Config) -> str | None:
    """What to say where the devices of the config are not here."""
    if config.train.accelerator == "cuda" and not torch.cuda.is_available():
        return "train.accelerator: cuda, but torch sees no GPU here; use auto or cpu"
    if on_gpu(config) and (wanted := devices_here(config)) > (seen := torch.cuda.device_count()):
        return f"train.devices: {wanted}, but torch sees {seen} GPU{'s' * (seen > 1)} here; use {seen}"
    return None


def devices_here(config: Config) -> int:
    """How many processes train on this machine."""
    started = torch.distributed.is_torchelastic_launched()
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started else config.train.devices


def processes(config: Config) -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else config.train.devices


def on_gpu(config: Config) -> bool:
    """Whether the config's training takes place on a GPU."""
    return config.train.accelerator != "cpu" and torch.cuda.is_available()


def loader_workers(config: Config) -> int:
    """Loader processes per device, for evaluation as for training."""
    return config.train.loader_workers(on_gpu(config))


def is_first_process() -> bool:
    """Whether this process speaks for the run: true for the only process, and for rank 0 of several."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def network_settings(config: Config, began: Identity | None = None) -> NetworkSettings:
    """Of the sections `model` and `loss`, and of `train` and `input` where they leave something to these.

    began: of a run that is resumed. What was decided for it (`NetworkSettings.decided`) stays as it was: by the
    number of its processes, or by an older version."""
    kind = ARCHITECTURES[config.model.name].settings
    defaults = config.train.network_defaults(processes(config))._replace(side=config.input.shorter)
    settings = kind.of(config.model, config.loss, defaults)
    left_open = [key for key in kind.decided if getattr(config.model, key, True) is None]
    if began is None or not left_open or began.get("architecture", DEFAULT) != settings.name:
        return settings
    before = kind.from_json(began["model"])
    return settings.model_copy(update={key: getattr(before, key) for key in left_open})


def build_network(settings: NetworkSettings, space: LabelSpace, weights: str | Path = "none") -> Network:
    """With a new head for the classes of the label space, of which some begin as a checkpoint's (`rows_begun`).

    weights: of the backbone, see `build_detector`. Raises `UserError` for weights that do not fit it, such as those
    of a whole detector of ours.
    """
    try:
        rows = rows_begun(settings, space, weights)
        return build_detector(settings, len(space.classes), torch.from_numpy(space.overlap_array), weights, rows)
    except UserError as error:
        told = of_another_name(weights, settings.name) or f"{error}{detector_hint(weights)}"
        raise UserError(told) from None


def has_fixed_batch_norm(network: Network, settings: NetworkSettings) -> bool:
    """Whether the backbone has batch norm, of torch or of another library, that the setting keeps from training."""
    if not getattr(settings, FIXED, False):
        return False
    of_backbone = (m for name, m in network.named_modules() if name.startswith(network.backbone_prefix))
    return any("BatchNorm" in type(module).__name__ for module in of_backbone)


def new_card(
    config: Config, space: LabelSpace, settings: NetworkSettings, generations: Sequence[Generation]
) -> Card:
    """What weights say about themselves before anything is known of their scores."""
    size = InputSettings(config.input.shorter, config.input.longer)
    return Card(space, settings, size, config.eval.model_dump(mode="json"), None, tuple(generations))


def training_data(config: Config, sources: Sources, fill: Sequence[int] = IMAGENET_MEAN) -> HybridDataset:
    """The hybrid dataset of all training splits, with the config's augmentation.

    fill: RGB of borders that augmentation adds, the network's `fill_colour`."""
    space = sources.space
    parts = []
    for name, index in sources.train.items():
        dataset = config.datasets[name]
        parts.append(
            Part(
                index=index,
                row=space.dataset_index(name),
                class_ids=space.ids(name, index.classes),
                weight=dataset.weight,
                repeat_threshold=dataset.repeat_threshold,
                difficult_as_region=dataset.difficult == "ignore",
                one_direction=True,
            )
        )
    augment = config.augment
    transform = Augment(
        shorter=config.input.shorter,
        longer=config.input.longer,
        flip=augment.flip,
        scale_jitter=(augment.scale_jitter[0], augment.scale_jitter[1]),
        zoom_out=augment.zoom_out,
        iou_crop=augment.iou_crop,
        fill=tuple(fill),
        square=config.square,
        antialias=ARCHITECTURES[config.model.name].settings.antialias,
    )
    return HybridDataset(
        parts, space, transform, config.train.plain, mosaic=augment.mosaic, photometric=augment.photometric
    )


def teacher_settings(config: Config) -> EvalSettings:
    """How a teacher looks at images: as large as the network in training, with the limits of `eval`, and NMS by
    class: one class's label must not depend on what else the teacher sees there."""
    own = {"score_threshold": None, "max_detections": None, "agnostic_nms": False}
    return EvalSettings.of(config.input, config.eval, loader_workers(config), **own)


def training_batches(
    config: Config | str | Path, count: int, epoch: int = 0, known: LabelSpace | None = None
) -> tuple[list[Batch], Sources]:
    """The first training batches of an epoch, exactly as training would see them (for looking at them).

    known: the label space that an extension grows.
    """
    config = as_config(config)
    sources = open_sources(config, known=known)
    check_trainable(sources, plain=True)  # looking is how the question gets answered
    dataset = training_data(config, sources)
    batches = epoch_batches(
        dataset.sizes(),
        dataset.draw_weights(),
        config.train.batch_size,
        config.seed,
        epoch,
        config.train.group_aspect,
        min_batch=processes(config) * config.train.accumulate,
        placing=dataset.placing(dataset.choose_canvases(config.canvases)),
    )
    return [coloured(batch, batch.sizes.tolist()) for batch in make_loader(dataset, batches[:count])], sources


def check_trainable(sources: Sources, plain: bool = False) -> None:
    """Raises `UserError` if there is nothing to train on, or if it is not said whose background may be trusted.

    plain: all background is trusted on purpose (`train.plain`).
    """
    if not sources.train:
        raise UserError("no dataset of the config has a `train` split")
    empty = [name for name, index in sources.train.items() if not len(index)]
    if empty:
        raise UserError(f"datasets without a single training image: {', '.join(empty)}")
    check_not_empty(sources.val, "val")
    if sources.without_box:
        raise UserError(NO_BOX)
    if sources.listed_only and not plain:
        raise UserError(listed_only_problem(sources.listed_only))
