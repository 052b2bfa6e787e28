"""`crossdet predict`: a detector over files, written as JSON, COCO results and drawn pictures."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossdet.data.drawing import draw_detections
from crossdet.data.picture_files import find_images
from crossdet.errors import UserError
from crossdet.files import check_room, safe_names, write_json, writing
from crossdet.labels.folds import NO_ANGLE
from crossdet.models.card import is_exported
from crossdet.types import Detections

if TYPE_CHECKING:
    from crossdet.export.detector import ExportedDetector
    from crossdet.inference import AnyImage, Detector
    from crossdet.windows import Tiling

Picture = NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
Searched = Iterator[tuple[Path, Picture | None, Detections | str]]
LOW = 0.1
"""A class that is reported from a lower score on is told."""
MAX_OPEN_DRAWINGS = 16
"""Pictures that wait to be drawn and written; more would keep the decoded files in memory."""


@dataclass(frozen=True)
class Summary:
    """images: how many were read. counts: detections per class. unreadable: one line per lost image. older:
    pictures in `folder/pictures`, by name, that are not of this call. without_id: read images that the COCO file
    whose ids were asked for does not name. own: how many drawings of an earlier call were left out. asked: how
    many images were to be looked at. stopped: by Ctrl-C, before all were. most: detections of an image, None where
    there is no limit. full: images that have as many. low: thresholds of found classes that are below `LOW`, where
    nobody said another."""

    folder: Path
    images: int
    counts: dict[str, int]
    unreadable: list[str]
    older: list[str]
    without_id: list[Path]
    own: int
    asked: int
    stopped: bool
    most: int | None
    full: int
    low: dict[str, float]


@dataclass(frozen=True)
class CocoIds:
    """Ids of a COCO annotation file. images: parts of each `file_name`, and the id. categories: by class name."""

    images: list[tuple[tuple[str, ...], int]]
    categories: dict[str, int]

    def of_files(self, files: Sequence[Path]) -> dict[Path, int]:
        """Those whose id is certain. A picture of the file is the one whose path shares the most parts with its
        `file_name` from the end, the name at least; where several share as many, none of them is."""
        count = Counter(end for file in files for end in _ends(file.parts))
        ids: dict[tuple[str, ...], list[int]] = {}
        for parts, number in self.images:
            for end in _ends(parts):
                ids.setdefault(end, []).append(number)
        found = {}
        for file in files:
            longest = next((end for end in _ends(file.parts) if end in ids), None)
            if longest is not None and count[longest] == len(ids[longest]) == 1:
                found[file] = ids[longest][0]
        return found


def predict_to_folder(
    weights: Path,
    images: Sequence[str],
    folder: Path,
    classes: Sequence[str] | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    pictures: bool = True,
    coco: Path | None = None,
    fold: bool = True,
    agnostic_nms: bool | None = None,
    last: bool = False,
    tile: int | None = None,
    overlap: float | None = None,
    device: str | None = None,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Summary:
    """Detects in all images and writes `predictions.json`, `coco_results.json` and `pictures/` into `folder`, over
    files of these names; others stay.

    coco: a COCO annotation file whose image and category ids the results shall use (images are found by
    `CocoIds.of_files`, categories by class name; others are left out of the results file). Without it images are
    numbered from 1 in the order of `predictions.json`, category = unified id + 1, and rows name file and class.
    fold: directions of a class, and its classes per dataset, are reported as one class; each detection of a class
    with directions says its `angle` in degrees counter-clockwise.
    agnostic_nms: of several classes at one place the best is left; None = as the weights say.
    last: of a run directory its newest weights, not its best ones.
    tile, overlap: of `Detector.__call__`, for large pictures. device: of `load_detector`. tell: (how many images
    are looked at, of how many).

    Ctrl-C ends it early; what was found until then is written, with `complete` false in `predictions.json`.

    Raises `UserError` for weights, images or classes that do not exist, `RunError` for what cannot be written.
    """
    tiling = tiling_of(tile, overlap)
    found = find_images(images)
    files = _without_drawings(found, images, folder)
    drawn = _picture_names(files) if pictures else {}
    check_not_read(folder, [folder / "pictures" / name for name in drawn.values()], files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror or error}") from None
    check_room(folder)
    searched: Searched
    detector: Detector | ExportedDetector
    if is_exported(weights) and tiling is None:
        detector, searched = _exported(weights, files, classes, score_threshold, max_detections, fold, agnostic_nms)
    else:
        from crossdet.inference import load_detector, predict_files

        detector = load_detector(weights, device, fold, last)
        more: dict[str, Any] = {"agnostic_nms": agnostic_nms, "tile": tile, "overlap": overlap}
        rows = predict_files(detector, files, classes, score_threshold, max_detections, **more)
        searched = ((file, None if p is None else p.permute(1, 2, 0).numpy(), found) for file, p, found in rows)
    ids = None if coco is None else _coco_ids(coco)
    usual = detector.usual_limit if tiling is None else None  # then it is that of every window
    most = usual if max_detections is None else max_detections
    answers = _collected(searched, ids, files, folder / "pictures", drawn, tell)
    content = {
        "weights": str(detector.file),
        "classes": detector.reported,
        "score_threshold": score_threshold,
        "thresholds": detector.thresholds_used(score_threshold),
        "max_detections": most,
        "tile": None if tiling is None else tiling.side,
        "overlap": None if tiling is None else tiling.overlap,
        "images": answers.images,
        "unreadable": answers.lost,
        "complete": not answers.stopped,
    }
    write_json(folder / "predictions.json", content)
    write_json(folder / "coco_results.json", answers.coco)
    mine = {drawn[Path(entry["file"])] for entry in answers.images} if pictures else set()
    older = sorted({file.name for file in (folder / "pictures").glob("*.jpg")} - mine)
    counts = dict(answers.counts.most_common())
    own = len(found) - len(files)
    full = sum(len(entry["detections"]) == most for entry in answers.images)
    used = detector.thresholds_used(None) if score_threshold is None else {}
    low = {name: used[name] for name in counts if used.get(name, 1.0) < LOW}
    ends = (len(files), answers.stopped, most, full, low)
    return Summary(folder, len(answers.images), counts, answers.lost, older, answers.without_id, own, *ends)


@dataclass
class _Answers:
    """images, coco: rows of `predictions.json` and of the COCO results. The others: see `Summary`."""

    images: list[dict[str, Any]] = field(default_factory=list)
    coco: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    without_id: list[Path] = field(default_factory=list)
    stopped: bool = False

    def add(self, file: Path, picture: Picture, found: Detections, number: int | None, ids: CocoIds | None) -> None:
        """number: the image's id in the COCO results; None: it has none there."""
        self.images.append(_entry(file, picture.shape[1], picture.shape[0], found))
        self.counts.update(found.names or ())
        if number is None:
            self.without_id.append(file)
        else:
            self.coco.extend(_coco_rows(file, found, number, ids))


