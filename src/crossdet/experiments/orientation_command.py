"""`crossdet orientation`: directions as classes, and classes per dataset, against the simpler ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from crossdet.errors import UserError

app = typer.Typer(
    name="orientation",
    help="Directions as classes against rotation as augmentation; classes per dataset against merging.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
out = Console()
wide = Console(width=max(200, out.width))


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="YAML config file with `directions`, or with `labels.per_dataset`"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="where the JSONs go")] = Path(
        "orientation"
    ),
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="upright, rotated, directions (datasets with `directions`); merged, per_dataset "
            "(`labels.per_dataset`); default: all that the config can compare",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,M", help="one training of each method per seed")] = "0,1,2",
    runs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the trainings go (default: DIR/runs)")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a config value of all trainings"),
    ] = None,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet orientation run animals.yaml --seeds 0,1,2 -o animals_rolls
    """
    from crossdet.experiments.orientation import run_orientation

    numbers = _words(seeds)
    wrong = [word for word in numbers if not word.isdecimal()]
    if wrong or not numbers:
        raise UserError(f"--seeds {', '.join(wrong)}: expected whole numbers from 0 on, such as 0,1,2")
    for file in run_orientation(
        config, output, [int(word) for word in numbers], _words(methods or ""), overrides or [], runs, _say
    ):
        _say(str(file))


@app.command()
def table(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="folder with the JSONs of `run`")],
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="also write as Markdown")
    ] = None,
) -> None:
    """AP over all rolls and per roll, and how often the direction is right: mean and spread over the seeds."""
    from crossdet.experiments.orientation_tables import markdown, read_runs, rich_tables
    from crossdet.jsonfiles import write_atomically

    found = read_runs(results)
    for shown in rich_tables(found):
        wide.print(shown, highlight=False)
        out.print()
    if markdown_file is not None:
        write_atomically(markdown_file, markdown(found).encode())


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.replace(",", " ").split()))


def _say(text: str) -> None:
    out.print(escape(text), highlight=False, soft_wrap=True)
