"""The report on a terminal: tables that fit its width, and the full lists left to the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossdet.check.report import (
    ABSENT,
    AVOIDED,
    LABELLED,
    NOT_EXHAUSTIVE,
    PER_IMAGE,
    AnchorReport,
    ClassReport,
    Report,
    SplitReport,
)
from crossdet.evaluation.tables import lineless_table

MATRIX_CLASSES = 20
"""Up to so many classes the avoidance matrix is shown in full; beyond, classes with equal columns are grouped."""

_NAMED = 6
_SYMBOLS = {LABELLED: "●", AVOIDED: "·", ABSENT: "○", NOT_EXHAUSTIVE: "◐", PER_IMAGE: "*"}
_ASCII = {LABELLED: "#", AVOIDED: ".", ABSENT: "0", NOT_EXHAUSTIVE: "~", PER_IMAGE: "*"}
_STYLES = {LABELLED: "green", AVOIDED: "dim", ABSENT: "cyan", NOT_EXHAUSTIVE: "yellow", PER_IMAGE: "magenta"}
_MEANINGS = {
    LABELLED: "labelled",
    AVOIDED: "not labelled: background avoided",
    ABSENT: "known to be absent: background trusted",
    NOT_EXHAUSTIVE: "labelled in part: background avoided",
    PER_IMAGE: "federated: each image says what was verified",
}


def print_report(report: Report, console: Console) -> None:
    """Prints everything a person needs before training; errors and warnings come last, where they are seen."""
    _heading(console, "Datasets")
    _print(console, _dataset_table(report.splits))
    _lines(console, _box_lines(report.splits))
    _lines(console, _skipped_lines(report.splits))
    _lines(console, [_file_line(report.splits)])
    _heading(console, "Labels")
    _lines(console, _label_lines(report))
    _heading(console, "Whose background is a negative for which class")
    if len(report.classes) <= MATRIX_CLASSES:
        _print_matrix(report, console)
    else:
        _print(console, _group_table(report.classes))
        _lines(console, ["Every class in full: --json FILE."])
    _lines(console, _conflict_lines(report))
    _heading(console, f"Boxes reached by an anchor (IoU >= {report.positive_iou:g}; sizes at the network's input)")
    _print(console, _anchor_table(report.anchors))
    _print_findings(report, console)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _lines(console: Console, lines: Iterable[Text | str]) -> None:
    """Paragraphs, indented by two; no markup, so that a class may be called `[b]`."""
    for line in lines:
        console.print(Padding(Text(line) if isinstance(line, str) else line, (0, 0, 0, 2), expand=False))


def _print(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 1), expand=False))


def _table(*columns: str, left: int = 1) -> Table:
    """left: so many columns are text, the others are numbers."""
    table = lineless_table(*columns, left=left, header_style="dim", pad_edge=True)
    for column in table.columns:
        column.overflow = "fold"
    return table


# ------------------------------------------------------------------------------------------------ datasets


def _dataset_table(splits: Sequence[SplitReport]) -> Table:
    optional = {
        "crowds": [s.crowd for s in splits],
        "ignore regions": [s.ignore_regions for s in splits],
        "avoided regions": [s.avoided_regions for s in splits],
        "difficult": [s.difficult for s in splits],
        "invalid": [s.invalid for s in splits],
    }
    shown = {name: counts for name, counts in optional.items() if any(counts)}
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
            head = f"{split.dataset} {split.split}, left out: {places.count:,} x {reason}"
            yield Text.assemble((head, "yellow"), f", such as {places.first[0]}")


def _file_line(splits: Sequence[SplitReport]) -> Text:
    checked = sum(split.files.checked for split in splits)
    if any(split.files.bad for split in splits):
        bad = sum(split.files.bad for split in splits)
        return Text(f"Image files: {bad:,} of {checked:,} cannot be used, see below.", style="yellow")
    return Text(f"Image files: all {checked:,} looked at are there and have the annotated size.")


# -------------------------------------------------------------------------------------------------- labels


def _label_lines(report: Report) -> Iterator[Text | str]:
    plain = [c for c in report.classes if len(c.sources) == 1 and c.sources[0].split("/", 1)[1] == c.name]
    merged = [c for c in report.classes if c not in plain]
    source_count = sum(len(c.sources) for c in report.classes)
    several = f"{len(report.datasets)} datasets" if len(report.datasets) > 1 else "one dataset"
    yield f"{source_count} source classes of {several} -> {len(report.classes)} classes."
    for group in merged[: 2 * MATRIX_CLASSES]:
        yield Text.assemble((group.name, "bold"), f" <- {', '.join(group.sources)}")
    if len(merged) > 2 * MATRIX_CLASSES:
        yield f"and {len(merged) - 2 * MATRIX_CLASSES} more merged classes"
    for dataset in report.datasets:
        own = [c.name for c in plain if c.sources[0].split("/", 1)[0] == dataset]
        if own:
            yield Text.assemble((f"under their own name, of {dataset}: ", "dim"), _some(own, MATRIX_CLASSES))
    if report.dropped:
        yield Text.assemble(("dropped: ", "dim"), _some(report.dropped, MATRIX_CLASSES))


def _some(names: Sequence[str], limit: int) -> str:
    """All names if they are few; otherwise the first ones and a count."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


