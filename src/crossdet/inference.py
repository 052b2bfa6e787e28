"""Images in, named detections out: a trained detector with everything it needs to be used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crossdet.data.annotation_files import header_sizes
from crossdet.data.augment import Resize
from crossdet.data.canvases import Canvas, canvases_of
from crossdet.data.decoding import UnreadableImage, read_image
from crossdet.data.loading import pad_images
from crossdet.data.picture_files import find_images as find_images
from crossdet.data.picture_files import rgb_of, upright
from crossdet.errors import UserError, check_counts
from crossdet.export.detector import check_fold, check_several, suppressed, usual_limit
from crossdet.export.network import ExportedNetwork
from crossdet.export.sessions import Session, detections_of, open_session
from crossdet.labels.reporting import DEFAULT_THRESHOLD as DEFAULT_THRESHOLD
from crossdet.labels.reporting import Reporting, Threshold
from crossdet.labels.rules import unknown
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings, is_exported, weights_path
from crossdet.models.contract import Limits, Network
from crossdet.models.detecting import nms_within
from crossdet.models.weights import load_weights
from crossdet.types import Detections
from crossdet.windows import Tiling, join

WINDOWS_AT_ONCE = 8
"""Windows of large pictures in one forward pass."""
BATCHES_AHEAD = 2
"""So many batches of a folder are decoded and resized while the network looks at another."""
DECODE_OPTIONS = ("agnostic_nms", "nms_iou", "topk")
"""Further options of `Detector.__call__`, of `Limits`."""
AnyImage = str | Path | Image.Image | np.ndarray | Tensor


class Detector(Reporting):
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
    frame: (height, width) of all inputs of an exported file that has one size; see `Resize`.
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
        frame: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(space, thresholds, fold)
        self.model = model.eval()
        self.file = file
        self.settings = settings
        self.decoding = dict(decoding or {})
        self._resize = Resize(settings.shorter, settings.longer, model.stretched_to, model.antialias, frame)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(
        self,
        image: AnyImage,
        classes: Sequence[str] | str | None = None,
        score_threshold: Threshold | None = None,
        *,
        max_detections: int | None = None,
        tile: int | None = None,
        overlap: float | None = None,
        **decode_options: Any,
    ) -> Detections:
        """Detections in one image, by falling score, with `names`.

        image: a file or PIL image (EXIF orientation applied), `[H, W, 3]` uint8 RGB array, or `[3, H, W]` uint8
            RGB tensor. classes: names to look for; None = all. score_threshold: one for all classes, or by class
            (`{"face": 0.5}`, the others keep their own); None = each class's own. max_detections and further
            options (`agnostic_nms`, `nms_iou`, `topk`): of `Limits`; where not given as in `decoding`. tile: side
            of the windows, in pixels of the image, that a large one is looked at in, each `resized` as a picture
            of its own; they overlap by the share `overlap` of it (default 0.2), in which objects across seams
            should have room (`windows.join`). `topk` holds for every window; so does the `max_detections` of
            `decoding`, but where it is given, that of the image.

        Raises:
            UserError: unreadable file, unknown class or option, wrong array, a tile or an overlap that cannot be.
        """
        limits: dict[str, Any] = {"max_detections": max_detections, "tile": tile, "overlap": overlap}
        return self.batch([image], classes, score_threshold, **limits, **decode_options)[0]

    def batch(
        self,
        images: Sequence[AnyImage],
        classes: Sequence[str] | str | None = None,
        score_threshold: Threshold | None = None,
        *,
        max_detections: int | None = None,
        tile: int | None = None,
        overlap: float | None = None,
        **decode_options: Any,
    ) -> list[Detections]:
        """As `__call__`, for several images in one forward pass; their windows in several.

        A network with group norm (RetinaNet by default) sees the padding: scores depend on the sizes of the others,
        and are those of `__call__` where all have one size."""
        check_several(images)
        ids, tiling = self.class_ids(classes), Tiling.of(tile, overlap)
        limits = self.limits(score_threshold, max_detections, **decode_options)
        pictures = [as_tensor(image) for image in images]
        if tiling is not None:
            return self.find_in_windows(pictures, ids, limits, tiling, max_detections)
        return self.find([(picture, self.resized(picture)) for picture in pictures], ids, limits)

    def limits(
        self, score_threshold: Threshold | None = None, max_detections: int | None = None, **decode_options: Any
    ) -> Limits:
        """The options of `__call__`, before anything is folded. Raises `UserError` for one that it lacks."""
        known = ("classes", "score_threshold", "max_detections", "tile", "overlap", *DECODE_OPTIONS)
        if wrong := [name for name in decode_options if name not in DECODE_OPTIONS]:
            raise UserError(unknown("option", wrong[0], known))
        decode_options = {name: value for name, value in decode_options.items() if value is not None}
        thresholds = self.member_thresholds(score_threshold)
        check_counts(max_detections=max_detections, topk=decode_options.get("topk"))
        if not 0 <= (iou := decode_options.get("nms_iou", 0)) <= 1:
            raise UserError(f"nms_iou {iou}: expected a number from 0 to 1")
        limits = Limits(torch.tensor(thresholds, device=self.device), **(self.decoding | decode_options))
        return limits if max_detections is None else replace(limits, max_detections=max_detections)

    @property
    def usual_limit(self) -> int:
        """Most detections in a picture where nobody asks for another number."""
        return int(self.decoding.get("max_detections", Limits.max_detections))

    def resized(self, picture: Tensor) -> Tensor:
        """A `[3, H, W]` uint8 picture at the size at which the network looks at it."""
        return self._resize(picture, torch.zeros((0, 4)))[0]

    @torch.inference_mode()
    def find(
        self,
        pictures: Sequence[tuple[Tensor, Tensor]],
        classes: Sequence[int] | None,
        limits: Limits,
        canvas: Canvas | None = None,
    ) -> list[Detections]:
        """Detections in pairs (picture, the same `resized`). classes: of `class_ids`; limits: of that method.

        One forward pass on the canvas, which holds all of them; without one two where upright and lying pictures
        together would be mostly padding.
        """
        found: list[Detections | None] = [None] * len(pictures)
        of_members = limits
        if self.folding is not None:
            most = limits.max_detections * self.folding.at_once(self.model.suppresses)
            of_members = replace(limits, max_detections=most, nms_groups=self.folding.nms_groups)
        for rows in _alike([small for _, small in pictures]) if canvas is None else [range(len(pictures))]:
            stack, sizes = pad_images([pictures[row][1] for row in rows], self.model.fill_colour, canvas)
            if self.device.type == "cuda":
                stack = stack.pin_memory().to(self.device, non_blocking=True)
            raw = self.model.find(stack, sizes.to(self.device), classes, of_members)
            originals = torch.tensor([pictures[row][0].shape[1:] for row in rows])
            for row, detections in zip(rows, rescale(raw, sizes, originals), strict=True):
                found[row] = self._named(detections, limits)
        return [detections for detections in found if detections is not None]

    def find_in_windows(
        self,
        pictures: Sequence[Tensor],
        classes: Sequence[int] | None,
        limits: Limits,
        tiling: Tiling,
        most: int | None = None,
    ) -> list[Detections]:
        """As `find`, in windows of the pictures `[3, H, W]`, some at a time; what has one window is looked at as
        without tiling. most: see `windows.join`."""
        windows = [tiling.windows(picture.shape[1], picture.shape[2]) for picture in pictures]
        views = [window.of(picture) for picture, of in zip(pictures, windows, strict=True) for window in of]
        at_once = max(WINDOWS_AT_ONCE, len(pictures))
        found: list[Detections] = []
        for start in range(0, len(views), at_once):
            some = views[start : start + at_once]
            found += self.find([(view, self.resized(view)) for view in some], classes, limits)
        parts = iter(found)
        suppresses = self.model.suppresses
        return [join(list(islice(parts, len(of))), of, limits, most, suppresses) for of in windows]

    def _named(self, found: Detections, limits: Limits) -> Detections:
        """With names; of one object that is found as several members of a fold the best one is left."""
        boxes, scores, labels, angles = found.boxes, found.scores, found.labels, None
        if self.folding is not None:
            one = torch.from_numpy(self.folding.of)[labels]
            if self.model.suppresses:
                keep = nms_within(boxes, scores, one, limits.nms_iou)
            else:
                rows = suppressed(boxes.numpy(), scores.numpy(), one.numpy(), limits.nms_iou, labels.numpy())
                keep = torch.from_numpy(rows)
            keep = keep[: limits.max_detections]
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


def rescale(found: Sequence[Detections], sizes: Tensor, originals: Tensor) -> list[Detections]:
    """Boxes of a batch from the network input (sizes: `[B, 2]` height, width) to the original pictures, on the CPU.

    They are brought there together: each copy from a device waits for it.
    """
    counts = [len(one) for one in found]
    boxes, scores, labels = (
        torch.cat([getattr(one, name) for one in found]).cpu() for name in ("boxes", "scores", "labels")
    )
    factors = (originals.double() / sizes.double()).flip(1).repeat(1, 2).float()
    boxes = boxes * factors.repeat_interleave(torch.tensor(counts), 0)
    parts = zip(boxes.split(counts), scores.split(counts), labels.split(counts), strict=True)
    return [Detections(*part) for part in parts]


def as_tensor(image: AnyImage) -> Tensor:
    """`[3, H, W]` uint8 RGB of whatever was given. Raises `UserError` if that is no picture."""
    if isinstance(image, str | Path):
        try:
            return read_image(image, upright=True)
        except UnreadableImage as error:
            raise UserError(str(error)) from None
    if isinstance(image, Image.Image):
        try:
            image = rgb_of(upright(image))
        except ValueError as error:
            raise UserError(f"image: {error}") from None
    if not isinstance(image, np.ndarray | Tensor):
        hint = "; several at once: detector.batch(images)" if isinstance(image, Sequence) else ""
        raise UserError(f"image: expected a file, PIL image, array or tensor, got {type(image).__name__}{hint}")
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

    Of a run directory the weights of its best evaluation (`best.safetensors`) where there was one. An exported file
    runs by its own software; `opening.load_detector` does that without torch.
    last: of a run directory the newest weights instead. `Detector.file` says which file it was.

    Raises:
        UserError: missing, damaged or foreign file.
    """
    if is_exported(path):
        return _of_exported(Path(path), fold)
    state, card = load_weights(Path(path), last)
    space = card.space
    model = build_detector(card.settings, len(space.classes), torch.from_numpy(space.overlap_array))
    _check_state(path, model.state_dict(), state)
    model.load_state_dict(state)
    model = model.to(memory_format=torch.channels_last)  # as batches come, and as training has it
    file = weights_path(Path(path), last)
    return Detector(model.to(_device(device)), space, card.input, decoding_of(card), card.thresholds, fold, file)


