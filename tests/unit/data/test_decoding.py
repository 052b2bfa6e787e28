"""From image files to pixels."""

import io
import os
import random
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from crossdet.data import decoding
from crossdet.data.annotation_files import header_sizes
from crossdet.data.decoding import UnreadableImage, read_image

from .made import PICTURE, SMOOTH, as_tensor, saved


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_what_xmp_says_of_the_orientation_turns_nothing(suffix, tmp_path):
    """torchvision does not read it; header and picture have to agree."""
    says = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", says.decode())
    path = saved(tmp_path / f"a.{suffix}", SMOOTH, **({"pnginfo": info} if suffix == "png" else {"xmp": says}))
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert read_image(path, upright=True).shape == (3, 24, 40)
    assert header_sizes([path], upright=True) == [(24, 40)]


def test_exif_behind_the_pixels_of_a_png_turns_nothing(tmp_path):
    """The look at headers does not see it."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = saved(tmp_path / "a.png", PICTURE)
    data = path.read_bytes()
    end = data.rindex(b"IEND") - 4
    path.write_bytes(data[:end] + chunk + data[end:])
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == ROTATED_BY_90
    assert read_image(path, upright=True).shape == (3, 24, 40)
    assert header_sizes([path], upright=True) == [(24, 40)]


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
        (np.full((24, 40), 4095, np.uint16), "its values reach 4,095, expected those of 16 bits"),
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
