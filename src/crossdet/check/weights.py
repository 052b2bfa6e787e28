"""`crossdet check WEIGHTS`: what a trained detector knows and where it comes from. No torch for weights of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from crossdet.evaluation.tables import lineless_table, percent
from crossdet.labels.placeholders import is_unused, numbered_warning, unused_note, used
from crossdet.models.card import Card, Generation, foreign_checkpoint, read_card, weights_path


@dataclass(frozen=True)
class WeightsReport:
    """classes: unified name -> source classes `dataset/name`. thresholds: class -> score from which on
    `predict` reports it, where known. merged: classes that were merged after training -> their members. labels: the
    label space as it is stored. network: `NetworkSettings.described`. model, input: settings.
    square: side that pictures are stretched to, where the network does that. remarks: on names that are none.
    """

    file: str
    classes: dict[str, list[str]]
    thresholds: dict[str, float]
    labels: dict[str, Any]
    network: list[str]
    model: dict[str, Any]
    input: dict[str, int]
    generations: list[Generation]
    merged: dict[str, list[str]] = field(default_factory=dict)
    square: int | None = None
    remarks: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The whole report as JSON text; keys are the field names."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def inspect_weights(path: Path) -> WeightsReport:
    """Reads the metadata of a weights file or run directory. Raises `UserError` if it is none, or a checkpoint of
    other software whose tensors do not fit its config (these are read, with torch)."""
    card = read_card(path)
    check_opens(path, card)
    space = card.space
    return WeightsReport(
        file=str(weights_path(path)),
        classes={name: space.sources_of(c) for c, name in enumerate(space.classes)},
        thresholds=card.thresholds,
        labels=json.loads(space.to_json()),
        network=card.settings.described(space.classes),
        model=json.loads(card.settings.to_json()),
        input=asdict(card.input),
        generations=list(card.generations),
        merged={f.name: [space.classes[c] for c in f.members] for f in space.folds if f.is_merge},
        square=card.settings.stretched_to,
        remarks=list(_remarks(space.classes)),
    )


def check_opens(path: Path, card: Card) -> None:
    """Raises `UserError` for a checkpoint of other software that cannot be opened. Weights of ours say in one file
    what they are."""
    if (foreign := foreign_checkpoint(path)) is not None:
        foreign.tensors(card.settings)


def _remarks(classes: Sequence[str]) -> Iterator[str]:
    if warning := numbered_warning(classes):
        yield f"warning: {warning}"
    if note := unused_note(classes):
        yield note


def print_weights(report: WeightsReport, console: Console) -> None:
    """Classes with ids, sources and thresholds, label rules, model, and the generations."""
    network, *more = report.network
    console.print(Text(report.file, style="bold"), soft_wrap=True)
    console.print(Text(f"{network}, {len(report.classes)} classes; input: {_input(report)} pixels"), soft_wrap=True)
    table = lineless_table("id", "class", "threshold", "labelled by", title="Classes", left=4)
    table.columns[0].justify = table.columns[2].justify = "right"
    for number, (name, sources) in enumerate(report.classes.items()):
        if is_unused(name):
            continue
        threshold = None if name in report.merged else report.thresholds.get(name)
        shown = "-" if threshold is None else f"{threshold:.3f}"
        table.add_row(str(number), Text(name), shown, Text(", ".join(sources)))
    console.print(table)
    for line in (*report.remarks, *_merged(report), *more, *_rules(report.labels)):
        console.print(Text(line), soft_wrap=True)
    console.print(Text("Generations", style="italic"))
    for number, generation in enumerate(report.generations):
        for line in _generation_lines(number, generation, report.labels):
            console.print(Text(line), soft_wrap=True)


def _input(report: WeightsReport) -> str:
    if report.square is not None:
        return f"stretched to {report.square} x {report.square}"
    return f"shorter side {report.input['shorter']}, longer at most {report.input['longer']}"


def _merged(report: WeightsReport) -> Iterator[str]:
    for name, members in report.merged.items():
        threshold = report.thresholds.get(name)
        shown = "no threshold stored" if threshold is None else f"threshold {threshold:.3f}"
        yield f"merged: {', '.join(members)} are reported as {name} ({shown})"


def _rules(labels: dict[str, Any]) -> Iterator[str]:
    datasets, classes = labels["datasets"], labels["classes"]
    for rule in ("absent", "not_exhaustive"):
        for row, c in labels[rule]:
            yield f"{rule.replace('_', ' ')}: {classes[c]} in {datasets[row]}"
    for a, b in labels["overlap"]:
        yield f"overlap: {classes[a]} and {classes[b]}"
    for row in labels["federated"]:
        yield f"federated: {datasets[row]}"


def _generation_lines(number: int, generation: Generation, labels: dict[str, Any]) -> Iterator[str]:
    when = f", {generation.when}" if generation.when else ""
    version = f", crossdet {generation.version}" if generation.version else ""
    parent = f", from {generation.parent[:12]}" if generation.parent else ""
    yield f"{number}: {generation.mode}{when}{version}{parent}, {len(generation.classes)} classes"
    for name, classes in generation.datasets.items():
        yield f"   {name}: {', '.join(_read_as(labels, name, c) for c in used(classes))}"
    for edit in generation.edits:
        yield f"   {edit}"
    for score in generation.scores:
        yield f"   {score.name} on {score.dataset}: {score.number} {percent(score.value)}"


def _read_as(labels: dict[str, Any], dataset: str, name: str) -> str:
    """A dataset's own class with what the weights read it as today: `cyclist (dropped)`, `pedestrian -> person`,
    `face (listed, not labelled)`."""
    if dataset not in labels["datasets"]:
        return name
    row = labels["datasets"].index(dataset)
    unified = labels["sources"][row].get(name)
    listed = {(at, own): c for at, own, c in labels.get("listed_only", ())}
    if (row, name) in listed:
        return f"{name} (listed, {'absent' if [row, listed[row, name]] in labels['absent'] else 'not labelled'})"
    if unified is None:
        return name
    if unified < 0:
        return f"{name} (dropped)"
    return name if labels["classes"][unified] == name else f"{name} -> {labels['classes'][unified]}"
