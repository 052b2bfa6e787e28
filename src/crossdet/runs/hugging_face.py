"""A detector as a directory that Hugging Face transformers opens, and that crossdet takes for weights as before."""

from __future__ import annotations

from pathlib import Path

from crossdet.errors import UserError
from crossdet.files import write_atomically
from crossdet.inference import load_detector
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
    """
    weights, directory = Path(weights), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is there already, and not empty; give another directory")
    detector = load_detector(weights, "cpu", last=last)
    try:
        detector.model.write_directory(detector.classes, directory)
    except UserError:
        if not or_own:
            raise
        write_atomically(directory / WEIGHTS_FILE, weights_path(weights, last).read_bytes())
    else:
        _, card = load_weights(weights, last)
        write_atomically(directory / CARD_FILE, card_beside(card).encode())
    return sorted(directory.iterdir())
