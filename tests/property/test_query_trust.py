"""No augmentation makes a query a negative of what the picture shown at its place does not know.

As `test_augmentation_trust` has it for anchors, by the pixels' colours; queries may be anywhere, of any size. A
decoder that gives known answers stands in for the real one, and the loss of the whole network is asked which of
their logits it pushes down. So pictures, targets, tiles and shares of the frame come as they do in a training.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from coloured import FILL, NAMES, drawn, may_be_negative, own_trust, world
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.models.detr.made import TINY_SETTINGS, tiny
from torch import Tensor
from torchvision.ops import box_iou

from crossdet.data.augment import Augment
from crossdet.data.hybrid import HybridDataset
from crossdet.models.detr.boxes import centres, corners
from crossdet.models.detr.criterion import Answers
from crossdet.models.detr.negatives import ON_OBJECT
from crossdet.models.detr.network import Detr, frames_of
from crossdet.types import REGION_FLAGS, Batch

SIDE, QUERIES, IMAGES = 64, 40, 3
NEAR = 1.5
"""Pixels around a query in which nothing may be told either, if it is to be a negative for sure."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> HybridDataset:
    return world(tmp_path_factory.mktemp("world"), Augment(SIDE, 110, fill=FILL), 1.0)


def learning(square: int | None, foreground: str) -> Detr:
    loss = TINY_SETTINGS["rtdetr v2"].loss.model_copy(update={"foreground": foreground})
    made = tiny("rtdetr v2", len(NAMES), queries=QUERIES, denoising=10, square=square, loss=loss)
    made.training_mode(fixed_statistics=True)
    return made


@pytest.fixture(scope="module")
def networks() -> dict[tuple[int | None, str], Detr]:
    """By square and `loss.foreground`."""
    kinds = ("none", "matched", "on_object")
    return {(square, kind): learning(square, kind) for square in (None, SIDE) for kind in kinds}


augments = st.builds(
    Augment,
    shorter=st.just(SIDE),
    longer=st.just(110),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    scale_jitter=st.sampled_from([(1.0, 1.0), (0.5, 1.5), (0.7, 0.9)]),
    zoom_out=st.sampled_from([0.0, 0.5, 1.0]),
    iou_crop=st.sampled_from([0.0, 0.5, 1.0]),
    fill=st.just(FILL),
    square=st.sampled_from([None, SIDE]),
)
"""Without changes of colour, which tell the pictures apart; they move nothing."""


class Told(NamedTuple):
    """places: `[B, N, 4]` xyxy pixels of queries. down: `[B, N, C]` how much the loss pushes their logits down."""

    places: Tensor
    down: Tensor


