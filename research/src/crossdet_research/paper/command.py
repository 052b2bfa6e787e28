"""`crossdet-research paper`: the paper's tables as experiments to list, look at, run and compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from crossdet.commands.terminal import JsonFile, say
from crossdet.errors import UserError
from crossdet.evaluation.figures import PICTURES, check_image_file
from crossdet.evaluation.tables import lineless_table
from crossdet.files import write_json
from crossdet_research import options
from crossdet_research.ablation.methods import FURTHER, METHODS
from crossdet_research.options import MarkdownFile, say_bold, wide
from crossdet_research.paper import rows as paper
from crossdet_research.paper import tables
from crossdet_research.study import Several, argument, option, report, say_files, study_app
from crossdet_research.tables import rich_tables

app = study_app("paper", "The experiments of the paper (tables 1-6, figure 5): list, show, run, table.")


Scale = Annotated[
    Literal["full", "mini"],
    typer.Option("--scale", help="full: the paper's recipe on the official downloads; mini: minutes"),
]
Images = Annotated[int, typer.Option("--images", min=8, help="mini: generated training pictures per dataset")]


@app.command(name="list")
def list_rows(
    throughput: Annotated[
        Several,
        option(
            "--images-per-second",
            "[BACKBONE=]N",
            "training throughput of one GPU, measured; adds the estimated GPU hours of full runs",
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """All rows of tables 1-6, the curves of figure 5 and the ablation, and where the paper contradicts itself."""
    speeds = _speeds(throughput or [])
    ablation = [(m.name, m.title) for m in (*METHODS, *FURTHER)] + [("expert_PART", "one part alone")]
    names = ("row", "data", "backbone", "ratios", "scales", "merge", "paper", "notes")
    shown = lineless_table(*names, *(["GPU hours"] if speeds else []), left=len(names), no_wrap=0)
    for table_key in paper.TITLES:
        shown.add_row(Text(f"Table {table_key}" if table_key.isdigit() else table_key, style="bold"))
        for row in (row for row in paper.ROWS if row.table == table_key):
            shown.add_row(*_row_cells(row), *([_hours(row, speeds)] if speeds else []))
    wide.print(shown, highlight=False)
    say(f"\n{len(paper.ROWS)} rows, {len(paper.TRAININGS)} trainings; rows with the same training share one run.")
    if speeds:
        known = [t for t in paper.TRAININGS.values() if t.backbone in speeds]
        total = sum(gpu_hours(training, speeds[training.backbone]) for training in known)
        say(f"GPU hours of {len(known)} trainings: {total:,.0f} (training alone, without evaluation).")
    say("\nThe ablation that the paper left out: `crossdet-research ablation run`, on what `split` wrote")
    width = max(len(method) for method, _ in ablation)
    for method, title in ablation:
        say(f"  {method:{width}}  {title}")
    say("\nContradictions and gaps, and what is run:")
    for number, entry in paper.CONTRADICTIONS.items():
        say(f"({number}) {entry.problem}. Run: {entry.reading}")
    if json_file is not None:
        content = {
            "rows": [tables.row_as_json(row) for row in paper.ROWS],
            "ablation": dict(ablation),
            "contradictions": {str(n): vars(entry) for n, entry in paper.CONTRADICTIONS.items()},
        }
        write_json(json_file, content)


@app.command()
def show(
    name: Annotated[str, argument("ROW|TRAINING", "such as t1/coco_resnet50 or coco_resnet50")],
    scale: Scale = "full",
    data: Annotated[Path, option("--data", "ROOT", "data folder")] = Path("data"),
    seed: Annotated[int, typer.Option(min=0, help="of the training")] = 0,
    images: Images = paper.MINI_IMAGES,
    overrides: options.Overrides = None,
) -> None:
    """The full resolved config of a row, as YAML: `crossdet check` and `train` take it."""
    from crossdet_research.paper.experiments import Place
    from crossdet_research.paper.experiments import show as text_of

    print(text_of(name, Place(data, Path(), images), scale, seed, overrides or []), end="")


@app.command()
def run(
    data: Annotated[Path, option("--data", "ROOT", "data folder: official downloads, or for generated pictures")],
    names: Annotated[
        Several, argument("[ROW|TRAINING|TABLE]...", "t1/coco_resnet50, coco_resnet50, t1, fig5")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="all rows of tables 1-6 and figure 5")] = False,
    scale: Scale = "full",
    output: Annotated[Path, option("--output", "DIR", "results go to DIR/SCALE", "-o")] = Path("runs/paper"),
    seeds: Annotated[list[int] | None, typer.Option("--seed", min=0, help="may be repeated")] = None,
    images: Images = paper.MINI_IMAGES,
    overrides: options.Overrides = None,
) -> None:
    """Train and evaluate; a queue that skips what is finished and goes on where it was stopped."""
    if everything == bool(names):
        raise UserError("name rows, trainings or tables, or give --all")
    from crossdet_research.jobs import is_first
    from crossdet_research.paper.experiments import Place, experiments_of, find_rows, run_queue

    rows = find_rows(names) if names else list(paper.ROWS)
    experiments = experiments_of(rows, scale, data)
    place = Place(data, output, images)
    files = run_queue(experiments, place, list(dict.fromkeys(seeds or [0])), overrides or [], say_bold)
    if is_first():
        say_files(files)


@app.command()
def table(
    number: Annotated[str, argument("TABLE", "1 to 6, or fig5")],
    results: Annotated[Path, option("--results", "DIR", "the --output of `paper run`")] = Path("runs/paper"),
    json_file: JsonFile = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """One of the paper's tables, the paper's numbers and ours side by side; blank where nothing was run."""
    found = tables.paper_table(number.removeprefix("t"), results)
    shown = rich_tables([tables.grid(found)], tables.headers(found).index("scales") + 1)
    report(shown, tables.notes(found), markdown_file, tables.markdown(found), json_file, tables.as_json(found))


@app.command()
def pictures(
    run_dir: Annotated[Path, argument("RUN_OR_WEIGHTS", "run directory or weights file")],
    config: Annotated[Path, argument("CONFIG", "YAML config file with val splits")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png")] = Path("figure6.png"),
    columns: Annotated[int, typer.Option(min=1, help="pictures per dataset")] = 4,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="lowest score drawn (default: each class's own)")
    ] = None,
) -> None:
    """Figure 6: a row of pictures per dataset, with what is found of all classes of the union."""
    from crossdet.config import load_config

    loaded = load_config(config)

    from crossdet.config.sources import open_sources
    from crossdet.evaluation.pictures import draw_by_dataset
    from crossdet.inference import load_detector

    detector = load_detector(run_dir, last=True)
    sources = open_sources(loaded, ["val"], detector=detector.space)
    if not sources.val:
        raise UserError(f"{config}: no dataset has a `val` split")
    check_image_file(output, PICTURES)
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_by_dataset(detector, sources.val, columns, score).save(output)
    say(str(output))


def gpu_hours(training: paper.Training, images_per_second: float) -> float:
    """Draws of the full schedule / throughput of one GPU; evaluation and start-up are not in it."""
    images = sum(paper.DATASETS[name].images for name in training.datasets)
    return images * int(paper.FULL["train"]["epochs"]) / images_per_second / 3600


def _row_cells(row: paper.Row) -> list[str]:
    training = paper.TRAININGS[row.training]
    shared = "COCO" in training.datasets and {"PED", "VOC"} & set(training.datasets)
    values = "; ".join(f"{d} {_numbers(v)}" for d, v in row.values.items())
    return [
        row.name,
        "+".join(training.datasets),
        paper.BACKBONES[training.backbone],
        *tables.anchor_texts(training, row),
        ("yes" if training.merge else "no") if shared else "",
        values,
        ", ".join(map(str, row.notes)),
    ]


def _hours(row: paper.Row, speeds: dict[str, float]) -> str:
    training = paper.TRAININGS[row.training]
    known = training.backbone in speeds
    return f"{gpu_hours(training, speeds[training.backbone]):.1f}" if known else ""


def _speeds(given: list[str]) -> dict[str, float]:
    """Backbone -> images per second; a number alone stands for all backbones."""
    speeds: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or (name and name not in paper.BACKBONES):
            names = ", ".join(paper.BACKBONES)
            raise UserError(
                f"--images-per-second {text}: expected a number above 0, or BACKBONE=NUMBER with {names}"
            )
        speeds |= {name: value} if name else dict.fromkeys(paper.BACKBONES, value)
    return speeds


def _numbers(values: Mapping[str, float | None]) -> str:
    return "curve" if None in values.values() else "/".join(map(str, values.values()))
