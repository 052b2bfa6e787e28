"""`crossdet extend`: more classes or more data for a trained detector, and what it forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from crossdet.commands.terminal import (
    ConfigFile,
    JsonFile,
    Output,
    Overrides,
    Overwrite,
    OwnWeights,
    Resume,
    check_no_input,
    save_json,
    say,
)

FORGOTTEN = 3
"""Exit status of a run that succeeded but lost more than the tolerance, and not by chance."""


def extend(
    run: OwnWeights,
    config: ConfigFile,
    mode: Annotated[
        str | None, typer.Option(help="replay, distill or frozen (default: `extend.mode` of the config)")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="points an old class may lose before the exit status is 3 (default: 0.5)"),
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Extend a trained detector by the classes and data of a config, keeping its old classes.

    Exit status 3: the run succeeded, but an old class lost more than the tolerance, and its interval, where there
    is one, does not hold 0.

    Example: crossdet extend runs/first more.yaml --mode distill --output runs/second
    """
    from crossdet.config import load_config
    from crossdet.models.card import check_order, known_space, taken
    from crossdet.models.hub import fetched

    run = fetched(run)
    check_order("extend", run, config)
    given = [("mode", mode), ("tolerance", tolerance)]
    options = [f"extend.{key}={value}" for key, value in given if value is not None]
    loaded = load_config(config, [*(overrides or []), *options], known_space(run).datasets)
    check_no_input(json_file, loaded, config)
    say(taken(run))

    from crossdet.evaluation.forgetting import warning_of
    from crossdet.runs.building import is_first_process
    from crossdet.runs.extend import extend as extended

    record = extended(run, loaded, output=output, resume=resume, overwrite=overwrite)
    report = record["forgetting"]
    if is_first_process():
        save_json(json_file, record)
        where = Path(output or loaded.output or ".")
        names = ("model.safetensors", "forgetting.json", "generations.png", "metrics.json")
        files = ", ".join(name for name in names if (where / name).exists())  # no plot without a number
        say(f"done: {where}  ({files})")
        if report["regressions"]:
            text = f"[bold yellow]warning[/bold yellow] {escape(warning_of(report))}"
            Console(stderr=True, emoji=False).print(text, highlight=False, soft_wrap=True)
    if report["certain"]:
        raise typer.Exit(FORGOTTEN)
