"""From image files to batches: decoding, transforms, the hybrid dataset, sampling, collating, loading."""

import io
import itertools
import os
import random
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from crossdet import LabelSpace
from crossdet.data import decoding
from crossdet.data.annotation_files import header_sizes
from crossdet.data.augment import Augment, Resize, View
from crossdet.data.canvases import resized
from crossdet.data.decoding import UnreadableImage, read_image
from crossdet.data.federated import repeat_factors
from crossdet.data.hybrid import Draw, HybridDataset, Part, Sample
from crossdet.data.index import Index, IndexBuilder
from crossdet.data.loading import (
    MicroBatches,
    _reduce_batch,
    collate,
    epoch_batches,
    epoch_rows,
    make_loader,
    next_batch,
    pad_images,
    sequential_batches,
)
from crossdet.errors import RunError, UserError
from crossdet.labels.members import with_members
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.types import Annotations, Flag

# ------------------------------------------------------------------------------------------------ decoding

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(40) * 6, np.arange(24)[:, None] * 10, 90), -1).astype(np.uint8)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def png16(array: np.ndarray) -> bytes:
    """A 16-bit PNG, grey `[H, W]` or RGB `[H, W, 3]` (Pillow does not write the latter)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if array.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.webp", {"lossless": True}),
        ("a.ppm", {}),
        ("wrong_suffix.jpg", {"format": "BMP"}),
    ],
)
def test_lossless_formats_come_back_exactly(tmp_path, name, options):
    image = read_image(saved(tmp_path / name, PICTURE, **options))
    assert image.dtype == torch.uint8
    assert torch.equal(image, as_tensor(PICTURE))


def test_jpeg(tmp_path):
    path = saved(tmp_path / "a.jpg", SMOOTH, quality=95)
    image = read_image(str(path))
    assert image.shape == (3, 24, 40)
    pillow = as_tensor(np.asarray(Image.open(path)))
    assert (image.int() - pillow.int()).abs().max() <= 2
    assert (image.int() - as_tensor(SMOOTH).int()).abs().float().mean() < 3  # and it is the picture, in RGB order


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    path = saved(tmp_path / f"a.{suffix}", PICTURE, mode)
    image = read_image(path)
    assert torch.equal(image, as_tensor(np.asarray(Image.open(path).convert("RGB"))))
    assert image.float().std() > 20


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 3)], ids=["grey", "rgb"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, shape):
    array = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    array[0, :4] = np.array([0, 255, 256, 65535]).reshape((4,) + (1,) * (len(shape) - 2))
    path = tmp_path / "a.png"
    path.write_bytes(png16(array))
    wanted = (array >> 8).astype(np.uint8)
    wanted = np.repeat(wanted[..., None], 3, 2) if len(shape) == 2 else wanted
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert torch.equal(image, as_tensor(wanted))
    assert image[0, 0, :4].tolist() == [0, 0, 1, 255]


def test_sixteen_bit_tiff(tmp_path):
    array = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68
    Image.fromarray(array).save(tmp_path / "a.tif")
    wanted = np.repeat((array >> 8).astype(np.uint8)[..., None], 3, 2)
    assert torch.equal(read_image(tmp_path / "a.tif"), as_tensor(wanted))


def test_cmyk_jpeg_has_the_colours_of_pillow(tmp_path):
    path = saved(tmp_path / "a.jpg", SMOOTH, "CMYK", quality=95)
    image = read_image(path)
    pillow = as_tensor(np.asarray(Image.open(path).convert("RGB")))
    assert image.shape == (3, 24, 40)
    assert (image.int() - pillow.int()).abs().max() <= 3
    assert (image.int() - as_tensor(SMOOTH).int()).abs().float().mean() < 6  # not inverted


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((10, 12, 3), v, np.uint8)) for v in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert image.shape == (3, 10, 12)
    assert (image == 40).all()


@pytest.mark.parametrize(
    "content", ["truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "missing.jpg", "folder"]
)
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / content
    if content.startswith("truncated"):
        saved(path, PICTURE)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "empty.jpg":
        path.touch()
    elif content == "text.jpg":
        path.write_text("<html>404 not found</html>")
    elif content == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    reasons = {"empty.jpg": "is empty", "text.jpg": "no image of a known format", "missing.jpg": "No such file"}
    assert reasons.get(content, "") in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif", "tga", "avif"])
def test_damaged_files_never_end_the_run(tmp_path, suffix):
    """Damaged bytes and cut files: an image or `UnreadableImage`; torchvision's PNG decoder ends the process."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(PICTURE).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {suffix}")
    whole, rng, path = buffer.getvalue(), random.Random(0), tmp_path / f"a.{suffix}"
    outcomes = Counter()
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: rng.randrange(1, len(data))]
        for _ in range(trial % 3):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            image = read_image(path)
            outcomes["read"] += 1
            assert image.dtype == torch.uint8
            assert image.dim() == 3
            assert image.shape[0] == 3
        except UnreadableImage:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0


