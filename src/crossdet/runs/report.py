"""`crossdet report`: reads what a run wrote, looks at its validation pictures once, and writes one HTML page."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdet.config import CONFIG_FILE, Config, load_config
from crossdet.config.sources import open_sources
from crossdet.errors import UserError
from crossdet.evaluation.report_page import Counts, Looked, RunRecord, write_report
from crossdet.export.sessions import card_in
from crossdet.files import check_room
from crossdet.labels.space import LabelSpace
from crossdet.models.card import name_of, read_card
from crossdet.models.weights import METRICS_FILE
from crossdet.runs.audit import audited_runs, overlap_of
from crossdet.training.guard import newest

STEPS_FILE = "steps.csv"


def report(
    run: Path, output: Path, against: Path | None = None, pictures: bool = True, data: Path | None = None
) -> dict[str, Any]:
    """Writes the page to `output`; returns its numbers.

    run, against: run directories, or weights of any other kind, of which the page has less. pictures: False looks
    at no data, so the page has what the run wrote alone, as where no dataset has a validation split. data: the
    config whose validation splits are looked at; None: the run's own.

    Raises:
        UserError: no weights, an unfinished run without an epoch, unreadable weights or data, no config where
            pictures are to be looked at, or runs that have no class in common.
    """
    runs = [one for one in (run, against) if one is not None]
    records = [read_run(one) for one in runs]
    if len({record.name for record in records}) < len(records):  # such as a/first and b/first
        records = [replace(record, name=str(one)) for record, one in zip(records, runs, strict=True)]
    mine, *theirs = ({*record.card.space.reported} for record in records)
    if theirs and mine.isdisjoint(*theirs):
        raise UserError(
            f"--against {against}: it knows none of the classes of {run} ({', '.join(sorted(mine))}), but "
            f"{', '.join(sorted(*theirs))}"
        )
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {output}: expected a name that ends in .html; nothing else is written over")
    check_room(output)
    counts: Counts = {}
    looked: list[Looked] = []
    if pictures:
        if data is None and not _is_run(run):
            raise UserError(f"{run} is no run with a {CONFIG_FILE}; say --data CONFIG, or --no-pictures")
        config = load_config(data or run / CONFIG_FILE, [], records[0].card.space.datasets)
        counts = _counts(config, records[0].card.space)
        if any(dataset.val is not None for dataset in config.datasets.values()):
            found = audited_runs([run], config)
            if against is not None:  # in its own classes: an extension has more than what it began with
                alone = config.model_copy(update={"union_test": None})
                found += audited_runs([against], alone, only_known=True)
            looked = [Looked.of(one, overlap_of(detector)) for one, detector in found]
    first, *others = [*looked, None]
    write_report(output, records[0], counts, first, records[1] if against else None, others[0] if others else None)
    return _numbers(records, looked)


def read_run(run: Path) -> RunRecord:
    """What a run wrote; of weights alone what they say. Raises `UserError` for a run without an epoch."""
    file = run / METRICS_FILE
    if not _is_run(run):
        return RunRecord(name_of(run), card_in(run), (), None, {}, ())
    if not file.exists():
        raise UserError(f"{run}: there is no {METRICS_FILE} yet; it is written at the end of an epoch")
    try:
        content = json.loads(file.read_text())
        history, best, recipe = content["epochs"], content["best_epoch"], content.get("recipe", ())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not what a run writes ({error!r})") from None
    warnings = [finding["sentence"] for finding in newest(history)]
    return RunRecord(name_of(run), read_card(run), history, best, _steps(run / STEPS_FILE), recipe, warnings)


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).exists()


def _steps(file: Path) -> dict[str, list[float]]:
    """The columns; empty where there is no file. A cell that is no number is nan."""
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8", errors="replace") as lines:
        rows = list(csv.DictReader(lines))
    return {key: [_number(row[key]) for row in rows] for key in (rows[0] if rows else ())}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _counts(config: Config, known: LabelSpace) -> Counts:
    sources = open_sources(config, ["train", "val"], detector=known)
    return {
        name: {
            split: (len(indexes[name]), len(indexes[name].labels))
            for split, indexes in (("train", sources.train), ("val", sources.val))
            if name in indexes
        }
        for name in config.datasets
    }


def _numbers(records: list[RunRecord], looked: list[Looked]) -> dict[str, Any]:
    """Per run what the page shows and no other file holds."""
    content: dict[str, Any] = {}
    for number, record in enumerate(records):
        content[record.name] = {"mean": record.judged.get("mean"), "best_epoch": record.best_epoch}
        if not looked:
            continue
        one = looked[number]
        names = one.audited.audit.classes
        content[record.name] |= {
            "calibration_error": one.reliability.error,
            "confusions": [
                {
                    "dataset": taken.dataset,
                    "class": names[taken.class_id],
                    "objects": taken.objects,
                    "found": taken.found,
                    "missed": taken.missed,
                    "taken_for": {names[c]: count for c, count in taken.taken_for.items()},
                }
                for taken in one.confusions
            ],
        }
    return content
