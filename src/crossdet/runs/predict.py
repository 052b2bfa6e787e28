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
from crossdet.data.formats.coco_values import file_name, kept_categories, used_categories, whole
from crossdet.data.picture_files import find_images
from crossdet.errors import RunError, UserError, show
from crossdet.files import check_room, safe_names, write_json
from crossdet.labels.folds import NO_ANGLE
from crossdet.labels.patterns import class_name
from crossdet.labels.reporting import Threshold
from crossdet.runs.asked import Asked
from crossdet.runs.found_annotations import check_annotations, write_annotations
from crossdet.types import Detections

if TYPE_CHECKING:
    from crossdet.export.detector import ExportedDetector
    from crossdet.inference import AnyImage, Detector

Picture = NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
Searched = Iterator[tuple[Path, Picture | None, Detections | str]]
LOW = 0.1
"""A class that is reported from a lower score on is told."""
LONGEST_JPEG = 65_500
"""Pixels of a side that libjpeg writes; drawn copies of larger pictures are made smaller."""
MAX_OPEN_DRAWINGS = 16
"""Pictures that wait to be drawn and written; more would keep the decoded files in memory."""


@dataclass(frozen=True)
class Summary:
    """images: how many were read. counts: detections per class. unreadable: one line per lost image. undrawn: one
    line per image of which no copy could be drawn. older: pictures in `folder/pictures`, by name, that are not of
    this call. without_id: read images that the COCO file whose ids were asked for does not name; without_category:
    found classes that it does not know. own: how many drawings of an earlier call were left out. asked: how many
    images were to be looked at. stopped: by Ctrl-C, before all were. most: detections of an image, None where there
    is no limit. full: images that have as many. low: thresholds of found classes that are below `LOW`, where nobody
    said another."""

    folder: Path
    images: int
    counts: dict[str, int]
    unreadable: list[str]
    undrawn: list[str]
    older: list[str]
    without_id: list[Path]
    without_category: list[str]
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
    asked: Asked,
    images: Sequence[str],
    folder: Path,
    *,
    pictures: bool = True,
    coco: Path | None = None,
    annotations: str | None = None,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Summary:
    """Detects in all images and writes `predictions.json`, `coco_results.json` and `pictures/` into `folder`, over
    files of these names; others stay.

    coco: a COCO annotation file whose image and category ids the results shall use (images are found by
    `CocoIds.of_files`, categories by class name; others are left out of the results file). Without it images are
    numbered from 1 in the order of `predictions.json`, category = unified id + 1, and rows name file and class.
    annotations: "coco" or "yolo", also written so (`found_annotations`).
    Each detection of a class with directions that are folded says its `angle` in degrees counter-clockwise.
    tell: (how many images are looked at, of how many).

    Ctrl-C ends it early; what was found until then is written, with `complete` false in `predictions.json`.

    Raises `UserError` for weights, images or classes that do not exist, `RunError` for what cannot be written;
    where that is a drawn picture, `predictions.json` has what was found until then.
    """
    tiling = asked.tiling
    found = find_images(images)
    files = _without_drawings(found, images, folder)
    drawn = _picture_names(files) if pictures else {}
    check_not_read(folder, [folder / "pictures" / name for name in drawn.values()], files)
    if annotations is not None:
        check_annotations(annotations, folder, files)
    ids = None if coco is None else _coco_ids(coco)
    detector, search = _opened(asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror or error}") from None
    check_room(folder)
    usual = detector.usual_limit if tiling is None else None  # then it is that of every window
    most = usual if asked.max_detections is None else asked.max_detections
    answers = _collected(search(files), ids, files, folder / "pictures", drawn, tell)
    used, own = (detector.thresholds_used(score) for score in (asked.score_threshold, None))
    own = {} if isinstance(asked.score_threshold, float) else own
    content = {
        "weights": str(detector.file),
        "classes": detector.reported,
        "score_threshold": asked.score_threshold,
        "thresholds": used,
        "max_detections": most,
        "tile": None if tiling is None else tiling.side,
        "overlap": None if tiling is None else tiling.overlap,
        "images": answers.images,
        "unreadable": answers.lost,
        "complete": not answers.stopped and answers.looked == len(files),
    }
    write_json(folder / "predictions.json", content)
    write_json(folder / "coco_results.json", answers.coco)
    if annotations is not None and content["complete"]:  # pictures that were not looked at would have no objects
        write_annotations(annotations, folder, files, answers.images, detector.reported)
    if answers.ended is not None:
        kept = f"what was found in {answers.looked} of {len(files)} images is in {folder / 'predictions.json'}"
        raise RunError(f"{answers.ended}; {kept}")
    mine = {Path(entry["picture"]).name for entry in answers.images if "picture" in entry}
    return Summary(
        folder,
        images=len(answers.images),
        counts=dict(answers.counts.most_common()),
        unreadable=answers.lost,
        undrawn=answers.undrawn,
        older=sorted({file.name for file in (folder / "pictures").glob("*.jpg")} - mine),
        without_id=answers.without_id,
        without_category=[] if ids is None else sorted(answers.counts.keys() - ids.categories.keys()),
        own=len(found) - len(files),
        asked=len(files),
        stopped=answers.stopped,
        most=most,
        full=sum(len(entry["detections"]) == most for entry in answers.images),
        low={n: used[n] for n, _ in answers.counts.most_common() if used[n] == own.get(n) and used[n] < LOW},
    )


