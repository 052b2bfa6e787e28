"""The hybrid dataset: labels, trust, flags, federated images, unreadable pictures, weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crossdet import LabelSpace
from crossdet.data.augment import Augment, Resize, View
from crossdet.data.federated import repeat_factors
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.loading import collate
from crossdet.errors import RunError
from crossdet.labels.members import with_members
from crossdet.types import Flag

from .made import BOX, PICTURE, build, saved


def unchanged(image: Tensor, boxes: Tensor) -> View:
    return View(image, boxes)


def test_unified_labels_and_trusted_rows(parts, space):
    dataset = HybridDataset(parts, space, unchanged)
    assert space.classes == ("cat", "dog", "face", "ship")
    assert len(dataset) == 6
    labels = [dataset[row].target.labels.tolist() for row in range(6)]
    assert labels == [[0, 1], [], [1], [2, -1], [2], [3]]  # the bus is dropped, the hound is a dog
    trusted = [dataset[row].trusted.tolist() for row in range(6)]
    a, b, c = [True, True, False, False], [False, True, True, False], [True, False, False, True]
    assert trusted == [a, a, b, b, b, c]
    assert [dataset[row].dataset_id for row in range(6)] == [0, 0, 1, 1, 1, 2]
    assert [dataset[row].image_id for row in range(6)] == list(range(6))
    assert [dataset.locate(row) for row in range(6)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    # each row is the picture it should be
    assert [int(dataset[row].image[0, 0, 0]) for row in range(6)] == [10, 11, 10, 11, 12, 10]
    assert dataset[0].target.boxes.tolist() == [list(BOX)] * 2
    assert dataset[0].original_size == (24, 40)
    assert dataset.sizes().tolist() == [[24, 40]] * 6


def test_parts_in_any_order_keep_their_row(parts, space):
    dataset = HybridDataset([parts[2], parts[0]], space, unchanged)
    assert [dataset[row].dataset_id for row in range(3)] == [2, 0, 0]
    assert dataset[0].trusted.tolist() == [True, False, False, True]
    assert dataset[1].target.labels.tolist() == [0, 1]


def test_plain_trusts_everything(parts, space):
    dataset = HybridDataset(parts, space, unchanged, plain=True)
    assert all(dataset[row].trusted.all() for row in range(6))
    assert dataset[3].target.labels.tolist() == [2, -1]


def test_flags(tmp_path, space):
    index = build(
        tmp_path / "x",
        ["cat", "dog", "bus"],
        [[(BOX, 0, Flag.INVALID), (BOX, 1, Flag.DIFFICULT), (BOX, 2, Flag.CROWD), (BOX, 1, Flag.CROWD), (BOX, 0)]],
    )

    def flags(**options) -> list[int]:
        part = Part(index, 0, space.ids("a", index.classes), **options)
        sample = HybridDataset([part], space, unchanged)[0]
        assert sample.target.labels.tolist() == [0, 1, 1, 0]  # the crowd of a dropped class goes with it
        return sample.target.flags.tolist()

    assert flags() == [Flag.INVALID | Flag.IGNORE_REGION, Flag.DIFFICULT, Flag.CROWD, 0]
    assert flags(difficult_as_region=True) == [
        Flag.INVALID | Flag.IGNORE_REGION,
        Flag.DIFFICULT | Flag.AVOID,
        Flag.CROWD,
        0,
    ]
    assert index.flags.tolist() == [Flag.INVALID, Flag.DIFFICULT, Flag.CROWD, Flag.CROWD, 0]  # the index stays


def test_federated_images(tmp_path):
    space = LabelSpace.build(
        {"lvis": ["p", "q", "r", "s"], "faces": ["face"]},
        federated=["lvis"],
        absent={"lvis": ["face"]},
        drop=["lvis/s"],
    )
    index = build(
        tmp_path / "f",
        ["s", "r", "q", "p"],  # positions 0..3 are s (dropped), r, q, p
        [[(BOX, 3)], [(BOX, 3), (BOX, 2), (BOX, 0)], []],
        negatives=[[2, 0], [], []],
        not_exhaustive=[[], [2, 0], []],
    )
    dataset = HybridDataset([Part(index, 0, space.ids("lvis", index.classes))], space, unchanged)
    assert space.classes == ("p", "q", "r", "face")
    assert [dataset[row].trusted.tolist() for row in range(3)] == [
        [True, True, False, True],  # p is present, q verified absent
        [True, False, False, True],  # q is present, but not all of them
        [False, False, False, True],
    ]
    assert HybridDataset(dataset.parts, space, unchanged, plain=True)[2].trusted.all()


def test_federated_images_and_merged_classes(tmp_path):
    """Vehicle is verified where both car and truck are: "no car" does not say that there is no truck."""
    space = LabelSpace.build(
        {"lvis": ["car", "truck", "cat", "ship"], "v": ["van"], "w": ["tree"]},
        merge={"vehicle": ["lvis/car", "lvis/truck", "v/van"]},
        federated=["lvis"],
        absent={"lvis": ["tree"]},
        not_exhaustive={"lvis": ["ship"]},
    )
    cases = {  # boxes, negatives, not exhaustive -> vehicle
        ((), (0,), ()): False,
        ((), (1,), ()): False,
        ((), (0, 1), ()): True,
        ((0,), (), ()): False,
        ((0, 0), (), ()): False,
        ((0,), (1,), ()): True,
        ((0,), (1, 1, 0), ()): True,
        ((0, 1), (), ()): True,
        ((0, 1), (), (0,)): False,
        ((0,), (1,), (1,)): False,
        ((), (0, 1, 3), (2,)): True,
    }
    index = build(
        tmp_path / "f",
        ["car", "truck", "cat", "ship"],
        [[(BOX, c) for c in boxes] for boxes, _, _ in cases],
        negatives=[list(negatives) for _, negatives, _ in cases],
        not_exhaustive=[list(partial) for _, _, partial in cases],
    )
    dataset = HybridDataset([Part(index, 0, space.ids("lvis", index.classes))], space, unchanged)
    rows = [dataset.annotations(0, row)[1].tolist() for row in range(len(cases))]
    vehicle, cat, ship, tree = (space.id_of(name) for name in ("vehicle", "cat", "ship", "tree"))
    assert [row[vehicle] for row in rows] == list(cases.values())
    assert all(row[tree] and not row[cat] and not row[ship] for row in rows)  # absent; unverified; in part

    # an index without the per-image lists: only boxes verify
    plain = build(tmp_path / "p", ["truck", "car"], [[(BOX, 1)], [(BOX, 1), (BOX, 0)], []])
    dataset = HybridDataset([Part(plain, 0, space.ids("lvis", plain.classes))], space, unchanged)
    assert [dataset.annotations(0, row)[1][vehicle].item() for row in range(3)] == [False, True, False]

    # a split whose files do not know truck at all cannot verify it
    cars = build(tmp_path / "c", ["car"], [[(BOX, 0)], []], negatives=[[], [0]], not_exhaustive=[[], []])
    dataset = HybridDataset([Part(cars, 0, space.ids("lvis", cars.classes))], space, unchanged)
    assert not any(dataset.annotations(0, row)[1][vehicle] for row in range(2))


def test_federated_images_and_members_of_a_class(tmp_path):
    """An image that verifies a class verifies its members of all datasets, as one that is labelled in full does."""
    names = {"lvis": ["person", "cat"], "peds": ["person"]}
    space = LabelSpace.build(names, merge={"same_names": True}, federated=["lvis"])
    space = with_members(space, ["person"])
    lists = {"negatives": [[], [0], [1], []], "not_exhaustive": [[], [], [], [0]]}
    index = build(tmp_path / "f", ["person", "cat"], [[(BOX, 0)], [], [], [(BOX, 0)]], **lists)
    dataset = HybridDataset([Part(index, 0, space.ids("lvis", index.classes))], space, unchanged)
    assert space.classes == ("person@lvis", "person@peds", "cat")
    rows = [dataset.annotations(0, row)[1].tolist() for row in range(4)]
    assert rows == [[True, True, False], [True, True, False], [False, False, True], [False, False, False]]


def test_unreadable_images_are_replaced_and_reported(parts, space):
    broken = parts[1].index.path(1)
    broken.write_bytes(b"broken")
    parts[1].index.path(2).unlink()
    dataset = HybridDataset(parts, space, unchanged)
    sample = dataset[3]  # image 1 of b -> 2 is missing too -> from the front again: 0
    assert sample.image_id == 2
    assert sample.target.labels.tolist() == [1]
    assert int(sample.image[0, 0, 0]) == 10
    assert len(sample.unreadable) == 2
    assert str(broken) in sample.unreadable[0]
    assert "2.png" in sample.unreadable[1]
    assert dataset[2].unreadable == ()
    batch = collate([sample, dataset[0]])
    assert batch.unreadable == sample.unreadable

    parts[2].index.path(0).unlink()
    with pytest.raises(RunError, match=r"1 images in a row cannot be read, the last one: .*0\.png"):
        dataset[5]


def test_unreadable_images_are_not_replaced_in_evaluation(parts, space):
    parts[1].index.path(1).write_bytes(b"broken")
    dataset = HybridDataset(parts, space, Resize(48, 100), substitute=False)
    sample = dataset[3]
    assert sample.image_id == 3
    assert sample.original_size == (0, 0)
    assert len(sample.unreadable) == 1
    assert sample.image.float().std() == 0
    assert dataset[2].original_size == (24, 40)


def test_an_image_of_another_size_than_annotated_is_unreadable(parts, space):
    saved(parts[0].index.path(0), PICTURE[:10])
    sample = HybridDataset(parts, space, unchanged)[0]
    assert sample.image_id == 1
    assert "the picture is 40x10, its annotation says 40x24" in sample.unreadable[0]


def test_tiny_clipped_and_vanished_boxes(tmp_path, space):
    index = build(
        tmp_path / "t",
        ["ship"],
        [
            [
                ((2, 2, 12, 12), 0),
                ((5, 5, 5.5, 15), 0),  # half a pixel wide: avoided, not learnt
                ((35, 20, 60, 50), 0),  # over the border: clipped
                ((50, 2, 60, 9), 0),  # outside: gone
                ((7, 7, 7, 7), 0, Flag.INVALID),  # no area: gone
                ((3, 3, 4, 4), 0),  # exactly one pixel: learnt
            ]
        ],
    )
    part = Part(index, 2, space.ids("c", index.classes))
    target = HybridDataset([part], space, unchanged)[0].target
    assert target.boxes.tolist() == [[2, 2, 12, 12], [5, 5, 5.5, 15], [35, 20, 40, 24], [3, 3, 4, 4]]
    assert target.flags.tolist() == [0, Flag.AVOID, 0, 0]
    # after the transform, not before
    small = HybridDataset([part], space, Resize(6, 100), min_side=2.0)[0].target
    assert small.flags.tolist() == [0, Flag.AVOID, Flag.AVOID, Flag.AVOID]
    assert small.boxes[0].tolist() == pytest.approx([0.5, 0.5, 3, 3])


def test_a_draw_is_a_function_of_its_row_and_seed(parts, space):
    dataset = HybridDataset(parts, space, Augment(48, 200, scale_jitter=(0.5, 2)), photometric=True)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = dataset[Draw(0, 7)]
    dataset[Draw(3, 99)]
    again = dataset[Draw(0, 7)]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.colour, again.colour)
    assert len({tuple(dataset[Draw(0, seed)].colour.flatten().tolist()) for seed in range(8)}) > 4
    assert torch.equal(first.target.boxes, again.target.boxes)
    assert torch.equal(torch.get_rng_state(), before)  # the run's own random numbers are not touched
    assert len({tuple(dataset[Draw(0, seed)].image.shape) for seed in range(6)}) > 3
    assert dataset[Draw(0, 2**62 - 1)].image.shape[0] == 3  # the largest seed of `epoch_batches`


def test_repeat_factors_and_weights(tmp_path, space):
    """LVIS: r = max(1, sqrt(t / f)) of the rarest class in the image."""
    common, rare = ((0, 0, 9, 9), 0), ((0, 0, 9, 9), 1)
    images = [[common]] * 6 + [[common, rare, rare], []]  # cat in 7 of 8 images, dog in 1 of 8
    images[0] = [common, ((0, 0, 9, 9), -1, Flag.IGNORE_REGION)]
    index = build(tmp_path / "r", ["cat", "dog", "bus"], images)
    ids = space.ids("a", index.classes)
    repeated = Part(index, 0, ids, weight=3.0, repeat_threshold=0.5)
    plain = Part(index, 0, ids)
    weights = HybridDataset([repeated, plain], space, unchanged).draw_weights()
    assert weights.tolist() == pytest.approx([3.0] * 6 + [3.0 * 2.0, 3.0] + [1.0] * 8)
    taught = replace(index, flags=np.where(index.labels == 1, Flag.TEACHER, index.flags))
    assert repeat_factors(taught, ids, 0.5).tolist() == [1.0] * 8  # what a teacher found does not count


def test_repeat_factors_count_objects_of_unified_classes(tmp_path):
    """A dropped class, regions and what is avoided as difficult are no reason to draw an image often; merged
    classes are as frequent as they are together."""
    box = (0, 0, 9, 9)
    images = [[(box, 0)]] * 5 + [[(box, 0), (box, 1)], [], [(box, 3)]]
    for flag in (Flag.CROWD, Flag.IGNORE_REGION, Flag.AVOID, Flag.INVALID):
        images[6] = [(box, 0), (box, 2, flag)]
        index = build(tmp_path / f"r{int(flag)}", ["cat", "dropped", "dog", "kitten"], images)
        dropped = np.array([0, -1, 1, 0])
        assert repeat_factors(index, dropped, 0.5).tolist() == [1.0] * 8
        kept = repeat_factors(index, np.array([0, 1, 2, 3]), 0.5)
        assert kept.tolist() == [1.0] * 5 + [2.0, 1.0, 2.0]  # each in one of eight: sqrt(0.5 / 0.125)
    hard = replace(index, flags=np.where(index.labels == 2, np.uint8(Flag.DIFFICULT), np.uint8(0)))
    assert repeat_factors(hard, dropped, 0.5)[6] == 2.0
    assert repeat_factors(hard, dropped, 0.5, difficult_as_region=True)[6] == 1.0
