"""`crossdet predict`: the objects in images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TaskID

from crossdet.commands.terminal import (
    ANY_WEIGHTS,
    AgnosticNms,
    Device,
    Fold,
    JsonFile,
    Last,
    Output,
    check_device,
    listed_names,
    out,
    save_json,
    say,
)
from crossdet.errors import Interrupted, RunError, UserError, some

if TYPE_CHECKING:
    from crossdet.labels.reporting import Threshold
    from crossdet.runs.asked import Asked
    from crossdet.runs.predict import Summary
    from crossdet.runs.predict_video import VideoSummary


def predict(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help=ANY_WEIGHTS)],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="files, folders or glob patterns; video files or patterns of them; camera:0"
        ),
    ],
    output: Output = Path("predictions"),
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="look only for these classes (unified names, or patterns such as white_*; "
            "a comma within a name: \\,)",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="lowest score to report, such as 0.4, or face=0.5,cat=0.2 for some classes (default: each "
            "class's own, from the weights, or 0.3)",
        ),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(min=1, help="most detections per image (default: as trained with, in every window of --tile)"),
    ] = None,
    pictures: Annotated[bool, typer.Option(help="draw the detections into copies of the images")] = True,
    coco: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="take image and category ids of the COCO results from this file"),
    ] = None,
    annotations: Annotated[
        Literal["coco", "yolo"] | None,
        typer.Option(help="also write what is found as the annotations of a data set, to be corrected by people"),
    ] = None,
    fold: Fold = True,
    agnostic_nms: AgnosticNms = None,
    last: Last = False,
    tile: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="look at large images in windows of so many pixels, such as 640"),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="by how much the windows of --tile overlap (default: 0.2)")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="of videos and cameras only every Nth frame")
    ] = None,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Detect objects in images: drawn pictures, predictions.json and a COCO results file.

    In videos and cameras (extra `video`): a line of JSON per frame, and a video with the detections drawn. Ctrl-C
    ends a camera, and everything else early.

    What an earlier call left in --output is written over where it has the same name; other files stay, and pictures
    of an earlier call are told.
    """
    from crossdet.data.video import find_videos, is_video
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched
    from crossdet.runs.asked import Asked

    weights = fetched(weights)
    check_device(device, [weights])
    say(taken(weights, last))
    videos = find_videos(source for source in images if is_video(source))
    images = [source for source in images if not is_video(source)]
    ignored = [f"--every: it is for videos, and {', '.join(images)} is none"] if every and not videos else []
    if json_file is not None and coco is not None and json_file.resolve() == coco.resolve():
        raise UserError(f"--json {json_file}: this is the file of --coco; choose another name")
    for option, value in (("--coco", coco), ("--annotations", annotations)):
        ignored += [f"{option}: it is for images; leave it out, or the videos"] if value and videos else []
    if ignored:
        raise UserError("; ".join(ignored))
    names = None if classes is None else listed_names(classes)
    asked = Asked(
        weights, names, _thresholds(score), max_detections, fold, agnostic_nms, last, tile, overlap, device
    )
    folder = output or Path("predictions")
    record: dict[str, Any] = {}
    if images:
        record, summary = _in_images(asked, images, folder, pictures, coco, annotations)
        if summary.stopped or not summary.images:
            save_json(json_file, record)
            looked = summary.images + len(summary.unreadable)
            if summary.stopped:
                raise Interrupted(f"interrupted after {looked} of {summary.asked} images; what was found is kept")
            raise RunError("none of the images could be read")
    ended = None
    if videos:
        record["videos"], ended = _in_videos(videos, asked, folder, every or 1, pictures)
    save_json(json_file, record)
    if ended is not None:
        raise Interrupted(ended)


def _thresholds(given: str | None) -> Threshold | None:
    """Of `--score`: a number, `NAME=SCORE`, or several of these with commas between them."""
    if given is None:
        return None
    found = {}
    for part in listed_names(given) or [given]:
        name, _, text = part.rpartition("=")
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not 0 <= score <= 1:
            wanted = "a number from 0 to 1, or CLASS=NUMBER, several with commas between them"
            raise UserError(f"--score {given}: expected {wanted}, got {part.strip()!r}")
        found[name.strip() or "*"] = score
    return found["*"] if found.keys() == {"*"} else found


