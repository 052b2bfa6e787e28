"""A detector as a directory that Hugging Face transformers opens, and that crossdet takes for weights as before."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from crossdet.errors import RunError, UserError
from crossdet.files import check_room, write_atomically, writing
from crossdet.inference import Detector, load_detector
from crossdet.models.card import CARD_FILE, WEIGHTS_FILE, card_beside, weights_path
from crossdet.models.weights import load_weights


def write_directory(
    weights: str | Path, directory: str | Path, last: bool = False, or_own: bool = False
) -> list[Path]:
    """Writes weights for `transformers.pipeline("object-detection", directory)`; returns the files.

    Beside what transformers knows stands `crossdet.json`: label space (who labels, avoids and merges what),
    thresholds, input, limits and generations. With it `extend`, `eval` and `predict` take the directory for the
    weights that they are. transformers knows members of merged classes by their own names, and no thresholds.

    last: of a run directory the newest weights instead of the best. or_own: where transformers could not open the
    network, crossdet's own weights file stands there instead.

    Raises:
        UserError: unreadable weights, networks that transformers does not have, or a directory that is not empty.
        RunError: what cannot be written.
    """
    weights, directory = Path(weights), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already, and not empty; give another directory")
    detector = load_detector(weights, "cpu", last=last)
    check_room(directory, sum(tensor.nbytes for tensor in detector.model.state_dict().values()))
    try:
        _write(detector, weights, directory, last, or_own)
    except RunError:
        if directory.is_dir():
            for file in directory.iterdir():  # all are of this call, and would refuse the next
                file.unlink()
        raise
    return sorted(directory.iterdir())


def _write(detector: Detector, weights: Path, directory: Path, last: bool, or_own: bool) -> None:
    """Raises `UserError`, and `RunError` for what cannot be written."""
    try:
        with writing(directory, "nothing of it is kept"):
            detector.model.write_directory(detector.classes, directory)
    except SafetensorError as error:  # as it calls what the disk says
        raise RunError(f"{directory} could not be written ({error}); nothing of it is kept") from error
    except UserError:
        if not or_own:
            raise
        write_atomically(directory / WEIGHTS_FILE, weights_path(weights, last).read_bytes())
    else:
        _, card = load_weights(weights, last)
        write_atomically(directory / CARD_FILE, card_beside(card).encode())
