"""RetinaNet (Lin et al., arXiv 1708.02002) with the dataset-aware focal loss, top to bottom.

`features` -> `head` -> `losses_of` (training) or `decode` (inference); each is a method of its own, and what
`forward` gives does not depend on `self.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from crossdet.errors import UserError
from crossdet.losses import smooth_l1
from crossdet.models.backbones import Backbone
from crossdet.models.contract import Growable, Limits, Losses, Network
from crossdet.models.retinanet import growth
from crossdet.models.retinanet.anchors import (
    AnchorGrid,
    AnchorLabels,
    anchor_grid,
    cell_anchors,
    decode_boxes,
    encode_boxes,
    grid_anchors,
)
from crossdet.models.retinanet.candidates import Boxes, Candidates, best_candidates, detections_of, merged
from crossdet.models.retinanet.class_loss import union_focal_losses
from crossdet.models.retinanet.detecting import Detecting
from crossdet.models.retinanet.distillation import logit_matching
from crossdet.models.retinanet.matching import label_anchors, label_batch
from crossdet.models.retinanet.settings import PYRAMID_STRIDES, RetinaNetSettings
from crossdet.models.retinanet.subnets import GroupNorm, Subnet
from crossdet.models.tiles import LocalTrust
from crossdet.types import PAD_DIVISOR, Batch, Detections

MOST_GRAPHS = 64
"""Of compiled features; what comes in yet other sizes is not compiled."""
EARLY = "force_non_lazy_backward_lowering"
"""Of torch: the backward pass is compiled with the forward pass, so that what cannot be compiled is found there."""
LOGITS_AT_ONCE = 16_000_000
"""Class logits of a batch and level held at once in `find` (64 MB; where nearly all are above the threshold,
choosing among them takes twelve times as much); on a card, where each part waits for the device, twice as many."""


class Outputs(NamedTuple):
    """Per pyramid level: logits `[B, H W A, C]`, box deltas `[B, H W A, 4]` (4 more per adapter), grids (H, W)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    grids: list[tuple[int, int]]