def _check_state(path: str | Path, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises `UserError` where the tensors of a file are not those that it describes, or hold no numbers."""
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if missing or unexpected:
        raise UserError(
            f"weights file {path} does not fit its own description: {len(missing)} entries missing, "
            f"{len(unexpected)} unexpected"
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"weights file {path} does not fit its own description: {name} is {list(tensor.shape)}, and by the "
                f"description {list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"weights file {path} holds values that are no numbers, first in {name}; take earlier weights "
                "(best.safetensors?), or train again"
            )


def _device(given: str | torch.device | None) -> torch.device:
    """None: the GPU where there is one. Raises `UserError` for what is no device, or none of this machine."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        torch.zeros(1, device=device).tolist()  # `meta` has no values
    except (RuntimeError, AssertionError, NotImplementedError):  # the second from a torch without CUDA
        gpus = torch.cuda.device_count()
        raise UserError(
            f"device {given}: torch has none of that name here; expected cpu"
            f"{', cuda' if gpus else ''}{f' or cuda:0 to cuda:{gpus - 1}' if gpus > 1 else ''}"
        ) from None
    return device


def decoding_of(card: Card) -> dict[str, Any]:
    """See `Detector`. Older weights do not say all of it."""
    keys = ("topk", "max_detections", "nms_iou", "agnostic_nms")
    return {key: card.decoding[key] for key in keys if card.decoding.get(key) is not None}


def _of_exported(path: Path, fold: bool) -> Detector:
    session = detections_of(open_session(path), path)
    check_fold(session.about, fold, path)
    return of_exported(session, fold, path)


def of_exported(session: Session, fold: bool, path: Path | None) -> Detector:
    """A detector over an opened exported file, with all that one of weights can do."""
    card, rules = session.about.card, session.about.rules
    size = card.input if rules.size is None else InputSettings(min(rules.size), max(rules.size))
    limits = {"topk": rules.topk, "nms_iou": rules.nms_iou, "agnostic_nms": rules.agnostic_nms}
    limits["max_detections"] = usual_limit(session.about)
    frame = None if rules.stretched else rules.size
    return Detector(ExportedNetwork(session), card.space, size, limits, card.thresholds, fold, path, frame)


def predict_files(
    detector: Detector,
    files: Sequence[Path],
    classes: Sequence[str] | None = None,
    score_threshold: Threshold | None = None,
    max_detections: int | None = None,
    batch_size: int = 8,
    agnostic_nms: bool | None = None,
    tile: int | None = None,
    overlap: float | None = None,
) -> Iterator[tuple[Path, Tensor | None, Detections | str]]:
    """(file, picture, detections) of every file in order; (file, None, reason) where it cannot be read.

    Pictures of one canvas come in batches of their own, which are chosen beforehand by the files' headers, so that
    a folder of many sizes is looked at in few. Files are decoded and resized in threads, ahead of the network: of
    at most `BATCHES_AHEAD` batches and one more, whatever the number of files. The options are those of
    `Detector.__call__`; with a tile the pictures, which are large, come one by one and their windows in batches.
    """
    tiling = Tiling.of(tile, overlap)
    batch_size = batch_size if tiling is None else 1
    more = {} if agnostic_nms is None else {"agnostic_nms": agnostic_nms}
    ids, limits = detector.class_ids(classes), detector.limits(score_threshold, max_detections, **more)

    def prepare(file: Path) -> tuple[Tensor, Tensor] | str:
        try:
            picture = read_image(file, upright=True)
        except UnreadableImage as error:
            return str(error)
        return picture, picture if tiling is not None else detector.resized(picture)

    def find(pictures: Sequence[tuple[Tensor, Tensor]], canvas: Canvas | None) -> list[Detections]:
        if tiling is None:
            return detector.find(pictures, ids, limits, canvas)
        return detector.find_in_windows([picture for picture, _ in pictures], ids, limits, tiling, max_detections)

    canvases = [None] * len(files) if tiling is not None else _canvases(detector, files)
    coming = zip(files, canvases, strict=True)
    waiting: deque[_Waiting] = deque()
    pool = ThreadPoolExecutor(max_workers=min(8, max(2, os.cpu_count() or 1)))
    try:
        while True:
            for file, canvas in islice(coming, batch_size * (1 + BATCHES_AHEAD) - len(waiting)):
                waiting.append(_Waiting(file, canvas, pool.submit(prepare, file)))
            if not waiting:
                return
            first = waiting[0]
            if first.found is None:
                alike = (one for one in waiting if one.found is None and one.canvas == first.canvas)
                _look(list(islice(alike, batch_size)), find)
            yield waiting.popleft().answer()
    finally:  # also when the caller takes no more
        pool.shutdown(cancel_futures=True)


@dataclass
class _Waiting:
    """A file on its way through the detector. ready: the picture and the same `resized`, or why there is none.
    found: None = the network has not looked at it yet."""

    file: Path
    canvas: Canvas | None
    ready: Future[tuple[Tensor, Tensor] | str]
    found: Detections | str | None = None

    def answer(self) -> tuple[Path, Tensor | None, Detections | str]:
        pair = self.ready.result()
        assert self.found is not None
        return self.file, None if isinstance(pair, str) else pair[0], self.found


def _look(
    some: Sequence[_Waiting], find: Callable[[Sequence[tuple[Tensor, Tensor]], Canvas | None], list[Detections]]
) -> None:
    """Fills in what is found in files of one canvas."""
    pictures, readable = [], []
    for one in some:
        pair = one.ready.result()
        if isinstance(pair, str):
            one.found = pair
        else:
            pictures.append(pair)
            readable.append(one)
    if pictures:
        for one, found in zip(readable, find(pictures, some[0].canvas), strict=True):
            one.found = found


def _canvases(detector: Detector, files: Sequence[Path]) -> Sequence[Canvas | None]:
    """Of each file. A network that stretches pictures needs none."""
    if detector.model.stretched_to is not None:
        return [None] * len(files)
    sizes = np.array([size or (0, 0) for size in header_sizes(files, upright=True)], np.int64).reshape(-1, 2)
    return canvases_of(sizes, detector.settings.shorter, detector.settings.longer) or [None] * len(files)
