"""Pictures that look alike: copies are found, other pictures are not, and the search misses none."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from crossdet.check import inspect
from crossdet.check.near import BITS_APART, WAYS, alike, find_alike, looks_of, thumbnails_of, turned
from crossdet.config import Config
from crossdet.data.index import Index, IndexBuilder


def photograph(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Something with large and small structure."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    return Image.blend(coarse, noise, 0.05)


def changed(picture: Image.Image, seed: int) -> Image.Image:
    """As an augmentation or another program saves it: brighter, of another size."""
    bright = ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(1.2)).enhance(0.8)
    return bright.resize([(128, 128), (200, 90), (96, 72)][seed % 3])


@pytest.fixture
def files(tmp_path) -> dict[tuple[str, str], list[Path]]:
    """Eight photographs to train on; in val five others and changed copies of three."""
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    for seed in range(8):
        photograph(seed).save(tmp_path / "train" / f"{seed}.jpg", quality=90)
        other = changed(photograph(seed), seed) if seed < 3 else photograph(100 + seed)
        other.save(tmp_path / "val" / f"{seed}.jpg", quality=60)
    return {("d", split): sorted((tmp_path / split).iterdir()) for split in ("train", "val")}


def test_changed_copies_are_found_and_nothing_else(files):
    (found,) = find_alike(files, set())
    assert (found.one, found.other, found.leak, found.pictures) == (("d", "train"), ("d", "val"), True, 3)
    assert [(Path(a).name, Path(b).name) for a, b in found.files] == [(f"{n}.jpg",) * 2 for n in range(3)]
    told = {str(files["d", "val"][0])}
    assert find_alike(files, told)[0].pictures == 2  # one is told as an equal file
    swapped = {("d", "val"): files["d", "val"], ("e", "train"): files["d", "train"]}
    assert find_alike(swapped, set())[0].other == ("d", "val")  # it is the held-out side that is counted
    assert find_alike({("d", "train"): [*files["d", "train"], *files["d", "val"]]}, set()) == []


def test_plain_and_broken_pictures_look_like_nothing(tmp_path):
    Image.new("RGB", (64, 48), (9, 9, 9)).save(tmp_path / "plain.png")
    ramp = np.tile(np.arange(0, 64, dtype=np.uint8) * 4, (48, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    paths = [tmp_path / name for name in ("plain.png", "broken.jpg", "gone.jpg")]
    looks, telling = looks_of(thumbnails_of(paths))
    assert looks.shape == (3, 2)
    assert not telling.any()
    assert find_alike({("a", "train"): paths, ("a", "val"): paths}, set()) == []
    assert looks_of(thumbnails_of([tmp_path / "ramp.png"]))[1].tolist() == [True]


def test_copies_that_are_mirrored_or_turned_are_found_as_such(tmp_path):
    """A copy in each way; a face of a die in another place, whose table is the same, is none."""
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    for number, (mirrored, turns) in enumerate(WAYS.values()):
        given = photograph(number)
        given.save(tmp_path / "train" / f"{number}.jpg", quality=90)
        copy = (given.transpose(flip) if mirrored else given).rotate(90 * turns, expand=True)
        changed(copy, number).save(tmp_path / "val" / f"{number}.jpg", quality=60)
    for number, part in enumerate(("train", "val"), 100):
        table = np.asarray(photograph(100).resize((9, 9)).resize((360, 360), Image.Resampling.BICUBIC), np.int16)
        dots = np.random.default_rng(number).integers(-12, 13, (36, 36, 1)).repeat(10, 0).repeat(10, 1)
        other = Image.fromarray(np.clip(table + dots, 0, 255).astype(np.uint8))
        (other.transpose(flip) if part == "val" else other).save(tmp_path / part / f"{number}.png")
    dice = thumbnails_of([tmp_path / "train" / "100.png", tmp_path / "val" / "101.png"])
    assert len(alike(looks_of(dice[:1])[0], looks_of(turned(dice[1:], "mirrored"))[0])) == 1  # by these bits alone
    files = {("d", part): sorted((tmp_path / part).iterdir()) for part in ("train", "val")}
    (found,) = find_alike(files, set())
    assert (found.one, found.other, found.leak, found.pictures) == (("d", "train"), ("d", "val"), True, len(WAYS))
    assert [(Path(a).name, Path(b).name) for a, b in found.files] == [(f"{n}.jpg",) * 2 for n in range(3)]
    assert found.turned == tuple(WAYS)[:3]
    last = {split: [path for path in own if path.name == "3.jpg"] for split, own in files.items()}
    assert find_alike(last, set())[0].turned == ("mirrored",)
    assert find_alike(last, {str(last["d", "val"][0])}) == []  # told as an equal file
    as_it_is = {**files, ("e", "train"): files["d", "val"]}  # told as that, not as turned, too
    assert [report.turned for report in find_alike(as_it_is, set()) if report.other == ("d", "val")] == [
        tuple(WAYS)[:3],
        (),
    ]


def test_no_near_pair_is_missed():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**64, (300, 2), np.uint64)
    for row in range(100):  # copies with 0 to 13 other bits
        bits = rng.choice(128, row % 14, replace=False)
        looks[200 + row] = looks[row]
        for bit in bits.tolist():
            looks[200 + row, bit // 64] ^= np.uint64(1 << (bit % 64))
    looks = np.unique(looks, axis=0)
    apart = {
        (a, b): sum(int(x).bit_count() for x in looks[a] ^ looks[b]) for a, b in combinations(range(len(looks)), 2)
    }
    wanted = sorted(pair for pair, bits in apart.items() if bits <= BITS_APART)
    found = set(map(tuple, alike(looks).tolist()))
    assert len(wanted) > 80
    assert found <= set(wanted)
    assert {pair for pair in wanted if apart[pair] <= 7} <= found  # they share a block
    assert len(found) > 0.9 * len(wanted)


def index_of(root: Path) -> Index:
    builder = IndexBuilder(root)
    for path in sorted(root.iterdir()):
        with Image.open(path) as image:
            builder.image(path.name, image.height, image.width)
        builder.box((10, 10, 60, 60), 0, 0)
    return builder.build(("x",))


def test_check_warns_once_and_says_what_helps(files, tmp_path):
    datasets = {"d": {"train": index_of(tmp_path / "train"), "val": index_of(tmp_path / "val")}}
    report = inspect(Config.from_dict({"datasets": datasets, "input": {"shorter": 96, "longer": 160}}))
    (warning,) = [text for text in report.warnings if "look like" in text]
    assert warning.startswith("3 of 8 pictures of d val look like pictures of d train, such as ")
    assert "`crossdet-research split --group-by`" in warning
    assert len(report.alike) == 1


def test_check_says_what_was_done_to_a_copy(files, tmp_path):
    for path in (tmp_path / "val").iterdir():
        with Image.open(path) as picture:
            turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned.save(path, quality=95)
    datasets = {"d": {"train": index_of(tmp_path / "train"), "val": index_of(tmp_path / "val")}}
    report = inspect(Config.from_dict({"datasets": datasets, "input": {"shorter": 96, "longer": 160}}))
    (warning,) = [text for text in report.warnings if "look like" in text]
    assert warning.startswith("3 of 8 pictures of d val look like mirrored or turned pictures of d train, such as ")
    assert f"{tmp_path / 'val' / '0.jpg'} (mirrored). If they" in warning