class CoarseLevels(ExtraFPNBlock):
    """P6 = 3x3 stride-2 convolution of C5, P7 = the same of ReLU(P6) (RetinaNet, footnote 2).

    torchvision's own block takes P5 instead of C5 when their channels are equal.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(x[-1])
        p7 = self.p7(F.relu(p6))
        return [*results, p6, p7], [*names, "p6", "p7"]


class RetinaNet(Growable):
    """One-stage detector for C classes: backbone, pyramid P3-P7, class subnet, box subnet.

    Args:
        backbone: gives C3, C4, C5.
        num_classes: C, the classes of the union.
        settings: architecture and loss. Group norm is in P3 to P5 and in the subnets (training from random weights
            is slow without it); P6 and P7 are plain convolutions. See `label_anchors` for what decides the anchors'
            labels, `dataset_aware_focal_loss` for the loss of the classes, `Losses.normalised` for `normaliser`.
        overlap: `[C, C]` bool, see `dataset_aware_focal_loss`.
    """

    terms = ("classification", "box")
    has_parts_to_compile = True
    mean: Tensor
    std: Tensor
    box_subnet_of: Tensor
    overlap: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        settings: RetinaNetSettings | None = None,
        overlap: Tensor | None = None,
    ) -> None:
        super().__init__()
        settings = settings or RetinaNetSettings()
        channels, depth = settings.channels, settings.head_depth
        group_norm = settings.group_channels if settings.group_norm else 0
        scales, ratios = settings.anchors.scales, settings.anchors.ratios
        adapters = settings.adapters
        self.settings = settings
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(
            backbone.channels,
            channels,
            extra_blocks=CoarseLevels(backbone.channels[-1], channels),
            norm_layer=partial(GroupNorm, least=group_norm) if group_norm else None,
        )
        self.num_classes = num_classes
        self.num_anchors = len(scales) * len(ratios)
        widths = [adapter.channels for adapter in adapters]
        outputs = self.num_anchors * num_classes
        self.class_subnet = Subnet(channels, channels, depth, outputs, group_norm, widths)
        self.box_subnet = Subnet(channels, channels, depth, self.num_anchors * 4, group_norm)
        self.box_adapters = nn.ModuleList(
            Subnet(channels, width, max(1, depth), self.num_anchors * 4, group_norm) for width in widths
        )
        box_subnets = [
            max((i for i, adapter in enumerate(adapters, 1) if adapter.has_boxes_of(c)), default=0)
            for c in range(num_classes)
        ]
        self.register_buffer("box_subnet_of", torch.tensor(box_subnets), persistent=False)
        bias = cast(Tensor, self.class_subnet.predict.bias)
        nn.init.constant_(bias, -math.log((1 - settings.prior) / settings.prior))
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1) * 255)
        for level, stride in enumerate(PYRAMID_STRIDES):
            self.register_buffer(f"cell_{level}", cell_anchors(stride, scales, ratios), persistent=False)
        some_overlap = overlap if overlap is not None and bool(overlap.any()) else None
        self.register_buffer("overlap", some_overlap, persistent=False)
        self.normaliser = settings.loss.normaliser
        self._compiled_features: Callable[[Tensor], list[Tensor]] | None = None
        self._full: int | None = None  # pictures of the batches that are compiled for; None: all
        self._held: Callable[[RetinaNet, list[Tensor], Batch], Tensor] | None = None
        self._frozen_stem = False

    @property
    def fill_colour(self) -> list[int]:
        """RGB 0..255 that is normalised to (nearly) zero: the colour that batches are padded with."""
        return self.mean.flatten().round().int().tolist()

    # ---------------------------------------------------------------- forward

    def features(self, images: Tensor) -> list[Tensor]:
        """Pyramid P3-P7 of `images [B, 3, H, W]` RGB 0..255 (uint8 or float), before normalisation."""
        maps = self.feature_maps(images)
        return list(self.fpn({f"c{i + 3}": c for i, c in enumerate(maps)}).values())

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """C3, C4 and C5 of the same."""
        height, width = images.shape[-2:]
        x = images.to(self.mean.dtype)
        # By the colour that batches are padded with, exactly: group norm sees the border, and it must not matter
        # who pads. In a graph for any size (`torch.export`) sides are no integers, and this is no question for it.
        if not isinstance(height, int) or height % PAD_DIVISOR or width % PAD_DIVISOR:
            fill = self.mean.round()
            x = F.pad(x - fill, (0, -width % PAD_DIVISOR, 0, -height % PAD_DIVISOR)) + fill
        x = (x - self.mean) / self.std
        # The weights decide the layout. Asked of a 3x3 weight: 1x1 ones count as contiguous in both formats.
        wide = self.fpn.layer_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last if wide else torch.contiguous_format)
        maps: list[Tensor] = self.backbone(x)
        return maps

    def head(self, features: list[Tensor]) -> Outputs:
        """All logits and box deltas of every level."""
        all_classes = self._chosen(None, features[0].device)
        towers = [self.class_subnet.before_prediction(f) for f in features]
        return Outputs(
            logits=[self._class_logits(tower, all_classes) for tower in towers],
            deltas=[self.deltas(f) for f in features],
            grids=[(f.shape[-2], f.shape[-1]) for f in features],
        )

    def forward(self, images: Tensor) -> Outputs:
        """`images [B, 3, H, W]` RGB 0..255 -> all logits; for inference and export."""
        return self.head(self.features(images))

    def _by_anchor(self, x: Tensor, width: int) -> Tensor:
        # [B, A * width, H, W] -> [B, H W A, width]; a view, not a copy, in channels_last
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)

    def anchors(self, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """`[H W A, 4]` xyxy anchors of every level."""
        return [
            grid_anchors(self.get_buffer(f"cell_{level}"), grid, PYRAMID_STRIDES[level])
            for level, grid in enumerate(grids)
        ]

    def anchor_grid(self, grids: Sequence[tuple[int, int]]) -> AnchorGrid:
        """The anchors of all levels in one tensor."""
        cells = [self.get_buffer(f"cell_{level}") for level in range(len(grids))]
        return anchor_grid(cells, grids, PYRAMID_STRIDES[: len(grids)])

    # ---------------------------------------------------------------- training

    def prepare(self) -> Callable[[Batch], Batch]:
        """`label_batch` with this detector's anchors and thresholds, on the CPU: for the loader's workers."""
        return partial(
            label_batch,
            cells=[self.get_buffer(f"cell_{level}").cpu() for level in range(len(PYRAMID_STRIDES))],
            positive_iou=self.settings.positive_iou,
            negative_iou=self.settings.negative_iou,
            low_quality_matches=self.settings.low_quality_matches,
        )

    def positives(self, batch: Batch) -> Tensor:
        ready = batch if batch.prepared is not None else self.prepare()(batch.to("cpu"))
        return _positives(cast(AnchorLabels, ready.prepared)).to(batch.images.device)

    def losses(self, batch: Batch) -> Losses:
        """Terms `classification` and `box`, see `contract.Losses`."""
        compiled = self._compiled_features if self._full in (None, len(batch.images)) else None
        features = (compiled or self.features)(batch.images)
        losses = self.losses_of(features, batch)
        if self._held is None:
            return losses
        return replace(losses, further={"classification": self._held(self, features, batch)})

    def losses_of(self, features: list[Tensor], batch: Batch) -> Losses:
        """The same of given pyramid features.

        Class logits are computed only where the loss needs them, see `union_focal_losses`.
        """
        grid = self.anchor_grid([(f.shape[-2], f.shape[-1]) for f in features])
        labelled = self._labelled(batch, grid)
        settings = self.settings.loss
        classification = union_focal_losses(
            [self.class_subnet.before_prediction(f) for f in features],
            self.class_subnet.predict,
            labelled,
            batch.trusted_somewhere,
            batch.trust_groups,
            settings.alpha,
            settings.gamma,
            self._everywhere(labelled),
            self.overlap,
            self._compiled_features is not None and grid.boxes.device.type == "cpu",  # no gain on a card
            batch.background_weight,
            None if batch.tiles is None else LocalTrust.of(batch.tiles, grid.boxes),
        )
        deltas = torch.cat([self.deltas(f) for f in features], 1)
        box = self._box_losses(deltas, grid.boxes, labelled) * settings.box_weight
        return Losses({"classification": classification, "box": box}, _positives(labelled))

    def _everywhere(self, labelled: AnchorLabels) -> bool | Tensor:
        """Which foreground anchors are negatives for all other classes; see `config.md`, `foreground_negatives`."""
        wanted = self.settings.loss.foreground_negatives
        if wanted is True and labelled.sure is not None:
            return labelled.sure
        return wanted is not False

    def _labelled(self, batch: Batch, grid: AnchorGrid) -> AnchorLabels:
        """What the workers found, or the same found here."""
        if batch.prepared is None:
            s = self.settings
            return label_anchors(
                grid, batch.targets, s.positive_iou, s.negative_iou, s.low_quality_matches, batch.has_regions
            )
        labelled = cast(AnchorLabels, batch.prepared)
        if labelled.labels.shape[1] != len(grid.boxes):
            raise UserError(
                f"model.backbone: its maps are {list(grid.grids)} for images of {tuple(batch.images.shape[-2:])}; "
                f"they must halve from stride to stride, rounding up. Use another backbone"
            )
        return labelled

    def _box_losses(self, deltas: Tensor, anchors: Tensor, labelled: AnchorLabels) -> Tensor:
        image, anchor = labelled.image, labelled.anchor
        wanted = encode_boxes(labelled.boxes, anchors[anchor])
        found = self._boxes_of(deltas[image, anchor], labelled.labels[image, anchor])
        found = found if found.dtype == torch.float64 else found.float()
        losses = smooth_l1(found, wanted.to(found.dtype), self.settings.loss.box_beta)
        return found.new_zeros(len(deltas)).index_add(0, image, losses)

    def training_mode(self, fixed_statistics: bool = False) -> None:
        # a frozen backbone stays in evaluation mode, or its batch norm would go on counting
        self.train(any(p.requires_grad for p in self.backbone.parameters()))
        for module in self.backbone.modules() if fixed_statistics else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        if self._frozen_stem:
            for module in self.backbone.stem():
                module.eval()

    def freeze_stem(self) -> None:
        for module in self.backbone.stem():
            module.requires_grad_(False)
        self._frozen_stem = True

    def compile_parts(self, full: int | None = None) -> None:
        """Backbone and pyramid as a graph for each canvas, or one for all sizes; the focal terms as one kernel on a
        CPU, where that pays."""
        if full is not None:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        if hasattr(torch._functorch.config, EARLY):
            setattr(torch._functorch.config, EARLY, True)
        self._compiled_features = torch.compile(self.features, dynamic=full is None)
        self._full = full

    def compile_nothing(self) -> None:
        self._compiled_features, self._full = None, None

    def export_module(self) -> nn.Module:
        """`images [B, 3, H, W]` -> class logits `[B, N, C]` and boxes `[B, N, 4]` xyxy of all anchors; with
        adapters `[B, N, 4 (1 + adapters)]`, see `box_subnet_of`. Not clipped, without NMS."""
        return Exported(self)

    def detection_module(self, classes: Tensor, limits: Limits) -> nn.Module:
        return Detecting(self, classes, limits)

    def class_logits(self, features: Tensor, classes: Tensor, borders: Sequence[int] | None = None) -> Tensor:
        """`[B, H W A, K]` of one level and some classes, rising and each once. borders: of `adapter_borders`, where
        it must not be computed, in a graph."""
        return self._class_logits(self.class_subnet.before_prediction(features), classes, borders)

    def adapter_borders(self, classes: Tensor) -> list[int]:
        """The first of the `classes`, rising, that each adapter computes."""
        begins = [adapter.first for adapter in self.settings.adapters]
        if not begins or len(classes) == self.num_classes:
            return begins
        return torch.searchsorted(classes, torch.tensor(begins, device=classes.device)).tolist()

    # ---------------------------------------------------------------- growth

    def carry_over(self, state: Mapping[str, Tensor], classes: int) -> None:
        growth.carry_over(self, state, classes)

    def begin_as(self, rows: Mapping[int, int]) -> None:
        growth.begin_as(self, rows)

    def freeze_old(self, classes: int) -> Callable[[], None]:
        return growth.freeze_old(self, classes)

    def hold_to(self, teacher: Network, weight: float) -> None:
        self._held = logit_matching(cast(RetinaNet, teacher), weight)

    # ---------------------------------------------------------------- inference

    def decode(
        self,
        outputs: Outputs,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        """Detections of every image, by falling score, boxes clipped to the image.

        Args:
            outputs: of `forward`.
            sizes: `[B, 2]` (height, width) of each image inside its padding.
            classes: unified ids to look for; applied before top-k, NMS and the cap, so that no other class
                uses up candidates. None = all.
        """
        anchors = self.anchors(outputs.grids)
        chosen = self._chosen(classes, sizes.device)
        levels = []
        for logits, deltas, boxes in zip(outputs.logits, outputs.deltas, anchors, strict=True):
            best = best_candidates(logits if classes is None else logits[..., chosen], chosen, limits)
            levels.append(self._with_boxes(best, deltas, boxes))
        return detections_of(levels, sizes, limits)

    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        """What `decode(self(images), sizes, ...)` gives, without all logits: only those of `classes` are computed,
        some classes at a time, so that 2,000 classes need no more memory than 100."""
        features = self.features(images)
        anchors = self.anchors([(f.shape[-2], f.shape[-1]) for f in features])
        chosen = self._chosen(classes, sizes.device)
        levels: list[Boxes] = []
        for level, boxes in zip(features, anchors, strict=True):
            deltas = self.deltas(level)
            tower = self.class_subnet.before_prediction(level)
            best: Candidates | None = None
            most = LOGITS_AT_ONCE * (2 if boxes.is_cuda else 1)
            for part in chosen.split(max(1, most // (len(sizes) * len(boxes)))):
                more = best_candidates(self._class_logits(tower, part), part, limits)
                best = merged(best, more, len(sizes), limits.topk)
            if best is not None:
                levels.append(self._with_boxes(best, deltas, boxes))
        return detections_of(levels, sizes, limits)

    def _chosen(self, classes: Sequence[int] | Tensor | None, device: torch.device) -> Tensor:
        """`[K]` ids, rising and each once, which `_class_logits` and `merged` count on."""
        if classes is None:
            return torch.arange(self.num_classes, device=device)
        return torch.as_tensor(classes, dtype=torch.int64).unique().to(device)

    def deltas(self, features: Tensor) -> Tensor:
        """`[B, H W A, 4 (1 + adapters)]`: those of the box subnet, and of each adapter's."""
        subnets = [self.box_subnet, *self.box_adapters]
        parts = [self._by_anchor(subnet(features), 4) for subnet in subnets]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _boxes_of(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """`[n, 4]` of `deltas [n, 4 (1 + adapters)]` by the box subnets of the classes `labels [n]`."""
        if not self.settings.adapters:
            return deltas
        rows = torch.arange(len(deltas), device=deltas.device)
        return deltas.unflatten(1, (-1, 4))[rows, self.box_subnet_of[labels]]

    def _with_boxes(self, found: Candidates, deltas: Tensor, anchors: Tensor) -> Boxes:
        """deltas: of `deltas`; anchors: `[N, 4]`; both of the level."""
        chosen = self._boxes_of(deltas[found.image, found.anchor], found.label)
        boxes = decode_boxes(chosen.float(), anchors[found.anchor])
        return Boxes(boxes, found.scores, found.image, found.label)

    def _class_logits(self, tower: Tensor, classes: Tensor, borders: Sequence[int] | None = None) -> Tensor:
        """`[B, H W A, K]` logits of some classes, rising and each once.

        Classes from before an adapter are computed without it, by the same call as before there was one: adding
        its zeros in the same convolution could change the order of a sum, and so the last bit.
        """
        if not self.settings.adapters:
            return self._rows_of_logits(tower, classes)
        borders = self.adapter_borders(classes) if borders is None else borders
        width = tower.shape[1] - sum(adapter.channels for adapter in self.settings.adapters)
        parts = []
        for group, adapter in zip(
            classes.tensor_split(tuple(borders)), [*self.settings.adapters, None], strict=True
        ):
            if len(group):
                parts.append(self._rows_of_logits(tower[:, :width], group))
            width += adapter.channels if adapter is not None else 0
        return torch.cat(parts, 2) if parts else self._rows_of_logits(tower, classes)

    def _rows_of_logits(self, tower: Tensor, classes: Tensor) -> Tensor:
        predict = self.class_subnet.predict
        if not len(classes):
            cells = tower.shape[-2] * tower.shape[-1]
            return tower.new_zeros(len(tower), cells * self.num_anchors, 0)
        if len(classes) == self.num_classes:
            return self._by_anchor(predict(tower), self.num_classes)
        first = torch.arange(self.num_anchors, device=classes.device)[:, None] * self.num_classes
        rows = (first + classes).flatten()
        weight, bias = predict.weight[rows, : tower.shape[1]], cast(Tensor, predict.bias)[rows]
        return self._by_anchor(F.conv2d(tower, weight, bias, padding=1), len(classes))


def _positives(labelled: AnchorLabels) -> Tensor:
    return (labelled.labels >= 0).sum(1)


class Exported(nn.Module):
    """See `RetinaNet.export_module`."""

    def __init__(self, network: RetinaNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(images)
        anchors = torch.cat(self.network.anchors(outputs.grids))
        deltas = torch.cat(outputs.deltas, 1).unflatten(2, (-1, 4)).float()
        boxes = [decode_boxes(deltas[:, :, i], anchors) for i in range(deltas.shape[2])]
        return torch.cat(outputs.logits, 1), torch.cat(boxes, 2)
