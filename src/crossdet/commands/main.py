"""The command line: thin, every command is a few calls into the package.

Exit codes: 0 ok, 1 the run failed, 2 the user's mistake (message only, no traceback), 3 `extend` forgot more than
its tolerance. Torch is imported inside the commands that need it, so `--help` and `check` are instant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crossdet.commands.anchors import anchors
from crossdet.commands.extend import extend
from crossdet.commands.labels import labels
from crossdet.commands.score import app as score_app
from crossdet.commands.terminal import JsonFile, run_app
from crossdet.errors import RunError, UserError

app = typer.Typer(
    help="Train one object detector across datasets that label different things.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(score_app, name="score")
out = Console()

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a config value, e.g. --set train.lr=0.01"),
]
Fold = Annotated[
    bool,
    typer.Option(help="report directions of a class, its classes per dataset, and merged classes as one class"),
]
AgnosticNms = Annotated[
    bool | None,
    typer.Option(
        "--agnostic-nms/--no-agnostic-nms",
        help="of several classes at one place report the best (default: as `eval.agnostic_nms` says, of the "
        "config or, for predict, of the weights)",
    ),
]
Last = Annotated[
    bool, typer.Option("--last", help="of a run directory its newest weights instead of its best ones")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="where to write")]


@app.command()
def check(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML config file; or trained weights, or a run directory")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="folder for --pictures (default: check_pictures)")
    ] = None,
    overrides: Overrides = None,
    extends: Annotated[
        Path | None,
        typer.Option(
            "--extends", metavar="WEIGHTS", help="read the config as `crossdet extend WEIGHTS CONFIG` would"
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="write training batches as pictures: boxes, flags, avoided classes")
    ] = False,
    batches: Annotated[int, typer.Option(min=1, help="how many batches --pictures draws")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Read everything before any training: data, merged labels, avoidance matrix, anchors, duplicates.

    Of trained weights: their classes, label rules, thresholds, and the generations that they come from.
    A config that extends weights: --extends WEIGHTS.
    """
    from crossdet.check import inspect, inspect_weights, print_report, print_weights
    from crossdet.config import load_config
    from crossdet.models.card import known_space, means_weights

    weights = means_weights(config)
    _check_arguments(config, weights, folder, pictures, overrides, extends)
    if weights:
        known = inspect_weights(config)
        print_weights(known, out)
        if json_file is not None:
            _write_json(json_file, json.loads(known.to_json()))
        return
    grown = None if extends is None else known_space(extends)
    loaded = load_config(config, overrides or [], () if grown is None else grown.datasets)
    if extends is None:
        report = inspect(loaded)
    else:
        from crossdet.check.extension import inspect_extension

        report, loaded = inspect_extension(loaded, extends)
    print_report(report, out)
    if json_file is not None:
        _write_json(json_file, json.loads(report.to_json()))
    if report.errors:
        raise typer.Exit(2)
    if pictures:
        from crossdet.data.drawing import write_batch_pictures
        from crossdet.runs.building import training_batches

        target = folder or Path("check_pictures")
        drawn, sources = training_batches(loaded, batches, known=grown)
        files = write_batch_pictures(drawn, sources.space, sources.space.datasets, target)
        out.print(f"{len(files)} training pictures in {escape(str(target))}", highlight=False)