# -------------------------------------------------------------------------------------------------- matrix


def _print_matrix(report: Report, console: Console) -> None:
    """Rows datasets, columns classes; in blocks of columns where the terminal is too narrow for one table."""
    unicode = "utf" in (console.encoding or "").lower()
    symbols = _SYMBOLS if unicode else _ASCII
    rows = [f"{name} (federated)" if name in report.federated else name for name in report.datasets]
    room = console.width - max(len(row) for row in rows) - 5
    for block in _blocks(report.classes, room):
        table = _table("", *(c.name for c in block))
        for column in table.columns[1:]:
            column.justify = "center"
        for dataset, row in zip(report.datasets, rows, strict=True):
            states = [c.states[dataset] for c in block]
            table.add_row(Text(row), *(Text(symbols[state], style=_STYLES[state]) for state in states))
        _print(console, table)
    used = {state for c in report.classes for state in c.states.values()}
    for state in _MEANINGS:
        if state in used:
            _lines(console, [Text.assemble((symbols[state], _STYLES[state]), f" {_MEANINGS[state]}")])


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
    kinds = {
        LABELLED: "labelled by",
        PER_IMAGE: "per image in",
        NOT_EXHAUSTIVE: "in part by (avoided)",
        ABSENT: "absent from (trusted)",
        AVOIDED: "avoided",
    }
    used = [kind for kind in kinds if any(kind in c.states.values() for c in classes)]
    table = _table("", "classes", *(kinds[kind] for kind in used), left=2 + len(used))
    table.columns[0].justify = "right"
    for states, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        cells = [_some([dataset for dataset, state in states if state == kind], _NAMED) for kind in used]
        avoiding = sum(state == AVOIDED for _, state in states)
        if avoiding > 1:
            cells[-1] = f"the other {avoiding}"
        table.add_row(str(len(names)), Text(_some(names, _NAMED)), *(Text(cell or "-") for cell in cells))
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


# ------------------------------------------------------------------------------------- anchors and findings


def _anchor_table(anchors: Iterable[AnchorReport]) -> Table:
    table = _table("dataset", "boxes", "all", "small, < 32x32 px", "medium", "large, > 96x96 px")
    for a in anchors:
        parts = [(a.boxes, a.recall), (a.small_boxes, a.small), (a.medium_boxes, a.medium)]
        parts.append((a.large_boxes, a.large))
        cells = [Text("-") if recall is None else _share(recall, count) for count, recall in parts]
        cells[0] = _share(a.recall, 0) if a.recall is not None else Text("-")
        table.add_row(Text(f"{a.dataset} {a.split}"), f"{a.boxes:,}", *cells)
    return table


def _share(recall: float, count: int) -> Text:
    """`97% of 1,204`; red where the anchors do not do. Rounded down, so that 100% means all."""
    style = "red" if recall < 0.9 else ""
    return Text.assemble((f"{int(recall * 100)}%", style), (f" of {count:,}" if count else "", "dim"))


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
        _print(console, table)
    console.print()
    counts = [f"{len(report.errors)} error(s)", f"{len(report.warnings)} warning(s)"]
    if report.errors:
        console.print(Text(f"{', '.join(counts)}: training would fail.", style="bold red"))
    elif report.warnings:
        console.print(Text(f"{counts[1]}: training would run; read them first.", style="bold yellow"))
    else:
        console.print(Text("No errors, no warnings.", style="bold green"))
