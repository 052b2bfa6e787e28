"""What all studies have in common: methods x seeds -> jobs -> check -> run -> one JSON each -> read -> tables.

A study has its own subclass of `Job`, which says what a result holds, and grids (`tables.Grid`) of its results. No
torch before a training starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import typer
from rich.table import Table

from crossdet.commands.terminal import out, say
from crossdet.config import Config
from crossdet.config.mistakes import suggest
from crossdet.errors import Diverged, RunError, UserError, problem_list
from crossdet.files import write_atomically, write_json
from crossdet_research import jobs
from crossdet_research.options import wide
from crossdet_research.tables import Run

# ------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """One way to train. name: on the command line and in file names. title: in tables."""

    name: str
    title: str


AnyMethod = TypeVar("AnyMethod", bound=Method)


def chosen_methods(
    names: Sequence[str], known: Mapping[str, Sequence[AnyMethod]], why: str = "unknown method"
) -> list[AnyMethod]:
    """The methods that these names stand for, each once. Raises `UserError` with all names that are unknown."""
    refuse(f"--methods {name}: {why}; {suggest(name, [*known], 'methods')}" for name in names if name not in known)
    return list(dict.fromkeys(method for name in names for method in known[name]))


def refuse(problems: Iterable[str], what: str = "mistake(s)") -> None:
    """Raises `UserError` with all problems; nothing without any."""
    if found := list(problems):
        raise UserError(problem_list(f"{len(found)} {what}", found))


# ------------------------------------------------------------------------------------------- queue


@dataclass(frozen=True)
class Job:
    """One training of a queue and its JSON. what: the config as it is compared. roots: folders of this machine ->
    what stands for them where something is written down. `tool` marks the JSONs of a study: older than the name of
    the command. `of_queue` stands in the advice after an interruption."""

    method: Method
    seed: int
    config: Config
    what: dict[str, Any]
    run_dir: Path
    file: Path
    roots: Mapping[Path, str]

    tool: ClassVar[str] = ""
    of_queue: ClassVar[str] = "of a queue"

    @property
    def title(self) -> str:
        return f"{self.method.name}, seed {self.seed}"

    @property
    def remark(self) -> str:
        """Said behind the title before the training."""
        return ""

    @property
    def note(self) -> dict[str, Any]:
        """What is known of a training that was begun."""
        return jobs.read_json(self.run_dir / jobs.NOTE)

    @property
    def what_of_run(self) -> dict[str, Any]:
        """What a run directory is compared by."""
        return self.what

    def problems(self) -> Iterator[str]:
        """Why the result or the run directory that is there cannot be used. May raise `UserError` of one."""
        if self.file.exists():
            jobs.check_same(self.what, jobs.read_json(self.file).get("config"), self.file)
        if self.run_dir.exists():
            jobs.check_same(self.what_of_run, self.note.get("config"), self.run_dir)
        yield from ()

    def left_out(self) -> str | None:
        """Why there is nothing to do for it now; None: there is, or it is finished."""
        return None

    def train(self) -> dict[str, Any]:
        """The last record of the training, which goes on where it was stopped; one that has ended is left alone."""
        return jobs.train_on(self.config, self.run_dir, self.what_of_run)

    def result(self, record: Run | None, diverged: str | None) -> dict[str, Any]:
        """What is written down of the training. record: of its last epoch; None where it diverged."""
        note = self.note
        return {
            "tool": self.tool,
            "method": self.method.name,
            "title": self.method.title,
            "seed": self.seed,
            "epochs": record["epoch"] if record else None,
            "steps": record["step"] if record else None,
            "diverged": diverged,
            "seconds": note.get("seconds"),
            "hardware": note.get("hardware"),
            "version": {"training": note.get("version"), "measurement": jobs.version()},
            "finished": now(),
            "config": self.what,
        }

    def portable(self, override: str) -> str:
        """The override `key=value` without folders of this machine."""
        key, _, value = override.partition("=")
        return jobs.without_roots(f"{key}={Path(value).name if Path(value).is_absolute() else value}", self.roots)


def metrics_of(record: Run | None) -> dict[str, Any]:
    """The scores of a record, without the thresholds that were chosen beside them."""
    return {key: value for key, value in (record or {}).get("metrics", {}).items() if key != "operating"}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def on_one_device(what: str) -> None:
    """Raises `UserError` under torchrun."""
    if jobs.processes() > 1:
        raise UserError(f"{what} runs on one device; start it without torchrun")


def check(queue: Sequence[Job]) -> None:
    """Raises `UserError` with every result and run directory that was made with other settings."""
    problems: list[str] = []
    for job in queue:
        try:
            problems += job.problems()
        except UserError as error:
            problems.append(str(error))
    refuse(problems, "training(s) cannot be used")


def run(
    queue: Sequence[Job], say: Callable[[str], None], again: bool = False, divergence_is_a_result: bool = True
) -> list[Path]:
    """Trains and measures what has no JSON yet; returns the JSONs.

    again: measure finished trainings anew, also where there is a JSON. divergence_is_a_result: one that diverges
    gets a JSON; else it is named at the end. It never stops the others.

    Raises `RunError` of an interruption (run again to go on), or with the trainings that diverged.
    """
    written, lost = [], []
    for number, job in enumerate(queue, 1):
        title = f"[{number}/{len(queue)}] {job.title}"
        if why := job.left_out():
            say(f"{title}: {why}")
            continue
        if job.file.exists() and not again:
            say(f"{title}: finished, skipped")
            written.append(job.file)
            continue
        say(f"{title}{job.remark}")
        record, diverged = _outcome(job)
        if diverged:
            say(f"{title}: diverged: {diverged}" if divergence_is_a_result else f"{title}: {diverged}")
        if diverged and not divergence_is_a_result:
            lost.append(f"{job.file.stem}: {diverged}")
            continue
        if jobs.is_first():
            write_json(job.file, job.result(record, diverged))
        written.append(job.file)
    if lost:
        raise RunError(problem_list(f"{len(lost)} training(s) diverged", lost))
    return written


def _outcome(job: Job) -> tuple[dict[str, Any] | None, str | None]:
    """(last record, None), or (None, what happened) of a training that diverged."""
    try:
        return job.train(), None
    except Diverged as error:
        return None, jobs.without_roots(str(error), job.roots)
    except RunError as error:
        raise RunError(f"{error} ({job.of_queue}: run the same command again)") from error


# ------------------------------------------------------------------------------------------- results


def read_results(folder: Path, pattern: str, study: str, keys: Collection[str], needed: bool = True) -> list[Run]:
    """The JSONs of a study in a folder, by file name, each with its `file`. keys: what every one holds. Raises
    `UserError` for other files, and where there is none but one is `needed`."""
    mark, found = f"crossdet {study}", list[Run]()
    for file in sorted(folder.glob(pattern)):
        content = jobs.read_json(file)
        if content.get("tool", mark) != mark or not set(keys) <= content.keys():
            raise UserError(f"{file}: not a result of `crossdet-research {study} run`; move it away")
        found.append({**content, "file": file})
    if needed and not found:
        raise UserError(f"{folder}: no result of `crossdet-research {study} run`")
    return found


# ------------------------------------------------------------------------------------------- commands


Several = list[str] | None
"""An option that may be repeated."""


def option(flag: str, metavar: str, text: str, *short: str) -> Any:
    return typer.Option(flag, *short, metavar=metavar, help=text)


def argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text)


def study_app(name: str, text: str) -> typer.Typer:
    """An empty command line."""
    return typer.Typer(name=name, help=text, no_args_is_help=True, rich_markup_mode="rich")


def say_files(files: Iterable[Path]) -> None:
    for file in files:
        say(str(file))


def report(
    tables: Iterable[Table],
    lines: Iterable[str],
    markdown_file: Path | None,
    markdown: str,
    json_file: Path | None = None,
    content: Any = None,
) -> None:
    """Shows tables and lines, and writes the files that were asked for."""
    for table in tables:
        wide.print(table, highlight=False)
        out.print()
    for line in lines:
        say(line)
    if markdown_file is not None:
        write_atomically(markdown_file, markdown.encode())
    if json_file is not None:
        write_json(json_file, content)
