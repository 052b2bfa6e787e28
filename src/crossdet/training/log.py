"""What a run says while it trains: lines on the terminal, `steps.csv`, and the loggers of `train.loggers`."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric
from torch import Tensor

from crossdet.errors import RunError
from crossdet.files import printable, write_atomically, writing
from crossdet.models.weights import with_room
from crossdet.training.loggers import FAILED, SUCCESS, Loggers

_SHORT = {"classification": "class"}
"""Names of terms as they stand in a line of the terminal."""


NOTICED = 0.1
"""Share of the time spent waiting for pictures from which on it is said."""


class Step(NamedTuple):
    """One optimiser step. rate: of a full batch; a smaller last one has its share of it. losses: term -> scalar.
    norm: of the gradient before it was clipped, None where it is not. left: steps to come, None where that is not
    known yet. waited: seconds of the epoch so far that were spent waiting for pictures."""

    step: int
    epoch: int
    step_in_epoch: int
    steps_in_epoch: int
    rate: float
    losses: dict[str, Tensor]
    norm: Tensor | None
    left: int | None
    waited: float = 0.0


class RunLog:
    """Lines on the terminal, `steps.csv` and loggers; silent in all processes but the first. For a `with`."""

    def __init__(
        self, fabric: Fabric, run_dir: Path, step: int, terms: Sequence[str], loggers: tuple[str, ...] = ()
    ) -> None:
        """step: that is resumed from, else 0. terms: names of the loss's terms, columns of `steps.csv`. loggers: of
        `LOGGERS`."""
        columns = ["step", "epoch", "lr", "loss", *terms, "gradient_norm", "images_per_second", "waiting"]
        self.fabric = fabric
        self.active = fabric.is_global_zero
        self.since, self.images, self.steps = 0.0, 0, 0
        if not self.active:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "steps.csv"
        rows = _rows_until(path, step, columns) if step and path.exists() else []
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        with writing(path, with_room(run_dir)):
            self.file = path.open("a", newline="")
        self.csv = csv.DictWriter(self.file, columns)
        self.loggers = Loggers(loggers, run_dir, step)

    def start_epoch(self) -> None:
        self.since, self.images, self.steps = time.monotonic(), 0, 0

    def unreadable(self, line: str) -> None:
        """Printed by the process that met it."""
        print(f"skipped, another image takes its place: {printable(line)}", flush=True)

    def step(self, at: Step, images: int, every: int) -> None:
        """images: in this step. every: so many steps have one line; the last one of an epoch has its own."""
        if not self.active:
            return
        self.images, self.steps = self.images + images, self.steps + 1
        if at.step % every and at.step_in_epoch != at.steps_in_epoch:
            return
        seconds = max(1e-9, time.monotonic() - self.since)
        terms = {name: float(value) for name, value in at.losses.items()}
        loss, waiting = sum(terms.values()), min(1.0, at.waited / seconds)
        row = {
            "step": at.step,
            "epoch": at.epoch + 1,
            "lr": at.rate,
            "loss": loss,
            **terms,
            "gradient_norm": "" if at.norm is None else float(at.norm),
            "images_per_second": self.images / seconds,
            "waiting": waiting,
        }
        try:
            self.csv.writerow(row)
            self.file.flush()
        except OSError as error:
            raise RunError(
                f"{self.file.name} could not be written ({error.strerror or error}) at step {at.step}; "
                f"{with_room(Path(self.file.name).parent)}"
            ) from error
        tracked = {
            "lr": at.rate,
            "loss": loss,
            **terms,
            "images_per_second": self.images / seconds,
            "waiting": waiting,
        }
        self.loggers.log({f"train/{name}": value for name, value in tracked.items()}, at.step)
        eta = "" if at.left is None else f"  {_duration(at.left * seconds / self.steps)} left"
        noticed = f"  waiting for pictures {waiting:.0%}" if waiting >= NOTICED else ""
        print(
            f"epoch {at.epoch + 1} step {at.step_in_epoch}/{at.steps_in_epoch}  "
            f"loss {loss:.4f} ({', '.join(f'{_SHORT.get(n, n)} {v:.4f}' for n, v in terms.items())})  "
            f"lr {at.rate:.2g}  "
            f"{self.images / seconds:.1f} images/s{noticed}{eta}",
            flush=True,
        )

    def epoch(self, record: dict[str, Any]) -> None:
        if not self.active:
            return
        for name, values in record["datasets"].items():
            print(
                f"  {name}: {values['images']:.0f} images, {values['positives']:.0f} positives, "
                f"loss {values['loss']:.4f} per positive",
                flush=True,
            )
        if record["unreadable"]:
            print(f"  {record['unreadable']} images could not be read so far", flush=True)
        numbers = {**dict(_flat(record["datasets"], "dataset/")), **dict(_flat(record.get("metrics", {}), "eval/"))}
        self.loggers.log(numbers, record["step"])

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """An error and Ctrl-C end the loggers as failed."""
        if self.active:
            self.loggers.close(SUCCESS if kind is None else FAILED)
            with suppress(OSError):  # a row that could not be written was told, and would be tried again
                self.file.close()


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _rows_until(path: Path, step: int, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of `steps.csv` up to the state that is resumed; those after it are written again. Rows that are none, as
    a power cut may leave them, are left out, and told."""
    rows, broken = [], 0
    text = path.read_bytes().replace(b"\0", b"").decode(errors="replace")
    lines = (line for line in io.StringIO(text, newline="") if len(line) < csv.field_size_limit())
    for row in csv.DictReader(lines, quoting=csv.QUOTE_NONE):
        if not (row.get("step") or "").isdecimal() or None in row or None in row.values():
            broken += 1
        elif int(row["step"]) <= step:
            rows.append({name: row.get(name, "") for name in columns})
    if broken:
        print(f"warning: {path}: {broken} row(s) cannot be read and are left out", flush=True)
    return rows
