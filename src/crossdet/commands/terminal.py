"""What the commands have in common: their options, printing, and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from crossdet.errors import RunError, UserError
from crossdet.files import write_json
from crossdet.models.card import is_exported

out = Console()
INTERRUPTED = 130
"""Typer's exit code after Ctrl-C, about which it prints nothing."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config file")]
RunOrWeights = Annotated[
    Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="run directory, .safetensors file or hf://OWNER/NAME")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a config value, e.g. --set train.lr=0.01"),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="where to write")]
Resume = Annotated[bool, typer.Option(help="continue the run in the output directory")]
Overwrite = Annotated[bool, typer.Option(help="replace the run in the output directory")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="also write the numbers as JSON")
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
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: a GPU of CUDA where torch sees one)"),
]


def check_device(device: str | None, paths: Iterable[Path]) -> None:
    """Raises `UserError` where one of the detectors is a file that asks torch for no device."""
    if device is not None and (exported := [str(path) for path in paths if is_exported(path)]):
        raise UserError(
            f"--device: {exported[0]} is an exported file and runs where its own software does; leave it out"
        )


def say(text: str, style: str = "") -> None:
    """A line as it is: no markup, no line breaks of ours."""
    out.print(escape(text), highlight=False, soft_wrap=True, style=style)


def save_json(file: Path | None, content: Any) -> None:
    """What `--json` asks for; nothing where it is not given."""
    if file is not None:
        write_json(file, content)


def run_app(app: typer.Typer) -> None:
    """Runs a command line; the package's errors become messages and exit codes (`crossdet.commands.main`)."""
    errors = Console(stderr=True)
    try:
        app()
    except (UserError, RunError, OSError) as error:
        mine = isinstance(error, UserError)
        text = str(error).replace("[", r"\[")
        word = "error" if mine else "failed"
        errors.print(f"[bold red]{word}[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(2 if mine else 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        text = str(error).splitlines()[0].replace("[", r"\[")
        hint = "take fewer or smaller pictures at once, or another --device, where the command has these options"
        errors.print(f"[bold red]failed[/bold red] {text}; {hint}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interrupted")
        raise
