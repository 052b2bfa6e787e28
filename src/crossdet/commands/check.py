"""`crossdet check`: everything that can be known before any training. No torch, but for `--pictures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile, Overrides, check_no_input, out, save_json, say
from crossdet.errors import UserError


def check(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="YAML config file; or trained weights, a run directory, hf://OWNER/NAME"
        ),
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="folder for --pictures (default: check_pictures)")
    ] = None,
    overrides: Overrides = None,
    extends: Annotated[
        Path | None,
        typer.Option(metavar="WEIGHTS", help="read the config as `crossdet extend WEIGHTS CONFIG` would"),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="write training batches as pictures: boxes, flags, avoided classes")
    ] = False,
    batches: Annotated[int, typer.Option(min=1, help="how many batches --pictures draws")] = 2,
    decode: Annotated[
        bool, typer.Option("--decode", help="read every picture to its end, and name those that are damaged")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Read everything before any training: data, merged labels, avoidance relation, anchors, duplicates.

    Of trained weights: their classes, label rules, thresholds, and the generations that they come from.
    A config that extends weights: --extends WEIGHTS.
    """
    from crossdet.check import inspect, inspect_weights, print_report, print_weights
    from crossdet.config import load_config
    from crossdet.models.card import known_space, means_weights
    from crossdet.models.hub import fetched

    config, extends = fetched(config), extends and fetched(extends)
    weights = means_weights(config)
    _check_arguments(config, weights, folder, pictures, overrides, extends, decode)
    if weights:
        _refuse_data(config)
        described = inspect_weights(config)
        print_weights(described, out)
        save_json(json_file, json.loads(described.to_json()))
        return
    known = None if extends is None else known_space(extends)
    loaded = load_config(config, overrides or [], () if known is None else known.datasets)
    check_no_input(json_file, loaded, config)
    if extends is None:
        report = inspect(loaded, decode=decode)
    else:
        from crossdet.check.extension import inspect_extension

        report, loaded = inspect_extension(loaded, extends, decode=decode)
    print_report(report, out)
    save_json(json_file, json.loads(report.to_json()))
    if report.errors:
        raise typer.Exit(2)
    if pictures:
        from crossdet.data.drawing import write_batch_pictures
        from crossdet.runs.building import training_batches

        target = folder or Path("check_pictures")
        drawn, sources = training_batches(loaded, batches, known=known)
        files = write_batch_pictures(drawn, sources.space, sources.space.datasets, target)
        say(f"{len(files)} training pictures in {target}")


def _refuse_data(folder: Path) -> None:
    """Raises `UserError` where a folder holds no weights but a config, or pictures."""
    from crossdet.config.files import CONFIG_FILE
    from crossdet.data.formats.tree import holds_pictures
    from crossdet.models.card import foreign_checkpoint, weights_path

    if not folder.is_dir() or weights_path(folder).is_file() or foreign_checkpoint(folder) is not None:
        return
    if (config := folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is a folder without weights; did you mean the config in it, {config}?")
    if holds_pictures(folder):
        raise UserError(
            f"{folder} is a folder of pictures, no config and no weights; `crossdet new {folder}` writes a config "
            "of the data sets in it"
        )


def _check_arguments(
    config: Path,
    weights: bool,
    folder: Path | None,
    pictures: bool,
    overrides: list[str] | None,
    extends: Path | None,
    decode: bool,
) -> None:
    """Refuses what `check` would have to ignore. weights: CONFIG is trained weights."""
    if folder is not None and not pictures:
        hint = ""
        if weights and folder.is_file():
            hint = f"; to check a config that extends weights: `crossdet check {folder} --extends {config}`"
        raise UserError(
            f"unexpected argument {folder}: a second one is the folder of --pictures, which is not given{hint}"
        )
    given = [("--pictures", pictures), ("--set", overrides), ("--extends", extends), ("--decode", decode)]
    ignored = [name for name, value in given if value]
    if weights and ignored:
        raise UserError(f"{', '.join(ignored)}: for a config, but {config} is no YAML file; name the config first")
