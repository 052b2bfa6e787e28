"""Atomic writing of files, and JSON without NaN. No torch."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossdet.errors import RunError

_UMASK = os.umask(0)
os.umask(_UMASK)


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
    write_atomically(path, (json.dumps(_finite(content), indent=1) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
