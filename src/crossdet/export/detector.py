"""A detector out of an exported file: images in, named detections out, by onnxruntime or OpenVINO. No torch.

Beside `inference.Detector`, whose answers it gives: pictures one by one, and detections as numpy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossdet.data.canvases import fitted_into
from crossdet.data.picture_files import UnreadableImage, decode_with_pillow, read_bytes, rgb_of, upright
from crossdet.errors import UserError, check_counts
from crossdet.export.about import About, Rules
from crossdet.export.resizing import Picture, resize
from crossdet.export.sessions import Session, detections_of, open_session
from crossdet.labels.reporting import Reporting, Threshold
from crossdet.types import Detections

NOT_LOOKED_FOR = 2.0
"""Threshold of a class that is not asked for."""


class ExportedDetector(Reporting):
    """An exported file, opened. file: that file. about: what it says of itself; see `Reporting` for the others."""

    def __init__(self, session: Session, fold: bool = True, file: Path | None = None) -> None:
        self.about: About = session.about
        super().__init__(self.about.card.space, self.about.card.thresholds, fold)
        self.session, self.file = session, file

    def __call__(
        self,
        image: str | Path | Image.Image | NDArray[Any],
        classes: Sequence[str] | str | None = None,
        score_threshold: Threshold | None = None,
        *,
        max_detections: int | None = None,
        **decode_options: Any,
    ) -> Detections:
        """As `inference.Detector.__call__`; how duplicates are suppressed, and the most detections, the file says.

        image: a file, a PIL image, an `[H, W, 3]` uint8 RGB array, or a `[3, H, W]` uint8 RGB tensor on a CPU.
        Raises `UserError` as there, and for options that the file keeps, and windows.
        """
        return self.batch([image], classes, score_threshold, max_detections=max_detections, **decode_options)[0]

    def batch(
        self,
        images: Sequence[str | Path | Image.Image | NDArray[Any]],
        classes: Sequence[str] | str | None = None,
        score_threshold: Threshold | None = None,
        *,
        max_detections: int | None = None,
        **decode_options: Any,
    ) -> list[Detections]:
        """As `__call__`, of several images, one after the other."""
        check_several(images)
        if windows := {"tile", "overlap"} & decode_options.keys():
            how = "crossdet.predict(FILE, images, tile=...) looks at an exported file's pictures in windows"
            raise UserError(f"{', '.join(sorted(windows))}: {how}, with torch")
        if decode_options:
            raise UserError(f"{', '.join(decode_options)}: an exported file keeps what it was exported with")
        check_counts(max_detections=max_detections)
        thresholds = self.asked(classes, score_threshold)
        return [self.find(as_picture(image), thresholds, max_detections) for image in images]

    def asked(self, classes: Sequence[str] | str | None, score_threshold: Threshold | None) -> NDArray[np.float32]:
        """`[C]` thresholds. Raises `UserError` for classes that the file does not look for."""
        values = self.member_thresholds(score_threshold)
        return thresholds_of(self.about, self.class_ids(classes), values, self.file or "the file")

    @property
    def offered(self) -> tuple[str, ...]:
        """Without the classes that the file was exported without."""
        looked = set(self.about.rules.classes)
        return tuple(name for name in self.reported if looked.issuperset(self.class_ids(name) or ()))

    @property
    def usual_limit(self) -> int:
        """As of `inference.Detector`."""
        return usual_limit(self.about)

    @property
    def suppresses(self) -> bool:
        """As of `models.contract.Network`."""
        return self.about.rules.suppresses

    def find(self, picture: Picture, thresholds: NDArray[np.float32], most: int | None = None) -> Detections:
        """In one picture; thresholds: of `asked`. Raises `UserError` where the file gives fewer than `most`."""
        rules, own = self.about.rules, self.folding
        limit = self.limit(most)
        given = self.about.card.input
        boxes, scores, labels = answers_at(self.session, picture, thresholds, given.shorter, given.longer)
        angles = None
        if own is not None:
            one = own.of[labels]
            rows = suppressed(boxes, scores, one, rules.nms_iou, None if rules.suppresses else labels)
            angles = own.angles[labels[rows]] if own.has_angles else None
            boxes, scores, labels = boxes[rows], scores[rows], one[rows]
        names = tuple(self.reported[label] for label in labels[:limit])
        angles = None if angles is None else angles[:limit]
        return Detections(boxes[:limit], scores[:limit], labels[:limit], names, angles)  # type: ignore[arg-type]

    def limit(self, most: int | None) -> int:
        """Most detections that are reported of a picture where `most` are asked for (None: the usual number).

        Raises `UserError` where the file gives fewer.
        """
        if most is None:
            return usual_limit(self.about)
        gives = most_detections(self.about, folded=self.folding is not None)
        if most > gives:
            raise _too_many(gives, most, most)
        return most


def usual_limit(about: About) -> int:
    """Most detections in a picture, folded, where nobody asks for another number."""
    rules, folding = about.rules, about.card.space.folding
    whole = rules.max_detections // (1 if folding is None else folding.at_once(rules.suppresses))
    return whole if rules.reported is None else rules.reported


def most_detections(about: About, folded: bool) -> int:
    """As many as the file can give of a picture. folded: after folding, which may leave one of a fold's members."""
    folding = about.card.space.folding if folded else None
    return about.rules.max_detections // (1 if folding is None else folding.at_once(about.rules.suppresses))