ROTATED_BY_90 = 6


def rotated_jpeg(path: Path, orientation: int = ROTATED_BY_90) -> Path:
    """Stored 40 wide and 24 high; upright it is 24 wide and 40 high."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(path, SMOOTH, exif=exif, quality=95)


def test_exif_is_applied_only_if_the_rotated_size_is_the_annotated_one(tmp_path):
    path = rotated_jpeg(tmp_path / "a.jpg")
    stored = read_image(path)
    assert stored.shape == (3, 24, 40)
    assert torch.equal(read_image(path, (24, 40)), stored)  # annotated as stored
    assert torch.equal(read_image(path, (0, 0)), stored)  # size not known
    turned = read_image(path, (40, 24))
    assert turned.shape == (3, 40, 24)
    assert torch.equal(turned, stored.rot90(-1, (1, 2)))
    assert torch.equal(read_image(path, upright=True), turned)
    # upside down: the size says nothing, so only pictures without annotations are turned
    upside_down = rotated_jpeg(tmp_path / "b.jpg", 3)
    assert torch.equal(read_image(upside_down, (24, 40)), stored)
    assert torch.equal(read_image(upside_down, upright=True), stored.rot90(2, (1, 2)))


def test_exif_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    path = saved(tmp_path / "a.png", PICTURE, exif=exif)
    assert torch.equal(read_image(path, (24, 40)), as_tensor(PICTURE))
    assert torch.equal(read_image(path, (40, 24)), as_tensor(PICTURE).rot90(-1, (1, 2)))


@pytest.mark.parametrize("suffix", ["webp", "tif", "png", "jpg"])
def test_upright_is_what_the_header_says(suffix, tmp_path):
    """torchvision does not know the orientation of WebP, and Pillow has turned TIFF when it tells its size."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    path = saved(tmp_path / f"a.{suffix}", SMOOTH, exif=exif)
    assert read_image(path, upright=True).shape == (3, 40, 24)
    assert header_sizes([path], upright=True) == [(40, 24)]
    assert read_image(path, (40, 24)).shape == (3, 40, 24)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_large_pictures_of_ones_own_are_read(suffix, tmp_path, monkeypatch, recwarn):
    """Such as aerial ones, for windows."""
    path = saved(tmp_path / f"a.{suffix}", PICTURE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(path).shape == (3, 24, 40)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert not [one for one in recwarn.list if one.category is Image.DecompressionBombWarning]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.full((24, 40), 0.5, np.float32), "its values are fractions"),
        (np.full((24, 40), 200, np.int32), "its values reach 200, expected those of 16 bits"),
        (np.full((24, 40), 10**6, np.int32), "its values reach 1,000,000, expected those of 16 bits"),
    ],
)
def test_values_that_would_all_be_black_or_white(values, told, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=told):
        read_image(tmp_path / "a.tif")


def test_another_picture_than_the_annotated_one(tmp_path):
    path = saved(tmp_path / "a.png", PICTURE)
    with pytest.raises(UnreadableImage, match="the picture is 40x24, its annotation says 50x30"):
        read_image(path, (30, 50))
    with pytest.raises(UnreadableImage, match="the picture is 40x24, its annotation says 24x40"):
        read_image(path, (40, 24))  # turned, but without an EXIF mark that says so


# ------------------------------------------------------------------------------------------------ transforms


@pytest.mark.parametrize(
    ("size", "limits", "scale", "wanted"),
    [
        ((480, 640), (240, 1000), 1.0, (240, 320)),
        ((640, 480), (240, 1000), 1.0, (320, 240)),
        ((100, 1000), (400, 800), 1.0, (80, 800)),  # the cap on the longer side
        ((1000, 100), (400, 800), 1.0, (800, 80)),
        ((50, 60), (100, 1000), 1.0, (100, 120)),  # small images grow
        ((480, 640), (240, 1000), 0.5, (120, 160)),
        ((100, 1000), (400, 800), 1.5, (120, 1200)),  # the cap is scaled with it
        ((1, 3000), (400, 600), 1.0, (1, 600)),
    ],
)
def test_resized(size, limits, scale, wanted):
    assert resized(*size, *limits, scale) == wanted


