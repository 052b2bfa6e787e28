"""Files of a run that must never be half written: weights (safetensors) and the resumable training state."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crossdet.errors import UserError
from crossdet.files import write_atomically
from crossdet.models.card import BEST_FILE as BEST_FILE
from crossdet.models.card import (
    CARD_FILE,
    FORMAT,
    Card,
    card_beside,
    card_of,
    card_of_foreign,
    check_format,
    check_weights,
    foreign_checkpoint,
    no_weights,
    read_card,
    weights_path,
)
from crossdet.models.card import METRICS_FILE as METRICS_FILE
from crossdet.models.card import WEIGHTS_FILE as WEIGHTS_FILE
from crossdet.models.hub import unreadable

STATE_FILE = "state.pt"


def save_weights(path: Path, state: dict[str, Tensor], card: Card) -> None:
    """Writes tensors and their description as safetensors. Equal weights and cards give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, _sorted_metadata(save(tensors, {"format": FORMAT, **card.to_metadata()})))


def _sorted_metadata(data: bytes) -> bytes:
    # safetensors writes the metadata in an order that differs from process to process; the layout is 8 bytes
    # with the length of the JSON header, the header, and the tensors at offsets that count from its end
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[size:]


def load_weights(path: Path, last: bool = False) -> tuple[dict[str, Tensor], Card]:
    """Tensors and description of a weights file, of a run directory's (`weights_path`), or of a checkpoint of other
    software that an architecture reads.

    Raises:
        UserError: missing, damaged, or of something else.
    """
    if (foreign := foreign_checkpoint(path)) is not None:
        card = card_of_foreign(path, foreign)
        return foreign.tensors(card.settings), card
    check_weights(path)
    path = weights_path(path, last)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, IsADirectoryError):
        raise no_weights(path) from None
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from None
    check_format(path, metadata)
    return tensors, card_of(path, metadata)


def update_card(path: Path, **changes: Any) -> Path:
    """Replaces fields of the card of weights; returns the file that holds it, beside the tensors of a checkpoint of
    other software. The tensors stay as they are. Raises as `load_weights`."""
    if foreign_checkpoint(path) is not None:
        file = path / CARD_FILE
        write_atomically(file, card_beside(replace(read_card(path), **changes)).encode())
        return file
    path = weights_path(path)
    tensors, card = load_weights(path)
    save_weights(path, tensors, replace(card, **changes))
    return path


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the training state; tensors and plain containers only, so that it loads with `weights_only`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def kept(run_dir: Path) -> str:
    """For messages of a training that ends by an error: what is left of it."""
    return "the last saved state is kept" if (run_dir / STATE_FILE).exists() else "nothing was saved yet"


def with_room(run_dir: Path) -> str:
    """The same where the disk is full."""
    goes_on = "continue with --resume" if (run_dir / STATE_FILE).exists() else "begin again with --resume"
    return f"{kept(run_dir)}, {goes_on} once there is room"


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote, without running code from the file.

    Raises `UserError` for anything else, and for a changed byte: `torch.load` looks at no checksum.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            broken = parts.testzip()
        state = None if broken else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"training state {path} does not exist") from None
    except Exception as error:  # whatever torch makes of a file that is none
        raise UserError(f"training state {path} cannot be read: {error}") from None
    if not isinstance(state, dict):
        why = f"{broken} is damaged" if broken else "it holds something else"
        raise UserError(f"training state {path} cannot be read: {why}")
    return state
