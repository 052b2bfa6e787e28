"""RetinaNet (Lin et al., arXiv 1708.02002) with the dataset-aware focal loss, top to bottom.

`features` -> `head` -> `image_losses` (training) or `decode` (inference); each is a method of its own, and what
`forward` gives does not depend on `self.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, batched_nms
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from crossdet.errors import UserError
from crossdet.losses import smooth_l1
from crossdet.models.backbones import Backbone
from crossdet.models.retinanet.anchors import (
    AnchorGrid,
    anchor_grid,
    cell_anchors,
    decode_boxes,
    encode_boxes,
    grid_anchors,
)
from crossdet.models.retinanet.class_loss import union_focal_losses
from crossdet.models.retinanet.matching import label_anchors, label_batch
from crossdet.models.retinanet.subnets import Adapter, GroupNorm, Subnet
from crossdet.types import PAD_DIVISOR, PYRAMID_STRIDES, AnchorLabels, Batch, Detections

LOGITS_AT_ONCE = 32_000_000
"""Class logits of a batch and level held at once in `find` (128 MB)."""


class Outputs(NamedTuple):
    """Per pyramid level: logits `[B, H W A, C]`, box deltas `[B, H W A, 4]` (4 more per adapter), grids (H, W)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    grids: list[tuple[int, int]]


class ImageLosses(NamedTuple):
    """Sums per image, `[B]` each, not yet normalised."""

    classification: Tensor
    box: Tensor
    positives: Tensor


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


