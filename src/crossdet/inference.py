"""Images in, named detections out: a trained detector with everything it needs to be used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from crossdet.data.augment import Resize
from crossdet.data.decoding import UnreadableImage, read_image
from crossdet.data.loading import pad_images
from crossdet.errors import LabelError, UserError
from crossdet.labels.rules import unknown
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings, weights_path
from crossdet.models.contract import Limits, Network
from crossdet.models.weights import load_weights
from crossdet.types import Detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
DEFAULT_THRESHOLD = 0.3
BATCHES_AHEAD = 2
"""Batches of a folder that are decoded and resized while the network looks at another."""
AnyImage = str | Path | Image.Image | np.ndarray | Tensor


class Detector:
    """A trained detector: `detector(image)` gives its `Detections` in pixels of that image.

    classes: the names that it knows, each member of a folded class for itself; `reported`: those of its detections.
    space: its label space, with the datasets that it was trained on.
    decoding: topk, max_detections, nms_iou and agnostic_nms, as the config of its training had them; see
        `Limits`.
    thresholds: class -> score from which on it is reported, the best F1 on validation data; `DEFAULT_THRESHOLD`
        for classes that are not in it.
    fold: the directions of a class, and its classes per dataset, are reported as one class (docs/orientation.md);
        so are classes that were merged after training (docs/extend_details.md).
    file: the weights file that it was read from.
    """

    def __init__(
        self,
        model: Network,
        space: LabelSpace,
        settings: InputSettings,
        decoding: Mapping[str, Any] | None = None,
        thresholds: Mapping[str, float] | None = None,
        fold: bool = True,
        file: Path | None = None,
    ) -> None:
        self.model = model.eval()
        self.file = file
        self.space = space
        self.settings = settings
        self.decoding = dict(decoding or {})
        self.thresholds = dict(thresholds or {})
        self.folding = space.folding if fold else None
        self._resize = Resize(settings.shorter, settings.longer)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.space.classes

    @property
    def reported(self) -> tuple[str, ...]:
        """The names that `Detections.labels` number: `classes`, folded where there is something to fold."""
        return self.classes if self.folding is None else self.folding.names

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(
        self,
        image: AnyImage,
        classes: Sequence[str] | str | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        **decode_options: Any,
    ) -> Detections:
        """Detections in one image, by falling score, with `names`.

        image: a file (EXIF orientation applied), PIL image, `[H, W, 3]` uint8 RGB array, or `[3, H, W]` uint8
            RGB tensor. classes: names to look for; None = all. score_threshold: one for all classes; None = each
            class's own. max_detections and further options (`agnostic_nms`, `nms_iou`, `topk`): of
            `Limits`; where not given as in `decoding`.

        Raises:
            UserError: unreadable file, unknown class, wrong array.
        """
        return self.batch([image], classes, score_threshold, max_detections, **decode_options)[0]

    def batch(
        self,
        images: Sequence[AnyImage],
        classes: Sequence[str] | str | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        **decode_options: Any,
    ) -> list[Detections]:
        """As `__call__`, for several images in one forward pass."""
        ids = self.class_ids(classes)
        limits = self.limits(score_threshold, max_detections, **decode_options)
        pictures = [as_tensor(image) for image in images]
        return self.find([(picture, self.resized(picture)) for picture in pictures], ids, limits)

    def limits(
        self, score_threshold: float | None = None, max_detections: int | None = None, **decode_options: Any
    ) -> Limits:
        """The options of `__call__`, before anything is folded."""
        used = list(self.thresholds_used(score_threshold).values())
        thresholds = used if self.folding is None else [used[c] for c in self.folding.of]
        limits = Limits(torch.tensor(thresholds, device=self.device), **(self.decoding | decode_options))
        return limits if max_detections is None else replace(limits, max_detections=max_detections)

    def resized(self, picture: Tensor) -> Tensor:
        """A `[3, H, W]` uint8 picture at the size at which the network looks at it."""
        return self._resize(picture, torch.zeros((0, 4)))[0]

    @torch.inference_mode()
    def find(
        self, pictures: Sequence[tuple[Tensor, Tensor]], classes: Sequence[int] | None, limits: Limits
    ) -> list[Detections]:
        """Detections in pairs (picture, the same `resized`). classes: of `class_ids`; limits: of that method.

        One forward pass; two where upright and lying pictures together would be mostly padding.
        """
        found: list[Detections | None] = [None] * len(pictures)
        of_members = limits
        if self.folding is not None:
            most, groups = limits.max_detections * self.folding.largest, self.folding.nms_groups
            of_members = replace(limits, max_detections=most, nms_groups=groups)
        for rows in _alike([small for _, small in pictures]):
            stack, sizes = pad_images([pictures[row][1] for row in rows], self.model.fill_colour)
            if self.device.type == "cuda":
                stack = stack.pin_memory().to(self.device, non_blocking=True)
            raw = self.model.find(stack, sizes.to(self.device), classes, of_members)
            for row, detections, size in zip(rows, raw, sizes, strict=True):
                original = torch.tensor(pictures[row][0].shape[1:], dtype=torch.int64)
                found[row] = self._named(rescale(detections, size, original), limits)
        return [detections for detections in found if detections is not None]

    def thresholds_used(self, score_threshold: float | None) -> dict[str, float]:
        """Class -> threshold that applies when this one is given."""
        if score_threshold is not None:
            return dict.fromkeys(self.reported, score_threshold)
        if self.folding is None:
            return dict(zip(self.classes, self.class_thresholds(), strict=True))
        return {name: self.thresholds.get(name, DEFAULT_THRESHOLD) for name in self.reported}

    def class_thresholds(self) -> list[float]:
        """Of each of `classes`, also where they are members of a fold: their own, else that of the whole."""
        one = self.space.folding
        whole = self.classes if one is None else [one.names[f] for f in one.of]
        return [
            self.thresholds.get(name, self.thresholds.get(of, DEFAULT_THRESHOLD))
            for name, of in zip(self.classes, whole, strict=True)
        ]

    def class_ids(self, classes: Sequence[str] | str | None) -> list[int] | None:
        """Ids of the members of these classes, None for all. Raises `UserError` for an unknown one."""
        if classes is None:
            return None
        names = [classes] if isinstance(classes, str) else list(classes)
        if not names:
            raise UserError(f"classes: none given; the detector knows {', '.join(self.reported)}")
        members = {fold.name: list(fold.members) for fold in self.space.folds}
        if self.folding is None:  # a member may have the name of its merged class
            members = {name: ids for name, ids in members.items() if name not in self.classes}
        known = list(dict.fromkeys([*self.reported, *self.classes]))
        if strange := [name for name in names if name not in members and name not in self.classes]:
            raise LabelError("; ".join(unknown("class", name, known) for name in strange))
        return [c for name in names for c in members.get(name) or [self.space.id_of(name)]]

    def _named(self, found: Detections, limits: Limits) -> Detections:
        """With names; of one object that is found as several members of a fold the best one is left."""
        boxes, scores, labels, angles = found.boxes, found.scores, found.labels, None
        if self.folding is not None:
            one = torch.from_numpy(self.folding.of)[labels]
            keep = batched_nms(boxes, scores, one, limits.nms_iou)[: limits.max_detections]
            if self.folding.has_angles:
                angles = torch.from_numpy(self.folding.angles)[labels[keep]]
            boxes, scores, labels = boxes[keep], scores[keep], one[keep]
        names = tuple(self.reported[label] for label in labels.tolist())
        return Detections(boxes, scores, labels, names, angles)


def _alike(pictures: Sequence[Tensor]) -> list[list[int]]:
    """Rows of the pictures in one batch; in an upright and a lying one where that saves a fifth of the pixels."""

    def padded(rows: Sequence[int]) -> int:
        sides = [max(pictures[row].shape[axis] for row in rows) for axis in (1, 2)]
        return len(rows) * sides[0] * sides[1]

    everything = list(range(len(pictures)))
    upright = [row for row in everything if pictures[row].shape[1] > pictures[row].shape[2]]
    lying = [row for row in everything if row not in upright]
    if upright and lying and padded(upright) + padded(lying) < 0.8 * padded(everything):
        return [upright, lying]
    return [everything] if everything else []


def rescale(detections: Detections, size: Tensor, original: Tensor) -> Detections:
    """Boxes from the network input (size `[2]` = height, width) to the original picture, on the CPU."""
    factor = (original.double() / size.double()).flip(0).repeat(2).float()
    boxes = detections.boxes.cpu() * factor
    return Detections(boxes, detections.scores.cpu(), detections.labels.cpu(), detections.names)


def as_tensor(image: AnyImage) -> Tensor:
    """`[3, H, W]` uint8 RGB of whatever was given. Raises `UserError` if that is no picture."""
    if isinstance(image, str | Path):
        try:
            return read_image(image, upright=True)
        except UnreadableImage as error:
            raise UserError(str(error)) from None
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"image: expected a file, PIL image, array or tensor, got {type(image).__name__}")
    if 0 in image.shape:
        raise UserError(f"image: it has no pixels, shape {list(image.shape)}")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"image array: expected [H, W, 3] uint8 RGB, got {list(image.shape)} {image.dtype}")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: arrays may be read-only
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise UserError(f"image tensor: expected [3, H, W] uint8 RGB, got {list(image.shape)} {image.dtype}")
    return image


def load_detector(
    path: str | Path, device: str | torch.device | None = None, fold: bool = True, last: bool = False
) -> Detector:
    """A detector from a weights file or a run directory; on the GPU where there is one. fold: see `Detector`.

    Of a run directory the weights of its best evaluation (`best.safetensors`) where there was one.
    last: of a run directory the newest weights instead. `Detector.file` says which file it was.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    state, card = load_weights(Path(path), last)
    space = card.space
    model = build_detector(card.settings, len(space.classes), torch.from_numpy(space.overlap_array))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(
            f"weights file {path} does not fit its own description: {len(missing)} entries missing, "
            f"{len(unexpected)} unexpected"
        )
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    keys = ("topk", "max_detections", "nms_iou", "agnostic_nms")  # older weights do not say the last one
    decoding = {key: card.decoding[key] for key in keys if card.decoding.get(key) is not None}
    model = model.to(memory_format=torch.channels_last)  # as batches come, and as training has it
    file = weights_path(Path(path), last)
    return Detector(model.to(chosen), space, card.input, decoding, card.thresholds, fold, file)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files of files, folders (searched through) and glob patterns, sorted, each once.

    Raises:
        UserError: lists every argument that names no image.
    """
    found: dict[Path, None] = {}
    empty = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.is_file():
            files = [path]
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            try:
                files = sorted(p for p in root.glob(pattern) if p.is_file())
            except (ValueError, NotImplementedError):  # such as a**.jpg
                files = []
        if not files:
            empty.append(str(given))
        found.update(dict.fromkeys(files))
    if empty:
        raise UserError(f"no image found for {', '.join(empty)}")
    return list(found)


def predict_files(
    detector: Detector,
    files: Sequence[Path],
    classes: Sequence[str] | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    batch_size: int = 8,
    agnostic_nms: bool | None = None,
) -> Iterator[tuple[Path, Tensor | None, Detections | str]]:
    """(file, picture, detections) of every file in order; (file, None, reason) where it cannot be read.

    Files are decoded and resized in threads, up to `BATCHES_AHEAD` batches ahead of the network: so many pictures
    and one batch more are in memory, whatever the number of files. The options are those of `Detector.__call__`.
    """

    def prepare(file: Path) -> tuple[Tensor, Tensor] | str:
        try:
            picture = read_image(file, upright=True)
        except UnreadableImage as error:
            return str(error)
        return picture, detector.resized(picture)

    more = {} if agnostic_nms is None else {"agnostic_nms": agnostic_nms}
    ids, limits = detector.class_ids(classes), detector.limits(score_threshold, max_detections, **more)
    groups = (files[i : i + batch_size] for i in range(0, len(files), batch_size))
    pool = ThreadPoolExecutor(max_workers=min(8, max(2, os.cpu_count() or 1)))
    try:
        ahead = deque([pool.submit(prepare, file) for file in group] for group in islice(groups, BATCHES_AHEAD))
        for start in range(0, len(files), batch_size):
            prepared = [future.result() for future in ahead.popleft()]
            ahead.extend([pool.submit(prepare, file) for file in group] for group in islice(groups, 1))
            pictures = [pair for pair in prepared if not isinstance(pair, str)]
            found = iter(detector.find(pictures, ids, limits))
            for file, pair in zip(files[start : start + batch_size], prepared, strict=True):
                yield (file, None, pair) if isinstance(pair, str) else (file, pair[0], next(found))
    finally:  # also when the caller takes no more
        pool.shutdown(cancel_futures=True)