def _in_images(
    asked: Asked, images: list[str], folder: Path, pictures: bool, coco: Path | None, annotations: str | None
) -> tuple[dict[str, Any], Summary]:
    """What `--json` says of them, and what people were told."""
    from crossdet.data.picture_files import videos_in
    from crossdet.runs.found_annotations import CREATED
    from crossdet.runs.predict import predict_to_folder

    with _bars() as progress:
        bar = progress.add_task("images", total=None)
        summary = predict_to_folder(
            asked, images, folder, pictures=pictures, coco=coco, annotations=annotations,
            tell=lambda done, of: progress.update(bar, completed=done, total=of),
        )  # fmt: skip
    created = () if annotations is None or summary.stopped else CREATED[annotations]
    written = ["predictions.json", "coco_results.json", *created]
    files = ", ".join([*written, *(["pictures"] if pictures else [])])
    _tell(summary, asked.score_threshold, files, coco, videos_in(images, without=folder))
    return json.loads((summary.folder / "predictions.json").read_text()), summary


def _tell(summary: Summary, score: Threshold | None, files: str, coco: Path | None, unseen: Sequence[Path]) -> None:
    """For people. score: `--score`. files: what is in the folder. unseen: videos that lie beside pictures."""
    from crossdet.evaluation.operating import CONFIDENT

    for line in (*summary.unreadable, *summary.undrawn):
        out.print(f"[yellow]skipped[/yellow] {escape(line)}", highlight=False, soft_wrap=True)
    say(f"{summary.images} images: {_counts(summary.counts)}")
    say(f"{summary.folder}  ({files})")
    if summary.low:
        which = some([f"{name} from {threshold:.2g} on" for name, threshold in summary.low.items()], 4, 3)
        say(f"note: low scores are reported, where validation found the best F1: {which}; see --score", "yellow")
    if summary.full:
        which = f"images with as many detections as are reported at most ({summary.most})"
        say(f"note: {which}: {summary.full}; see --max-detections", "yellow")
    if summary.own:
        drawings = summary.folder / "pictures"
        say(f"note: {summary.own} pictures in {drawings} are of an earlier call and left out", "yellow")
    if summary.without_id:
        which = some([str(file) for file in summary.without_id], 3, 1)
        say(f"note: not in coco_results.json, {coco} has no image of that name, or several: {which}", "yellow")
    if summary.without_category:
        which = some(summary.without_category, 4, 3)
        say(f"note: not in coco_results.json, {coco} has no category of that name: {which}", "yellow")
    if summary.older:
        first, *more = (summary.folder / "pictures" / name for name in summary.older)
        several = f" and {len(more)} more" if more else ""
        say(f"note: {first}{several} lay there before and are not of this call; nothing is deleted", "yellow")
    if unseen:
        say(f"note: not looked at, a video has to be named: {some(list(map(str, unseen)), 3, 1)}", "yellow")
    if summary.images and not summary.counts:
        none = f"{CONFIDENT} where a class has none of its own"
        least = f"{score:g}" if isinstance(score, float) else none
        say(f"note: nothing scores as high as is reported ({least}); a lower --score shows what there is", "yellow")


def _in_videos(
    sources: list[str], asked: Asked, folder: Path, every: int, pictures: bool
) -> tuple[list[dict[str, Any]], str | None]:
    """What `--json` says of them, and where Ctrl-C left something out what to say of that."""
    from crossdet.runs.predict_video import finder, predict_videos

    find = finder(asked)
    record, ended = [], None
    with _bars() as progress:
        bars: dict[str, TaskID] = {}

        def tell(source: str, done: int, total: int | None) -> None:
            if source not in bars:
                bars[source] = progress.add_task(escape(Path(source).name), total=total)
            progress.update(bars[source], completed=done)

        for one in predict_videos(sources, find, folder, every, pictures, tell):
            files = [file for file in (one.file, one.video) if file is not None and one.frames]
            for note in one.notes or ([] if one.frames else [f"{one.source}: there is no frame in it"]):
                word = "note" if one.frames else "skipped"
                out.print(f"[yellow]{word}[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
            if one.frames:
                say(f"{one.source}: {one.frames} frames: {_counts(one.counts)}  ({', '.join(map(str, files))})")
            row = {"source": one.source, "frames": one.frames, "counts": dict(one.counts), "notes": one.notes}
            record.append({**row, "files": [str(file) for file in files]})
            if one.stopped:
                ended = _left_out(one, sources[len(record) :])
    if ended is None and not any(row["frames"] for row in record):
        raise RunError("no frame of the videos could be read")
    return record, ended


def _left_out(stopped: VideoSummary, after: list[str]) -> str | None:
    """None: nothing, for Ctrl-C is how a camera ends."""
    from crossdet.data.video import is_camera

    if is_camera(stopped.source) and not after:
        return None
    others = f"; not looked at: {some(after, 4, 3)}" if after else ""
    return f"interrupted after {stopped.frames} frames of {stopped.source}; what was found is kept{others}"


def _bars() -> Progress:
    """Seen on a terminal only, and gone when it is over."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    return Progress(*columns, console=out, transient=True, disable=not out.is_terminal)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"