def _collected(
    searched: Searched,
    ids: CocoIds | None,
    files: Sequence[Path],
    folder: Path,
    drawn: Mapping[Path, str],
    tell: Callable[[int, int], None],
) -> _Answers:
    """The answers to all images, or to those before Ctrl-C. drawn: of each that is drawn the name of the picture in
    `folder`."""
    answers = _Answers()
    numbers = {} if ids is None else ids.of_files(files)
    with _Drawing(folder) as drawing:
        try:
            for done, (file, picture, found) in enumerate(searched, 1):
                if picture is None or isinstance(found, str):
                    answers.lost.append(str(found))
                else:
                    number = len(answers.images) + 1 if ids is None else numbers.get(file)
                    answers.add(file, picture, found, number, ids)
                    if file in drawn:
                        drawing.add(drawn[file], picture, found)
                        answers.images[-1]["picture"] = f"pictures/{drawn[file]}"
                tell(done, len(files))
        except KeyboardInterrupt:
            answers.stopped = True
    return answers


def tiling_of(tile: int | None, overlap: float | None) -> Tiling | None:
    """`Tiling.of`. Raises `UserError` also where torch is missing, which exported files do without otherwise."""
    if tile is None and overlap is None:
        return None
    try:
        from crossdet.windows import Tiling
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision"):
            raise
        raise UserError(
            f"--tile: windows need {error.name}, also those of an exported file; leave out --tile, or "
            f"pip install torch torchvision"
        ) from None
    return Tiling.of(tile, overlap)


def _exported(
    file: Path,
    images: Sequence[Path],
    classes: Sequence[str] | None,
    score_threshold: float | None,
    max_detections: int | None,
    fold: bool,
    agnostic_nms: bool | None,
) -> tuple[ExportedDetector, Searched]:
    """Without torch."""
    from crossdet.export.detector import predict_files

    detector = open_exported(file, fold, agnostic_nms)
    return detector, predict_files(detector, images, classes, score_threshold, max_detections)


def open_exported(file: Path, fold: bool, agnostic_nms: bool | None) -> ExportedDetector:
    """Raises `UserError` where it cannot do what is asked for."""
    from crossdet.export.detector import load_exported

    detector = load_exported(file, fold)
    if agnostic_nms not in (None, detector.about.rules.agnostic_nms):
        raise UserError(f"--agnostic-nms: {file} keeps what it was exported with; leave it out, or export again")
    return detector