def with_rectangles(height: int, width: int, boxes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rectangle k is painted in channel k."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[channel, y1:y2, x1:x2] = 255
    return image, torch.tensor(boxes, dtype=torch.float32)


def painted(channel: Tensor) -> list[float]:
    rows, columns = (channel >= 128).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (61, 187)])
@pytest.mark.parametrize(
    "transform",
    [
        Resize(120, 400),
        Resize(60, 70),
        Augment(120, 400, flip=0.0),
        Augment(120, 400, flip=1.0),
        Augment(120, 400, flip=1.0, scale_jitter=(0.6, 1.6)),
        Augment(40, 90, flip=0.5, scale_jitter=(0.8, 1.2)),
    ],
    ids=repr,
)
def test_boxes_follow_their_pixels(size, transform):
    height, width = size
    image, boxes = with_rectangles(height, width, [[0, 0, 30, 20], [10, 30, 70, 60], [width - 25, 5, width, 50]])
    for seed in range(4):
        torch.manual_seed(seed)
        out, moved, _ = transform(image, boxes)
        assert out.dtype == torch.uint8
        for channel, box in zip(out, moved.tolist(), strict=True):
            assert painted(channel) == pytest.approx(box, abs=1.0)
    # what went in is not changed
    assert boxes[0].tolist() == [0, 0, 30, 20]
    assert painted(image[0]) == [0, 0, 30, 20]


def test_images_without_boxes_and_images_of_the_right_size():
    image, _ = with_rectangles(60, 80, [[0, 0, 10, 10]])
    out, boxes, _ = Augment(30, 100, flip=1.0, photometric=True)(image, torch.zeros(0, 4))
    assert out.shape == (3, 30, 40)
    assert boxes.shape == (0, 4)
    same, box, _ = Resize(60, 80)(image, torch.tensor([[1.0, 2, 3, 4]]))
    assert torch.equal(same, image)
    assert box.tolist() == [[1, 2, 3, 4]]


def test_jitter_keeps_to_its_range_and_flips_to_their_share():
    image, boxes = with_rectangles(50, 100, [[0, 0, 20, 50]])
    augment = Augment(50, 500, flip=0.3, scale_jitter=(0.5, 1.5))
    torch.manual_seed(0)
    heights, flips = [], 0
    for _ in range(200):
        out, moved, _ = augment(image, boxes)
        heights.append(out.shape[1])
        flips += float(moved[0, 0]) > 0
    assert min(heights) >= 25
    assert max(heights) <= 75
    assert min(heights) < 30
    assert max(heights) > 70
    assert 35 <= flips <= 85


def test_augment_repeats_with_its_seed():
    image = as_tensor(PICTURE)
    augment = Augment(30, 100, scale_jitter=(0.5, 1.5), photometric=True)

    def run(seed: int) -> View:
        torch.manual_seed(seed)
        return augment(image, torch.tensor([[2.0, 3, 20, 22]]))

    assert torch.equal(run(1)[0], run(1)[0])
    assert torch.equal(run(1)[1], run(1)[1])
    assert len({tuple(run(seed)[1].flatten().tolist()) for seed in range(8)}) > 4


# ------------------------------------------------------------------------------------------------ hybrid


def unchanged(image: Tensor, boxes: Tensor) -> View:
    return View(image, boxes)


def build(
    root: Path,
    classes: list[str],
    images: list[list[tuple]],
    size: tuple[int, int] = (24, 40),
    **federated: list[list[int]],
) -> Index:
    """One image per entry, its grey tells its row; its boxes are (xyxy, label) or (xyxy, label, flags)."""
    root.mkdir(exist_ok=True)
    builder = IndexBuilder(root)
    for row, boxes in enumerate(images):
        saved(root / f"{row}.png", np.full((*size, 3), 10 + row, np.uint8))
        builder.image(f"{row}.png", *size, **{name: lists[row] for name, lists in federated.items()})
        for xyxy, label, *flags in boxes:
            builder.box(xyxy, label, *flags, keep_invalid=True)
    return builder.build(classes, federated=bool(federated))


@pytest.fixture
def space() -> LabelSpace:
    return LabelSpace.build(
        {"a": ["cat", "dog", "bus"], "b": ["hound", "face"], "c": ["ship"]},
        merge={"dog": ["a/dog", "b/hound"]},
        drop=["a/bus"],
        absent={"c": ["cat"]},
    )


BOX = (1.0, 2.0, 21.0, 18.0)


