"""What a network is to the rest of the package: training, evaluation, prediction and `extend` know no more.

A network keeps its architecture in a folder of its own, `models/NAME/`, and an entry in `models.architectures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from crossdet.errors import UserError
from crossdet.types import Batch, Detections

Normaliser = Literal["batch", "image"]


@dataclass(frozen=True)
class Losses:
    """What a network lost on a batch.

    terms: name -> `[B]` sums per image, with the weights that the network gives its terms, so that the loss of
    every dataset can be logged from the numbers that are trained on. The names are `Network.terms`, all of them, in
    that order, whatever the batch: processes add up each other's.
    positives: `[B]` how many positions (anchors, points, queries) have an object.
    further: name -> a scalar that is added to the term of that name after normalisation.
    noted: name -> `[B]` what else of every image is worth a look, without gradient: the logs have its mean over the
    images of each dataset. The names are `Network.noted`, in that order.
    """

    terms: dict[str, Tensor]
    positives: Tensor
    further: dict[str, Tensor] = field(default_factory=dict)
    noted: dict[str, Tensor] = field(default_factory=dict)

    def of_images(self) -> Tensor:
        """`[B]` sums of all terms, detached and not normalised, for the logs."""
        return torch.stack(list(self.terms.values())).sum(0).detach()

    def normalised(self, by: Normaliser, divisor: Tensor | None = None) -> dict[str, Tensor]:
        """A scalar for every term of this micro-batch, to be averaged over the ranks as DDP does with gradients.

        "batch": the sums of all ranks divided by max(1, their positives) (RetinaNet sec. 4). "image": each image's
        sums divided by max(1, its own positives), and the mean over the images of all ranks, as in torchvision; a
        dataset with many objects per image then weighs no more than one with few.

        divisor: `step_divisor` of all micro-batches of the step, of which this is one; None: it is the only one.
        """
        # no half precision here: it would round a count above 256
        dtype = torch.promote_types(next(iter(self.terms.values())).dtype, torch.float32)
        positives = self.positives.to(dtype)
        share = 1 / positives.clamp(min=1) if by == "image" else torch.ones_like(positives)
        scale = 1 / (step_divisor([positives], by) if divisor is None else divisor.to(dtype))
        scalars = {name: (sums * share).sum() * scale for name, sums in self.terms.items()}
        return scalars | {name: scalars[name] + value for name, value in self.further.items()}


def step_divisor(positives: Sequence[Tensor], by: Normaliser) -> Tensor:
    """What the sums of one micro-batch on one rank are divided by, a scalar of the dtype of `positives`.

    The mean over the micro-batches and the ranks is then what one batch of all their images would give, however
    unevenly the objects are spread: with a divisor of its own each, an object among few would weigh more.

    positives: `[B]` float of every micro-batch of this rank's step, see `Losses.positives`. All ranks call it.
    """
    own = torch.cat(list(positives))
    count = own.new_full((), len(own)) if by == "image" else own.sum()
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return count.clamp(min=1) / (ranks * len(positives))


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that a recipe may treat alike. part: where they stand; decay: whether weight decay is usual."""

    part: Literal["backbone", "rest"]
    decay: bool
    parameters: list[nn.Parameter]


@dataclass(frozen=True)
class Limits:
    """What of all that a network finds in an image it reports.

    score_threshold: detections must score more; a number, or `[C]` one per class.
    topk: candidates kept (per level, where a network has levels) before duplicates are removed.
    max_detections: per image, after that.
    nms_iou, agnostic_nms, nms_groups: non-maximum suppression by class, among all classes that are looked for, or
        among the classes of a group (`C` groups, by class). A network that has learnt to find no object twice needs
        only the second, see `Network.suppresses`.
    """

    score_threshold: float | Tensor = 0.05
    topk: int = 1000
    max_detections: int = 100
    nms_iou: float = 0.5
    agnostic_nms: bool = False
    nms_groups: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"topk: expected at least 1, got {self.topk}")

    def threshold_of(self, classes: Tensor) -> float | Tensor:
        """`score_threshold` for classes `[K]`: a number, or `[K]`."""
        return self.score_threshold[classes] if isinstance(self.score_threshold, Tensor) else self.score_threshold

    def rivals(self, labels: Tensor) -> Tensor:
        """`[n]` of labels `[n]`: detections with the same number suppress each other."""
        if self.agnostic_nms:
            return torch.zeros_like(labels)
        return labels if self.nms_groups is None else labels.new_tensor(self.nms_groups)[labels]

    def groups(self, classes: int) -> int:
        """What the numbers of `rivals` are below."""
        if self.agnostic_nms:
            return 1
        return classes if self.nms_groups is None else max(self.nms_groups) + 1


