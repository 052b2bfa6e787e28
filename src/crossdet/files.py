"""Atomic writing of files, what the disk says, JSON without NaN, file names made of names from data. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crossdet.errors import RunError

_UMASK = os.umask(0)
os.umask(_UMASK)

LONGEST = 200
"""Bytes of a safe name; with a number, a suffix and what marks a temporary file it stays below the usual 255."""
_REFUSED = re.compile(r'[<>:"/\\|?*]')
_UNPRINTED = {"Cc", "Cs", "Zl", "Zp"}
"""Control characters, halves of surrogate pairs (names that are no UTF-8), line and paragraph separators."""
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)
_MARKED = re.compile(r".*~[0-9a-f]{12,}", re.DOTALL)
_DIGITS = (12, 64)


def printable(text: str) -> str:
    """With backslashes for bytes of a file name that are no UTF-8, which a terminal may refuse."""
    return text.encode(errors="backslashreplace").decode()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` holds the old or the new content at any moment, also after a power cut.

    Raises:
        RunError: the disk is full or not writable; the old file is untouched.
    """
    staging = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(staging).chmod(0o666 & ~_UMASK)  # mkstemp makes private files
        Path(staging).replace(path)
        staging = ""
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror or error}); "
            f"{'the file as it was before is kept' if path.exists() else 'nothing was written'}"
        ) from error
    finally:
        if staging:
            Path(staging).unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def writing(path: Path, kept: str) -> Iterator[None]:
    """Around what writes a file in place, or a folder: what the disk raises becomes a `RunError` with path, reason
    and what is kept."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written ({error.strerror or error}); {kept}") from error


def check_room(path: Path, size: int = 1) -> None:
    """Before the work for it is done: raises `RunError` where a file or folder cannot be written, or the disk has
    fewer bytes left."""
    place = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    folder = place if place.is_dir() else place.parent
    free = shutil.disk_usage(folder).free
    if place != folder and place != path.absolute():
        reason = f"{place} is a file"
    elif not os.access(folder, os.W_OK):
        reason = f"nothing may be written in {folder}"
    elif free < size:
        reason = f"{free:,} bytes are left in {folder}, and it takes at least {size:,}"
    else:
        return
    raise RunError(f"{path} cannot be written: {reason}")


def _sync_folder(folder: Path) -> None:
    # The new file is in place already; not every file system can sync a folder.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """JSON with NaN as null (NaN is no JSON), written atomically."""
    write_atomically(path, json_text(content).encode())


def json_text(content: Any) -> str:
    """A line break at its end; numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


# ------------------------------------------------------------------------------------------ names from data


def safe_name(name: str) -> str:
    """A file name for a name that comes from data: a class, a dataset, an event, an image.

    It is one part of a path that leads nowhere else: no separator, not `.` or `..`, no dot in front, no control
    character, nothing that Windows refuses or takes for a device, no white space at the ends, at most `LONGEST`
    bytes of UTF-8. A name that is all this, with spaces, dots within, any script, stays as it is. Of any other what
    can be kept is kept, with a part of its SHA-256: `../x` becomes `__x~d6b96a97d147` (a name that ends like this
    gets one, too), so that different names have different files. For those that differ in case alone see
    `safe_names`.
    """
    return spellings(name)[0]


def spellings(name: str) -> list[str]:
    """All file names that `safe_names` may give a name, for those who look for its file."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    cleaned = _cleaned(name)
    plain = cleaned == name and len(name.encode()) <= LONGEST and not _MARKED.fullmatch(name)
    kept = re.sub(r"\.\.+", "_", cleaned)
    marked = [f"{_cut(kept, LONGEST - 1 - digits)}~{digest[:digits]}" for digits in _DIGITS]
    return [name, *marked] if plain else marked


def safe_names(names: Sequence[str]) -> list[str]:
    """`safe_name` of each, all different, also for a file system that ignores case or the form of accents.

    Of names that are the same to it the first stays and the others get a part of their SHA-256; of equal names the
    second and later are numbered (`a`, `a_2`). No name that can stay gives way to a number.
    """
    given = {name: spellings(name) for name in dict.fromkeys(names)}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name, possible in given.items():
        if possible[0] == name and _folded(name) not in taken:
            found[name] = name
            taken.add(_folded(name))
    for name, possible in given.items():
        if name not in found:
            found[name] = next(one for one in possible if _folded(one) not in taken)
            taken.add(_folded(found[name]))
    numbers = dict.fromkeys(given, 1)
    return [_numbered(found[name], name, numbers, taken) for name in names]


def _numbered(file: str, name: str, numbers: dict[str, int], taken: set[str]) -> str:
    """The file name of a name's first, second, ... occurrence. numbers: name -> the next one to try."""
    number = numbers[name]
    numbers[name] += 1
    if number == 1:
        return file
    while _folded(f"{file}_{number}") in taken:
        number = numbers[name]
        numbers[name] += 1
    taken.add(_folded(f"{file}_{number}"))
    return f"{file}_{number}"


def _cleaned(name: str) -> str:
    shown = "".join("_" if unicodedata.category(char) in _UNPRINTED else char for char in name)
    text = re.sub(r"^\.+", "_", _REFUSED.sub("_", shown).strip()).rstrip(". ") or "_"
    return f"_{text}" if _DEVICE.match(text) else text


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")


def _folded(name: str) -> str:
    """Equal for names that are one to some file system. More than these is possible, and costs a longer name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).upper().casefold())
