"""Trained weights as the argument of a command: is it in its place, and which label space is it. No torch."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from crossdet.errors import UserError
from crossdet.labels.space import LabelSpace
from crossdet.models.provenance import BEST_FILE, SUFFIX, WEIGHTS_FILE, check_weights, read_metadata, weights_path


def means_weights(path: Path) -> bool:
    """Whether a path can only be meant as weights, where a config may stand as well: a folder, or no text."""
    if path.is_dir() or path.suffix == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(1024)
    utf16 = head.startswith((BOM_UTF16_LE, BOM_UTF16_BE))  # text, for the config's reader to refuse
    return b"\0" in head and not utf16


def check_order(command: str, weights: Path, config: Path) -> None:
    """Raises `UserError` where the config of a command is no file with one, or stands where the weights should."""
    if means_weights(config):
        swapped = not means_weights(weights)
        fix = f", such as `crossdet {command} {config} {weights}`" if swapped else ""
        what = "a directory" if config.is_dir() else "no YAML file"
        raise UserError(
            f"{config} is {what}, and the second argument is a config: the weights come first, then the config{fix}"
        )


def taken(path: Path, last: bool = False) -> str:
    """What a command says about the weights it takes: which file of a run directory. last: see `weights_path`.

    Raises `UserError` if there are none.
    """
    check_weights(path)
    file = weights_path(path, last)
    if file.name != BEST_FILE or file == path:
        return f"weights: {file}"
    return f"weights: {file} (of the run's best evaluation; the newest are {WEIGHTS_FILE})"


def known_space(path: Path) -> LabelSpace:
    """The label space of a weights file or run directory. Raises `UserError` if it is none."""
    return LabelSpace.from_json(read_metadata(path)["labels"])