class Network(nn.Module, ABC):
    """A detector for C classes.

    num_classes: C. terms: names of the terms of its loss, in order. noted: names of `Losses.noted`, in order; no
    terms. normaliser: see `Losses.normalised`.
    backbone_prefix: what the names of the backbone's parameters begin with. has_parts_to_compile: whether
    `compile_parts` does anything.

    It is copied (`copy.deepcopy`) for averaged weights, before `compile_parts` and `hold_to`. `losses` and `find`
    run under autocast where the recipe says so.
    """

    num_classes: int
    terms: tuple[str, ...]
    noted: tuple[str, ...] = ()
    normaliser: Normaliser = "batch"
    backbone_prefix = "backbone."
    has_parts_to_compile = False

    @property
    def stretched_to(self) -> int | None:
        """The side of the square that it stretches every picture to; None: pictures keep their shape."""
        return None

    @property
    def antialias(self) -> bool:
        """Whether pictures that are given to it are made smaller with antialiasing."""
        return True

    @property
    def graph_of_one_size(self) -> bool:
        """Whether an exported graph holds for pictures of the size that it was recorded with alone."""
        return False

    @property
    def suppresses(self) -> bool:
        """Whether `find` suppresses overlapping detections of a class, within `Limits.nms_iou`.

        With `Limits.agnostic_nms` every network suppresses, among all classes.
        """
        return True

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    @abstractmethod
    def fill_colour(self) -> Sequence[int]:
        """RGB 0..255 that is (nearly) zero after normalisation: the colour that batches are padded with."""

    def prepare(self) -> Callable[[Batch], Batch] | None:
        """What the loader's workers do with a batch before it travels, such as labelling anchors: they put it into
        `Batch.prepared`. It must be picklable and stay on the CPU. None: nothing."""
        return None

    @abstractmethod
    def positives(self, batch: Batch) -> Tensor:
        """`[B]` `Losses.positives` of a batch before anything is computed of it."""

    @abstractmethod
    def losses(self, batch: Batch) -> Losses:
        """On a batch on the network's device. Where `batch.trusted` is false, the background of an image gives a
        class no gradient at all. In mosaics `batch.tiles` says where more is trusted (`models.tiles`); a network
        that does not look at them loses negatives and makes no mistake.

        Every parameter that requires a gradient takes part, at least with a zero, also for a batch without objects:
        with several processes each waits for the gradients of all.
        """

    @abstractmethod
    def find(
        self,
        images: Tensor,
        sizes: Tensor,
        classes: Sequence[int] | Tensor | None = None,
        limits: Limits = Limits(),
    ) -> list[Detections]:
        """Detections of every image, by falling score, boxes clipped to the image.

        Args:
            images: `[B, 3, H, W]` RGB 0..255.
            sizes: `[B, 2]` (height, width) of each image inside its padding.
            classes: unified ids to look for, before anything is cut off. None = all.
            limits: what is reported of it.
        """

    @abstractmethod
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What the head reads from the backbone, for looking at how alive it is (`training.guard`).

        images: `[B, 3, H, W]` RGB 0..255 without padding. Maps `[B, c, h, w]`, the deepest last, at least one; of a
        backbone of tokens these in their places. In evaluation mode it depends on nothing but images and weights.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters that require a gradient, each once: backbone and the rest; no decay for biases and the
        affine maps of norms (all that is one-dimensional)."""
        groups: dict[tuple[Literal["backbone", "rest"], bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part: Literal["backbone", "rest"] = "backbone" if name.startswith(self.backbone_prefix) else "rest"
                groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
        return [ParameterGroup(part, decay, parameters) for (part, decay), parameters in groups.items()]

    def training_mode(self, fixed_statistics: bool = False) -> None:
        """`train()` as this network wants it: parts that do not learn stay in evaluation mode. fixed_statistics: so
        does the batch norm of the backbone (here: all of it), whose scale and shift go on learning."""
        self.train()
        for module in self.modules() if fixed_statistics else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def freeze_stem(self) -> None:
        """The backbone's layers up to stride 4 are not trained any more, nor do statistics of theirs move.

        Raises `UserError` where nobody knows which these are.
        """
        raise UserError("train.freeze_stem: this network does not say which layers are its stem; leave it out")

    def compile_parts(self, full: int | None = None) -> None:
        """`torch.compile` of what pays, for `losses`; by default of nothing. full: batches are on canvases and of
        so many pictures; smaller ones are not compiled for. None: of any sizes."""

    def compile_nothing(self) -> None:
        """Takes `compile_parts` back."""

    @abstractmethod
    def export_module(self) -> nn.Module:
        """`images [B, 3, H, W]` -> tensors of fixed meaning, traceable by `torch.export`."""

    def detection_module(self, classes: Tensor, limits: Limits) -> nn.Module:
        """(`images [B, 3, H, W]` RGB 0..255, `thresholds [C]`, `sizes [B, 2]`) -> `detecting.Found`, traceable by
        `torch.export`: what `find` reports of `classes [K]` (rising, each once) within the other `limits`. Classes
        with a threshold above 1 are not looked for. sizes: height and width of each picture in the upper left
        corner of its canvas, the rest of which has the `fill_colour`; not given: there is no padding."""
        raise NotImplementedError

    def write_directory(self, classes: Sequence[str], directory: Path) -> None:
        """As a checkpoint that HF transformers opens (`pipeline("object-detection", directory)`), with the same
        answers. classes: names by row. Raises `UserError` for a network that cannot be one."""
        del classes
        raise UserError(
            f"{directory}: networks of this architecture are none of HF transformers, which could not open them"
        )


class Growable(Network):
    """What `crossdet extend` needs of a network besides: what of it there is says `Architecture.grows_by`."""

    @abstractmethod
    def carry_over(self, state: Mapping[str, Tensor], classes: int) -> None:
        """Takes over the weights of a detector of the first `classes` classes bit for bit. Raises `UserError` for
        weights of another architecture."""

    def begin_as(self, rows: Mapping[int, int]) -> None:
        """Classes begin as copies of others, in every tensor that has rows of classes. rows: class -> the other."""
        raise NotImplementedError

    def freeze_old(self, classes: int) -> Callable[[], None]:
        """Freezes all but what the classes after the first `classes` have of their own. The function returned is to
        be called after every optimiser step: it restores what shares a tensor with them."""
        raise NotImplementedError

    def hold_to(self, teacher: Network, weight: float) -> None:
        """From now on `losses` holds the answers about the teacher's classes at the teacher's, with this weight.

        The teacher has the same architecture. It is no submodule: it is neither trained nor saved."""
        raise NotImplementedError
