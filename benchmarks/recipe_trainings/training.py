"""One training of a recipe, whose steps can be captured as a CUDA graph, and what is left of its features."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdet.data.loading import epoch_rows
from crossdet.losses import smooth_l1
from crossdet.models.building import build_detector
from crossdet.models.retinanet.network import RetinaNet
from crossdet.runs.building import network_settings
from crossdet.types import BACKGROUND
from recipe_trainings.pictures import Pictures, config_of
from recipe_trainings.plans import Options


class Rates(NamedTuple):
    """`[steps]` each, on the device."""

    lr: Tensor
    ema: Tensor


def learning_rates(options: Options) -> list[float]:
    """Of every step, before the backbone's factor."""
    rates = []
    for step in range(options.steps):
        share = step / options.steps
        if options.schedule == "steps":
            factor = 0.1 ** ((share >= 16 / 24) + (share >= 21 / 24))
        elif options.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * share))
        else:
            factor = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * share - 1)))
        rates.append(options.lr * factor * min(1.0, (step + 1) / max(1, options.warmup)))
    return rates


def focal_loss(logits: Tensor, labels: Tensor, trusted: Tensor) -> Tensor:
    """`dataset_aware_focal_loss` with its defaults, in operations whose shapes do not depend on values."""
    own = labels[..., None] == torch.arange(logits.shape[2], device=logits.device)
    negative = ((labels == BACKGROUND)[..., None] & trusted[:, None]) | ((labels >= 0)[..., None] & ~own)
    p = logits.sigmoid()
    as_negative = 0.75 * p**2 * F.softplus(logits)
    as_positive = 0.25 * (1 - p) ** 2 * F.softplus(-logits)
    return (negative * as_negative + own * as_positive).sum()


def losses_of(detector: RetinaNet, pictures: Pictures, rows: Tensor) -> Tensor:
    """Class and box loss of a batch; equal to `RetinaNet.losses`, normalised."""
    outputs = detector(pictures.images.index_select(0, rows))
    logits = torch.cat(outputs.logits, 1).float()
    deltas = torch.cat(outputs.deltas, 1)
    labels = pictures.labels.index_select(0, rows).long()
    trusted = pictures.trusted.index_select(0, rows)
    classification = focal_loss(logits, labels, trusted)
    anchor = pictures.anchor.index_select(0, rows).long()
    count = pictures.count.index_select(0, rows)
    used = torch.arange(anchor.shape[1], device=anchor.device) < count[:, None]
    found = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).float()
    box = (smooth_l1(found, pictures.deltas.index_select(0, rows), detector.settings.loss.box_beta) * used).sum()
    return torch.stack([classification, box * detector.settings.loss.box_weight]) / count.sum().clamp(min=1)


