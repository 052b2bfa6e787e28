"""`crossdet predict`: the objects in images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from crossdet.commands.terminal import AgnosticNms, Fold, JsonFile, Last, Output, out, save_json, say
from crossdet.errors import RunError


def predict(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="weights file or run directory")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="files, folders or glob patterns")],
    output: Output = Path("predictions"),
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="look only for these classes (unified names, or patterns such as white_*)"
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="lowest score to report (default: each class's own, from the weights, or 0.3)"
        ),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="most detections per image (default: as trained with)")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="draw the detections into copies of the images")] = True,
    coco: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="take image and category ids of the COCO results from this file"),
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
    json_file: JsonFile = None,
) -> None:
    """Detect objects in images: drawn pictures, predictions.json and a COCO results file."""
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched

    weights = fetched(weights)
    say(taken(weights, last))

    from crossdet.runs.predict import predict_to_folder

    names = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    folder = output or Path("predictions")
    summary = predict_to_folder(
        weights, images, folder, names, score, max_detections, pictures, coco, fold, agnostic_nms, last,
        tile, overlap,
    )  # fmt: skip
    for line in summary.unreadable:
        out.print(f"[yellow]skipped[/yellow] {escape(line)}", highlight=False, soft_wrap=True)
    counts = ", ".join(f"{name} {count}" for name, count in summary.counts.items()) or "nothing"
    say(f"{summary.images} images: {counts}")
    say(f"{summary.folder}  (predictions.json, coco_results.json, pictures)")
    if json_file is not None:
        save_json(json_file, json.loads((summary.folder / "predictions.json").read_text()))
    if not summary.images:
        raise RunError("none of the images could be read")
