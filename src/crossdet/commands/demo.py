"""`crossdet demo`: what missing labels do to a detector, on generated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, Output, Overrides, Overwrite, out, save_json
from crossdet.errors import UserError


def demo(
    output: Output = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the generated pictures and of both trainings")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="optimiser steps per training (default: the full demo)")
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="generated training pictures per dataset")] = 300,
    test_images: Annotated[
        int | None, typer.Option(min=4, help="fully labelled test pictures per look (default: a third of --images)")
    ] = None,
    data_only: Annotated[
        bool, typer.Option(help="write the pictures and the configs aware, naive and full; train nothing")
    ] = False,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Generate three partially labelled datasets, train dataset-aware and naively, and compare (CPU, minutes).

    A second call goes on where the first was interrupted, with the same options."""
    from crossdet.demo.comparison import run_demo, write_demo_world

    folder = output or Path("demo")
    if data_only:
        if json_file is not None:
            raise UserError("--json: with --data-only there are no numbers to write")
        write_demo_world(folder, seed, steps, images, test_images, overrides or ())
        out.print(f"pictures: {folder}/data; configs: {folder}/aware.yaml, naive.yaml, full.yaml (all labels)")
    else:
        save_json(json_file, run_demo(folder, out, seed, steps, images, test_images, overrides or (), overwrite))
