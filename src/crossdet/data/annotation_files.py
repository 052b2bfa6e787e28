"""What every reader needs: bytes and lines of annotation files, all their mistakes in one error, image headers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from crossdet.errors import AnnotationError, problem_list

if TYPE_CHECKING:
    from PIL import Image


PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif", ".avif", ".mpo", ".ppm", ".pgm",
    ".jp2", ".tga",
)  # fmt: skip
"""Of the files that are looked at as pictures."""
OF_MACOS = "._"
"""macOS leaves a file of this beginning beside each that it copies to other disks; it is no copy of it."""
MAX_LISTED = 20
"""How many problems of one kind an error or a report lists before it only counts."""
BOM = b"\xef\xbb\xbf"


MAX_CHARACTERS = 1000
"""Of one problem: a file of another format may be a single line of megabytes."""


def too_many(problems: list[str]) -> list[str]:
    """The first `MAX_LISTED` problems, each with `MAX_CHARACTERS` at most, and a line that counts the rest."""
    shown, more = [_cut(text) for text in problems[:MAX_LISTED]], len(problems) - MAX_LISTED
    return [*shown, f"... and {more} more"] if more > 0 else shown


def _cut(text: str) -> str:
    half = MAX_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]} [... {left_out:,} characters ...] {text[-half:]}"


def raise_if_any(file: Path | str, problems: list[str]) -> None:
    """Raises one `AnnotationError` that lists all problems found in `file`."""
    if problems:
        raise AnnotationError(problem_list(f"{file}: {len(problems)} mistake(s)", too_many(problems)))


def read_bytes(path: Path) -> bytes:
    """The bytes of an annotation file. Raises `AnnotationError`, one line, where it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise AnnotationError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_text(path: Path) -> str:
    """The text of an annotation file in UTF-8, with or without a byte order mark.

    Raises `AnnotationError`, one line that names file and byte, where it cannot be read or is no such text.
    """
    content = read_bytes(path)
    start = len(BOM) if content.startswith(BOM) else 0
    try:
        return content[start:].decode()
    except UnicodeDecodeError as error:
        at = start + error.start
        line = content.count(b"\n", 0, at) + 1
        raise AnnotationError(
            f"{path}:{line}: byte {at} of the file (0x{content[at]:02x}) is not text in UTF-8; is it the "
            "annotation file? If so, save it as UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of `read_text`."""
    return read_text(path).splitlines()


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def files_below(folder: Path) -> list[str]:
    """Every file below the folder, as its path from there with `/`: one walk instead of a stat per file."""
    return [
        Path(os.path.relpath(Path(parent) / name, folder)).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    ]


def is_picture(name: str) -> bool:
    """Whether the name of a file is that of a picture."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith(OF_MACOS)


def is_there(path: Path) -> bool:
    """`path.exists()` that is also false for names that cannot exist (too long, with a null character)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@cache
def picture_formats() -> tuple[str, ...]:
    """Those that Pillow is let to read. Left to itself it takes a file for whatever its first bytes say, and hands
    PostScript to an interpreter."""
    from PIL import Image

    Image.init()
    wanted = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "PPM", "JPEG2000", "TGA")
    return tuple(name for name in wanted if name in Image.OPEN)


_NO_LIMIT = Lock()
"""Two calls at once would each put back what the other has set."""


@contextmanager
def no_pixel_limit() -> Iterator[None]:
    """While pictures are opened with Pillow, whose limit is meant for those of strangers: `serve` has its own, and
    torchvision decodes larger ones."""
    from PIL import Image

    with _NO_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def opened(path: Path) -> Image.Image:
    """The picture of a file, not decoded yet. Raises `OSError` for what is no regular file: a named pipe would be
    waited for without end."""
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    return Image.open(path, formats=picture_formats())


def exif_of_header(image: Image.Image) -> Image.Exif:
    """EXIF of a picture that is not decoded yet, which Pillow keeps for later: without what XMP says of the same,
    which torchvision and OpenCV do not read, and what a PNG has behind its pixels. So the size in a header and the
    picture that is decoded are turned alike."""
    from PIL import Image

    for name in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(name, None)
    return Image.Image.getexif(image)  # not the plugin's own, which for PNG decodes the picture to look behind it


def header_sizes(paths: Sequence[Path], upright: bool = False) -> list[tuple[int, int] | None]:
    """(height, width) of image files from their headers, as stored; None = unreadable. upright: as EXIF says."""
    from PIL import ExifTags

    def size(path: Path) -> tuple[int, int] | None:
        try:
            with opened(path) as image:
                height, width = image.height, image.width
                mark = exif_of_header(image).get(ExifTags.Base.Orientation, 1) if upright else 1
                if mark >= 5 and image.format != "TIFF":  # whose sizes are turned already
                    height, width = width, height
        except Exception:  # on a damaged file Pillow's plugins raise almost anything
            return None
        return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else None

    with no_pixel_limit(), ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(size, paths))
