"""`crossdet audit`: what a detector finds of the classes that a dataset does not label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import (
    AgnosticNms,
    Device,
    JsonFile,
    Last,
    Output,
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


def audit(
    run: RunOrWeights,
    config: OwnConfig = None,
    overrides: Overrides = None,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="RUN_OR_WEIGHTS", help="another detector, shown side by side")
    ] = None,
    split: SplitName = "val",
    agnostic_nms: AgnosticNms = None,
    last: Last = False,
    device: Device = None,
    output: Output = None,
    json_file: JsonFile = None,
) -> None:
    """Show what no protocol sees: detections of classes that a dataset does not label."""
    from crossdet.config import load_config
    from crossdet.export.sessions import card_in
    from crossdet.models.card import taken
    from crossdet.models.hub import fetched, results_folder

    run = fetched(run)
    config = own_config("audit", run, config)
    loaded = load_config(config, overrides or [], card_in(run).space.datasets)
    check_no_input(json_file, loaded, config)
    check_no_input_of(json_file, run)
    runs = [run, *map(fetched, against or [])]
    check_device(device, runs)
    for one in runs:
        say(taken(one, last))

    from crossdet.runs.audit import audit_runs, audit_tables

    folder = output or results_folder(run) / "audit"
    content = audit_runs(runs, loaded, folder, split, agnostic_nms, last, device)
    for name, record in content.items():
        say(f"{name}: {' '.join(record['summary'])}\n" if len(content) > 1 else f"{' '.join(record['summary'])}\n")
    for title, table in audit_tables(content):
        say(title)
        out.print(table)
        out.print()
    save_json(json_file, content)
    say(f"{folder}  (audit.html, audit.json, unlabelled_DATASET.json for review in a labelling tool)")
