"""What a batch shows, as flat tensors: its objects, and its regions without negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from crossdet.models.detr.boxes import centres
from crossdet.types import REGION_FLAGS, Annotations, Flag


class Objects(NamedTuple):
    """Objects of a batch, image by image; or its regions.

    boxes: `[M, 4]` centre, width, height in shares of the image's frame. labels: `[M]` class, -1 of a region of no
    class in particular. images: `[M]`, rising. by_teacher: `[M]` bool. counts: of every image; known on the host,
    so that nobody has to ask the device.
    """

    boxes: Tensor
    labels: Tensor
    images: Tensor
    by_teacher: Tensor
    counts: tuple[int, ...]

    def padded(self, values: Tensor, fill: float = 0) -> Tensor:
        """`[B, most, ...]` of one value per object, the objects of each image first."""
        return pad_sequence(list(values.split(self.counts)), batch_first=True, padding_value=fill)

    @property
    def first(self) -> list[int]:
        """Row of the first object of every image."""
        starts, row = [], 0
        for count in self.counts:
            starts.append(row)
            row += count
        return starts


def objects_of(targets: Sequence[Annotations], frames: Tensor) -> tuple[Objects, Objects]:
    """Objects and regions of a batch. frames: `[B, 2]` (height, width) in pixels that a share of 1 stands for."""
    kinds: tuple[list[Annotations], list[Annotations]] = ([], [])
    for target in targets:
        region = (target.flags & int(REGION_FLAGS)) != 0
        for kind, rows in zip(kinds, (~region, region), strict=True):
            kind.append(Annotations(target.boxes[rows], target.labels[rows], target.flags[rows]))
    return _flat(kinds[0], frames), _flat(kinds[1], frames)


def _flat(targets: Sequence[Annotations], frames: Tensor) -> Objects:
    counts = tuple(len(target) for target in targets)
    boxes, labels, flags = (
        torch.cat([getattr(target, name) for target in targets]) for name in ("boxes", "labels", "flags")
    )
    repeats = torch.tensor(counts, device=boxes.device)
    images = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), repeats)
    scale = frames.flip(1).to(boxes.dtype).repeat(1, 2)[images]  # width, height, width, height
    return Objects(centres(boxes / scale), labels, images, (flags & int(Flag.TEACHER)) != 0, counts)


def own_classes(trusted: Tensor, objects: Objects) -> Tensor:
    """`[B, C]` bool: the classes that an image can teach: those it trusts, and those it shows.

    An object of an untrusted class (of a federated dataset, say) is its own dataset's all the same.
    """
    own = trusted.clone()
    own[objects.images, objects.labels] = True
    return own
