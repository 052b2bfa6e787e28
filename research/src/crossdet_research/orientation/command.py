"""`crossdet-research orientation`: directions as classes, and classes per dataset, against the simpler ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import MarkdownFile, Overrides, RunsDir, Seeds, say, say_bold, seed_numbers, words
from crossdet_research.study import report, study_app
from crossdet_research.tables import rich_tables

app = study_app(
    "orientation", "Directions as classes against rotation as augmentation; classes per dataset against merging."
)


@app.command()
def run(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="YAML config file with `directions`, or with `labels.per_dataset`"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="where the JSONs go")] = Path(
        "orientation"
    ),
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="A,B",
            help="upright, rotated, directions (datasets with `directions`); merged, per_dataset, "
            "per_dataset_open (`labels.per_dataset`); default: all that the config can compare",
        ),
    ] = None,
    seeds: Seeds = None,
    runs: RunsDir = None,
    overrides: Overrides = None,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet-research orientation run animals.yaml --seeds 0,1,2 -o animals_rolls
    """
    from crossdet_research.orientation.queue import run_orientation

    files = run_orientation(config, output, seed_numbers(seeds), words(methods), overrides or [], runs, say)
    for file in files:
        say(str(file))


@app.command()
def table(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="folder with the JSONs of `run`")],
    markdown_file: MarkdownFile = None,
) -> None:
    """AP over all rolls and per roll, and how often the direction is right: mean and spread over the seeds."""
    from crossdet_research.orientation.tables import grids, markdown, notes, read_runs

    found = read_runs(results)
    said, wrong = notes(found)
    report(rich_tables(grids(found)), said, markdown_file, markdown(found))
    for line in wrong:
        say_bold(line)
