"""`crossdet push`: a detector to the hub of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, Last, OwnWeights, check_no_input_of, save_json, say


def push(
    run: OwnWeights,
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="id on the hub; made where there is none")],
    licence: Annotated[str, typer.Option(metavar="ID", help="of the weights, such as cc-by-4.0")] = "unknown",
    private: Annotated[bool, typer.Option("--private", help="for its owner alone")] = False,
    dry_run: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="write the files there, and upload nothing")
    ] = None,
    last: Last = False,
    json_file: JsonFile = None,
) -> None:
    """Upload a detector with a model card: who labels what, scores, how to load it."""
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched

    run = fetched(run)
    say(taken(run, last))
    check_no_input_of(json_file, run)

    from crossdet.runs.push import push as upload

    record = upload(run, to, licence, private, dry_run, last)
    for name, size in record["files"].items():
        say(f"{name}  ({size / 1e6:.1f} MB)")
    say(record["url"] or f"written to {record['directory']}; nothing was uploaded")
    save_json(json_file, record)