class _Drawing:
    """Draws and writes pictures in threads, so that the network need not wait; a few at a time are under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._open: deque[Future[None]] = deque()

    def __enter__(self) -> _Drawing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for done in self._open:
                done.result()  # raises what writing has raised

    def add(self, name: str, picture: Picture, found: Detections) -> None:
        """Raises what writing an earlier picture has raised."""
        if len(self._open) == MAX_OPEN_DRAWINGS:
            self._open.popleft().result()
        self._open.append(self._pool.submit(self._draw, self.folder / name, picture, found))

    @staticmethod
    def _draw(target: Path, picture: Picture, found: Detections) -> None:
        with writing(target, "the pictures before it are kept, predictions.json is not written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_detections(Image.fromarray(picture), found).save(target, quality=92)


def check_not_read(folder: Path, written: Sequence[Path], read: Sequence[Path]) -> None:
    """Raises `UserError` for an output folder in which a file that is read would be written over."""
    sources = {file.resolve(): file for file in read}
    if lost := [sources[file.resolve()] for file in written if file.resolve() in sources]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(f"--output {folder}: {lost[0]}{more} would be written over; give another folder")


def _without_drawings(files: list[Path], asked: Sequence[str], folder: Path) -> list[Path]:
    """Without those that an earlier call has drawn into `folder`, which lies below what is searched through; all
    where they are what was asked for."""
    if not (folder / "predictions.json").exists():
        return files
    drawings = (folder / "pictures").resolve()
    return [file for file in files if drawings not in file.resolve().parents or str(file) in asked] or files


def _picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name for every drawn picture; numbered where it is taken already."""
    names = safe_names([file.stem for file in files])
    return {file: f"{name}.jpg" for file, name in zip(files, names, strict=True)}


def _entry(file: Path, width: int, height: int, found: Detections) -> dict[str, Any]:
    return {"file": str(file), "width": width, "height": height, "detections": detections_of(found)}


def detections_of(found: Detections) -> list[dict[str, Any]]:
    """As the JSON files have them."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.names or (), strict=True)
    detections = [{"class": name, "score": score, "box_xyxy": box} for box, score, name in rows]
    if found.angles is not None:
        for detection, angle in zip(detections, found.angles.tolist(), strict=True):
            if angle != NO_ANGLE:
                detection["angle"] = angle
    return detections


def _coco_rows(file: Path, found: Detections, number: int, ids: CocoIds | None) -> list[dict[str, Any]]:
    if ids is None:  # numbers of our own, so what they stand for is said
        rows = zip(found.to_coco(number), found.names or (), strict=True)
        return [row | {"file_name": file.name, "category_name": name} for row, name in rows]
    return found.to_coco(number, ids.categories)


def _ends(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The last parts of a path, all of them first."""
    return (parts[at:] for at in range(len(parts)))


def _coco_ids(path: Path) -> CocoIds:
    try:
        data = json.loads(path.read_bytes())
        images = [(Path(image["file_name"]).parts, image["id"]) for image in data["images"]]
        return CocoIds(images, {category["name"]: category["id"] for category in data["categories"]})
    except OSError as error:
        raise UserError(f"--coco {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"--coco {path}: no COCO annotation file ({error!r})") from None


def predict(
    weights: str | Path | Detector | ExportedDetector,
    images: AnyImage | list[AnyImage] | tuple[AnyImage, ...],
    classes: Sequence[str] | None = None,
    score_threshold: float | None = None,
    *,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    agnostic_nms: bool | None = None,
) -> list[Detections]:
    """Detections of each image; see `crossdet.inference.Detector` for what an image may be, and for the options.

    images: a folder or a glob pattern stands for its pictures, in the order of
    `crossdet.data.picture_files.find_images`. agnostic_nms: of several classes at one place the best is left; None
    = as the weights say.
    """
    from crossdet.opening import load_detector

    detector: Any = load_detector(weights) if isinstance(weights, str | Path) else weights
    many: list[Any] = []
    for image in images if isinstance(images, list | tuple) else [images]:
        if isinstance(image, str | Path) and not Path(image).is_file():
            many += find_images([image])
        else:
            many.append(image)
    if tile is not None and not hasattr(detector, "find_in_windows"):  # an exported file, which needs no torch
        from crossdet.inference import of_exported

        thresholds = detector.thresholds
        detector = of_exported(detector.session, detector.folding is not None, detector.file)
        detector.thresholds.update(thresholds)  # some may have been set since
    wanted = {"agnostic_nms": agnostic_nms, "tile": tile, "overlap": overlap, "max_detections": max_detections}
    more = {name: value for name, value in wanted.items() if value is not None}
    return [detector(image, classes, score_threshold, **more) for image in many]
