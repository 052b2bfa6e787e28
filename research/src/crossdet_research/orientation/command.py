"""`crossdet-research orientation`: directions as classes, and classes per dataset, against the simpler ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from crossdet_research import options
from crossdet_research.options import MarkdownFile
from crossdet_research.study import Several, argument, option, report, say_files, study_app
from crossdet_research.tables import rich_tables

app = study_app(
    "orientation", "Directions as classes against rotation as augmentation; classes per dataset against merging."
)


@app.command()
def run(
    config: Annotated[Path, argument("CONFIG", "YAML config file with `directions`, or with `labels.per_dataset`")],
    output: Annotated[Path, option("--output", "DIR", "where the JSONs go", "-o")] = Path("orientation"),
    methods: Annotated[
        Several,
        option(
            "--methods",
            "A,B",
            "upright, rotated, directions (datasets with `directions`); merged, per_dataset, "
            "per_dataset_open (`labels.per_dataset`); default: all that the config can compare",
        ),
    ] = None,
    seeds: options.Seeds = None,
    runs: options.RunsDir = None,
    overrides: options.Overrides = None,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet-research orientation run animals.yaml --seeds 0,1,2 -o animals_rolls
    """
    from crossdet_research.orientation.queue import run_orientation

    numbers, names = options.seed_numbers(seeds), options.words(methods)
    say_files(run_orientation(config, output, numbers, names, overrides or [], runs, options.say))


@app.command()
def table(
    results: Annotated[Path, argument("DIR", "folder with the JSONs of `run`")], markdown_file: MarkdownFile = None
) -> None:
    """AP over all rolls and per roll, and how often the direction is right: mean and spread over the seeds."""
    from crossdet_research.orientation.tables import grids, markdown, notes, read_runs

    found = read_runs(results)
    said, wrong = notes(found)
    report(rich_tables(grids(found)), said, markdown_file, markdown(found))
    for line in wrong:
        options.say_bold(line)