@pytest.fixture
def parts(tmp_path, space) -> list[Part]:
    a = build(tmp_path / "a", ["cat", "dog", "bus"], [[(BOX, 0), (BOX, 2), (BOX, 1)], []])
    # the index lists the classes in another order than the label space
    b = build(
        tmp_path / "b", ["face", "hound"], [[(BOX, 1)], [(BOX, 0), (BOX, -1, Flag.IGNORE_REGION)], [(BOX, 0)]]
    )
    c = build(tmp_path / "c", ["ship"], [[(BOX, 0)]])
    return [
        Part(index, space.dataset_index(name), space.ids(name, index.classes))
        for name, index in (("a", a), ("b", b), ("c", c))
    ]


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
    dataset = HybridDataset(parts, space, Augment(48, 200, scale_jitter=(0.5, 2), photometric=True))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = dataset[Draw(0, 7)]
    dataset[Draw(3, 99)]
    again = dataset[Draw(0, 7)]
    assert torch.equal(first.image, again.image)
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


# ------------------------------------------------------------------------------------------------ sampling


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 8), min_size=1, max_size=40).filter(lambda w: sum(w) > 0.1), st.integers(0, 2**32 - 1))
def test_counts_are_the_expected_ones_rounded(weights, seed):
    weights = np.array(weights)
    rows = epoch_rows(weights, np.random.default_rng(seed))
    assert len(rows) == len(weights)
    expected = len(weights) * weights / weights.sum()
    counts = np.bincount(rows, minlength=len(weights))
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_give_every_image_once(weight):
    orders = [epoch_rows(np.full(50, weight), np.random.default_rng(seed)) for seed in range(3)]
    for rows in orders:
        assert sorted(rows.tolist()) == list(range(50))
    assert len({tuple(rows) for rows in orders}) == 3


def test_weights_are_kept_on_average():
    weights = np.array([1.0] * 30 + [2.5] * 10)
    total = np.zeros(40)
    for epoch in range(400):
        total += np.bincount(epoch_rows(weights, np.random.default_rng(epoch)), minlength=40)
    expected = 400 * 40 * weights / weights.sum()
    assert np.abs(total / expected - 1).max() < 0.12
    assert total[30:].sum() / total.sum() == pytest.approx(25 / 55, rel=0.01)


def make_batches(
    count: int = 37, batch_size: int = 8, seed: int = 0, epoch: int = 0, **options
) -> list[list[Draw]]:
    sizes = np.array([(480, 640) if i % 3 else (640, 480) for i in range(count)], np.int32)
    return epoch_batches(sizes, np.ones(count), batch_size, seed, epoch, **options)


def test_an_epoch_holds_every_image_once():
    batches = make_batches()
    draws = [draw for batch in batches for draw in batch]
    assert sorted(d.row for d in draws) == list(range(37))
    assert [len(b) for b in batches] == [8, 8, 8, 8, 5]
    assert len({d.seed for d in draws}) == 37
    assert all(isinstance(d.row, int) and isinstance(d.seed, int) for d in draws)


def test_epochs_are_a_pure_function_of_seed_and_number():
    assert make_batches(seed=3, epoch=5) == make_batches(seed=3, epoch=5)
    others = [make_batches(seed=s, epoch=e) for s, e in ((3, 5), (3, 6), (4, 5), (5, 3))]
    rows = [[d.row for b in batches for d in b] for batches in others]
    seeds = [frozenset(d.seed for b in batches for d in b) for batches in others]
    assert len({tuple(r) for r in rows}) == 4
    assert not frozenset.intersection(*seeds)


def test_a_repeated_image_gets_another_seed():
    weights = np.array([1.0] * 9 + [31.0])
    batches = epoch_batches(np.zeros((10, 2), np.int32), weights, 4, 0, 0)
    repeated = [d for b in batches for d in b if d.row == 9]
    assert 7 <= len(repeated) <= 8
    assert len({d.seed for d in repeated}) == len(repeated)


def test_portrait_and_landscape_are_batched_apart():
    def mixed(batch: list[Draw]) -> bool:
        return len({d.row % 3 == 0 for d in batch}) == 2

    batches = make_batches(90, 8)
    assert sorted(d.row for b in batches for d in b) == list(range(90))
    # 60 landscape and 30 portrait images: 7 + 3 full batches, the remaining 4 + 6 mixed
    assert [mixed(b) for b in batches[:10]] == [False] * 10
    assert sorted(len(b) for b in batches) == [5, 5] + [8] * 10  # 2 are too few: they share with a full batch
    assert [mixed(b) for b in batches[10:]] == [True, False]
    together = make_batches(90, 8, group_aspect=False)
    assert sum(mixed(b) for b in together) > 6


