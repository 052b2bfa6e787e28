"""`crossdet predict` on videos and cameras: a JSON line per frame, and a video with the detections drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossdet.data.drawing import draw_detections
from crossdet.data.video import Frame, Video, VideoWriter
from crossdet.errors import UserError
from crossdet.files import check_room, safe_names, writing
from crossdet.runs.asked import Asked
from crossdet.runs.predict import check_not_read, detections_of
from crossdet.types import Detections

Find = Callable[[Sequence[Any]], list[Detections]]
"""Pictures `[H, W, 3]` -> their detections."""
FRAMES_AT_ONCE = 8


@dataclass
class VideoSummary:
    """file, video: written where there are frames, else they may be of an earlier call. frames: looked at. counts:
    detections per class. notes: what was wrong with the source. stopped: by Ctrl-C."""

    source: str
    file: Path
    video: Path | None
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    stopped: bool = False


def finder(asked: Asked) -> Find:
    """A detector with its options; an exported file without torch."""
    if (exported := asked.without_torch()) is not None:
        limit = {"max_detections": asked.max_detections}
        return lambda pictures: exported.batch(pictures, asked.classes, asked.score_threshold, **limit)
    detector = asked.detector()
    return lambda pictures: detector.batch(pictures, asked.classes, asked.score_threshold, **asked.limits)


def predict_videos(
    sources: Sequence[str],
    find: Find,
    folder: Path,
    every: int = 1,
    pictures: bool = True,
    tell: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Iterator[VideoSummary]:
    """Of each source `NAME.jsonl`, and `NAME.mp4` with the detections drawn (pictures).

    A line: `{"frame": number, "time": seconds, "width", "height", "detections": [...]}`, detections as in
    `predictions.json`. A few frames are in memory, whatever the length. Ctrl-C ends a source, and those after it
    are not looked at; what was found is kept. tell: (source, frames read so far, of how many, None = not known).

    One of several sources that cannot be opened is left out, and its notes say why. Raises `UserError` for a single
    one, `RunError` for what cannot be written.
    """
    names = safe_names([Path(source.replace("camera:", "camera_")).stem for source in sources])
    if pictures:
        check_not_read(folder, [folder / f"{name}.mp4" for name in names], [Path(source) for source in sources])
    with writing(folder, "nothing was looked at"):
        folder.mkdir(parents=True, exist_ok=True)
    check_room(folder)
    for source, name in zip(sources, names, strict=True):
        summary = VideoSummary(source, folder / f"{name}.jsonl", folder / f"{name}.mp4" if pictures else None)
        with ExitStack() as opened:
            try:
                video = opened.enter_context(Video(source, every))
            except UserError as error:
                if len(sources) == 1:
                    raise
                summary.notes.append(str(error))
            else:
                _look(video, find, summary, tell)
        yield summary
        if summary.stopped:
            return


def _look(video: Video, find: Find, summary: VideoSummary, tell: Callable[[str, int, int | None], None]) -> None:
    """The files begin with the first frames that are looked at; until then those of an earlier call stay."""
    with writing(summary.file, "what was found before is kept"), ExitStack() as opened:
        drawing = lines = None
        if summary.video is not None:
            drawing = opened.enter_context(VideoWriter(summary.video, video.rate / video.every))
        try:
            coming = iter(video)
            while frames := list(islice(coming, FRAMES_AT_ONCE)):
                found = find([frame.picture for frame in frames])
                if lines is None:
                    lines = opened.enter_context(summary.file.open("w", encoding="utf-8"))
                _write(frames, found, lines, drawing, summary)
                tell(video.source, frames[-1].number + 1, video.frames)
        except KeyboardInterrupt:
            video.notes.append(f"{video.source}: ended by Ctrl-C")
            summary.stopped = True
        summary.notes = video.notes


def _write(
    frames: Sequence[Frame],
    found: Sequence[Detections],
    lines: Any,
    drawing: VideoWriter | None,
    summary: VideoSummary,
) -> None:
    for frame, detections in zip(frames, found, strict=True):
        height, width = frame.picture.shape[:2]
        line = {"frame": frame.number, "time": frame.time, "width": width, "height": height}
        print(json.dumps({**line, "detections": detections_of(detections)}), file=lines)
        if drawing is not None:
            drawn = draw_detections(Image.fromarray(frame.picture), detections)
            drawing.add(frame.time, np.asarray(drawn.convert("RGB")))
        summary.frames += 1
        summary.counts.update(detections.names or ())
    lines.flush()
