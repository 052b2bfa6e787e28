"""The command line: thin, every command is a few calls into the package, in a file of its own.

Exit codes: 0 ok, 1 the run failed, 2 the user's mistake (message only, no traceback), 3 `extend` forgot more than
its tolerance. Torch is imported inside the commands that need it, so `--help` and `check` are instant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from crossdet import __version__
from crossdet.commands.anchors import anchors
from crossdet.commands.audit import audit
from crossdet.commands.check import check
from crossdet.commands.curves import curves
from crossdet.commands.demo import demo
from crossdet.commands.evaluate import evaluate
from crossdet.commands.export import export
from crossdet.commands.extend import extend
from crossdet.commands.labels import labels
from crossdet.commands.new import new
from crossdet.commands.predict import predict
from crossdet.commands.push import push
from crossdet.commands.report import report
from crossdet.commands.score import app as score_app
from crossdet.commands.serve import serve
from crossdet.commands.terminal import run_app
from crossdet.commands.train import train

COMMANDS: dict[str, Callable[..., None]] = {
    "new": new,
    "check": check,
    "train": train,
    "eval": evaluate,
    "audit": audit,
    "report": report,
    "curves": curves,
    "predict": predict,
    "serve": serve,
    "export": export,
    "push": push,
    "demo": demo,
    "extend": extend,
    "labels": labels,
    "anchors": anchors,
}

app = typer.Typer(
    help="Train one object detector across datasets that label different things.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"crossdet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # typer calls `_version`
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    """Train one object detector across datasets that label different things."""


for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(score_app, name="score")


def main() -> None:
    """Entry point of the command `crossdet`."""
    run_app(app)
