"""Trained weights as the argument of a command: whether they are any, and the label space they hold. No torch."""

from __future__ import annotations

from pathlib import Path

from crossdet.errors import UserError
from crossdet.labels import LabelSpace
from crossdet.provenance import WEIGHTS_FILE, read_metadata

SUFFIX = ".safetensors"
WANTED = f"a {SUFFIX} file or a run directory that holds {WEIGHTS_FILE}"


def check_weights(path: Path) -> None:
    """Raises `UserError` for a folder or file that cannot be meant as weights; what is in them is for the reader.

    A file is taken as meant if it is named `.safetensors`, or begins as such files do: with the length of a header.
    """
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise UserError(f"{path} holds no {WEIGHTS_FILE}; expected {WANTED}")
    elif path.is_file() and path.suffix != SUFFIX:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] != b"{" or int.from_bytes(head[:8], "little") > path.stat().st_size:
            raise UserError(f"{path} is no crossdet weights file; expected {WANTED}")


def means_weights(path: Path) -> bool:
    """Whether a path can only be meant as weights, where a config may stand as well: a folder, or no text."""
    if path.is_dir() or path.suffix == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"\0" in file.read(1024)


def check_order(command: str, weights: Path, config: Path) -> None:
    """Raises `UserError` where the config of a command is no file with one, or stands where the weights should."""
    if means_weights(config):
        swapped = not means_weights(weights)
        fix = f", such as `crossdet {command} {config} {weights}`" if swapped else ""
        what = "a directory" if config.is_dir() else "no YAML file"
        raise UserError(
            f"{config} is {what}, and the second argument is a config: the weights come first, then the config{fix}"
        )
    check_weights(weights)


def known_space(path: Path) -> LabelSpace:
    """The label space of a weights file or run directory. Raises `UserError` if it is none."""
    check_weights(path)
    return LabelSpace.from_json(read_metadata(path)["labels"])
