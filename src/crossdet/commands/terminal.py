"""What the commands have in common: their options, printing, and exit codes."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from typer.main import get_command

from crossdet.errors import ConfigError, Interrupted, RunError, UserError
from crossdet.files import json_text, write_json
from crossdet.models.card import check_order, is_exported, means_weights

if TYPE_CHECKING:
    from crossdet.config import Config

out = Console(emoji=False)  # a class or path with `:car:` in it is printed as it is
STDOUT = Path("-")
_json_output: list[TextIO] = []
INTERRUPTED = 130
"""Exit code after Ctrl-C. It is Typer's, who prints nothing about it."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config file")]
OwnConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="YAML config file (default: that of the run directory)")
]
ANY_WEIGHTS = (
    "run directory, weights file, exported file, directory of a Hugging Face checkpoint, or hf://OWNER/NAME"
)
RunOrWeights = Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help=ANY_WEIGHTS)]
OwnWeights = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_WEIGHTS",
        help="run directory, weights file, directory of a Hugging Face checkpoint, or hf://OWNER/NAME",
    ),
]
"""Not for exported files."""
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a config value, e.g. --set train.lr=0.01"),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="where to write")]
Resume = Annotated[bool, typer.Option(help="continue the run in the output directory")]
Overwrite = Annotated[bool, typer.Option(help="replace the run in the output directory")]


def listed_names(text: str, strip: bool = True) -> list[str]:
    """`A,B` of an option: what stands between commas and is not empty; `\\,` is a comma within a name."""
    names = [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    return [name.strip() if strip else name for name in names if name.strip()]


def _json_target(file: Path | None) -> Path | None:
    """Told before any work: a slip of the keyboard's completion must cost no config, and a bad place no numbers."""
    if file is None or file == STDOUT:
        return file
    if file.suffix.lower() != ".json":
        raise UserError(f"--json {file}: expected a name that ends in .json; nothing else is written over")
    above = next(place for place in file.absolute().parents if place.exists())
    if not above.is_dir():
        raise UserError(f"--json {file}: {above} is a file, not a folder")
    return file


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        dir_okay=False,
        callback=_json_target,
        help="also write the numbers as JSON (-: to stdout)",
    ),
]
SplitName = Annotated[
    Literal["val", "test", "train"], typer.Option("--split", help="of each dataset, the pictures to look at")
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


def check_no_input(file: Path | None, config: Config, written: Path, option: str = "--json") -> None:
    """Raises `UserError` where what is to be written would take the place of data, or of the config. written: the
    config's file."""
    if file is not None:
        from crossdet.config.sources import inputs_of

        check_not_read(option, file, [written, *inputs_of(config)])


def check_no_input_of(file: Path | None, run: Path, data: Path | None = None) -> None:
    """As `check_no_input`, for what a run directory or weights say of themselves. data: a config of other data than
    the run's own."""
    from crossdet.config import CONFIG_FILE, load_config
    from crossdet.export.sessions import card_in
    from crossdet.models.card import METRICS_FILE
    from crossdet.models.hub import FILES

    if file is None or file == STDOUT:
        return
    check_not_read("--json", file, [run, *(run / name for name in (METRICS_FILE, *FILES))])
    for written in (run / CONFIG_FILE, *([data] if data else [])):
        if written.is_file():
            with suppress(ConfigError):  # who needs the config tells what is wrong with it
                check_no_input(file, load_config(written, [], card_in(run).space.datasets), written)


def check_not_read(option: str, file: Path | None, inputs: Iterable[Path]) -> None:
    """Raises `UserError` where `file` is one of `inputs`, or lies in a folder among them and is of a kind that is
    read by folders (result and annotation files; JSON is named one by one)."""
    if file is None or file == STDOUT:
        return
    whole = file.resolve()
    of_folders = whole.suffix.lower() in (".txt", ".xml") and whole.is_file()
    for one in map(Path.resolve, inputs):
        if whole == one or (of_folders and whole.is_relative_to(one)):
            raise UserError(f"{option} {file}: this file is read; choose another name")


def own_config(command: str, run: Path, config: Path | None) -> Path:
    """The config of a command, which is that of the run directory where none is given.

    Raises `UserError` where there is none, or where it stands where the weights should.
    """
    from crossdet.config import CONFIG_FILE

    if config is not None:
        check_order(command, run, config)
        return config
    if not run.exists():
        raise UserError(f"{run} does not exist")
    if not means_weights(run):
        raise UserError(f"{run} is a config, and the weights come first: `crossdet {command} RUN {run}`")
    own = run / CONFIG_FILE
    if not own.is_file():
        raise UserError(f"{run} is no run directory with a {CONFIG_FILE}: `crossdet {command} {run} CONFIG`")
    say(f"config: {own}")
    return own


def say(text: str, style: str = "") -> None:
    """A line as it is: no markup, no line breaks of ours."""
    out.print(escape(text), highlight=False, soft_wrap=True, style=style)


def save_json(file: Path | None, content: Any) -> None:
    """What `--json` asks for; nothing where it is not given."""
    if file == STDOUT:
        print(json_text(content), end="", file=next(iter(_json_output), sys.stdout))
    elif file is not None:
        write_json(file, content)


@contextmanager
def _messages_elsewhere() -> Iterator[None]:
    """Standard output is for what `save_json` writes."""
    _json_output.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.clear()


def _without_types_of_flags(command: Any) -> None:
    """`--last`, and not `--last <bool>`: Typer's help would have a reader write `--last true`."""
    made = command.get_help_option

    def help_option(context: Any) -> Any:
        if (option := made(context)) is not None:
            option.metavar = ""
        return option

    command.get_help_option = help_option
    for option in command.params:
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for one in getattr(command, "commands", {}).values():
        _without_types_of_flags(one)


def run_app(app: typer.Typer) -> None:
    """Runs a command line; the package's errors become messages and exit codes (`crossdet.commands.main`)."""
    for stream in (sys.stdout, sys.stderr):  # a file name may hold bytes that no encoding has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    errors = Console(stderr=True, emoji=False)
    alone = ("--json", "-") in pairwise(sys.argv) or "--json=-" in sys.argv
    try:
        command = get_command(app)
        _without_types_of_flags(command)
        with _messages_elsewhere() if alone else nullcontext():
            command()
    except (UserError, RunError, OSError) as error:
        word, code = ("error", 2) if isinstance(error, UserError) else ("failed", 1)
        text = str(error).replace("[", r"\[")
        if isinstance(error, Interrupted):
            if os.environ.get("LOCAL_RANK", "0") != "0":  # of several processes, which all say the same
                sys.exit(INTERRUPTED)
            word, code, text = "interrupted", INTERRUPTED, text.removeprefix("interrupted ")
        errors.print(f"[bold red]{word}[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(code)
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
