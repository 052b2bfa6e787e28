"""The command line of the laboratory: the paper's tables, and the studies that docs/results.md reports.

Exit codes are those of `crossdet`: 0 ok, 1 the run failed, 2 the user's mistake.
"""

from __future__ import annotations

import typer

from crossdet.commands.terminal import run_app
from crossdet_research.ablation.command import app as ablation_app
from crossdet_research.lifelong.command import app as lifelong_app
from crossdet_research.orientation.command import app as orientation_app
from crossdet_research.paper.command import app as paper_app
from crossdet_research.split.command import split

app = typer.Typer(
    help="Studies with crossdet: the paper's tables, controlled label conflicts, sequences of extensions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(paper_app, name="paper")
app.add_typer(ablation_app, name="ablation")
app.add_typer(orientation_app, name="orientation")
app.add_typer(lifelong_app, name="lifelong")
app.command()(split)


def main() -> None:
    """Entry point of the command `crossdet-research`."""
    run_app(app)