def _check_arguments(
    config: Path,
    weights: bool,
    folder: Path | None,
    pictures: bool,
    overrides: list[str] | None,
    extends: Path | None,
) -> None:
    """Refuses what `check` would have to ignore. weights: CONFIG is trained weights."""
    if folder is not None and not pictures:
        hint = ""
        if weights and folder.is_file():
            hint = f"; to check a config that extends weights: `crossdet check {folder} --extends {config}`"
        raise UserError(
            f"unexpected argument {folder}: a second one is the folder of --pictures, which is not given{hint}"
        )
    given = [("--pictures", pictures), ("--set", overrides), ("--extends", extends)]
    ignored = [name for name, value in given if value]
    if weights and ignored:
        raise UserError(f"{', '.join(ignored)}: for a config, but {config} is no YAML file; name the config first")


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option(help="continue the run in the output directory")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace the run in the output directory")] = False,
    json_file: JsonFile = None,
) -> None:
    """Train one detector on all datasets of a config. Under torchrun it uses all its processes."""
    from crossdet.config import load_config

    loaded = load_config(config, overrides or [])  # its mistakes are told before torch is imported

    from crossdet.runs.building import is_first_process
    from crossdet.runs.train import train as run

    record = run(loaded, output=output, resume=resume, overwrite=overwrite)
    if not is_first_process():
        return
    if json_file is not None:
        _write_json(json_file, record)
    where = Path(output or loaded.output or ".")
    files = ("model.safetensors", "best.safetensors", "metrics.json", "steps.csv", "pictures")
    written = ", ".join(name for name in files if (where / name).exists())
    out.print(f"done: {escape(str(where))}  ({written})", highlight=False, soft_wrap=True)


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="run directory or .safetensors file")],
    config: ConfigFile,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="where to write precision-recall curves and predictions (default: inside a run directory)",
        ),
    ] = None,
    classes: Annotated[bool, typer.Option("--per-class", help="also print the scores of every class")] = False,
    store: Annotated[
        bool,
        typer.Option("--store-thresholds", help="store the thresholds of best F1 in the weights file, for predict"),
    ] = False,
    fold: Fold = True,
    agnostic_nms: AgnosticNms = None,
    last: Last = False,
) -> None:
    """Score a detector on every dataset of a config, by its own protocol, on the classes that it labels."""
    from crossdet.config import load_config
    from crossdet.models.card import check_order, known_space, taken

    if store and not fold:
        raise UserError("--store-thresholds: they are kept for whole classes; leave out --no-fold")
    check_order("eval", run, config)
    loaded = load_config(config, overrides or [], known_space(run).datasets)
    _say(taken(run, last))

    from crossdet.runs.evaluate import evaluate as score
    from crossdet.runs.evaluate import metrics_table

    folder = output or (run / f"eval_{config.stem}" if run.is_dir() else None)
    metrics = score(run, loaded, output=folder, fold=fold, agnostic_nms=agnostic_nms, last=last)
    print(metrics_table(metrics))
    if classes:
        for name, row in metrics["datasets"].items():
            out.print(_class_table(name, row["per_class"]))
    default = run / f"eval_{config.stem}.json" if run.is_dir() else None
    target = json_file or default
    if target is not None:
        _write_json(target, metrics)
        out.print(f"numbers in {escape(str(target))}", highlight=False, soft_wrap=True)
    if folder is not None:
        out.print(f"curves and predictions in {escape(str(folder))}", highlight=False, soft_wrap=True)
    if store:
        from crossdet.models.card import read_card, weights_path
        from crossdet.models.weights import update_card

        weights = weights_path(run, last)
        # classes that the config lacks keep theirs
        stored = read_card(weights).operating or {}
        update_card(weights, operating={**stored, **metrics["operating"]})
        _say(f"{len(metrics['operating'])} thresholds stored in {weights}")


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="run directory or .safetensors file")],
    config: ConfigFile,
    overrides: Overrides = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="RUN_OR_WEIGHTS", help="another detector, shown side by side"),
    ] = None,
    split: Annotated[str, typer.Option(help="split to look at: val or train")] = "val",
    agnostic_nms: AgnosticNms = None,
    last: Last = False,
    output: Output = None,
    json_file: JsonFile = None,
) -> None:
    """Show what no protocol sees: detections of classes that a dataset does not label."""
    from crossdet.config import load_config
    from crossdet.models.card import check_order, known_space, taken

    check_order("audit", run, config)
    loaded = load_config(config, overrides or [], known_space(run).datasets)
    if split not in ("val", "train"):
        raise UserError(f"--split: expected val or train, got {split!r}")

    runs = [run, *(against or [])]
    for one in runs:
        _say(taken(one, last))

    from crossdet.runs.audit import audit_runs, audit_tables

    folder = output or ((run if run.is_dir() else run.parent) / "audit")
    content = audit_runs(runs, loaded, folder, split, agnostic_nms, last)
    for title, table in audit_tables(content):
        out.print(escape(title), highlight=False, soft_wrap=True)
        out.print(table)
        out.print()
    if json_file is not None:
        _write_json(json_file, content)
    files = "audit.html, audit.json, unlabelled_DATASET.json for review in a labelling tool"
    out.print(f"{escape(str(folder))}  ({files})", highlight=False, soft_wrap=True)


