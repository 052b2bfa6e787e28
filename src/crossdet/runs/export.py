"""`crossdet export`: a detector as a file for other software, and what that cost: answers, accuracy, time."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossdet.config import CONFIG_FILE, load_config
from crossdet.config.sources import open_sources
from crossdet.data.picture_files import UnreadableImage
from crossdet.errors import UserError
from crossdet.export.about import About, Rules
from crossdet.export.detector import fitted, read_picture
from crossdet.export.files import openvino_model, write_onnx, write_openvino
from crossdet.export.graph import OPSETS, onnx_graph
from crossdet.export.precision import (
    NARROW,
    PRECISIONS,
    Inputs,
    onnx_half,
    onnx_int8,
    onnx_layers_in_8_bits,
    openvino_int8,
    openvino_layers_in_8_bits,
)
from crossdet.export.resizing import Picture, resize
from crossdet.files import check_room
from crossdet.inference import Detector, find_images, load_detector
from crossdet.models.card import Card, file_digest, is_exported, read_card
from crossdet.models.contract import Limits
from crossdet.models.hub import results_folder
from crossdet.runs.evaluate import splits_for_detector
from crossdet.runs.export_comparison import (
    COMPARED_PICTURES,
    COMPARED_SCORE,
    Comparison,
    Data,
    Measured,
    lost,
    most_looked_at,
)
from crossdet.runs.hugging_face import write_directory
from crossdet.types import PAD_DIVISOR

CALIBRATION_PICTURES = 64
TOLERANCE = 1.0
NOT_STATED = "not stated"
NO_PICTURES = "no validation pictures can be read; give --data CONFIG"


@dataclass(frozen=True)
class Request:
    """What a file shall be. to: of `KINDS`, or `HUGGING_FACE`. size: (height, width) of all inputs; None: any.
    precision: of `PRECISIONS`. classes: names; None: all. raw: the network's own outputs. calibrate: pictures for
    int8; None: those of the validation splits. licence: of the weights, for the metadata. max_detections: per
    picture at most; None: as many as the detector, and the protocols of the validation data, want. tolerance: how
    many points of any dataset's score (0 to 100) int8 may lose before more layers keep 32 bits; None: `TOLERANCE`.
    """

    to: str = "onnx"
    size: tuple[int, int] | None = None
    opset: int = 18
    precision: str = "fp32"
    classes: tuple[str, ...] | None = None
    raw: bool = False
    calibrate: str | None = None
    licence: str = NOT_STATED
    max_detections: int | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Job:
    """Everything that a kind writes a file of. narrow: of `NARROW`, for int8."""

    detector: Detector
    about: About
    graph: Callable[[], Any]
    calibration: Callable[[], list[Inputs]]
    file: Path
    narrow: int


def to_onnx(job: Job) -> int:
    model = job.graph()
    if job.about.precision == "fp16":
        model = onnx_half(model)
    elif job.about.precision == "int8":
        model = onnx_int8(model, job.calibration(), job.narrow)
    layers = onnx_layers_in_8_bits(model)
    write_onnx(model, job.about.to_metadata(), job.file)
    return layers


def to_openvino(job: Job) -> int:
    model = openvino_model(job.graph())
    if job.about.precision == "int8":
        model = openvino_int8(model, job.calibration(), job.narrow)
    layers = openvino_layers_in_8_bits(model)
    write_openvino(model, job.about.to_metadata(), job.file, half=job.about.precision != "fp32")
    return layers


@dataclass(frozen=True)
class Kind:
    """suffix: of the file. write: makes it, and says how many of its layers are in 8 bits."""

    suffix: str
    write: Callable[[Job], int]


KINDS = {"onnx": Kind(".onnx", to_onnx), "openvino": Kind(".xml", to_openvino)}
"""What `--to` takes, besides:"""
HUGGING_FACE = "hf"
"""A directory that HF transformers opens; nothing is measured, for it holds the same network."""


def export(
    weights: Path,
    request: Request,
    output: Path | None = None,
    data: Path | None = None,
    pictures: int | None = None,
    last: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes the file and returns what was measured; `sets`, `ap`, `latency_ms`: None without validation data.

    weights: a file or a run directory, whose config says the validation data unless `data`, a config, does. output:
    None = beside the weights. pictures: of every split at most, for AP; None = all. tell: is given what is
    done now, which can take minutes.

    Raises `UserError` for what cannot be exported, and before anything is written.
    """
    _check(weights, request)
    if request.to == HUGGING_FACE:
        return _directory(weights, request, output, last)
    detector = load_detector(weights, "cpu", last=last)
    found, why_not = _data(weights, data, detector)
    job = _job(detector, read_card(weights, last), request, found, output)
    bytes_each = {"fp32": 4, "fp16": 2, "int8": 1}[request.precision]
    check_room(job.file, bytes_each * sum(tensor.numel() for tensor in detector.model.parameters()))
    comparison = None if found is None or request.raw else Comparison(detector, job.about, found, pictures, tell)
    tell(f"recording the network for {job.file}")
    measured = _int8(job, request, comparison) if request.precision == "int8" else None
    if measured is None:
        KINDS[request.to].write(job)
    record = {"file": str(job.file), "to": request.to, **asdict(job.about.rules), "precision": request.precision}
    record |= {"opset": request.opset, "bytes": _bytes(job.file)}
    if comparison is None:
        why = "raw outputs" if request.raw else why_not
        return record | {"sets": None, "ap": None, "latency_ms": None, "not_compared": why} | (measured or {})
    return record | (measured or comparison.of(job.file))


