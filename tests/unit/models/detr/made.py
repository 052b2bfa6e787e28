"""Random answers and targets for the tests of set-prediction detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.negatives import Rule
from crossdet.models.detr.objects import Objects, objects_of
from crossdet.types import Annotations, Flag

FRAME = 100


def annotations(boxes: list[list[float]], labels: list[int], flags: list[int] | None = None) -> Annotations:
    return Annotations(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(flags or [0] * len(labels), dtype=torch.uint8),
    )


def random_boxes(count: int, generator: torch.Generator, frame: float = FRAME) -> Tensor:
    """`[count, 4]` xyxy inside the frame."""
    low = torch.rand(count, 2, generator=generator) * 0.7
    size = 0.05 + torch.rand(count, 2, generator=generator) * 0.25
    return torch.cat([low, low + size], 1) * frame


def random_targets(
    counts: list[int], classes: int, generator: torch.Generator, regions: int = 0, teacher: float = 0.0
) -> list[Annotations]:
    targets = []
    for count in counts:
        boxes = random_boxes(count + regions, generator)
        labels = torch.randint(0, classes, (count + regions,), generator=generator)
        labels[count:][torch.rand(regions, generator=generator) < 0.3] = -1
        flags = torch.zeros(count + regions, dtype=torch.uint8)
        flags[count:] = int(Flag.AVOID)
        flags[torch.rand(len(flags), generator=generator) < teacher] |= int(Flag.TEACHER)
        targets.append(Annotations(boxes, labels, flags))
    return targets


def flat(targets: list[Annotations]) -> tuple[Objects, Objects]:
    return objects_of(targets, torch.full((len(targets), 2), FRAME))


def answers_near(
    objects: Objects,
    queries: int,
    classes: int,
    generator: torch.Generator,
    bins: int | None = None,
    quality: bool = False,
) -> Answers:
    """Random answers, some of whose boxes lie on the objects. All of them need a gradient."""
    images = len(objects.counts)
    boxes = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.1
    for image, (count, first) in enumerate(zip(objects.counts, objects.first, strict=True)):
        for query in range(0, queries if count else 0, 2):
            shift = (torch.rand(4, generator=generator) - 0.5) * 0.02
            boxes[image, query] = objects.boxes[first + query // 2 % count] + shift
    shape = (images, queries)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.double().requires_grad_()

    return Answers(
        leaf(torch.randn(*shape, classes, generator=generator) * 2),
        leaf(boxes.clamp(0.01, 0.99)),
        leaf(torch.randn(*shape, 1, generator=generator)) if quality else None,
        None if bins is None else leaf(torch.randn(*shape, 4 * (bins + 1), generator=generator)),
        None if bins is None else (boxes * 0.9 + 0.05).double(),
    )


def all_trusted(objects: Objects, classes: int, regions: Objects | None = None) -> Rule:
    nothing = flat([annotations([], []) for _ in objects.counts])[1]
    return Rule(objects, regions or nothing, torch.ones(len(objects.counts), classes, dtype=torch.bool))