def queries_at_random(batch: Batch, frames: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`[B, count, 4]` centre, width, height in shares of the frame: anywhere, and two of five near an object."""
    boxes = torch.rand(len(batch), count, 4, generator=random)
    boxes[..., 2:] = boxes[..., 2:] ** 3  # some without much area
    for image, (target, frame) in enumerate(zip(batch.targets, frames, strict=True)):
        near = (torch.arange(count) % 5 < 2).nonzero().squeeze(1)
        if len(target):
            rows = torch.randint(len(target), (len(near),), generator=random)
            some = target.boxes[rows] / frame.flip(0).repeat(2)
            moved = (torch.rand(len(near), 4, generator=random) - 0.5) * some[:, 2:].sub(some[:, :2]).repeat(1, 2)
            far = torch.rand(len(near), 1, generator=random) ** 2
            boxes[image, near] = centres(some + far * moved).clamp(min=0)
    return boxes


def told(network: Detr, batch: Batch, random: torch.Generator) -> Told:
    """All logits are 0, so each that is a negative at all is pushed down."""
    given_: list[Answers] = []
    frames = frames_of(batch.images.shape[-2:], batch.sizes, network.settings.square)

    def decode(queries: Any, _memory: Any, _classes: Any) -> list[Answers]:
        boxes = queries_at_random(batch, frames, queries.hidden.shape[1], random)
        given_.append(Answers(torch.zeros(*boxes.shape[:2], len(NAMES), requires_grad=True), boxes))
        return given_

    network.graph.decode = decode
    terms = network.losses(network.prepare()(batch)).terms
    (answers,) = given_
    (slope,) = torch.autograd.grad(terms["classification"].sum() + terms["denoising"].sum(), answers.logits)
    return Told(corners(answers.boxes) * frames.flip(1).repeat(1, 2)[:, None], slope)


def on_objects(batch: Batch, places: Tensor, foreground: str) -> Tensor:
    """`[B, N, C]` where a query lies on an object and may so be told what a person said of it: of the object's own
    class, of all others as the settings say."""
    lies = torch.zeros(*places.shape[:2], len(NAMES), dtype=torch.bool)
    for image, target in enumerate(batch.targets):
        objects = (target.flags & int(REGION_FLAGS)) == 0
        on = box_iou(places[image], target.boxes[objects]) >= ON_OBJECT - 1e-4
        for label, query in zip(target.labels[objects].tolist(), on.unbind(1), strict=True):
            lies[image, :, label] |= query
            lies[image] |= query[:, None] & (foreground != "none")
    return lies


def left_alone(batch: Batch, places: Tensor) -> Tensor:
    """`[B, N, C]` where no region of the class touches the query, and the image shows no object of it."""
    alone = torch.ones(*places.shape[:2], len(NAMES), dtype=torch.bool)
    for image, target in enumerate(batch.targets):
        for box, label, flags in zip(target.boxes, target.labels.tolist(), target.flags.tolist(), strict=True):
            touched = ((places[image, :, :2] < box[2:]) & (places[image, :, 2:] > box[:2])).all(1)
            which = slice(None) if label < 0 else slice(label, label + 1)
            if flags & int(REGION_FLAGS):
                alone[image, :, which] &= ~touched[:, None]
            else:
                alone[image, :, which] = False
    return alone


def check(dataset: HybridDataset, network: Detr, seed: int, foreground: str, canvases: int) -> dict[str, int]:
    """How many logits had to be silent, had to be spoken of, and how many mosaics there were."""
    batch = drawn(dataset, seed, IMAGES, canvases)
    found = told(network, batch, torch.Generator().manual_seed(seed))
    distrusted, somewhere = own_trust(dataset, batch)

    def allowed(places: Tensor) -> Tensor:
        parts = [may_be_negative(one[None], of_image) for one, of_image in zip(distrusted, places, strict=True)]
        return torch.cat(parts) & somewhere[:, None]

    unknown = ~allowed(found.places) & ~on_objects(batch, found.places, foreground)
    assert (found.down[unknown] <= 0).all()  # below 0: an object's own class, which is pushed up
    wider = found.places + torch.tensor([-NEAR, -NEAR, NEAR, NEAR])
    known = allowed(wider) & left_alone(batch, found.places)
    known[:, : found.places.shape[1] - QUERIES] = False  # of denoising queries some are padding
    assert (found.down[known] > 0).all()
    mosaics = 0 if batch.tiles is None else int(batch.tiles.boxes.flatten(1).any(1).sum())
    return {"silent": int(unknown.sum()), "spoken": int(known.sum()), "mosaics": mosaics}


def test_a_query_is_no_negative_for_a_class_that_the_picture_there_does_not_trust(dataset, networks):
    """And it is one for the classes that all of it trusts."""
    seen: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**31),
        augment=augments,
        mosaic=st.sampled_from([0.0, 0.5, 1.0]),
        foreground=st.sampled_from(["none", "matched", "on_object"]),
        canvases=st.sampled_from([0, 3]),
    )
    def for_any(seed: int, augment: Augment, mosaic: float, foreground: str, canvases: int) -> None:
        dataset.transform, dataset.mosaic = augment, mosaic
        seen.update(check(dataset, networks[augment.square, foreground], seed, foreground, canvases))

    for_any()
    assert min(seen[what] for what in ("silent", "spoken", "mosaics")) > 20
