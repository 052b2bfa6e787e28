"""Images in, named detections out: a trained detector with everything it needs to be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossdet.checkpoint import load_weights
from crossdet.data.decoding import UnreadableImage, read_image
from crossdet.data.loading import pad_images
from crossdet.data.transforms import Resize
from crossdet.errors import UserError
from crossdet.labels import LabelSpace
from crossdet.models.building import DetectorSettings, build_detector
from crossdet.models.retinanet import RetinaNet
from crossdet.types import Detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
DEFAULT_THRESHOLD = 0.3
AnyImage = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class InputSettings:
    """How pictures are prepared: shorter side in pixels, with a cap on the longer."""

    shorter: int
    longer: int


class Detector:
    """A trained detector: `detector(image)` gives its `Detections` in pixels of that image.

    classes: the names that it knows. space: its label space, with the datasets that it was trained on.
    decoding: topk, max_detections and nms_iou, as the config of its training had them; see `RetinaNet.decode`.
    thresholds: class -> score from which on it is reported, the best F1 on validation data; `DEFAULT_THRESHOLD`
        for classes that are not in it.
    """

    def __init__(
        self,
        model: RetinaNet,
        space: LabelSpace,
        settings: InputSettings,
        decoding: Mapping[str, Any] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.model = model.eval()
        self.space = space
        self.settings = settings
        self.decoding = dict(decoding or {})
        self.thresholds = dict(thresholds or {})
        self._resize = Resize(settings.shorter, settings.longer)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.space.classes

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

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
            class's own. max_detections and further options: of `RetinaNet.decode`; where not given as in
            `decoding`.

        Raises:
            UserError: unreadable file, unknown class, wrong array.
        """
        return self.batch([image], classes, score_threshold, max_detections, **decode_options)[0]

    @torch.inference_mode()
    def batch(
        self,
        images: Sequence[AnyImage],
        classes: Sequence[str] | str | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        **decode_options: Any,
    ) -> list[Detections]:
        """As `__call__`, for several images in one forward pass."""
        chosen = self._class_ids(classes)
        options = self.decoding | decode_options
        thresholds = torch.tensor(list(self.thresholds_used(score_threshold).values()), device=self.device)
        if max_detections is not None:
            options["max_detections"] = max_detections
        if not images:
            return []
        pictures = [as_tensor(image) for image in images]
        resized = [self._resize(picture, torch.zeros((0, 4)))[0] for picture in pictures]
        stack, sizes = pad_images(resized, self.model.mean_colour)
        found = self.model.find(
            stack.to(self.device),
            sizes.to(self.device),
            classes=chosen,
            score_threshold=thresholds,
            **options,
        )
        originals = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.int64)
        return [
            self._named(rescale(d, size, original))
            for d, size, original in zip(found, sizes, originals, strict=True)
        ]

    def thresholds_used(self, score_threshold: float | None) -> dict[str, float]:
        """Class -> threshold that applies when this one is given."""
        if score_threshold is not None:
            return dict.fromkeys(self.classes, score_threshold)
        return {name: self.thresholds.get(name, DEFAULT_THRESHOLD) for name in self.classes}

    def _class_ids(self, classes: Sequence[str] | str | None) -> list[int] | None:
        if classes is None:
            return None
        names = [classes] if isinstance(classes, str) else list(classes)
        if not names:
            raise UserError(f"classes: none given; the detector knows {', '.join(self.classes)}")
        return [self.space.id_of(name) for name in names]

    def _named(self, detections: Detections) -> Detections:
        names = tuple(self.classes[label] for label in detections.labels.tolist())
        return Detections(detections.boxes, detections.scores, detections.labels, names)


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
            raise UserError(
                f"image array: expected [H, W, 3] uint8 RGB, got {list(image.shape)} {image.dtype}"
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: arrays may be read-only
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise UserError(f"image tensor: expected [3, H, W] uint8 RGB, got {list(image.shape)} {image.dtype}")
    return image


def load_detector(path: str | Path, device: str | torch.device | None = None) -> Detector:
    """A detector from a weights file or a run directory; on the GPU where there is one.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    state, metadata = load_weights(Path(path))
    space = LabelSpace.from_json(metadata["labels"])
    overlap = torch.from_numpy(space.overlap_array)
    model = build_detector(DetectorSettings.from_json(metadata["model"]), len(space.classes), overlap)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(
            f"weights file {path} does not fit its own description: {len(missing)} entries missing, "
            f"{len(unexpected)} unexpected"
        )
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    limits = json.loads(metadata["eval"])
    decoding = {key: limits[key] for key in ("topk", "max_detections", "nms_iou") if limits[key] is not None}
    points = json.loads(metadata.get("operating", "{}"))
    thresholds = {name: float(point["threshold"]) for name, point in points.items()}
    settings = InputSettings(**json.loads(metadata["input"]))
    return Detector(model.to(chosen), space, settings, decoding, thresholds)


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
) -> Iterator[tuple[Path, Tensor | None, Detections | str]]:
    """(file, picture, detections) of every file in order; (file, None, reason) where it cannot be read.

    Files are decoded in threads, one batch ahead of the network.
    """

    def read(file: Path) -> Tensor | str:
        try:
            return read_image(file, upright=True)
        except UnreadableImage as error:
            return str(error)

    groups = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        ahead = [pool.submit(read, file) for file in groups[0]] if groups else []
        for number, group in enumerate(groups):
            pictures = [future.result() for future in ahead]
            following = groups[number + 1] if number + 1 < len(groups) else []
            ahead = [pool.submit(read, file) for file in following]
            readable = [picture for picture in pictures if isinstance(picture, Tensor)]
            detections = iter(
                detector.batch(readable, classes, score_threshold, max_detections) if readable else []
            )
            for file, picture in zip(group, pictures, strict=True):
                if isinstance(picture, Tensor):
                    yield file, picture, next(detections)
                else:
                    yield file, None, picture
