"""`crossdet labels`: rename and merge classes of a trained detector without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, listed_names, save_json, say
from crossdet.errors import UserError, problem_list
from crossdet.labels.space import LabelSpace


def labels(
    weights: Annotated[
        Path,
        typer.Argument(metavar="WEIGHTS", help="weights file, run directory or hf://OWNER/NAME; stays as it is"),
    ],
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="give a class another name; may be repeated")
    ] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NEW=A,B",
            help="report several classes as one (names, or patterns such as white_*; a comma within a name: "
            "\\,); may be repeated",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="weights file to write (default: relabelled.safetensors beside)"
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Rename and merge classes of trained weights, without training.

    A merged class is reported where one of its members is found, with the best of their scores. Its members stay in
    the weights: `predict --no-fold` shows them, and datasets of an extension are merged into them.

    Example: crossdet labels runs/first --rename car=automobile --merge animal=cat,dog -o animals.safetensors
    """
    from crossdet.models.hub import fetched, results_folder

    renames, problems = [], []
    for text in rename or []:
        old, equals, new = text.partition("=")
        renames.append((old, new.strip()))
        if not equals or not old.strip() or not new.strip():
            problems.append(f"--rename {text}: expected OLD=NEW")
    merges = []
    for text in merge or []:
        new, _, members = text.partition("=")
        merges.append((new.strip(), listed_names(members, strip=False)))
        if not merges[-1][0] or not merges[-1][1]:
            problems.append(f"--merge {text}: expected NEW=A,B")
    if not renames and not merges:
        hint = f"`crossdet check {weights}` lists the classes"
        problems.append(f"nothing to do: give --rename OLD=NEW or --merge NEW=A,B; {hint}")
    if output is not None and output.suffix != ".safetensors":
        problems.append(f"--output: expected a file name that ends in .safetensors, got {output}")
    weights = fetched(weights)
    target = output or results_folder(weights) / "relabelled.safetensors"
    if target.exists():
        problems.append(f"--output: {target} exists; remove it, or give another file")
    if problems:
        raise UserError(problem_list(f"{len(problems)} mistake(s)", problems))

    from crossdet.models.card import known_space, taken
    from crossdet.runs.relabel import relabel

    source, known = taken(weights), known_space(weights)
    renames = [(_written(old, known), new) for old, new in renames]
    merges = [(new, [_written(name, known) for name in members]) for new, members in merges]
    space = relabel(weights, target, renames, merges)
    for line in (source, *_told(space, target, {new for new, _ in merges})):
        say(line)
    merged = {fold.name: [space.classes[c] for c in fold.members] for fold in space.folds}
    save_json(json_file, {"file": str(target), "classes": list(space.reported), "merged": merged})


def _written(name: str, known: LabelSpace) -> str:
    """Without the spaces around it, where no class has them."""
    return name if name in (*known.classes, *known.reported) else name.strip()


def _told(space: LabelSpace, target: Path, made: set[str]) -> Iterator[str]:
    """made: the names of the merged classes that are new."""
    yield f"{len(space.reported)} classes: {', '.join(space.reported)}"
    for fold in space.folds:
        if fold.name in made:
            yield f"{fold.name}: the best of {', '.join(space.classes[c] for c in fold.members)}"
    yield f"written to {target}"
    if made:
        yield (
            f"no threshold is stored for {', '.join(sorted(made))}, so predict reports from the default of 0.3 on; "
            f"`crossdet eval {target} CONFIG --store-thresholds` finds one"
        )
