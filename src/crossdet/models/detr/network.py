"""D-FINE, RT-DETR and RF-DETR with the dataset-aware loss, top to bottom.

Memory (backbone, encoder) -> queries (selection, denoising) -> decoder -> `losses` or `find`. The modules and their
names are those of HF transformers, gone through by a `Graph`; selection, denoising and loss are the package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdet.models.contract import Growable, Limits, Losses
from crossdet.models.detecting import nms_within
from crossdet.models.detr import growth
from crossdet.models.detr.boxes import corners
from crossdet.models.detr.criterion import Answers, Criterion, counts, denoising_losses, set_losses
from crossdet.models.detr.denoising import Noise, Settings, add_noise, attention_mask
from crossdet.models.detr.detecting import Detecting
from crossdet.models.detr.graphs.graph import First, Graph, Memory, Queries, joined
from crossdet.models.detr.negatives import Rule
from crossdet.models.detr.objects import Objects, objects_of, own_classes
from crossdet.models.detr.selection import best, chosen, rows_of
from crossdet.models.detr.settings import DetrLoss, DetrSettings
from crossdet.types import PAD_DIVISOR, Batch, Detections, Tiles, TrustGroup, trust_groups

NOT_LOOKED_FOR = -1e4
"""Logit of a class that a query does not look for, in an export."""


class Prepared(NamedTuple):
    """What the loader's workers find out. own: `[B, C]` bool, of `own_classes`, without those that are frozen;
    own_of_all: with them. groups: images with the same own classes. full: whether all pictures are the network's
    square already."""

    objects: Objects
    regions: Objects
    own: Tensor
    own_of_all: Tensor
    groups: tuple[TrustGroup, ...]
    noise: Noise | None
    full: bool

    def map(self, function: Callable[[Tensor], Tensor]) -> Prepared:
        return Prepared(
            _mapped(self.objects, function),
            _mapped(self.regions, function),
            function(self.own),
            function(self.own_of_all),
            tuple(group._replace(classes=function(group.classes)) for group in self.groups),
            None if self.noise is None else self.noise.map(function),
            self.full,
        )


def _mapped(objects: Objects, function: Callable[[Tensor], Tensor]) -> Objects:
    boxes, labels, images, by_teacher = map(function, objects[:-1])
    return Objects(boxes, labels, images, by_teacher, objects.counts)


def prepare(batch: Batch, square: int | None, denoising: Settings, first: int = 0) -> Batch:
    """The batch with everything that a step would have to ask the device for. On a CPU.

    first: the classes before it are frozen and choose nothing.
    """
    frames = frames_of(batch.images.shape[-2:], batch.sizes, square)
    objects, regions = objects_of(batch.targets, frames)
    own_of_all = own_classes(batch.trusted_somewhere, objects)
    own = own_of_all.clone()
    own[:, :first] = False
    seeds = (batch.image_ids if batch.draws is None else batch.draws).tolist()
    noise = add_noise(objects, own, seeds, denoising)
    full = square is not None and _fill(batch.images, batch.sizes, square)
    return replace(batch, prepared=Prepared(objects, regions, own, own_of_all, trust_groups(own), noise, full))


def _fill(images: Tensor, sizes: Tensor, side: int) -> bool:
    """Whether all pictures have that side, and no padding. On a device it waits for that."""
    return images.shape[-2:] == (side, side) and bool((sizes == side).all())


def frames_of(shape: Sequence[int], sizes: Tensor, square: int | None) -> Tensor:
    """`[B, 2]` (height, width) in pixels that boxes are shares of: the batch with its padding, or, where pictures
    are stretched to a square, the picture itself."""
    if square is not None:
        return sizes
    padded = [-(-side // PAD_DIVISOR) * PAD_DIVISOR for side in shape]
    return torch.tensor(padded, device=sizes.device).expand(len(sizes), 2)


class Detr(Growable):
    """A set-prediction detector for C classes.

    Args:
        graph: goes through HF's model of the family (`DFineModel`, say), which becomes `core`.
        overlap: `[C, C]` bool, see `dataset_aware_focal_loss`.
        mean, std: RGB of pictures in 0..1.
    """

    mean: Tensor
    std: Tensor
    overlap: Tensor | None
    noted = ("top_not_labelled",)

    def __init__(
        self,
        graph: Graph,
        num_classes: int,
        settings: DetrSettings,
        overlap: Tensor | None,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.core, self.graph = graph.core, graph
        self.backbone_prefix = graph.backbone_prefix
        self.num_classes, self.settings = num_classes, settings
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        some = overlap if overlap is not None and bool(overlap.any()) else None
        self.register_buffer("overlap", some, persistent=False)
        self._stem: list[nn.Module] = []
        loss = settings.loss
        self.normaliser = loss.normaliser
        weights = {"classification": loss.class_weight, "l1": loss.l1_weight, "giou": loss.giou_weight}
        self.criterion = Criterion(weights, loss.classification, loss.alpha, loss.gamma)
        self.denoising = Settings(0)
        self.terms = tuple(weights)
        if isinstance(loss, DetrLoss):
            self._of_rt_detr(loss)

    def _of_rt_detr(self, loss: DetrLoss) -> None:
        """What D-FINE and RT-DETR have besides: distributions, quality, denoising."""
        weights = dict(self.criterion.weights)
        if self.graph.bins() is not None:
            weights |= {"distribution": loss.distribution_weight, "distillation": loss.distillation_weight}
        self.criterion = replace(self.criterion, weights=weights, free_quality=loss.free_quality)
        self.terms = (*weights, "denoising")
        config = self.core.config
        self.denoising = Settings(
            self.settings.denoising, config.label_noise_ratio, config.box_noise_scale, loss.flips == "any"
        )

    @property
    def stretched_to(self) -> int | None:
        return self.settings.stretched_to

    @property
    def antialias(self) -> bool:
        return self.settings.antialias

    @property
    def graph_of_one_size(self) -> bool:
        """The encoder's embeddings of places are recorded as constants; a square is always the same."""
        return self.settings.square is None

    @property
    def suppresses(self) -> bool:
        return self.settings.suppresses

    @property
    def fill_colour(self) -> list[int]:
        return self.mean.flatten().round().int().tolist()

    # ---------------------------------------------------------------- forward

    def pictures(self, images: Tensor, sizes: Tensor | None) -> Tensor:
        """`[B, 3, H, W]` normalised, as large as the network sees them. sizes: None where there is no padding."""
        side = self.settings.square
        dtype = self.std.dtype
        if side is not None and (sizes is None or not _fill(images, sizes, side)):
            if sizes is None and self.antialias:
                images = stretched_by_products(images.to(dtype), side)
            else:
                parts = [images] if sizes is None else self._cut(images, sizes)
                images = torch.cat([_stretched(part.to(dtype), side, self.antialias) for part in parts])
        x = self._normalised(images)
        if side is not None:
            return x
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % PAD_DIVISOR, 0, -height % PAD_DIVISOR))

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.to(self.std.dtype) - self.mean) / self.std

    @staticmethod
    def _cut(images: Tensor, sizes: Tensor) -> list[Tensor]:
        pairs = zip(images.split(1), sizes.tolist(), strict=True)
        return [image[..., :height, :width] for image, (height, width) in pairs]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What the encoder reads from the backbone, of `images [B, 3, H, W]` RGB 0..255."""
        return self.graph.feature_maps(self.pictures(images, None))

    # ---------------------------------------------------------------- training

    def prepare(self) -> Callable[[Batch], Batch]:
        settings = self.settings
        return partial(prepare, square=settings.square, denoising=self.denoising, first=settings.newest)

    def positives(self, batch: Batch) -> Tensor:
        return counts(self._prepared(batch).objects.images, len(batch.images))

    def _prepared(self, batch: Batch) -> Prepared:
        """What the workers found, or the same found here."""
        if batch.prepared is not None:
            return cast(Prepared, batch.prepared)
        ready = cast(Prepared, self.prepare()(batch.to("cpu")).prepared)
        return ready.map(lambda t: t.to(batch.images.device))

    def losses(self, batch: Batch) -> Losses:
        """Terms by name, of all layers together; `denoising` is all of the queries that were given objects."""
        prepared = self._prepared(batch)
        full = prepared.full  # then nobody has to ask the device
        images = self._normalised(batch.images) if full else self.pictures(batch.images, batch.sizes)
        memory = self.graph.memory(images)
        parts, logits = [], []
        for group in range(self.graph.groups):
            parts.append(self._chosen(memory, prepared, group))
            logits.append(self.graph.head(group)(parts[-1].inputs))
        first = joined(parts)
        encoder = Answers(torch.cat(logits, 1), first.boxes)
        layers = self.graph.decode(self._with_noise(first.queries, prepared.noise), memory, None)
        with torch.autocast(batch.images.device.type, enabled=False):
            return self._losses_of(encoder, layers, prepared, batch)

    def _chosen(self, memory: Memory, prepared: Prepared, group: int) -> First:
        proposals, head = self.graph.proposals(memory, group), self.graph.head(group)
        count, how = self.settings.queries, self.settings.loss.selection
        begin = self.settings.newest
        positions = chosen(proposals.inputs, head, prepared.groups, count, how, proposals.valid, begin)
        return self.graph.first(proposals, positions, group)

    def _with_noise(self, found: Queries, noise: Noise | None) -> Queries:
        """With the denoising queries in front."""
        embedding = self.graph.denoising()
        if noise is None or embedding is None:
            return found
        hidden, boxes = found.hidden, found.boxes
        given = embedding(noise.labels).to(hidden.dtype)
        begin = torch.special.logit(noise.boxes.to(boxes.dtype), eps=1e-5)
        mask = attention_mask(noise.group, hidden.shape[1], hidden.dtype)
        return Queries(torch.cat([given, hidden], 1), torch.cat([begin, boxes], 1), mask)

    def _losses_of(self, encoder: Answers, layers: list[Answers], prepared: Prepared, batch: Batch) -> Losses:
        loss = self.settings.loss
        rule = Rule(
            prepared.objects,
            prepared.regions,
            batch.trusted,
            self.overlap,
            batch.background_weight,
            loss.foreground,
            loss.duplicate_iou,
            self._tiles(batch),
        )
        bins = self.graph.bins()
        given = 0 if prepared.noise is None else prepared.noise.labels.shape[1]
        free = [_part(answers, slice(given, None)) for answers in layers]
        found = [encoder, *free]
        terms, positives = set_losses(found, rule, prepared.own, self.criterion, bins, self.graph.groups)
        if prepared.noise is not None:
            noised = [_part(answers, slice(0, given)) for answers in layers]
            more = denoising_losses(noised, prepared.noise.noised, rule, prepared.own, self.criterion, bins)
            terms["denoising"] = torch.stack(list(more.values())).sum(0)
        terms = {name: terms[name] if name in terms else torch.zeros_like(terms["l1"]) for name in self.terms}
        idle = [parameter.sum() * 0 for parameter in self.graph.idle()]
        noted = _top_not_labelled(free[-1], prepared.own_of_all)
        terms |= {"classification": sum(idle, terms["classification"])}
        return Losses(terms, positives, noted=dict(zip(self.noted, [noted], strict=True)))

    def _tiles(self, batch: Batch) -> Tiles | None:
        """Of the mosaics, in shares of the frame."""
        if batch.tiles is None:
            return None
        frames = frames_of(batch.images.shape[-2:], batch.sizes, self.settings.square).flip(1).repeat(1, 2)
        return batch.tiles._replace(boxes=batch.tiles.boxes / frames[:, None])

    def training_mode(self, fixed_statistics: bool = False) -> None:
        super().training_mode(fixed_statistics)
        if not any(p.requires_grad for name, p in self.named_parameters() if not growth.has_rows(name)):
            self.eval()  # frozen: batch norm would go on counting
        for module in self._stem:
            module.eval()

    def freeze_stem(self) -> None:
        self._stem = self.graph.stem()
        for module in self._stem:
            module.requires_grad_(False)

    # ---------------------------------------------------------------- growth

    def write_directory(self, classes: Sequence[str], directory: Path) -> None:
        from crossdet.models.detr import building  # which makes these networks

        building.write(self, classes, directory)

    def carry_over(self, state: Mapping[str, Tensor], classes: int) -> None:
        growth.carry_over(self, state, classes)

    def begin_as(self, rows: Mapping[int, int]) -> None:
        growth.begin_as(self, rows)

    def freeze_old(self, classes: int) -> Callable[[], None]:
        return growth.freeze_old(self, classes)

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        """Queries are chosen by the classes that are looked for. See `settings.DetrSettings.nms`."""
        every = torch.arange(self.num_classes, device=sizes.device)
        looked = every if classes is None else torch.as_tensor(classes, dtype=torch.int64).unique().to(sizes.device)
        if not len(looked):
            return [
                Detections(images.new_zeros((0, 4)).float(), images.new_zeros(0).float(), looked) for _ in sizes
            ]
        frames = frames_of(images.shape[-2:], sizes, self.settings.square).flip(1).repeat(1, 2)[:, None]
        found = []
        memory = self.graph.memory(self.pictures(images, sizes))
        for part in self.query_sets(looked):
            answers = self.answers(memory, part)
            places, scores = corners(answers.boxes.float()) * frames, answers.scored.float().sigmoid()
            found.append(_above(scores, places, sizes, part, limits.threshold_of(part)))
        return _best(found, len(sizes), limits, self.suppresses)

    def query_sets(self, classes: Tensor) -> list[Tensor]:
        """The classes (rising) in sets that share queries: one, and one more for every frozen extension."""
        borders = torch.tensor(self.settings.begins, device=classes.device)
        parts = classes.tensor_split(torch.searchsorted(classes, borders).tolist()) if len(borders) else [classes]
        return [part for part in parts if len(part)] or [classes]

    def answers(self, memory: Memory, classes: Tensor, asked: Tensor | None = None) -> Answers:
        """Of the last layer, for `classes [K]`, by queries that these have chosen; asked: `[K]` bool, which of them
        choose (None: all)."""
        proposals = self.graph.proposals(memory, 0)
        scores = rows_of(self.graph.head(0), proposals.inputs, classes)
        if asked is not None:
            scores = scores.masked_fill(~asked, -torch.inf)
        positions = best(scores.amax(-1), min(self.settings.queries, scores.shape[1]), proposals.valid)
        return self.graph.decode(self.graph.first(proposals, positions, 0).queries, memory, classes)[-1]

    def frame_of(self, shape: Sequence[int]) -> list[int]:
        """(height, width) in pixels that boxes of a picture without padding are shares of."""
        return [side if self.stretched_to else -(-side // PAD_DIVISOR) * PAD_DIVISOR for side in shape]

    def detection_module(self, classes: Tensor, limits: Limits) -> nn.Module:
        return Detecting(self, classes, limits)

    def export_module(self) -> nn.Module:
        """`images [B, 3, H, W]` without padding -> logits `[B, N, C]` and boxes `[B, N, 4]` xyxy in pixels, of
        queries in no particular order. Not clipped. Of classes that a query does not look for the logit is
        `NOT_LOOKED_FOR`."""
        return Exported(self)


class Exported(nn.Module):
    """See `Detr.export_module`."""

    def __init__(self, network: Detr) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        memory = network.graph.memory(network.pictures(images, None))
        logits, places = [], []
        for begin, end in pairwise([0, *network.settings.begins, network.num_classes]):
            answers = network.answers(memory, torch.arange(begin, end, device=images.device))
            before_and_after = (begin, network.num_classes - end)
            logits.append(F.pad(answers.scored, before_and_after, value=NOT_LOOKED_FOR))
            places.append(corners(answers.boxes))
        height, width = network.frame_of(images.shape[-2:])
        scale = torch.tensor([width, height, width, height], device=images.device)
        return torch.cat(logits, 1), torch.cat(places, 1) * scale


def _stretched(images: Tensor, side: int, antialias: bool) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=antialias)


def stretched_by_products(images: Tensor, side: int) -> Tensor:
    """The same with antialiasing, as a product from the right and one from the left, which all software computes
    alike: such resizing came with ONNX's opset 18, and OpenVINO has another idea of it."""
    height, width = images.shape[-2:]
    return _shares(height, side, images) @ (images @ _shares(width, side, images).T)


