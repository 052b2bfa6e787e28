"""Exported files opened by the software that runs them, onnxruntime or OpenVINO. No torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossdet.errors import UserError
from crossdet.export.about import STORED, About
from crossdet.models.card import EXPORTED, Card, is_exported, read_card

TELLING = ("openvino", "nncf")
"""Packages that tell their makers how they are used."""
_ONE_AT_A_TIME = RLock()
RT_INFO = "crossdet"
"""Section of OpenVINO's `rt_info` that holds the metadata."""


class Session(Protocol):
    """An opened file. outputs: boxes, scores and labels, see `detecting.Found`; of a raw one the network's own."""

    about: About

    def run(
        self, images: NDArray[np.uint8], thresholds: NDArray[np.float32], sizes: NDArray[np.int64] | None = None
    ) -> list[NDArray[Any]]:
        """images: `[B, H, W, 3]`. thresholds: `[C]`. sizes: `[B, 2]` (height, width) of the pictures in a canvas of
        one size for all, in its upper left corner; None: they fill it."""


class OnnxSession:
    """By onnxruntime, on the GPU where its build has one."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        runtime = package("onnxruntime", "onnx", f"{path} is run by")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has a class of its own for every kind of damage
            raise unreadable(path, error) from None
        self.about = About.from_metadata(path, self.session.get_modelmeta().custom_metadata_map)
        self.inputs = {one.name for one in self.session.get_inputs()}

    def run(
        self, images: NDArray[np.uint8], thresholds: NDArray[np.float32], sizes: NDArray[np.int64] | None = None
    ) -> list[NDArray[Any]]:
        given = {"images": images, "thresholds": thresholds, "sizes": sizes_of(images, sizes)}
        outputs: list[NDArray[Any]] = self.session.run(None, {name: given[name] for name in self.inputs})
        return outputs


class OpenVinoSession:
    """By OpenVINO on the CPU. fp32 and fp16 files, and int8 ones of networks that want it (`wants_float32`), are
    computed in fp32 also where the processor has bfloat16, which is shorter than what was asked for."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        openvino = package("openvino", "openvino", f"{path} is run by")
        try:
            model = openvino.Core().read_model(path)
            written = [key for key in STORED if model.has_rt_info([RT_INFO, key])]
            metadata = {key: model.get_rt_info([RT_INFO, key]).astype(str) for key in written}
        except Exception as error:
            raise unreadable(path, error) from None
        self.about = About.from_metadata(path, metadata)
        whole = self.about.precision != "int8" or self.about.card.settings.wants_float32
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if whole else {}
        some = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self.model = openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **hint, **some})

    def run(
        self, images: NDArray[np.uint8], thresholds: NDArray[np.float32], sizes: NDArray[np.int64] | None = None
    ) -> list[NDArray[Any]]:
        given = [images, thresholds, sizes_of(images, sizes)][: len(self.model.inputs)]
        return [np.array(output) for output in self.model(given).values()]


def sizes_of(images: NDArray[np.uint8], sizes: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Those given, or that of the images, for each."""
    return np.array([images.shape[1:3]] * len(images), np.int64) if sizes is None else sizes


SESSIONS: dict[str, Callable[[Path, int], Session]] = dict(
    zip(EXPORTED, (OnnxSession, OpenVinoSession), strict=True)
)


def open_session(path: str | Path, threads: int = 0) -> Session:
    """threads: 0 = as many as the software takes. Raises `UserError` for a missing, damaged or foreign file, and
    where the software is not installed."""
    path = Path(path)
    for part in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
        if not part.is_file():
            raise UserError(f"exported file {part} does not exist")
    return SESSIONS[path.suffix](path, threads)


def card_in(path: Path) -> Card:
    """`card.read_card`, also of an exported file."""
    return open_session(path).about.card if is_exported(path) else read_card(path)


def detections_of(session: Session, path: Path) -> Session:
    """The session. Raises `UserError` where it gives no detections."""
    if session.about.rules.raw:
        raise UserError(f"{path} gives raw outputs (--raw) and no detections; export it without --raw")
    return session


def package(name: str, extra: str, why: str) -> Any:
    """An optional package. Raises `UserError` that says how to get it."""
    try:
        with _without_telemetry() if name in TELLING else nullcontext():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{why} {name}: pip install 'crossdet[{extra}]'") from None


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """What is imported here does not find the package by which OpenVINO and NNCF tell their makers of every
    conversion, and note it in the home folder, unasked. They do without where it is not installed. What the program
    has imported itself before is as it was."""
    name = "openvino_telemetry"
    with _ONE_AT_A_TIME:
        there, before = name in sys.modules, sys.modules.get(name)
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails
        try:
            yield
        finally:
            del sys.modules[name]
            if there:
                sys.modules[name] = before  # type: ignore[assignment]  # None, as here, is allowed


def unreadable(path: Path, error: Exception) -> UserError:
    reason: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"exported file {path} cannot be read: {reason[0][:300]}")