class RetinaNet(nn.Module):
    """One-stage detector for C classes: backbone, pyramid P3-P7, class subnet, box subnet.

    Args:
        backbone: gives C3, C4, C5.
        num_classes: C, the classes of the union.
        channels, head_depth: width of the pyramid, convolutions of a subnet before its prediction.
        group_norm: least channels per group of the group norm in P3 to P5 and in the subnets; 0: none (training
            from random weights is slow without). P6 and P7 are plain convolutions.
        scales, ratios: anchors; area (scale x stride)^2, ratio = height / width.
        prior: probability that every class starts with at every anchor (focal loss initialisation).
        positive_iou, negative_iou, low_quality_matches: see `label_anchors`.
        alpha, gamma, foreground_negatives, overlap: see `dataset_aware_focal_loss`.
        box_beta, box_weight: corner and weight of the smooth L1 box loss.
        normaliser: "batch" or "image", see `normalise`.
        adapters: of frozen extensions, oldest first, see `Adapter`.
    """

    mean: Tensor
    std: Tensor
    box_subnet_of: Tensor
    overlap: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        channels: int = 256,
        head_depth: int = 4,
        group_norm: int = 0,
        scales: Sequence[float] = (2.0, 3.0, 4.0),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        prior: float = 0.01,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        low_quality_matches: bool = True,
        alpha: float = 0.25,
        gamma: float = 2.0,
        foreground_negatives: bool = True,
        overlap: Tensor | None = None,
        box_beta: float = 1 / 9,
        box_weight: float = 1.0,
        normaliser: Literal["batch", "image"] = "batch",
        adapters: Sequence[Adapter] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(
            backbone.channels,
            channels,
            extra_blocks=CoarseLevels(backbone.channels[-1], channels),
            norm_layer=partial(GroupNorm, least=group_norm) if group_norm else None,
        )
        self.num_classes = num_classes
        self.num_anchors = len(scales) * len(ratios)
        self.adapters = tuple(adapters)
        widths = [adapter.channels for adapter in adapters]
        outputs = self.num_anchors * num_classes
        self.class_subnet = Subnet(channels, channels, head_depth, outputs, group_norm, widths)
        self.box_subnet = Subnet(channels, channels, head_depth, self.num_anchors * 4, group_norm)
        self.box_adapters = nn.ModuleList(
            Subnet(channels, width, max(1, head_depth), self.num_anchors * 4, group_norm) for width in widths
        )
        box_subnets = [
            max((i for i, adapter in enumerate(adapters, 1) if adapter.has_boxes_of(c)), default=0)
            for c in range(num_classes)
        ]
        self.register_buffer("box_subnet_of", torch.tensor(box_subnets), persistent=False)
        nn.init.constant_(cast(Tensor, self.class_subnet.predict.bias), -math.log((1 - prior) / prior))
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality_matches = low_quality_matches
        self.alpha = alpha
        self.gamma = gamma
        self.foreground_negatives = foreground_negatives
        self.box_beta = box_beta
        self.box_weight = box_weight
        self.normaliser = normaliser
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1) * 255)
        for level, stride in enumerate(PYRAMID_STRIDES):
            self.register_buffer(f"cell_{level}", cell_anchors(stride, scales, ratios), persistent=False)
        some_overlap = overlap if overlap is not None and bool(overlap.any()) else None
        self.register_buffer("overlap", some_overlap, persistent=False)

    @property
    def mean_colour(self) -> list[int]:
        """RGB 0..255 that is normalised to (nearly) zero: the colour that batches are padded with."""
        return self.mean.flatten().round().int().tolist()

    # ---------------------------------------------------------------- forward

    def features(self, images: Tensor) -> list[Tensor]:
        """Pyramid P3-P7 of `images [B, 3, H, W]` RGB 0..255 (uint8 or float), before normalisation."""
        height, width = images.shape[-2:]
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        # Zero after normalisation is the mean colour: a border that is as uninformative as can be.
        if height % PAD_DIVISOR or width % PAD_DIVISOR:
            x = F.pad(x, (0, -width % PAD_DIVISOR, 0, -height % PAD_DIVISOR))
        # The weights decide the layout. Asked of a 3x3 weight: 1x1 ones count as contiguous in both formats.
        wide = self.fpn.layer_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last if wide else torch.contiguous_format)
        maps = self.backbone(x)
        return list(self.fpn({f"c{i + 3}": c for i, c in enumerate(maps)}).values())

    def head(self, features: list[Tensor]) -> Outputs:
        """All logits and box deltas of every level."""
        all_classes = self._chosen(None, features[0].device)
        towers = [self.class_subnet.before_prediction(f) for f in features]
        return Outputs(
            logits=[self._class_logits(tower, all_classes) for tower in towers],
            deltas=[self._deltas(f) for f in features],
            grids=[(f.shape[-2], f.shape[-1]) for f in features],
        )

    def forward(self, images: Tensor) -> Outputs:
        """`images [B, 3, H, W]` RGB 0..255 -> all logits; for inference and export."""
        return self.head(self.features(images))

    def _by_anchor(self, x: Tensor, width: int) -> Tensor:
        # [B, A * width, H, W] -> [B, H W A, width]; a view, not a copy, in channels_last
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, width)

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

    def labeller(self) -> Callable[[Batch], Batch]:
        """`label_batch` with this detector's anchors and thresholds, on the CPU: for the loader's workers."""
        return partial(
            label_batch,
            cells=[self.get_buffer(f"cell_{level}").cpu() for level in range(len(PYRAMID_STRIDES))],
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            low_quality_matches=self.low_quality_matches,
        )

    def loss(self, features: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalars `classification` and `box`, see `normalise`."""
        return self.normalise(self.image_losses(features, batch))

    def image_losses(self, features: list[Tensor], batch: Batch, compiled: bool = False) -> ImageLosses:
        """Loss sums per image, so that the loss of every dataset can be logged from the same numbers.

        Class logits are computed only where the loss needs them, see `union_focal_losses`.
        """
        grid = self.anchor_grid([(f.shape[-2], f.shape[-1]) for f in features])
        labelled = batch.labelled
        if labelled is None:
            labelled = label_anchors(
                grid,
                batch.targets,
                self.positive_iou,
                self.negative_iou,
                self.low_quality_matches,
                batch.has_regions,
            )
        elif labelled.labels.shape[1] != len(grid.boxes):
            raise UserError(
                f"model.backbone: its maps are {list(grid.grids)} for images of {tuple(batch.images.shape[-2:])}; "
                f"they must halve from stride to stride, rounding up. Use another backbone"
            )
        classification = union_focal_losses(
            [self.class_subnet.before_prediction(f) for f in features],
            self.class_subnet.predict,
            labelled,
            batch.trusted,
            batch.trust_groups,
            self.alpha,
            self.gamma,
            self.foreground_negatives,
            self.overlap,
            compiled,
            batch.background_weight,
        )
        deltas = torch.cat([self._deltas(f) for f in features], 1)
        box = self._box_losses(deltas, grid.boxes, labelled)
        return ImageLosses(classification, box, (labelled.labels >= 0).sum(1))

    def _box_losses(self, deltas: Tensor, anchors: Tensor, labelled: AnchorLabels) -> Tensor:
        image, anchor = labelled.image, labelled.anchor
        wanted = encode_boxes(labelled.boxes, anchors[anchor])
        found = self._boxes_of(deltas[image, anchor], labelled.labels[image, anchor])
        found = found if found.dtype == torch.float64 else found.float()
        losses = smooth_l1(found, wanted.to(found.dtype), self.box_beta)
        return found.new_zeros(len(deltas)).index_add(0, image, losses)

    def normalise(self, sums: ImageLosses) -> dict[str, Tensor]:
        """The two losses of this micro-batch, to be averaged over the ranks as DDP does with gradients.

        `normaliser` "batch": the sums of all ranks divided by max(1, their positives) (RetinaNet sec. 4). "image":
        each image's sums divided by max(1, its own positives), and the mean over the images of all ranks, as in
        torchvision; a dataset with many objects per image then weighs no more than one with few.
        """
        positives = sums.positives.to(sums.classification.dtype)
        by_image = self.normaliser == "image"
        share = 1 / positives.clamp(min=1) if by_image else torch.ones_like(positives)
        count = positives.new_full((), len(positives)) if by_image else positives.sum()
        ranks = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = torch.distributed.get_world_size()
            torch.distributed.all_reduce(count)
        scale = ranks / count.clamp(min=1)
        return {
            "classification": (sums.classification * share).sum() * scale,
            "box": (sums.box * share).sum() * scale * self.box_weight,
        }

    # ---------------------------------------------------------------- inference

    def decode(
        self,
        outputs: Outputs,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        score_threshold: float | Tensor = 0.05,
        topk: int = 1000,
        max_detections: int = 100,
        nms_iou: float = 0.5,
        agnostic_nms: bool = False,
        nms_groups: Sequence[int] | None = None,
    ) -> list[Detections]:
        """Detections of every image, by falling score, boxes clipped to the image.

        Args:
            outputs: of `forward`.
            sizes: `[B, 2]` (height, width) of each image inside its padding.
            classes: unified ids to look for; applied before top-k, NMS and the cap, so that no other class
                uses up candidates. None = all.
            score_threshold: candidates must score more; a number, or `[C]` one per class.
            topk: candidates kept per level.
            max_detections: per image, after class-wise NMS at `nms_iou`.
            agnostic_nms: NMS among all classes that are looked for; of several at one place the best is left.
            nms_groups: `C` groups, by class; NMS among the classes of a group. None = each class by itself.
        """
        anchors = self.anchors(outputs.grids)
        groups = self._nms_groups(agnostic_nms, nms_groups, sizes.device)
        chosen = self._chosen(classes, sizes.device)
        found = []
        for image in range(len(sizes)):
            levels = []
            for logits, deltas, boxes in zip(outputs.logits, outputs.deltas, anchors, strict=True):
                columns = logits[image] if classes is None else logits[image][:, chosen]
                best = _candidates(columns, chosen, score_threshold, topk)
                levels.append(self._with_boxes(best, deltas[image], boxes))
            found.append(_detections(levels, sizes[image], max_detections, nms_iou, groups))
        return found

    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        score_threshold: float | Tensor = 0.05,
        topk: int = 1000,
        max_detections: int = 100,
        nms_iou: float = 0.5,
        agnostic_nms: bool = False,
        nms_groups: Sequence[int] | None = None,
    ) -> list[Detections]:
        """What `decode(self(images), sizes, ...)` gives, without all logits: only those of `classes` are computed,
        some classes at a time, so that 2,000 classes need no more memory than 100."""
        features = self.features(images)
        anchors = self.anchors([(f.shape[-2], f.shape[-1]) for f in features])
        chosen = self._chosen(classes, sizes.device)
        groups = self._nms_groups(agnostic_nms, nms_groups, sizes.device)
        levels: list[list[Boxes]] = [[] for _ in sizes]
        for level, boxes in zip(features, anchors, strict=True):
            deltas = self._deltas(level)
            tower = self.class_subnet.before_prediction(level)
            best: list[Candidates | None] = [None] * len(sizes)
            for part in chosen.split(max(1, LOGITS_AT_ONCE // (len(sizes) * len(boxes)))):
                logits = self._class_logits(tower, part)
                for image in range(len(sizes)):
                    more = _candidates(logits[image], part, score_threshold, topk)
                    best[image] = _merge(best[image], more, topk)
            for image, candidates in enumerate(best):
                if candidates is not None:
                    levels[image].append(self._with_boxes(candidates, deltas[image], boxes))
        return [
            _detections(parts, size, max_detections, nms_iou, groups)
            for parts, size in zip(levels, sizes, strict=True)
        ]

    def _chosen(self, classes: Sequence[int] | Tensor | None, device: torch.device) -> Tensor:
        """`[K]` ids, rising and each once, which `_class_logits` and `_merge` count on."""
        if classes is None:
            return torch.arange(self.num_classes, device=device)
        return torch.as_tensor(classes, dtype=torch.int64).unique().to(device)

    def _nms_groups(
        self, agnostic_nms: bool, nms_groups: Sequence[int] | None, device: torch.device
    ) -> Tensor | None:
        """`[C]` group of every class in NMS, None where each is its own."""
        if agnostic_nms:
            return torch.zeros(self.num_classes, dtype=torch.int64, device=device)
        return None if nms_groups is None else torch.tensor(nms_groups, device=device)

    def _deltas(self, features: Tensor) -> Tensor:
        """`[B, H W A, 4 (1 + adapters)]`: those of the box subnet, and of each adapter's."""
        subnets = [self.box_subnet, *self.box_adapters]
        parts = [self._by_anchor(subnet(features), 4) for subnet in subnets]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _boxes_of(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """`[n, 4]` of `deltas [n, 4 (1 + adapters)]` by the box subnets of the classes `labels [n]`."""
        if not self.adapters:
            return deltas
        rows = torch.arange(len(deltas), device=deltas.device)
        return deltas.unflatten(1, (-1, 4))[rows, self.box_subnet_of[labels]]

    def _with_boxes(self, found: Candidates, deltas: Tensor, anchors: Tensor) -> Boxes:
        """deltas: of `_deltas`; anchors: `[N, 4]`; both of the level."""
        chosen = self._boxes_of(deltas[found.anchor], found.label)
        return Boxes(decode_boxes(chosen.float(), anchors[found.anchor]), found.scores, found.label)

    def _class_logits(self, tower: Tensor, classes: Tensor) -> Tensor:
        """`[B, H W A, K]` logits of some classes, rising and each once.

        Classes from before an adapter are computed without it, by the same call as before there was one: adding
        its zeros in the same convolution could change the order of a sum, and so the last bit.
        """
        if not self.adapters:
            return self._rows_of_logits(tower, classes)
        begins = [adapter.first for adapter in self.adapters]
        if len(classes) == self.num_classes:
            borders = begins
        else:
            borders = torch.searchsorted(classes, torch.tensor(begins, device=classes.device)).tolist()
        width = tower.shape[1] - sum(adapter.channels for adapter in self.adapters)
        parts = []
        for group, adapter in zip(classes.tensor_split(borders), [*self.adapters, None], strict=True):
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


class Candidates(NamedTuple):
    """The best pairs of one level of one image: scores `[n]`, anchor rows `[n]`, unified class ids `[n]`."""

    scores: Tensor
    anchor: Tensor
    label: Tensor


class Boxes(NamedTuple):
    """Decoded candidates: boxes `[n, 4]`, scores `[n]`, labels `[n]`."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def _candidates(logits: Tensor, classes: Tensor, threshold: float | Tensor, topk: int) -> Candidates:
    """The `topk` best pairs above the threshold of `logits [n, K]`; equal ones by anchor, then by class.

    classes: `[K]` ids of the columns. threshold: a number, or `[C]` by class id.
    """
    scores = logits.float().sigmoid()
    limit = threshold[classes] if isinstance(threshold, Tensor) else threshold
    pairs = (scores > limit).flatten().nonzero().squeeze(1)
    kept, order = scores.flatten()[pairs].sort(descending=True, stable=True)
    pairs = pairs[order[:topk]]
    width = max(1, logits.shape[1])
    return Candidates(kept[:topk], pairs.div(width, rounding_mode="floor"), classes[pairs % width])


def _merge(known: Candidates | None, more: Candidates, topk: int) -> Candidates:
    if known is None:
        return more
    scores, anchor, label = (torch.cat(pair) for pair in zip(known, more, strict=True))
    order = torch.argsort(anchor, stable=True)  # the classes come in order already
    order = order[scores[order].sort(descending=True, stable=True).indices[:topk]]
    return Candidates(scores[order], anchor[order], label[order])


def _detections(
    levels: Sequence[Boxes], size: Tensor, max_detections: int, nms_iou: float, groups: Tensor | None
) -> Detections:
    """Boxes of all levels clipped to the image, NMS by class or group, and the cap. size: `[2]` (height, width)."""
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
    high = torch.stack([size[1], size[0], size[1], size[0]]).to(boxes.dtype)
    boxes = boxes.clamp(min=0).minimum(high)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
    keep = batched_nms(boxes, scores, labels if groups is None else groups[labels], nms_iou)[:max_detections]
    return Detections(boxes[keep], scores[keep], labels[keep])
