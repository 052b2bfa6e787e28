"""`crossdet report`: everything about a run on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, check_no_input_of, save_json, say


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="run directory; or weights or hf://OWNER/NAME, of which there is less to tell"
        ),
    ],
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="another one, shown beside it")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="whose validation pictures are looked at (default: the run's own)"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="default: report.html in the run or beside the weights",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option(help="look at the validation pictures: curves, confusions, calibration, audit")
    ] = True,
    json_file: JsonFile = None,
) -> None:
    """Write one HTML page about a run: data, labels, curves, scores, confusions, pictures, audit."""
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched, results_folder

    run, against = fetched(run), against and fetched(against)
    for one in (run, against):
        if one is not None:
            say(taken(one))
            check_no_input_of(json_file, one, data)

    from crossdet.runs.report import report as write

    file = output or results_folder(run) / "report.html"
    content = write(run, file, against, pictures, data)
    if pictures and not any("confusions" in one for one in content.values()):
        say("no dataset has a `val` split, so no pictures were looked at")
    save_json(json_file, content)
    say(f"{file}")