def _int8(job: Job, request: Request, comparison: Comparison | None) -> Measured:
    """Writes a file in 8 bits: with more layers in 32 bits while it loses more than is tolerated; where all do, the
    one that loses least. What was measured of it, and under `int8` what was tried and kept.

    Raises `UserError` where no layer is left for 8 bits.
    """
    tolerance = TOLERANCE if request.tolerance is None else request.tolerance
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=job.file.parent) as folder:
        trials: list[Trial] = []
        for narrow in NARROW[request.to]:
            file = Path(folder) / str(narrow) / job.file.name
            layers = KINDS[request.to].write(replace(job, narrow=narrow, file=file))
            if not layers and not trials:
                raise UserError(
                    f"--precision int8: this network has no layer for 8 bits: the first, the last and those of up "
                    f"to {narrow} channels keep 32; export it with fp16"
                )
            if not layers or (trials and layers == trials[-1].layers):
                continue  # nothing is left, or the same layers as before
            trials.append(Trial(narrow, layers, file, {} if comparison is None else comparison.of(file)))
            points = trials[-1].lost
            if points is None or points <= tolerance:
                break
        best = min(trials, key=lambda trial: trial.lost or 0.0)
        for part in reversed(_parts(best.file)):  # the .xml last, which is what is opened
            part.replace(job.file.parent / part.name)
    kept = {"narrow": best.narrow, "layers": best.layers, "lost": best.lost}
    tried = [{"narrow": one.narrow, "layers": one.layers, "lost": one.lost} for one in trials]
    return best.measured | {"int8": {**kept, "tolerance": tolerance, "tried": tried}}


@dataclass(frozen=True)
class Trial:
    """A file in 8 bits. narrow: of `NARROW`. layers: in 8 bits. measured: empty where there are no pictures."""

    narrow: int
    layers: int
    file: Path
    measured: Measured

    @property
    def lost(self) -> float | None:
        """Points of a score; None: not known."""
        return lost(self.measured) if self.measured else None


def _bytes(file: Path) -> int:
    return sum(part.stat().st_size for part in _parts(file))


def _check(weights: Path, request: Request) -> None:
    problems = []
    if is_exported(weights):
        problems.append(f"{weights} is exported already; give the weights that it was made of")
    choices: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("--to", request.to, (*KINDS, HUGGING_FACE)),
        ("--opset", request.opset, OPSETS),
        ("--precision", request.precision, PRECISIONS),
    ]
    for name, value, known in choices:
        if value not in known:
            problems.append(f"{name}: expected {' or '.join(map(str, known))}, got {value!r}")
    if request.size is not None and min(request.size) < 32:
        problems.append(f"--size: expected height and width of at least 32 pixels, got {request.size}")
    if request.raw and request.precision == "int8":
        problems.append("--raw: not with --precision int8")
    problems += _problems_of_calibration(request)
    if request.tolerance is not None and request.precision != "int8":
        problems.append("--tolerance: it is for --precision int8 only")
    elif request.tolerance is not None and not request.tolerance >= 0:
        problems.append(f"--tolerance: expected points of AP of at least 0, got {request.tolerance}")
    if problems:
        raise UserError("; ".join(problems))


def _problems_of_calibration(request: Request) -> list[str]:
    """Pictures are looked for here: before the network is recorded, which takes minutes."""
    if request.calibrate is None:
        return []
    if request.precision != "int8":
        return ["--calibrate: it is for --precision int8 only"]
    try:
        find_images([request.calibrate])
    except UserError as error:
        return [f"--calibrate: {error}"]
    return []


def _directory(weights: Path, request: Request, output: Path | None, last: bool) -> dict[str, Any]:
    """Raises `UserError` for options of a graph, and where transformers has no such network."""
    if replace(request, to="onnx", licence=NOT_STATED) != Request():
        raise UserError(
            f"--to {HUGGING_FACE}: only --output and --last go with it; the directory holds the network as it is"
        )
    folder = output or results_folder(weights) / HUGGING_FACE
    files = write_directory(weights, folder, last)
    size = sum(file.stat().st_size for file in files)
    suppresses = read_card(weights, last).settings.suppresses
    return {"file": str(folder), "to": HUGGING_FACE, "bytes": size, "suppresses": suppresses}


