"""What of a config needs the network or the machine: names, weights and devices. With torch only where it must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crossdet.config import Config
from crossdet.errors import UserError
from crossdet.labels.space import LabelSpace
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.backbone_names import backbone_problem
from crossdet.models.card import detector_hint, of_another_name


def fitting_problems(config: Config, space: LabelSpace, extends: bool) -> Iterator[str]:
    """What `train` would refuse before its first step. extends: the network is that of other weights."""
    if not extends:  # an extension does not use them
        yield from _network_problems(config, space)
    if config.train.accelerator == "cuda" or (config.train.accelerator == "auto" and config.train.devices > 1):
        from crossdet.runs.building import device_problem

        if problem := device_problem(config):
            yield problem


def _network_problems(config: Config, space: LabelSpace) -> Iterator[str]:
    kind, weights = ARCHITECTURES[config.model.name], config.model.weights
    backbone: str | None = getattr(config.model, "backbone", None)
    of_weights = kind.weights_problem(config.model)
    if of_weights is not None:
        of_weights = of_another_name(weights, config.model.name) or f"{of_weights}{detector_hint(weights)}"
    found = [of_weights, None if backbone is None else backbone_problem(backbone)]
    problems = [problem for problem in found if problem]
    yield from problems
    if isinstance(weights, Path) and not problems:
        from crossdet.runs.building import build_network, network_settings

        try:
            build_network(network_settings(config), space, weights)
        except UserError as error:
            yield str(error)
