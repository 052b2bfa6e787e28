"""`crossdet report`: everything about a run on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, save_json, say


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="another run, shown beside it")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="(default: report.html in the run)"),
    ] = None,
    pictures: Annotated[
        bool, typer.Option(help="look at the validation pictures: curves, confusions, calibration, audit")
    ] = True,
    json_file: JsonFile = None,
) -> None:
    """Write one HTML page about a run: data, labels, curves, scores, confusions, pictures, audit."""
    from crossdet.runs.report import report as write

    file = output or run / "report.html"
    save_json(json_file, write(run, file, against, pictures))
    say(f"{file}")