def _data(weights: Path, config: Path | None, detector: Detector) -> tuple[Data | None, str]:
    """None, and why, where nobody says where validation pictures are, or they are not there any more. Raises
    `UserError` for data that were asked for."""
    path = config or (weights / CONFIG_FILE if weights.is_dir() else None)
    if path is None or not path.exists():
        if config is not None:
            raise UserError(f"--data {config} does not exist")
        return None, NO_PICTURES
    try:
        loaded = load_config(path, known_datasets=detector.space.datasets)
        sources = open_sources(loaded, ["val"], detector=detector.space)
        splits = splits_for_detector(sources, sources.val, detector, fold=True)
    except UserError as error:
        if config is not None:
            raise
        return None, f"the run's own validation data cannot be used ({error}); give --data CONFIG"
    data = Data(loaded, splits, sources.lists)
    if next(data.pictures(COMPARED_PICTURES), None) is None:
        if config is not None:
            raise UserError(f"--data {config}: none of its validation pictures can be read")
        return None, NO_PICTURES
    return data, ""


def _job(detector: Detector, card: Card, request: Request, data: Data | None, output: Path | None) -> Job:
    source = detector.file
    assert source is not None
    network, space = detector.model, detector.space
    if network.graph_of_one_size and request.size is None:
        sides = (detector.settings.shorter, detector.settings.longer)
        height, width = (-(-side // PAD_DIVISOR) * PAD_DIVISOR for side in sides)
        raise UserError(
            f"--size: a graph of this network holds for one size of pictures; give it, such as "
            f"--size {height} {width}"
        )
    limits = Limits(**detector.decoding)
    most = request.max_detections or limits.max_detections
    if request.max_detections is None and data is not None:
        most = max([most, *(most_looked_at(data.config, name) for name in data.splits)])
    folding = space.folding
    ids = detector.class_ids(request.classes)
    rules = Rules(
        request.size,
        network.stretched_to is not None,
        tuple(network.fill_colour),  # type: ignore[arg-type]
        tuple(range(len(space.classes))) if ids is None else tuple(sorted(set(ids))),
        most * (1 if folding is None else folding.at_once(network.suppresses)),
        limits.nms_iou,
        limits.agnostic_nms,
        limits.topk,
        request.raw,
        request.max_detections or limits.max_detections,
        network.suppresses,
        network.suppresses and folding is not None and folding.nms_groups is not None,
        network.antialias,
    )
    digest = {"file": source.name, "sha256": file_digest(source)}
    about = About(card, rules, request.precision, request.opset, request.licence, digest)
    suffix = KINDS[request.to].suffix
    short = "" if request.precision == "fp32" else f"_{request.precision}"
    file = output or results_folder(source) / f"{source.stem}{short}{suffix}"
    if file.suffix != suffix:
        raise UserError(f"--output: expected a name that ends in {suffix}, got {file}")
    if request.precision == "int8" and request.calibrate is None and data is None:
        raise UserError("--precision int8: no pictures to calibrate on; give --calibrate FOLDER or --data CONFIG")
    shape = request.size or (detector.settings.shorter, detector.settings.longer)
    groups = None if folding is None else folding.nms_groups

    @functools.cache
    def calibration() -> list[Inputs]:
        return _inputs(_pictures_for_int8(request, data), detector, about)

    @functools.cache
    def graph() -> Any:
        return onnx_graph(network, rules, groups, shape, request.opset)

    return Job(detector, about, graph, calibration, file, NARROW[request.to][0])


def _pictures_for_int8(request: Request, data: Data | None) -> list[Picture]:
    if request.calibrate is not None:
        return _some_pictures(find_images([request.calibrate]))
    assert data is not None
    return list(data.pictures(CALIBRATION_PICTURES))


def _some_pictures(files: Sequence[Path]) -> list[Picture]:
    """Evenly spread, for those beside each other may be of one film; what cannot be read is told.

    Raises `UserError` where nothing can."""
    chosen = np.linspace(0, len(files) - 1, min(len(files), CALIBRATION_PICTURES)).round().astype(int)
    pictures = []
    for number in chosen.tolist():
        try:
            pictures.append(read_picture(files[number]))
        except UnreadableImage as error:
            print(f"warning: --calibrate: {error}", flush=True)
    if not pictures:
        raise UserError(f"--calibrate: none of {len(chosen)} pictures can be read, such as {files[0]}")
    return pictures


def _inputs(pictures: list[Picture], detector: Detector, about: About) -> list[Inputs]:
    thresholds = np.full(len(detector.classes), COMPARED_SCORE, np.float32)
    given = detector.settings
    found = []
    for picture in pictures:
        if about.rules.size is None:
            size = about.input_size(picture.shape[0], picture.shape[1], given.shorter, given.longer)
            small = resize(picture, size, about.rules.antialias)
        else:
            small, size = fitted(picture, about.rules)
        one: Inputs = {"images": small[None], "thresholds": thresholds}
        found.append(one | {"sizes": np.array([size], np.int64)} if about.rules.padded else one)
    return found


def _parts(file: Path) -> list[Path]:
    return [part for part in (file, file.with_suffix(".bin")) if part == file or file.suffix == ".xml"]
