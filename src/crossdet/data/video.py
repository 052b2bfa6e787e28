"""Frames of video files and cameras, and a video of pictures. By PyAV (extra `video`), which is FFmpeg."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossdet.data.picture_files import VIDEO_SUFFIXES, files_of
from crossdet.errors import RunError, UserError
from crossdet.labels.patterns import is_pattern

_CAMERA = re.compile(r"camera:(\d+)")
_CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
"""Platform -> where FFmpeg finds a camera, and by what."""
CODECS = ("libx264", "mpeg4")
"""Of written videos; the first that this FFmpeg has."""
MILLISECOND = Fraction(1, 1000)
SHORT = 1.0
"""Seconds that may be missing at the end of what a file promises before it is said."""


class Frame(NamedTuple):
    """number: from 0, of all frames of the source. time: in seconds. picture: `[H, W, 3]` uint8 RGB, upright."""

    number: int
    time: float
    picture: NDArray[np.uint8]


def is_video(source: str) -> bool:
    """Whether a path or `camera:N` is meant as a video."""
    return is_camera(source) or source.lower().endswith(VIDEO_SUFFIXES)


def is_camera(source: str) -> bool:
    """Whether it is `camera:N`, which has no end of its own."""
    return _CAMERA.fullmatch(source) is not None


def find_videos(sources: Iterable[str]) -> list[str]:
    """Video files, those of glob patterns, sorted, and cameras, each once. What is no pattern need not be there.

    Raises `UserError`: lists every pattern that names no file.
    """
    found: dict[Path, str] = {}
    empty = []
    for source in sources:
        files = [source]
        if not is_camera(source) and not Path(source).is_file() and is_pattern(source):
            files = [str(file) for file in files_of(source)]
        if not files:
            empty.append(source)
        for file in files:
            found.setdefault(Path(file).parent.resolve() / Path(file).name, file)
    if empty:
        raise UserError(f"no video found for {', '.join(empty)}")
    return list(found.values())


@dataclass
class Video:
    """A source, opened: iterate it once, in a `with`.

    every: only frames 0, every, 2 * every, ... are made pictures. frames: how many the file says it has, else None.
    rate: of the frames per second. notes: what was wrong with it, as far as it was read.
    """

    source: str
    every: int = 1
    frames: int | None = None
    rate: Fraction = Fraction(25)
    notes: list[str] = field(default_factory=list)

    def __enter__(self) -> Video:
        """Raises `UserError` where nothing can be read."""
        av = _library()
        name, kind = _place(self.source)
        try:
            self._container: Any = av.open(name, format=kind)
            self._stream: Any = self._container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError) as error:
            raise UserError(f"{self.source}: no video can be read from it ({_reason(error)})") from None
        self._stream.thread_type = "AUTO"
        self.frames = self._stream.frames or None
        self.rate = self._stream.average_rate or self.rate
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """What is damaged is left out, and what cannot be read any more ends it; `notes` say so.

        Times are those since the first frame: the clocks of streams and cameras begin anywhere.
        """
        number, time, begin = 0, 0.0, None
        for frame in self._decoded():
            time = float(number / self.rate)
            if frame.time is not None:
                begin = frame.time - time if begin is None else begin
                time = frame.time - begin
            if number % self.every == 0:
                picture = frame.to_ndarray(format="rgb24")
                turned = np.rot90(picture, (getattr(frame, "rotation", 0) or 0) // 90)  # as phones hold cameras
                yield Frame(number, time, np.ascontiguousarray(turned))
            number += 1
        first = self._container.start_time or 0  # of containers whose clocks do not begin at 0 the end is told
        length = ((self._container.duration or 0) - max(first, 0)) / 1e6
        if self.frames is not None and number < self.frames:
            self.notes.append(
                f"{self.source}: the file says that it has {self.frames} frames, {number} could be read"
            )
        elif self.frames is None and length - time > SHORT:
            self.notes.append(f"{self.source}: the file says that it has {length:.1f} s, {time:.1f} could be read")

    def _decoded(self) -> Iterator[Any]:
        av, damaged = _library(), 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                yield from frames
        except (av.FFmpegError, OSError) as error:
            self.notes.append(f"{self.source}: reading ended early ({_reason(error)})")
        if damaged:
            self.notes.append(f"{self.source}: {damaged} damaged part(s) left out")


class VideoWriter:
    """Pictures to an MP4 file, each at its time; all get the size of the first, made even. For a `with`.

    The file begins with the first picture. Raises `RunError` for what cannot be written.
    """

    def __init__(self, file: Path, rate: Fraction) -> None:
        self.file, self.rate = file, rate
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._container is not None:
            # after an earlier error that one is told, not what closing an unfinished file says
            with nullcontext() if kind is None else suppress(RunError), self._writing():
                try:
                    if self._stream is not None:
                        self._container.mux(self._stream.encode())
                finally:
                    self._container.close()

    def add(self, time: float, picture: NDArray[np.uint8]) -> None:
        """picture: `[H, W, 3]` RGB. time: in seconds, rising."""
        with self._writing():
            if self._container is None:
                self._begin(picture.shape[0], picture.shape[1])
            frame = _library().VideoFrame.from_ndarray(picture, format="rgb24")
            self._last = frame.pts = max(self._last + 1, round(1000 * time))
            frame.time_base = MILLISECOND
            self._container.mux(self._stream.encode(frame))

    def _begin(self, height: int, width: int) -> None:
        av = _library()
        self._container = av.open(f"file:{self.file}", "w", format="mp4")
        self._stream = self._container.add_stream(_codec(av), rate=self.rate)
        self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in (height, width))
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = MILLISECOND

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (_library().FFmpegError, OSError) as error:
            reason = _reason(error)
            raise RunError(f"{self.file} could not be written ({reason}); what was found before is kept") from error


def _codec(av: Any) -> str:
    return next(name for name in CODECS if name in av.codecs_available)


def _place(source: str) -> tuple[str, str | None]:
    """What FFmpeg opens, and as what. Raises `UserError`."""
    camera = _CAMERA.fullmatch(source)
    if camera is None:
        if not Path(source).is_file():
            raise UserError(f"{source} is no file")
        return f"file:{source}", None
    if sys.platform not in _CAMERAS:
        raise UserError(f"{source}: cameras are read on Linux and macOS only")
    name, kind = _CAMERAS[sys.platform]
    return name.format(camera[1]), kind


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install 'crossdet[video]'") from None
    return av
