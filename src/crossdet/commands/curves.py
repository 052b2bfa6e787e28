"""`crossdet curves`: the precision-recall curves of several runs or methods in one figure per dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import Output, check_not_read, say


def curves(
    files: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FILE...", help="curves.json of eval or score, or its folder")
    ],
    output: Output = Path("curves"),
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="draw only this dataset; may be repeated")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="write what was drawn into one small JSON, which this command draws again"
        ),
    ] = None,
) -> None:
    """Draw the precision-recall curves of several runs or methods into one figure per dataset."""
    from crossdet.evaluation.curves import DATA_FILE, overlay

    named = [_named(given) for given in files]
    check_not_read("--data", data, [one for _, file in named for one in (file, file / DATA_FILE)])
    for picture in overlay(named, output or Path("curves"), dataset or (), data):
        say(str(picture))


def _named(given: str) -> tuple[str | None, Path]:
    """The name, if there is one, and the file: names and paths may hold a `=`, so what exists decides."""
    if Path(given).exists():
        return None, Path(given)
    cuts = [at for at, sign in enumerate(given) if sign == "="]
    at = next((at for at in cuts if given[at + 1 :] and Path(given[at + 1 :]).exists()), cuts[-1] if cuts else -1)
    return given[: max(at, 0)] or None, Path(given[at + 1 :])