def test_a_short_last_batch_shares_with_the_one_before():
    def lengths(*given, **options) -> list[int]:
        batches = make_batches(*given, group_aspect=False, **options)
        assert sorted(draw.row for batch in batches for draw in batch) == list(range(given[0]))
        return [len(batch) for batch in batches]

    assert lengths(17, 8) == [8, 5, 4]
    assert lengths(19, 8) == [8, 6, 5]
    assert lengths(20, 8) == [8, 8, 4]  # enough
    assert lengths(9, 4) == [4, 3, 2]
    assert lengths(9, 2) == [2, 2, 2, 2, 1]  # halves of three are no better
    assert lengths(17, 8, min_batch=2) == [8, 5, 4]  # two pictures for each of two processes, and more
    assert lengths(19, 8, min_batch=3) == [8, 8, 3]
    assert lengths(17, 8, min_batch=3) == [8, 9]  # not one for each
    assert lengths(5, 8, min_batch=5) == [5]
    with pytest.raises(UserError, match="3 training images are too few for 4 processes x accumulation steps"):
        make_batches(3, 8, min_batch=4)
    with pytest.raises(UserError, match="0 training images"):
        make_batches(0, 8)


def test_no_step_of_a_single_picture():
    """At any number of pictures, with tall ones among them; those of one shape stay together."""
    for count in range(5, 60):
        batches = make_batches(count, 8)
        assert sorted(draw.row for batch in batches for draw in batch) == list(range(count))
        assert max(map(len, batches)) <= 8
        assert min(map(len, batches)) >= 4
        assert sum(len({d.row % 3 == 0 for d in batch}) == 2 for batch in batches) <= 3
    assert {len(batch) for batch in make_batches(17, 8)} == {8, 5, 4}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 60), st.integers(1, 16))
def test_micro_batches_partition_every_batch(ranks, accumulate, count, batch_size):
    pieces = ranks * accumulate
    count, batch_size = max(count, pieces), max(batch_size, pieces)
    batches = make_batches(count, batch_size, min_batch=pieces)
    samplers = [MicroBatches(batches, accumulate, rank, ranks) for rank in range(ranks)]
    assert all(len(sampler) == len(batches) * accumulate == len(list(sampler)) for sampler in samplers)
    per_rank = [list(sampler) for sampler in samplers]
    for number, batch in enumerate(batches):
        micro = [
            per_rank[rank][number * accumulate + m]
            for rank, m in itertools.product(range(ranks), range(accumulate))
        ]
        assert sorted(d for piece in micro for d in piece) == sorted(batch)
        lengths = [len(piece) for piece in micro]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
    if pieces == 1:
        assert per_rank[0] == batches


def test_sequential_batches_partition_the_rows():
    for ranks in (1, 2, 3):
        parts = [sequential_batches(10, 4, rank, ranks) for rank in range(ranks)]
        assert sorted(d.row for part in parts for batch in part for d in batch) == list(range(10))
    assert [[d.row for d in b] for b in sequential_batches(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sequential_batches(0, 4) == []


# ------------------------------------------------------------------------------------------------ batches


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
    dataset = HybridDataset(parts, space, Augment(48, 200, scale_jitter=(0.5, 1.5), photometric=True))
    batches = epoch_batches(dataset.sizes(), dataset.draw_weights(), 2, seed=1, epoch=0)
    torch.manual_seed(0)
    alone = list(make_loader(dataset, MicroBatches(batches), workers=0, fill=(5, 6, 7)))
    torch.manual_seed(1)
    together = list(make_loader(dataset, MicroBatches(batches), workers=2, fill=(5, 6, 7)))
    assert len(alone) == len(together) == 3
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.images, b.images)
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


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP")])
def test_without_decoders_of_torchvision_pillow_reads_the_same(mode, kind, tmp_path, monkeypatch):
    """torchvision 0.29 says that they will go."""
    shape = (37, 51) if mode == "L" else (37, 51, len(mode))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(tmp_path / "picture", kind)
    wanted = decoding.read_image(tmp_path / "picture")
    monkeypatch.setattr(decoding, "decode_image", None)
    found = decoding.read_image(tmp_path / "picture")
    assert found.stride() == wanted.stride()
    assert int((found.int() - wanted.int()).abs().max()) <= (0 if mode != "CMYK" else 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_picture_that_became_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path):
        with pytest.raises(UnreadableImage, match=f"{path}: no file"):
            read_image(path, (24, 40))
