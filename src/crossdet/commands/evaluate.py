"""`crossdet eval`: the scores of a detector on the datasets of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from crossdet.commands.terminal import (
    STDOUT,
    AgnosticNms,
    Device,
    Fold,
    JsonFile,
    Last,
    Overrides,
    OwnConfig,
    RunOrWeights,
    SplitName,
    check_device,
    check_no_input,
    check_no_input_of,
    out,
    own_config,
    save_json,
    say,
)
from crossdet.errors import UserError
from crossdet.evaluation.tables import lineless_table, percent
from crossdet.models.card import is_exported


def evaluate(
    run: RunOrWeights,
    config: OwnConfig = None,
    overrides: Overrides = None,
    split: SplitName = "val",
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
    device: Device = None,
) -> None:
    """Score a detector on every dataset of a config, by its own protocol, on the classes that it labels."""
    from crossdet.config import load_config
    from crossdet.export.sessions import card_in
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched, results_folder

    given, run = run, fetched(run)
    check_device(device, [run])
    if store:
        _check_storable(given, run, fold, split)
    config = own_config("eval", run, config)
    loaded = load_config(config, overrides or [], card_in(run).space.datasets)
    check_no_input(json_file, loaded, config)
    check_no_input_of(json_file, run)
    say(taken(run, last))

    from crossdet.runs.evaluate import evaluate as score
    from crossdet.runs.evaluate import metrics_table
    from crossdet.training.guard import lines

    of_split = "" if split == "val" else f"_{split}"
    inside = results_folder(run) / f"eval_{config.stem}{of_split}" if run.is_dir() else None
    folder = output or inside
    metrics = score(run, loaded, split, folder, fold, agnostic_nms, last, device)
    print(*[metrics_table(metrics), *lines(metrics["warnings"])], sep="\n")
    if reason := metrics.get("label_rules_apart"):
        told = "the config contradicts the labels that the weights were trained with, so it is read by itself"
        say(f"note: {told}; {reason}", "yellow")
    if classes:
        for name, row in metrics["datasets"].items():
            out.print(_class_table(name, row["per_class"]))
    default = None if inside is None else inside.with_name(f"{inside.name}.json")
    for target in dict.fromkeys([default if output is None else output / "eval.json", json_file]):
        if target is not None:
            save_json(target, metrics)
            say(f"numbers in {'standard output' if target == STDOUT else target}")
    if folder is not None:
        say(f"curves and predictions in {folder}")
    if store:
        _store_thresholds(run, last, metrics["operating"])


def _store_thresholds(run: Path, last: bool, points: dict[str, Any]) -> None:
    """In the weights; classes that the config lacks keep theirs."""
    from crossdet.models.card import foreign_checkpoint, read_card, weights_path
    from crossdet.models.weights import update_card

    weights = weights_path(run, last) if foreign_checkpoint(run) is None else run
    file = update_card(weights, operating={**(read_card(weights).operating or {}), **points})
    say(f"{len(points)} thresholds stored in {file}")


def _check_storable(given: Path, run: Path, fold: bool, split: str) -> None:
    """run: what was fetched of `given`."""
    if not fold:
        raise UserError("--store-thresholds: they are kept for whole classes; leave out --no-fold")
    if split != "val":
        raise UserError(f"--store-thresholds: they are chosen on `val`; chosen on {split} they would be too good")
    if run != given:
        raise UserError(
            f"--store-thresholds: {given} is not yours to change; take a copy, such as `hf download` makes with "
            f"--local-dir, and give its directory"
        )
    if is_exported(run):
        raise UserError(
            "--store-thresholds: an exported file cannot be changed; store them in the weights, export again"
        )


def _class_table(dataset: str, per_class: dict[str, dict[str, Any]]) -> Table:
    """The numbers that the dataset's protocol has per class; counts as they are, ratios in percent."""
    keys = list(dict.fromkeys(key for row in per_class.values() for key in row))
    titles = ("found at 0.3" if key == "found_confidently" else key for key in keys)
    table = lineless_table("class", *titles, title=dataset)
    for name, row in per_class.items():
        cells = (str(row[key]) if isinstance(row[key], int) else percent(row[key]) for key in keys)
        table.add_row(name, *cells)
    return table
