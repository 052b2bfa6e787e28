"""`crossdet new`: a config from folders of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, save_json, say
from crossdet.data.annotation_files import too_many


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder with one or more data sets below it")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="the config to write")
    ] = Path("config.yaml"),
    overwrite: Annotated[bool, typer.Option(help="replace a file that is there")] = False,
    json_file: JsonFile = None,
) -> None:
    """Write a config of the data sets below a folder: COCO, YOLO, VOC, WIDER, also as Roboflow exports them."""
    from crossdet.runs.new import write_new

    record = write_new(folder, output, overwrite)
    for name, dataset in record["datasets"].items():
        images = ", ".join(f"{split} {count:,}" for split, count in dataset["images"].items())
        images += f", {dataset['held_out']} of them held out as val" if dataset["held_out"] else ""
        classes = f"{dataset['format']}, {(n := len(dataset['classes']))} class{'es' * (n != 1)}"
        say(f"{name}: {classes}, images: {images}  ({dataset['folder']})")
    for line in too_many(record["not_taken"]):
        say(f"not taken: {line}")
    say(f"written to {output}; read what it says about labels, then `crossdet check {output}`")
    save_json(json_file, record)
