"""What the recipe of a training decides about the network and its numbers, for people. No torch in here."""

from __future__ import annotations

from crossdet.config import Config
from crossdet.data.canvases import SMALLEST_BATCH
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.settings import NetworkSettings
from crossdet.training.recipe import Start

_TOLD = {True: "fixed", False: "trained"}


def start_of(config: Config, extends: bool, share: float = 1.0) -> Start:
    """What the training of a config begins with. extends: weights of a detector; share: of the usual rate then."""
    model = config.model
    rates = ARCHITECTURES[model.name].settings.rates
    if extends and config.extend is not None and config.extend.mode == "frozen":  # nothing of it learns
        rates = rates._replace(share_of_backbone=1.0)
    if extends or getattr(model, "of_checkpoint", False):
        return Start("detector", share, rates)
    return Start("random" if model.weights == "none" else "backbone", share, rates)


def batch_norm_lines(config: Config, processes: int, settings: NetworkSettings | None = None) -> list[str]:
    """Whether a new network's backbone trains its batch norm, and why; nothing where an architecture has none.

    processes: of the training. settings: of the network, if it is known: a resumed run has what it began with. The
    rule is that of `NetworkSettings.of`."""
    model, recipe = config.model, config.train
    if not hasattr(model, "freeze_batch_norm"):
        return []
    if model.freeze_batch_norm is not None:
        fixed, why = model.freeze_batch_norm, f"`model.freeze_batch_norm: {str(model.freeze_batch_norm).lower()}`"
    elif model.weights == "none":
        fixed, why = False, "its weights are random"
    elif getattr(model, "of_checkpoint", False):
        fixed, why = True, "it is that of a checkpoint"
    elif recipe.recipe != "auto":
        fixed, why = True, f"`train.recipe: {recipe.recipe}`"
    else:
        fixed, why = not recipe.network_defaults(processes).train_batch_norm, _pictures_at_once(config, processes)
    if (began := getattr(settings, "freeze_batch_norm", fixed)) != fixed:
        fixed, why = began, f"as this run began; a new one would have it {_TOLD[fixed]}: {why}"
    return [f"batch norm of the backbone: {_TOLD[fixed]} ({why})"]


def _pictures_at_once(config: Config, processes: int) -> str:
    count = config.train.pictures_at_once(processes)
    told = f"{count} picture{'s' * (count != 1)} at once on a device"
    if count >= SMALLEST_BATCH:
        return told
    return f"{told}, to train it takes {SMALLEST_BATCH}; see `train.batch_size`, `accumulate`, `devices`"


def open_lines(config: Config) -> list[str]:
    """What is decided where torch is known, by which rule: the head of a new network, and the precision."""
    defaults = config.train.network_defaults(config.train.devices)
    told = ARCHITECTURES[config.model.name].settings.left_open(config.model, defaults)
    if config.train.precision == "auto":
        told = [*told, "precision: bf16-mixed on a GPU that has it, else 32-true"]
    return ["; ".join(told)] if told else []