def _shares(old: int, new: int, like: Tensor) -> Tensor:
    """`[new, old]` what old lines give to a new one: a triangle around its centre, twice as wide as a line."""
    lines, wanted = (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5 for count in (old, new))
    scale = like.new_ones(()) * old / new
    shares = (1 - (lines - wanted[:, None] * scale).abs() / scale.clamp(min=1)).clamp(min=0)
    return shares / shares.sum(1, keepdim=True)


def _part(answers: Answers, queries: slice) -> Answers:
    parts = [None if tensor is None else tensor[:, queries] for tensor in answers]
    return Answers(*parts)  # type: ignore[arg-type]


def _top_not_labelled(last: Answers, own: Tensor) -> Tensor:
    """`[B]` share of an image's queries whose best class is one that the image neither trusts nor shows: such a
    query learns its class from no background there. own: `[B, C]` bool."""
    best_class = last.scored.detach().argmax(2)
    return 1 - own.gather(1, best_class).float().mean(1)


def _above(
    scores: Tensor, boxes: Tensor, sizes: Tensor, classes: Tensor, limit: float | Tensor
) -> tuple[Tensor, Detections]:
    """The pairs of query and class above the limit, by image, and the image of each; boxes clipped to it. scores:
    `[B, N, K]`."""
    boxes = boxes.clamp(min=0).minimum(sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype))
    visible = (boxes[..., 2:] > boxes[..., :2]).all(2, keepdim=True)
    image, query, column = ((scores > limit) & visible).nonzero(as_tuple=True)
    return image, Detections(boxes[image, query], scores[image, query, column], classes[column])


def _best(
    parts: Sequence[tuple[Tensor, Detections]], images: int, limits: Limits, suppresses: bool
) -> list[Detections]:
    """Of every image; equal scores in the order in which they come. suppresses: see `Network`."""
    of = torch.cat([image for image, _ in parts])
    boxes, scores, labels = (
        torch.cat([getattr(found, name) for _, found in parts]) for name in ("boxes", "scores", "labels")
    )
    order = scores.argsort(descending=True, stable=True)
    order = order[of[order].argsort(stable=True)]
    ends = torch.searchsorted(of[order], torch.arange(images, device=of.device), right=True).tolist()
    kept = []
    for begin, end in zip([0, *ends], ends, strict=False):
        rows = order[begin:end][: limits.topk]
        if suppresses or limits.agnostic_nms:
            rows = rows[nms_within(boxes[rows], scores[rows], limits.rivals(labels[rows]), limits.nms_iou)]
        rows = rows[: limits.max_detections]
        kept.append(Detections(boxes[rows], scores[rows], labels[rows]))
    return kept