def _opened(asked: Asked) -> tuple[Detector | ExportedDetector, Callable[[Sequence[Path]], Searched]]:
    """The detector, and what it finds in files, in their order."""
    given = (asked.classes, asked.score_threshold)
    if (exported := asked.without_torch()) is not None:
        from crossdet.export import detector as by_file

        return exported, lambda files: by_file.predict_files(exported, files, *given, asked.max_detections)
    from crossdet.inference import predict_files

    detector = asked.detector()

    def search(files: Sequence[Path]) -> Searched:
        for file, p, found in predict_files(detector, files, *given, **asked.limits):
            yield file, None if p is None else p.permute(1, 2, 0).numpy(), found

    return detector, search


@dataclass
class _Answers:
    """images, coco: rows of `predictions.json` and of the COCO results. ended: see `_Drawing`. The others: see
    `Summary`."""

    images: list[dict[str, Any]] = field(default_factory=list)
    coco: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    without_id: list[Path] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    stopped: bool = False
    ended: str | None = None

    @property
    def looked(self) -> int:
        """At how many images."""
        return len(self.images) + len(self.lost)

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
                        drawing.add(answers.images[-1], drawn[file], picture, found)
                tell(done, len(files))
                if drawing.ended is not None:
                    break
        except KeyboardInterrupt:
            answers.stopped = True
    answers.undrawn, answers.ended = drawing.lost, drawing.ended
    return answers


