"""`crossdet-research lifelong`: datasets that come one after the other, and what each method forgets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import (
    FigureFile,
    JsonFile,
    MarkdownFile,
    Overrides,
    RunsDir,
    Seeds,
    say,
    say_bold,
    seed_numbers,
    words,
)
from crossdet_research.study import report, study_app
from crossdet_research.tables import rich_tables

app = study_app(
    "lifelong",
    "Datasets that arrive one after the other: what each mode of `extend` keeps and learns: run, table, plot.",
)
ResultsDir = Annotated[Path, typer.Argument(metavar="DIR", help="folder with the JSONs of one sequence")]


class JointChoice(StrEnum):
    last = "last"
    every = "every"


class PlaceChoice(StrEnum):
    val = "val"
    union = "union"


Generations = Annotated[
    list[str] | None,
    typer.Option(
        "--generation",
        metavar="A,B",
        help="datasets that arrive together; once per generation, in order (default: one dataset each)",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods",
        metavar="A,B",
        help="fine_tune, replay, distill, distill_replay, frozen, frozen_adapter, joint (default: all)",
    ),
]
ExtendOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--extend-set",
        metavar="[METHOD:]KEY=VALUE",
        help="override a config value of the extensions, or of one method's: replay:train.lr=0.01",
    ),
]
ReplayShare = Annotated[
    str,
    typer.Option(
        "--replay-share",
        metavar="N/M",
        help="of the old images for replay and distill_replay: the N-th of M parts, the next with each seed",
    ),
]
ReplayWeight = Annotated[
    float, typer.Option("--replay-weight", metavar="W", help="factor on the chance of these to be drawn")
]
UnionOfVal = Annotated[
    bool,
    typer.Option(
        "--union-of-val",
        help="the val images of all datasets are a union test: none shows a class that its dataset does not label",
    ),
]
Places = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="NAME=FILE",
        help="also judge the images of the union test that FILE lists by themselves; once per place",
    ),
]


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML config file; its datasets arrive in their order")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="JSONs go here")],
    generation: Generations = None,
    methods: Methods = None,
    seeds: Seeds = None,
    overrides: Overrides = None,
    extend_overrides: ExtendOverrides = None,
    share: ReplayShare = "1/4",
    replay_weight: ReplayWeight = 1.0,
    joint: Annotated[
        JointChoice, typer.Option("--joint", help="train on everything so far for the last generation, or every")
    ] = JointChoice.last,
    union_of_val: UnionOfVal = False,
    places: Places = None,
    runs: RunsDir = None,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet-research lifelong run all.yaml --generation faces --generation peds,objects -o lifelong
    """
    from crossdet_research.lifelong.plan import Settings, chosen_methods
    from crossdet_research.lifelong.queue import run_lifelong

    settings = Settings(
        config,
        tuple(overrides or ()),
        tuple(extend_overrides or ()),
        share,
        replay_weight,
        union_of_val,
        tuple(places or ()),
    )
    files = run_lifelong(
        settings,
        output,
        chosen_methods(words(methods)),
        seed_numbers(seeds),
        generation or (),
        joint is JointChoice.every,
        runs,
        say_bold,
    )
    for file in files:
        say(str(file))


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
    output: FigureFile,
    place: Annotated[
        PlaceChoice | None,
        typer.Option("--on", help="validation images or union test (default: the union test, if there is one)"),
    ] = None,
) -> None:
    """Draw AP50 over the generations: a panel per class, a line per method, a band over the seeds."""
    from crossdet_research.lifelong.figure import draw_generations
    from crossdet_research.lifelong.results import read_results

    draw_generations(read_results(results), output, None if place is None else place.value)
    say(str(output))