class Training:
    """One detector in training. After `capture` a step is the replay of a graph; before, it runs as written."""

    def __init__(self, data: str, deal: Path, pictures: Pictures, options: Options, seed: int) -> None:
        self.options, self.pictures = options, pictures
        self.device = pictures.images.device
        config = config_of(data, deal)
        changes = {"group_norm": options.group_norm, "freeze_batch_norm": options.batch_norm == "fixed"}
        settings = network_settings(config).model_copy(update=changes)
        torch.manual_seed(seed)
        detector = build_detector(settings, pictures.trusted.shape[1], weights=config.model.weights)
        self.detector = detector.to(self.device).to(memory_format=torch.channels_last)
        self._freeze()
        self.average = copy.deepcopy(self.detector).eval()
        self.rows, self.rates = self._tables(seed)
        self.done = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.log = torch.zeros(options.steps, 4, device=self.device)
        self.optimizer = self._optimizer()
        self.graph: Any = None
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.train_mode()

    def autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")

    def _body(self) -> Any:
        return self.detector.backbone.body

    def _freeze(self) -> None:
        body = self._body()
        if self.options.frozen:
            for module in (body.conv_stem, body.bn1, body.blocks[0], body.blocks[1]):
                module.requires_grad_(False)

    def train_mode(self) -> None:
        self.detector.train()
        body = self._body()
        frozen = (body.bn1, body.blocks[0], body.blocks[1]) if self.options.frozen else ()
        for module in body.modules() if self.options.batch_norm == "affine" else frozen:
            module.eval()

    def _tables(self, seed: int) -> tuple[Tensor, Rates]:
        """Rows of the pictures by step, and rates."""
        options, count = self.options, len(self.pictures.images) // 2
        generator = np.random.default_rng([seed, 0])
        epochs = -(-options.steps * options.batch // count)
        rows = np.concatenate([epoch_rows(np.ones(count), generator) for _ in range(epochs)])
        rows = 2 * rows + generator.integers(0, 2, len(rows))
        rows = rows[: options.steps * options.batch].reshape(options.steps, options.batch)
        ema = [min(options.ema, (1 + n) / (10 + n)) for n in range(options.steps)]
        return torch.from_numpy(rows).to(self.device), Rates(
            torch.tensor(learning_rates(options), device=self.device), torch.tensor(ema, device=self.device)
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad:
                decays = parameter.dim() > 1 or options.decay_norms
                groups.setdefault((name.startswith("backbone."), decays), []).append(parameter)
        rows = [
            {
                "params": parameters,
                "lr": torch.zeros((), device=self.device),
                "weight_decay": options.weight_decay if decays else 0.0,
            }
            for (_, decays), parameters in groups.items()
        ]
        self.factors = [options.backbone_factor if backbone else 1.0 for backbone, _ in groups]
        self.parameters = [p for parameters in groups.values() for p in parameters]
        self.of_backbone = [p for (backbone, _), some in groups.items() if backbone for p in some]
        card = self.device.type == "cuda"
        if options.optimiser == "sgd":
            return torch.optim.SGD(rows, lr=0.0, momentum=0.9, fused=card)
        return torch.optim.AdamW(rows, lr=0.0, fused=card, capturable=card)

    def step(self) -> None:
        """One update, without a look at any value: it can be captured."""
        rows = self.rows.index_select(0, self.done)[0]
        rate = self.rates.lr.index_select(0, self.done)[0]
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"].copy_(rate * factor)
        with self.autocast():
            losses = losses_of(self.detector, self.pictures, rows)
        losses.sum().backward()
        norms = torch._foreach_norm([cast(Tensor, p.grad) for p in self.of_backbone])
        whole = nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        line = torch.stack([*losses.detach(), whole, torch.stack(norms).norm()])
        self.log.index_copy_(0, self.done, line[None])
        self._average(self.rates.ema.index_select(0, self.done)[0])
        self.done += 1

    @torch.no_grad()
    def _average(self, kept: Tensor) -> None:
        pairs = [
            (a, b)
            for a, b in zip(self.average.state_dict().values(), self.detector.state_dict().values(), strict=True)
            if a.is_floating_point()
        ]
        averages, current = [a for a, _ in pairs], [b for _, b in pairs]
        change = torch._foreach_sub(current, averages)
        torch._foreach_mul_(change, 1 - kept)
        torch._foreach_add_(averages, change)

    def capture(self) -> None:
        """Records a step as a graph, and puts everything back to where it was."""
        if self.stream is None:
            return
        before = {k: v.clone() for k, v in self.detector.state_dict().items()}
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=True)
                self.step()
        torch.cuda.synchronize()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.step()
        self.graph = graph
        torch.cuda.synchronize()
        for model in (self.detector, self.average):
            model.load_state_dict(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        self.done.zero_()
        torch.cuda.synchronize()

    def advance(self, steps: int) -> None:
        """Queues so many steps."""
        for _ in range(steps):
            if self.graph is not None:
                with torch.cuda.stream(self.stream):
                    self.graph.replay()
            else:
                self.optimizer.zero_grad(set_to_none=True)
                self.step()


@torch.inference_mode()
def features_of(training: Training, images: Tensor) -> dict[str, float]:
    """What is left of the features on some pictures: dead channels, mean activation, variation over pictures."""
    model, highest, handles = training.detector, {}, []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            highest[name] = output.amax((0, 2, 3))

        return hook

    model.eval()
    for name, module in model.backbone.body.named_modules():
        if "BatchNorm" in type(module).__name__ and not isinstance(getattr(module, "act", None), nn.Identity):
            handles.append(module.register_forward_hook(watch(name)))
    with training.autocast():
        x = (images.float() - model.mean) / model.std
        x = x.contiguous(memory_format=torch.channels_last)
        maps = model.backbone(x)
        pyramid = list(model.fpn({f"c{i + 3}": c for i, c in enumerate(maps)}).values())
    for handle in handles:
        handle.remove()
    training.train_mode()
    named = dict(zip(("C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7"), [*maps, *pyramid], strict=True))
    dead = {name: (high <= 0).float().mean() for name, high in highest.items()}
    found = {
        "dead": (torch.cat(list(highest.values())) <= 0).float().mean(),
        "dead_in_blocks.6.0.bn1": dead["blocks.6.0.bn1"],
        "dead_most": torch.stack(list(dead.values())).max(),
    }
    for name, value in named.items():
        wide = value.float()
        found[f"mean_abs_{name}"] = wide.abs().mean()
        spread = (wide - wide.mean(0, keepdim=True)).square().mean().sqrt()
        found[f"variation_{name}"] = spread / wide.square().mean().sqrt()
    values = torch.stack(list(found.values())).tolist()  # one transfer: each waits for the card
    return {name: round(value, 4) for name, value in zip(found, values, strict=True)}