def _too_many(gives: int, asked: int, needed: int) -> UserError:
    return UserError(
        f"the file gives {gives} detections per picture at most, asked for are {asked}; export again with "
        f"--max-detections {needed}"
    )


def thresholds_of(
    about: About,
    classes: Iterable[int] | None,
    values: Sequence[float] | NDArray[np.float32],
    file: object = "the file",
) -> NDArray[np.float32]:
    """`[C]` thresholds of the `classes` (None: all that the file looks for), out of those `[C]` of all classes.

    Raises `UserError` for classes that the file does not look for.
    """
    names, looked = about.card.space.classes, about.rules.classes
    wanted = list(looked if classes is None else classes)
    if missing := sorted(set(wanted) - set(looked)):
        raise UserError(f"{file} was exported without the class(es) {', '.join(names[c] for c in missing)}")
    thresholds = np.full(len(names), NOT_LOOKED_FOR, np.float32)
    thresholds[wanted] = np.asarray(values, np.float32)[wanted]
    return thresholds


def check_limits(about: About, asked: Any) -> None:
    """asked: has `nms_iou`, `agnostic_nms`, `topk`, `max_detections`. Raises `UserError` for limits that the file
    cannot keep."""
    rules, folding = about.rules, about.card.space.folding
    keys = ("nms_iou", "agnostic_nms", "topk") if rules.suppresses or rules.agnostic_nms else ("agnostic_nms",)
    if wrong := [key for key in keys if getattr(asked, key) != getattr(rules, key)]:
        kept = ", ".join(f"{key} {getattr(rules, key)}" for key in wrong)
        hint = " ".join(f"--set eval.{key}={json.dumps(getattr(rules, key))}" for key in wrong)
        raise UserError(f"the file was exported with {kept}, which it keeps; ask for the same, such as `{hint}`")
    if asked.max_detections > rules.max_detections:
        needed = -(-asked.max_detections // (1 if folding is None else folding.at_once(rules.suppresses)))
        raise _too_many(most_detections(about, folded=True), needed, needed)


def answers_at(
    session: Session, picture: Picture, thresholds: NDArray[np.float32], shorter: int, longer: int
) -> tuple[NDArray[Any], ...]:
    """`answers` in a picture, which is resized as `shorter` and `longer` say where the file takes any size."""
    sides, about = picture.shape[:2], session.about
    if about.rules.size is None:
        picture = resize(picture, about.input_size(sides[0], sides[1], shorter, longer), about.rules.antialias)
    boxes, scores, labels = answers(session, picture, thresholds)
    scale = np.array([sides[1] / picture.shape[1], sides[0] / picture.shape[0]] * 2).astype(np.float32)
    return boxes * scale, scores, labels


def answers(session: Session, picture: Picture, thresholds: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """boxes `[n, 4]` xyxy in pixels of the picture, scores, labels. A picture that has not the one size of all
    inputs is brought to it."""
    height, width = picture.shape[:2]
    picture, size = fitted(picture, session.about.rules)
    sizes = np.array([size], np.int64)
    found = session.run(np.ascontiguousarray(picture)[None], thresholds, sizes)
    boxes, scores, labels = (output[0] for output in found)
    edge = np.array([size[1], size[0]] * 2, np.float32)
    boxes = np.minimum(boxes.astype(np.float32), edge)
    some = (labels >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    scale = np.array([width / size[1], height / size[0]] * 2).astype(np.float32)
    return boxes[some] * scale, scores[some].astype(np.float32), labels[some].astype(np.int64)


def fitted(picture: Picture, rules: Rules) -> tuple[Picture, tuple[int, int]]:
    """A picture in the size of all inputs, where there is one, and its own (height, width) in it."""
    height, width = picture.shape[:2]
    if rules.size is None or rules.size == (height, width):
        return picture, (height, width)
    size = rules.size if rules.stretched else fitted_into(height, width, rules.size)
    canvas = np.empty((*rules.size, 3), np.uint8)
    canvas[:] = rules.fill
    canvas[: size[0], : size[1]] = resize(picture, size, rules.antialias)
    return canvas, size


def check_several(images: object) -> None:
    """Raises `UserError` for one picture in the place of several."""
    if isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable):
        raise UserError(f"images: expected several in a list, got {type(images).__name__}; one: detector(image)")


def as_picture(image: Any) -> Picture:
    """`[H, W, 3]` uint8 RGB of whatever was given. Raises `UserError` if that is no picture."""
    if isinstance(image, str | Path):
        try:
            return read_picture(Path(image))
        except UnreadableImage as error:
            raise UserError(str(error)) from None
    if isinstance(image, Image.Image):
        try:
            image = rgb_of(upright(image))
        except ValueError as error:
            raise UserError(f"image: {error}") from None
    if any(f"{kind.__module__}.{kind.__name__}" == "torch.Tensor" for kind in type(image).__mro__):
        if (
            str(image.dtype) != "torch.uint8"
            or image.ndim != 3
            or image.shape[0] != 3
            or image.device.type != "cpu"
        ):
            shape = f"{list(image.shape)} {image.dtype} on {image.device}"
            raise UserError(f"image tensor: expected [3, H, W] uint8 RGB on the CPU, got {shape}")
        image = image.permute(1, 2, 0).numpy()
    if not isinstance(image, np.ndarray):
        hint = "; several at once: detector.batch(images)" if isinstance(image, Sequence) else ""
        raise UserError(f"image: expected a file, PIL image, array or tensor, got {type(image).__name__}{hint}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"image array: expected [H, W, 3] uint8 RGB, got {list(image.shape)} {image.dtype}")
    return image


def read_picture(path: Path) -> Picture:
    """Turned as EXIF says. Raises `UnreadableImage`."""
    return decode_with_pillow(read_bytes(path), path, rotate=True)


def suppressed(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    iou: float,
    members: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Rows that non-maximum suppression by label leaves, by falling score. boxes: `[n, 4]` xyxy.

    members: `[n]` what the labels were folded from, of a network that finds no object twice: then only detections
    of different members can be one object."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        same = (labels[rest] == labels[best]) & (shared > iou * (area[best] + area[rest] - shared))
        if members is not None:
            same &= members[rest] != members[best]
        order = rest[~same]
    return np.array(kept, np.int64)


def load_exported(path: str | Path, fold: bool = True) -> ExportedDetector:
    """Raises `UserError` for a missing, damaged or foreign file, for one with raw outputs, and where classes are
    not to be folded among whose members the file suppresses."""
    path = Path(path)
    session = detections_of(open_session(path), path)
    check_fold(session.about, fold, path)
    return ExportedDetector(session, fold, path)


def check_fold(about: About, fold: bool, path: Path | str) -> None:
    if about.rules.by_fold and not fold:
        raise UserError(
            f"--no-fold: of overlapping members of a class {path} keeps the best one alone; take the weights that "
            f"it was made of"
        )


def predict_files(
    detector: ExportedDetector,
    files: Sequence[Path],
    classes: Sequence[str] | None = None,
    score_threshold: Threshold | None = None,
    max_detections: int | None = None,
) -> Iterator[tuple[Path, Picture | None, Detections | str]]:
    """As `inference.predict_files`, one by one; pictures are `[H, W, 3]`."""
    thresholds = detector.asked(classes, score_threshold)
    detector.limit(max_detections)
    for file in files:
        try:
            picture = read_picture(file)
        except UnreadableImage as error:
            yield file, None, str(error)
        else:
            yield file, picture, detector.find(picture, thresholds, max_detections)