@app.command()
def curves(
    files: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FILE...", help="curves.json of eval or score, or its folder")
    ],
    output: Output = Path("curves"),
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="draw only this dataset; may be repeated")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="write what was drawn into one small JSON, which this command draws again"
        ),
    ] = None,
) -> None:
    """Draw the precision-recall curves of several runs or methods into one figure per dataset."""
    from crossdet.evaluation.curves import overlay

    named = [(name or None, Path(file)) for name, _, file in (part.rpartition("=") for part in files)]
    for picture in overlay(named, output or Path("curves"), dataset or (), data):
        out.print(escape(str(picture)), highlight=False, soft_wrap=True)


@app.command()
def predict(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="weights file or run directory")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="files, folders or glob patterns")],
    output: Output = Path("predictions"),
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="look only for these classes (unified names)")
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="lowest score to report (default: each class's own, from the weights, or 0.3)"
        ),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="most detections per image (default: as trained with)")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="draw the detections into copies of the images")] = True,
    coco: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="take image and category ids of the COCO results from this file"),
    ] = None,
    fold: Fold = True,
    agnostic_nms: AgnosticNms = None,
    last: Last = False,
    json_file: JsonFile = None,
) -> None:
    """Detect objects in images: drawn pictures, predictions.json and a COCO results file."""
    from crossdet.models.card import taken

    _say(taken(weights, last))

    from crossdet.runs.predict import predict_to_folder

    names = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    summary = predict_to_folder(
        weights,
        images,
        output or Path("predictions"),
        names,
        score,
        max_detections,
        pictures,
        coco,
        fold,
        agnostic_nms,
        last,
    )
    for line in summary.unreadable:
        out.print(f"[yellow]skipped[/yellow] {escape(line)}", highlight=False, soft_wrap=True)
    counts = ", ".join(f"{name} {count}" for name, count in summary.counts.items()) or "nothing"
    out.print(f"{summary.images} images: {escape(counts)}", highlight=False, soft_wrap=True)
    folder = escape(str(summary.folder))
    out.print(f"{folder}  (predictions.json, coco_results.json, pictures)", highlight=False, soft_wrap=True)
    if json_file is not None:
        _write_json(json_file, json.loads((summary.folder / "predictions.json").read_text()))
    if not summary.images:
        raise RunError("none of the images could be read")


@app.command()
def demo(
    output: Output = Path("demo"),
    seed: Annotated[int, typer.Option(help="of the generated pictures and of both trainings")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="optimiser steps per training (default: the full demo)")
    ] = None,
    images: Annotated[int, typer.Option(min=8, help="generated training pictures per dataset")] = 300,
    test_images: Annotated[
        int | None, typer.Option(min=4, help="fully labelled test pictures per look (default: a third of --images)")
    ] = None,
    data_only: Annotated[
        bool, typer.Option(help="write the pictures and the configs aware, naive and full; train nothing")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Generate three partially labelled datasets, train dataset-aware and naively, and compare (CPU, minutes)."""
    from crossdet.demo.comparison import run_demo, write_demo_world

    folder = output or Path("demo")
    if data_only:
        if json_file is not None:
            raise UserError("--json: with --data-only there are no numbers to write")
        write_demo_world(folder, seed, steps, images, test_images)
        out.print(f"pictures: {folder}/data; configs: {folder}/aware.yaml, naive.yaml, full.yaml (all labels)")
        return
    result = run_demo(folder, out, seed, steps, images, test_images)
    if json_file is not None:
        _write_json(json_file, result)


app.command()(extend)
app.command()(labels)
app.command()(anchors)


def _say(text: str) -> None:
    """A line as it is: no markup, no line breaks of ours."""
    out.print(escape(text), highlight=False, soft_wrap=True)


def _class_table(dataset: str, per_class: dict[str, dict[str, Any]]) -> Table:
    """The numbers that the dataset's protocol has per class; counts as they are, ratios in percent."""
    keys = list(dict.fromkeys(key for row in per_class.values() for key in row))
    table = Table(title=dataset, title_justify="left", box=None, pad_edge=False)
    for column in ("class", *keys):
        title = "found at 0.3" if column == "found_confidently" else column
        table.add_column(title, justify="left" if column == "class" else "right")
    for name, row in per_class.items():
        table.add_row(name, *(_cell(row[key]) for key in keys))
    return table


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value != value else f"{100 * value:.1f}"


def _write_json(path: Path, content: Any) -> None:
    from crossdet.files import write_json

    write_json(path, content)


def main() -> None:
    """Entry point of the command `crossdet`."""
    run_app(app)
