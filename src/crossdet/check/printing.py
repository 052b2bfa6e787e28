"""The report on a terminal: tables that fit its width, and the full lists left to the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossdet.check.report import ClassReport, Report, SplitReport
from crossdet.data.index import LEFT_OUT, NO_LABELS, NO_PICTURE, XML_BELOW
from crossdet.errors import some
from crossdet.evaluation.tables import lineless_table
from crossdet.labels.placeholders import is_unused, used
from crossdet.labels.states import ABSENT, AVOIDED, LABELLED, NOT_EXHAUSTIVE, PER_IMAGE

MATRIX_CLASSES = 20
"""Up to so many classes the avoidance relation is shown in full; beyond, classes with equal columns are grouped."""

_NAMED = 6


class _State(NamedTuple):
    """How one of `crossdet.labels.states.STATES` is shown. group: its column where classes are grouped."""

    symbol: str
    ascii: str
    style: str
    meaning: str
    group: str


_SHOWN = {
    LABELLED: _State("●", "#", "green", "labelled", "labelled by"),
    AVOIDED: _State("·", ".", "dim", "not labelled: background avoided", "avoided"),
    ABSENT: _State("○", "0", "cyan", "known to be absent: background trusted", "absent from (trusted)"),
    NOT_EXHAUSTIVE: _State("◐", "~", "yellow", "labelled in part: background avoided", "in part by (avoided)"),
    PER_IMAGE: _State("*", "*", "magenta", "federated: each image says what was verified", "per image in"),
}
_COLUMNS = (LABELLED, PER_IMAGE, NOT_EXHAUSTIVE, ABSENT, AVOIDED)
"""The order of the states where classes are grouped."""


def print_report(report: Report, console: Console) -> None:
    """Prints everything a person needs before training; errors and warnings come last, where they are seen."""
    heading(console, "Datasets")
    show(console, _dataset_table(report.splits))
    _lines(console, _box_lines(report.splits))
    _lines(console, _skipped_lines(report.splits))
    _lines(console, [_file_line(report.splits)])
    heading(console, "Labels")
    _lines(console, _label_lines(report))
    heading(console, "Whose background is a negative for which class")
    classes = [c for c in report.classes if not is_unused(c.name)]
    if len(classes) <= MATRIX_CLASSES:
        _print_matrix(report, classes, console)
    else:
        show(console, _group_table(classes))
        _lines(console, ["Every class in full: --json FILE."])
    _lines(console, _conflict_lines(report))
    if report.network is not None:
        title, table = report.network.table()
        heading(console, title)
        show(console, table)
    if report.recipe:
        heading(console, "Training")
        _lines(console, report.recipe)
        _lines(console, [] if report.canvases is None else report.canvases.lines())
    _print_findings(report, console)


def heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _lines(console: Console, lines: Iterable[Text | str]) -> None:
    """Paragraphs, indented by two; no markup, so that a class may be called `[b]`."""
    for line in lines:
        console.print(Padding(Text(line) if isinstance(line, str) else line, (0, 0, 0, 2), expand=False))


def show(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 1), expand=False))


def _table(*columns: str, left: int = 1) -> Table:
    """left: so many columns are text, the others are numbers."""
    table = lineless_table(*columns, left=left, header_style="dim", pad_edge=True)
    for column in table.columns:
        column.overflow = "fold"
    return table


# ------------------------------------------------------------------------------------------------ datasets


def _dataset_table(splits: Sequence[SplitReport]) -> Table:
    flags = {"crowds": "crowd", "ignore regions": "ignore_regions", "avoided regions": "avoided_regions",
             "difficult": "difficult", "invalid": "invalid"}  # fmt: skip
    shown = {title: column for title, f in flags.items() if any(column := [getattr(s, f) for s in splits])}
    table = _table("dataset", "split", "images", "without objects", "boxes", "classes", *shown, left=2)
    for row, split in enumerate(splits):
        counts = (split.images, split.empty_images, split.boxes, len(split.boxes_per_class))
        numbers = [*counts, *(column[row] for column in shown.values())]
        first = row == 0 or splits[row - 1].dataset != split.dataset
        table.add_row(Text(split.dataset if first else ""), split.split, *(f"{n:,}" for n in numbers))
    return table


def _box_lines(splits: Sequence[SplitReport]) -> Iterator[Text]:
    """Boxes per class, the most frequent first, train / val side by side."""
    for dataset in dict.fromkeys(split.dataset for split in splits):
        own = [split for split in splits if split.dataset == dataset]
        names = sorted(
            dict.fromkeys(name for split in own for name in split.boxes_per_class),
            key=lambda name: [-split.boxes_per_class.get(name, 0) for split in own],
        )
        told = names if len(names) <= 2 * _NAMED else names[:_NAMED]
        parts = [f"{n} {' / '.join(f'{s.boxes_per_class.get(n, 0):,}' for s in own)}" for n in told]
        if len(told) < len(names):
            parts.append(f"and {len(names) - len(told)} more classes")
        which = " / ".join(split.split for split in own)
        yield Text.assemble((f"{dataset}, boxes {which}: ", "dim"), ", ".join(parts))


def _skipped_lines(splits: Sequence[SplitReport]) -> Iterator[Text]:
    for split in splits:
        for reason, places in split.skipped.items():
            if reason in (NO_LABELS, XML_BELOW) or (reason == NO_PICTURE and NO_LABELS in split.skipped):
                continue  # a warning
            left_out = "left out: " if reason in LEFT_OUT else ""
            head = f"{split.dataset} {split.split}, {left_out}{places.count:,} x {reason}"
            yield Text.assemble((head, "yellow"), f", such as {places.first[0]}")


def _file_line(splits: Sequence[SplitReport]) -> Text:
    checked = sum(split.files.checked for split in splits)
    if any(split.files.bad for split in splits):
        bad = sum(split.files.bad for split in splits)
        return Text(f"Image files: {bad:,} of {checked:,} cannot be used, see below.", style="yellow")
    whole = " and can be decoded" if all(split.files.damaged == () for split in splits) else ""
    return Text(f"Image files: all {checked:,} looked at are there and have the annotated size{whole}.")


# -------------------------------------------------------------------------------------------------- labels


def _label_lines(report: Report) -> Iterator[Text | str]:
    plain = [c for c in report.classes if len(c.sources) == 1 and c.sources[0].split("/", 1)[1] == c.name]
    merged = [c for c in report.classes if c not in plain]
    source_count = sum(len(c.sources) for c in report.classes)
    several = f"{len(report.datasets)} datasets" if len(report.datasets) > 1 else "one dataset"
    for one in report.patterns:
        yield Text.assemble((f"labels.{one.rule}: ", "dim"), f"{one.pattern} is {', '.join(one.names)}")
    source, unified = (f"class{'es' * (n != 1)}" for n in (source_count, len(report.classes)))
    yield f"{source_count} source {source} of {several} -> {len(report.classes)} {unified}."
    for group in merged[: 2 * MATRIX_CLASSES]:
        yield Text.assemble((group.name, "bold"), f" <- {', '.join(group.sources)}")
    if len(merged) > 2 * MATRIX_CLASSES:
        yield f"and {len(merged) - 2 * MATRIX_CLASSES} more merged classes"
    for dataset in report.datasets:
        own = used([c.name for c in plain if c.sources[0].split("/", 1)[0] == dataset])
        if own:
            yield Text.assemble((f"under their own name, of {dataset}: ", "dim"), some(own, MATRIX_CLASSES, _NAMED))
    if report.dropped:
        yield Text.assemble(("dropped: ", "dim"), some(report.dropped, MATRIX_CLASSES, _NAMED))


# -------------------------------------------------------------------------------------------------- matrix


def _print_matrix(report: Report, classes: Sequence[ClassReport], console: Console) -> None:
    """Rows datasets, columns classes; in blocks of columns where the terminal is too narrow for one table."""
    unicode = "utf" in (console.encoding or "").lower()
    symbols = {
        state: Text(shown.symbol if unicode else shown.ascii, style=shown.style) for state, shown in _SHOWN.items()
    }
    rows = [f"{name} (federated)" if name in report.federated else name for name in report.datasets]
    room = console.width - max(len(row) for row in rows) - 5
    for block in _blocks(classes, room):
        table = _table("", *(c.name for c in block))
        for column in table.columns[1:]:
            column.justify = "center"
        for dataset, row in zip(report.datasets, rows, strict=True):
            table.add_row(Text(row), *(symbols[c.states[dataset]] for c in block))
        show(console, table)
    used = {state for c in classes for state in c.states.values()}
    _lines(
        console, (Text.assemble(symbols[state], f" {_SHOWN[state].meaning}") for state in _SHOWN if state in used)
    )


def _blocks(classes: Sequence[ClassReport], room: int) -> Iterator[list[ClassReport]]:
    block: list[ClassReport] = []
    taken = 0
    for c in classes:
        width = len(c.name) + 2
        if block and taken + width > room:
            yield block
            block, taken = [], 0
        block.append(c)
        taken += width
    if block:
        yield block


def _group_table(classes: Sequence[ClassReport]) -> Table:
    """One row per group of classes to which every dataset stands alike."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for c in classes:
        groups.setdefault(tuple(c.states.items()), []).append(c.name)
    used = [kind for kind in _COLUMNS if any(kind in c.states.values() for c in classes)]
    table = _table("", "classes", *(_SHOWN[kind].group for kind in used), left=2 + len(used))
    table.columns[0].justify = "right"
    for states, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        cells = [some([dataset for dataset, state in states if state == kind], _NAMED) for kind in used]
        avoiding = sum(state == AVOIDED for _, state in states)
        if avoiding > 1:
            cells[-1] = f"the other {avoiding}"
        table.add_row(str(len(names)), Text(some(names, _NAMED)), *(Text(cell or "-") for cell in cells))
    return table


