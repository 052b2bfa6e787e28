"""Pictures and datasets for the tests of the data pipeline."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossdet.data.index import Index, IndexBuilder

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(40) * 6, np.arange(24)[:, None] * 10, 90), -1).astype(np.uint8)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def build(
    root: Path,
    classes: list[str],
    images: list[list[tuple]],
    size: tuple[int, int] = (24, 40),
    **federated: list[list[int]],
) -> Index:
    """One image per entry, its grey tells its row; its boxes are (xyxy, label) or (xyxy, label, flags)."""
    root.mkdir(exist_ok=True)
    builder = IndexBuilder(root)
    for row, boxes in enumerate(images):
        saved(root / f"{row}.png", np.full((*size, 3), 10 + row, np.uint8))
        builder.image(f"{row}.png", *size, **{name: lists[row] for name, lists in federated.items()})
        for xyxy, label, *flags in boxes:
            builder.box(xyxy, label, *flags, keep_invalid=True)
    return builder.build(classes, federated=bool(federated))


BOX = (1.0, 2.0, 21.0, 18.0)
