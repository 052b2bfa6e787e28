"""Collating and loading."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossdet.data.augment import Augment
from crossdet.data.colour import coloured
from crossdet.data.decoding import read_image
from crossdet.data.hybrid import Draw, HybridDataset, Sample
from crossdet.data.loading import (
    MicroBatches,
    _reduce_batch,
    collate,
    epoch_batches,
    make_loader,
    next_batch,
    pad_images,
)
from crossdet.errors import RunError
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.types import Annotations, Flag

from .made import PICTURE, as_tensor, saved


def sample_of(height: int, width: int, value: int, image_id: int) -> Sample:
    target = Annotations(
        torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([image_id]), torch.tensor([0], dtype=torch.uint8)
    )
    return Sample(
        torch.full((3, height, width), value, dtype=torch.uint8),
        (height * 2, width * 2),
        target,
        torch.tensor([True, False]),
        image_id,
        image_id % 2,
        (),
    )


def test_collate_pads_to_the_right_and_at_the_bottom():
    batch = collate([sample_of(40, 70, 9, 5), sample_of(64, 33, 7, 6)], fill=(1, 2, 3))
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.sizes.tolist() == [[40, 70], [64, 33]]
    assert batch.original_sizes.tolist() == [[80, 140], [128, 66]]
    assert (batch.images[0, :, :40, :70] == 9).all()
    assert (batch.images[1, :, :, :33] == 7).all()
    for channel, colour in enumerate((1, 2, 3)):
        assert (batch.images[0, channel, 40:] == colour).all()
        assert (batch.images[0, channel, :, 70:] == colour).all()
        assert (batch.images[1, channel, :, 33:] == colour).all()
    assert [t.labels.tolist() for t in batch.targets] == [[5], [6]]
    assert batch.targets[0].boxes.tolist() == [[1, 2, 3, 4]]  # padding moves no box
    assert batch.trusted.tolist() == [[True, False]] * 2
    assert batch.image_ids.tolist() == [5, 6]
    assert batch.dataset_ids.tolist() == [1, 0]
    exact = collate([sample_of(32, 64, 9, 0)])
    assert exact.images.shape == (1, 3, 32, 64)
    assert (exact.images == 9).all()
    # by default the mean colour of ImageNet, in the order of the channels
    assert collate([sample_of(31, 64, 9, 0)]).images[0, :, 31, 0].tolist() == [124, 116, 104]


def test_batches_are_the_same_for_any_number_of_workers(parts, space):
    parts[1].index.path(1).write_bytes(b"broken")
    dataset = HybridDataset(parts, space, Augment(48, 200, scale_jitter=(0.5, 1.5)), photometric=True)
    batches = epoch_batches(dataset.sizes(), dataset.draw_weights(), 2, seed=1, epoch=0)
    torch.manual_seed(0)
    alone = list(make_loader(dataset, MicroBatches(batches), workers=0, fill=(5, 6, 7)))
    torch.manual_seed(1)
    together = list(make_loader(dataset, MicroBatches(batches), workers=2, fill=(5, 6, 7)))
    assert len(alone) == len(together) == 3
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.colours, b.colours)
        assert torch.equal(a.sizes, b.sizes)
        assert torch.equal(a.trusted, b.trusted)
        assert torch.equal(a.image_ids, b.image_ids)
        assert a.unreadable == b.unreadable
        for x, y in zip(a.targets, b.targets, strict=True):
            assert torch.equal(x.boxes, y.boxes)
            assert torch.equal(x.labels, y.labels)
            assert torch.equal(x.flags, y.flags)
    assert sum(len(batch.unreadable) for batch in alone) == 1


def test_a_batch_is_stored_as_pictures_come_and_the_network_wants_it(tmp_path):
    """Pictures of any memory layout; the batch is channels_last."""
    flat = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 70), dtype=np.uint8))
    interleaved = read_image(saved(tmp_path / "a.png", PICTURE))
    assert interleaved.permute(1, 2, 0).is_contiguous()
    images, sizes = pad_images([flat, interleaved, flat[:, :, ::2], flat.flip(2)], (1, 2, 3))
    assert images.shape == (4, 3, 64, 96)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert sizes.tolist() == [[40, 70], [24, 40], [40, 35], [40, 70]]
    expected = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 64, 96)
    for row, picture in enumerate([flat, as_tensor(PICTURE), flat[:, :, ::2], flat.flip(2)]):
        expected[row, :, : picture.shape[1], : picture.shape[2]] = picture
    assert torch.equal(images, expected)


def test_only_what_is_large_takes_shared_memory_between_processes():
    """All other tensors travel in the message: three per image, a file descriptor each, would cost more."""
    anchor_labels = torch.arange(20_000).view(2, -1)
    found = AnchorLabels(anchor_labels, *(torch.arange(3) for _ in range(4)), per_shape=(1, 2))
    batch = collate(
        [sample_of(40, 70, 9, 5), sample_of(64, 33, 7, 6)], (1, 2, 3), lambda b: replace(b, prepared=found)
    )
    function, (message, *shared) = _reduce_batch(batch)
    images, labels = shared
    assert images is batch.images
    assert labels is anchor_labels
    assert len(message) < 4000
    again = function(message, *shared)
    assert again.prepared.per_shape == (1, 2)
    for a, b in zip(again.prepared[:5], found[:5], strict=True):
        assert torch.equal(a, b)
    for name in ("images", "sizes", "original_sizes", "trusted", "image_ids", "dataset_ids"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert (again.unreadable, again.has_regions) == (batch.unreadable, batch.has_regions)
    for a, b in zip(again.targets, batch.targets, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.flags, b.flags)
    assert {"trust_groups", "has_regions"} <= vars(again).keys()  # found in the worker
    for one, other in zip(again.trust_groups, batch.trust_groups, strict=True):
        assert one.images == other.images
        assert torch.equal(one.classes, other.classes)
    again.targets[0].boxes.add_(1)  # not read-only


def test_images_that_trust_the_same_classes_come_side_by_side():
    """In the order in which the classes first come: what the loss would have to sort otherwise."""
    wanted = [(True, False), (False, True), (True, False), (False, True), (False, False)]
    samples = [
        sample_of(40, 70, row, row)._replace(trusted=torch.tensor(trusted), image_id=row)
        for row, trusted in enumerate(wanted)
    ]
    batch = collate(samples)
    assert batch.image_ids.tolist() == [0, 2, 1, 3, 4]
    assert [group.images for group in batch.trust_groups] == [(0, 1), (2, 3), (4,)]
    for row, image in enumerate(batch.image_ids.tolist()):
        assert batch.trusted[row].tolist() == list(wanted[image])
        assert torch.equal(batch.targets[row].boxes, samples[image].target.boxes)


def test_loading_leaves_the_global_random_state_alone(parts, space):
    """A resumed run opens the loader once more than one that ran through; dropout must not notice."""
    dataset = HybridDataset(parts, space, Augment(64, 96, scale_jitter=(0.5, 1.5)))
    before = torch.get_rng_state()
    list(make_loader(dataset, [[Draw(0, 1), Draw(1, 2)]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_in_a_worker_comes_without_its_traceback():
    def broken():
        raise RunError(
            "Caught RunError in DataLoader worker process 0.\nOriginal Traceback ...\n"
            "crossdet.errors.RunError: 20 images in a row cannot be read, the last one: x.jpg"
        )
        yield

    with pytest.raises(RunError, match=r"^20 images in a row cannot be read, the last one: x\.jpg$"):
        next_batch(broken())


def test_what_is_found_of_a_batch_is_of_its_values():
    """Trust or targets of another batch would train unlabelled objects as background."""
    batch = collate([sample_of(40, 70, 9, 5), sample_of(64, 33, 7, 6)])
    assert [group.images for group in batch.trust_groups] == [(0, 1)]
    assert not batch.has_regions
    other = replace(batch, trusted=torch.tensor([[True, False], [False, False]]))
    assert [(group.images, group.classes.tolist()) for group in other.trust_groups] == [((0,), [0]), ((1,), [])]
    region = replace(batch.targets[0], flags=torch.full_like(batch.targets[0].flags, int(Flag.AVOID)))
    assert replace(batch, targets=[region, batch.targets[1]]).has_regions


def test_what_is_found_of_a_batch_goes_with_it_to_a_device():
    """There it would be asked for, and waited for."""
    batch = collate([sample_of(40, 70, 9, 5), sample_of(64, 33, 7, 6)])
    moved = batch.to("meta")
    assert [(group.images, group.classes.device.type) for group in moved.trust_groups] == [((0, 1), "meta")]
    assert moved.has_regions is False
    plain = replace(batch, colours=torch.eye(3, 4)[None].repeat(2, 1, 1))
    assert "trust_groups" in vars(coloured(plain, [(40, 70), (64, 33)]))