def _conflict_lines(report: Report) -> Iterator[str]:
    total = report.train_images
    if not total:
        return
    if not report.avoiding_images:
        yield "Nothing is avoided: the background of every training image is a negative for every class."
        return
    share = report.avoiding_images / total
    yield (
        f"{report.avoiding_images:,} of {total:,} training images ({share:.0%}) have background that is avoided "
        "for at least one class."
    )
    least = min(report.classes, key=lambda c: c.trusting_images)
    if least.trusting_images:
        yield (
            f"Fewest images with negatives from the background: {least.name}, {least.trusting_images:,} "
            f"({least.trusting_images / total:.0%})."
        )


# ------------------------------------------------------------------------------------------------ findings


def _print_findings(report: Report, console: Console) -> None:
    kinds = (("Errors", report.errors, "bold red"), ("Warnings", report.warnings, "yellow"))
    for name, findings, style in (*kinds, ("Notes", report.notes, "")):
        if not findings:
            continue
        console.print()
        console.print(Text(name, style="bold " + style))
        table = Table.grid(padding=(0, 1))
        for finding in findings:
            loud = "bold red" if finding.startswith("LEAK") else style
            table.add_row(Text("-", loud), Text(finding, loud, overflow="fold"))
        show(console, table)
    if report.not_looked_at:
        console.print()
        console.print(Text(f"Not looked at: {'; '.join(report.not_looked_at)}.", "dim"))
    console.print()
    counts = [f"{len(report.errors)} error(s)", f"{len(report.warnings)} warning(s)"]
    if report.errors:
        console.print(Text(f"{', '.join(counts)}: training would fail.", style="bold red"))
    elif report.warnings:
        console.print(Text(f"{counts[1]}: training would run; read them first.", style="bold yellow"))
    else:
        console.print(Text("No errors, no warnings.", style="bold green"))