class _Drawing:
    """Draws and writes pictures in threads, so that the network need not wait; a few at a time are under way.

    lost: one line per picture that could not be drawn. ended: what the disk said of one, so that no other is tried.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost: list[str] = []
        self.ended: str | None = None
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._open: deque[tuple[dict[str, Any], Path, Future[None]]] = deque()

    def __enter__(self) -> _Drawing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        while kind is None and self._open:
            self._settle()

    def add(self, entry: dict[str, Any], name: str, picture: Picture, found: Detections) -> None:
        """entry: of `predictions.json`; it names its picture once that is written."""
        if len(self._open) == MAX_OPEN_DRAWINGS:
            self._settle()
        target = self.folder / name
        self._open.append((entry, target, self._pool.submit(self._draw, target, picture, found)))

    def _settle(self) -> None:
        entry, target, done = self._open[0]  # Ctrl-C may come while it waits
        try:
            done.result()
            entry["picture"] = f"pictures/{target.name}"
        except (OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                self.ended = self.ended or f"{target} could not be written ({error.strerror})"
            else:  # it is about this picture: Pillow's encoders give no number
                reason = str(error) or type(error).__name__
                self.lost.append(f"{target}: it could not be drawn ({reason}); what was found is kept")
        self._open.popleft()

    @staticmethod
    def _draw(target: Path, picture: Picture, found: Detections) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw_detections(Image.fromarray(picture), found)
        drawn.thumbnail((LONGEST_JPEG, LONGEST_JPEG))
        drawn.save(target, quality=92)


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
    def text(place: str, value: object) -> str:
        if not isinstance(value, str):
            raise UserError(f"--coco {path}: {place}: expected a text, got {show(value)}")
        return value

    def known(number: Any) -> Any:
        return number if (read := whole(number)) is None else read

    def spellings(name: str) -> tuple[str, ...]:
        return (name, name.replace("\\", "/")) if "\\" in name else (name,)

    try:
        data = json.loads(path.read_bytes())
        images = [
            (Path(spelt).parts, known(image["id"]))
            for at, image in enumerate(data["images"])
            for spelt in spellings(text(f"images[{at}].file_name", file_name(image)))
        ]
        names = [
            class_name(text(f"categories[{at}].name", category["name"]))
            for at, category in enumerate(data["categories"])
        ]
        ids = [known(category["id"]) for category in data["categories"]]
        twice = len({*names}) < len(names)
        told = {"images": data["images"], "annotations": data.get("annotations") or []}
        used = used_categories(told) if twice else ()
        kept = [rows[0] for rows in kept_categories(names, ids, used).values()]
        return CocoIds(images, {names[row]: ids[row] for row in kept})
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--coco {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--coco {path}: no COCO annotation file ({error!r})") from None


def predict(
    weights: str | Path | Detector | ExportedDetector,
    images: AnyImage | list[AnyImage] | tuple[AnyImage, ...],
    classes: Sequence[str] | None = None,
    score_threshold: Threshold | None = None,
    *,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    agnostic_nms: bool | None = None,
) -> list[Detections]:
    """Detections of each image; see `crossdet.inference.Detector` for what an image may be, and for the options.

    images: a folder or a glob pattern stands for its pictures, in the order of
    `crossdet.data.picture_files.find_images`. Several files are decoded ahead and looked at in batches, as
    `crossdet predict` does; pictures in memory one by one (`detector.batch` takes many). agnostic_nms: of several
    classes at one place the best is left; None = as the weights say.

    Raises:
        UserError: as `Detector.__call__`, also for a single file of many that cannot be read.
    """
    from crossdet.opening import load_detector

    detector: Any = load_detector(weights) if isinstance(weights, str | Path) else weights
    many: list[Any] = []
    for image in images if isinstance(images, list | tuple) else [images]:
        if isinstance(image, str | Path) and not Path(image).is_file():
            many += find_images([image])
        else:
            many.append(image)
    by_torch = hasattr(detector, "find_in_windows")
    if tile is not None and not by_torch:  # an exported file, which needs no torch otherwise
        from crossdet.inference import of_exported

        thresholds = detector.thresholds
        detector = of_exported(detector.session, detector.folding is not None, detector.file)
        detector.thresholds.update(thresholds)  # some may have been set since
    wanted = {"agnostic_nms": agnostic_nms, "tile": tile, "overlap": overlap, "max_detections": max_detections}
    more = {name: value for name, value in wanted.items() if value is not None}
    if by_torch and len(many) > 1 and all(isinstance(image, str | Path) for image in many):
        return list(_in_files(detector, [Path(file) for file in many], classes, score_threshold, more))
    return [detector(image, classes, score_threshold, **more) for image in many]


def _in_files(
    detector: Detector,
    files: Sequence[Path],
    classes: Sequence[str] | None,
    score_threshold: Threshold | None,
    more: Mapping[str, Any],
) -> Iterator[Detections]:
    from crossdet.inference import predict_files

    for _, _, found in predict_files(detector, files, classes, score_threshold, **more):
        if isinstance(found, str):
            raise UserError(found)
        yield found
