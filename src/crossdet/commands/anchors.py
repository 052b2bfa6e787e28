"""`crossdet anchors`: which anchor scales and ratios fit the boxes of all datasets together. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossdet.commands.terminal import (
    STDOUT,
    ConfigFile,
    JsonFile,
    check_no_input,
    check_not_read,
    out,
    save_json,
    say,
)
from crossdet.errors import UserError

if TYPE_CHECKING:
    from crossdet.config import Config

_FIGURES = (".png", ".pdf", ".svg")


def anchors(
    config: ConfigFile,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a config value, e.g. --set input.shorter=600"),
    ] = None,
    scales: Annotated[
        int | None, typer.Option(metavar="N", help="how many scales to propose (default: as the config)")
    ] = None,
    ratios: Annotated[
        int | None, typer.Option(metavar="N", help="how many ratios to propose (default: as the config)")
    ] = None,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="draw the boxes of every dataset and the anchors among them"),
    ] = None,
) -> None:
    """Propose anchor scales and ratios for the training boxes of all datasets, and compare them with the paper's.

    Example: crossdet anchors config.yaml --scales 3 --ratios 2 --plot anchors.png
    """
    from crossdet.check.anchors import anchors_report, configured, training_boxes
    from crossdet.check.anchors_printing import draw_anchors, print_anchors
    from crossdet.config import load_config

    if plot is not None and plot.suffix.lower() not in _FIGURES:
        raise UserError(f"--plot: expected a file name that ends in {', '.join(_FIGURES)}, got {plot}")
    loaded = load_config(config, overrides or [])
    check_no_input(json_file, loaded, config)
    check_no_input(plot, loaded, config, "--plot")
    check_not_read("--plot", plot, _pictures_beside(loaded, plot))
    data, without_boxes = training_boxes(loaded)
    report = anchors_report(data, configured(loaded), scales, ratios, without_boxes)
    print_anchors(report, out)
    if json_file is not None:
        save_json(json_file, report.to_json())
        say(f"numbers in {'standard output' if json_file == STDOUT else json_file}")
    if plot is not None:
        draw_anchors(plot, data, report)
        say(f"figure in {plot}")


def _pictures_beside(config: Config, file: Path | None) -> Iterator[Path]:
    """Pictures of the data, as far as a file that is there could be one of them."""
    from crossdet.config.sources import open_sources

    if file is not None and file.is_file():
        for index in open_sources(config, ["train"]).train.values():
            yield from (index.path(row) for row, name in enumerate(index.names) if name.endswith(file.name))
