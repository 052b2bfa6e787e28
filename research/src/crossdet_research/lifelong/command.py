"""`crossdet-research lifelong`: datasets that come one after the other, and what each method forgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from crossdet.commands.terminal import JsonFile
from crossdet_research import options
from crossdet_research.options import MarkdownFile
from crossdet_research.study import Several, argument, option, report, say_files, study_app
from crossdet_research.tables import rich_tables

app = study_app(
    "lifelong",
    "Datasets that arrive one after the other: what each mode of `extend` keeps and learns: run, table, plot.",
)
ResultsDir = Annotated[Path, argument("DIR", "folder with the JSONs of one sequence")]


Generations = Annotated[
    Several,
    option(
        "--generation",
        "A,B",
        "datasets that arrive together; once per generation, in order (default: one dataset each)",
    ),
]
Methods = Annotated[
    Several,
    option(
        "--methods",
        "A,B",
        "fine_tune, replay, distill, distill_replay, frozen, frozen_adapter, joint (default: all)",
    ),
]
ExtendOverrides = Annotated[
    Several,
    option(
        "--extend-set",
        "[METHOD:]KEY=VALUE",
        "override a config value of the extensions, or of one method's: replay:train.lr=0.01",
    ),
]
ReplayShare = Annotated[
    str,
    option(
        "--replay-share",
        "N/M",
        "of the old images for replay and distill_replay: the N-th of M parts, the next with each seed",
    ),
]
ReplayWeight = Annotated[float, option("--replay-weight", "W", "factor on the chance of these to be drawn")]
UnionOfVal = Annotated[
    bool,
    typer.Option(
        "--union-of-val",
        help="the val images of all datasets are a union test: none shows a class that its dataset does not label",
    ),
]
Places = Annotated[
    Several,
    option(
        "--place",
        "NAME=FILE",
        "also judge the images of the union test that FILE lists by themselves; once per place",
    ),
]


@app.command()
def run(
    config: Annotated[Path, argument("CONFIG", "YAML config file; its datasets arrive in their order")],
    output: Annotated[Path, option("--output", "DIR", "JSONs go here", "-o")],
    generation: Generations = None,
    methods: Methods = None,
    seeds: options.Seeds = None,
    overrides: options.Overrides = None,
    extend_overrides: ExtendOverrides = None,
    share: ReplayShare = "1/4",
    replay_weight: ReplayWeight = 1.0,
    joint: Annotated[
        Literal["last", "every"],
        typer.Option("--joint", help="train on everything so far for the last generation, or every"),
    ] = "last",
    union_of_val: UnionOfVal = False,
    places: Places = None,
    runs: options.RunsDir = None,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet-research lifelong run all.yaml --generation faces --generation peds,objects -o lifelong
    """
    from crossdet_research.lifelong.plan import Settings, chosen_methods
    from crossdet_research.lifelong.queue import run_lifelong

    settings = Settings(
        config, overrides or (), extend_overrides or (), share, replay_weight, union_of_val, places or ()
    )
    chosen, numbers = chosen_methods(options.words(methods)), options.seed_numbers(seeds)
    every_joint = joint == "every"
    say_files(
        run_lifelong(settings, output, chosen, numbers, generation or (), every_joint, runs, options.say_bold)
    )


@app.command()
def table(results: ResultsDir, markdown_file: MarkdownFile = None, json_file: JsonFile = None) -> None:
    """What old classes lost, what new ones reached, and every class from its arrival to the end."""
    from crossdet_research.lifelong.results import read_results
    from crossdet_research.lifelong.tables import as_json, grids, markdown, notes

    found = read_results(results)
    report(rich_tables(grids(found)), notes(found), markdown_file, markdown(found), json_file, as_json(found))


@app.command()
def plot(
    results: ResultsDir,
    output: options.FigureFile,
    place: Annotated[
        Literal["val", "union"] | None,
        typer.Option("--on", help="validation images or union test (default: the union test, if there is one)"),
    ] = None,
) -> None:
    """Draw AP50 over the generations: a panel per class, a line per method, a band over the seeds."""
    from crossdet_research.lifelong.figure import draw_generations
    from crossdet_research.lifelong.results import read_results

    draw_generations(read_results(results), output, place)
    options.say(str(output))
