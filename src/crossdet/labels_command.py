"""`crossdet labels`: rename and merge classes of a trained detector without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from crossdet.errors import UserError, problem_list


def labels(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help="weights file or run directory; stays as it is")
    ],
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="give a class another name; may be repeated")
    ] = None,
    merge: Annotated[
        list[str] | None, typer.Option(metavar="NEW=A,B", help="make one class of several; may be repeated")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="weights file to write (default: relabelled.safetensors beside)",
        ),
    ] = None,
) -> None:
    """Rename and merge classes of trained weights, without training.

    Example: crossdet labels runs/first --rename car=automobile --merge animal=cat,dog -o animals.safetensors
    """
    renames, problems = [], []
    for text in rename or []:
        old, equals, new = (part.strip() for part in text.partition("="))
        renames.append((old, new))
        if not equals or not old or not new:
            problems.append(f"--rename {text}: expected OLD=NEW")
    merges = []
    for text in merge or []:
        new, _, members = (part.strip() for part in text.partition("="))
        merges.append((new, [name.strip() for name in members.split(",") if name.strip()]))
        if not new or not merges[-1][1]:
            problems.append(f"--merge {text}: expected NEW=A,B")
    if not renames and not merges:
        problems.append("nothing to do: give --rename OLD=NEW or --merge NEW=A,B")
    if output is not None and output.suffix != ".safetensors":
        problems.append(f"--output: expected a file name that ends in .safetensors, got {output}")
    target = output or (weights if weights.is_dir() else weights.parent) / "relabelled.safetensors"
    if target.exists():
        problems.append(f"--output: {target} exists; remove it, or give another file")
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s)", problems))

    from crossdet.relabelling import relabel
    from crossdet.weights_argument import taken

    out = Console()
    out.print(escape(taken(weights)), highlight=False, soft_wrap=True)
    space = relabel(weights, target, renames, merges)
    out.print(
        f"{len(space.classes)} classes: {escape(', '.join(space.classes))}", highlight=False, soft_wrap=True
    )
    out.print(f"written to {escape(str(target))}", highlight=False, soft_wrap=True)
