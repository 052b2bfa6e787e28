"""The audit as one HTML page with the pictures in it, and its findings as COCO JSON for a labelling tool."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from crossdet.evaluation.audit import BINS, Audit, AuditedSplit, Foreign
from crossdet.evaluation.html import COLOURS, as_jpeg, figure, of_class, table, table_row, write_document
from crossdet.evaluation.pictures import read_picture
from crossdet.evaluation.tables import percent
from crossdet.files import write_json

CROP = 150
"""Longer side of a crop in pixels."""
CROPS = 12
"""Per kind and run."""
MOST_CROPS = 800
"""In the whole page, of photographs about 7 MB; the pairs with the most detections come first."""


@dataclass(frozen=True)
class AuditedRun:
    """One detector: its name, audit and splits; union: of `union_scores`, None without a union test. fewer: the
    most detections of a picture, where an exported file gives fewer than an audit looks at. summary: of
    `audit_summary`, what the page begins with."""

    name: str
    audit: Audit
    splits: list[AuditedSplit]
    union: dict[str, Any] | None
    fewer: int | None = None
    summary: Sequence[str] = ()

    def split(self, dataset: str) -> AuditedSplit:
        return next(split for split in self.splits if split.name == dataset)


def write_page(file: Path, runs: Sequence[AuditedRun]) -> None:
    """One self-contained HTML page; several runs side by side."""
    title = "<h1>Audit: what no protocol sees</h1>"
    write_document(file, "crossdet audit", [title, _legend(runs), fewer_note(runs), *sections(runs)])


def fewer_note(runs: Sequence[AuditedRun]) -> str:
    """Of exported files that give few detections: what they cut off cannot be counted. Empty without one."""
    return "".join(
        f"<p class=note>{escape(run.name)} is an exported file that gives the best {run.fewer} detections of a "
        f"picture, of all classes together; an audit looks at more where it can. `crossdet export "
        f"--max-detections` makes one that gives more.</p>"
        for run in runs
        if run.fewer is not None
    )


def sections(runs: Sequence[AuditedRun]) -> list[str]:
    """What the page shows, without its title."""
    pairs = _pairs(runs)
    crops, unreadable = _cut(runs, pairs)
    body = [
        "<p>Each dataset judges a detector only on the classes that it labels. These are the others: "
        "detections of a class in datasets that do not label it, from the class's own threshold on (best F1 on the "
        "data that label it). On an object that is labelled as something else such a detection is wrong. On "
        "background it is a mistake or an unlabelled object: the crops show which.</p>",
        _summary(runs),
        _union_table(runs),
        _findings(runs),
        _overview(runs),
        _home_table(runs),
        *(_section(runs, pair, crops) for pair in pairs),
    ]
    if unreadable:
        names = "".join(f"<li>{escape(name)}</li>" for name in unreadable)
        body.append(f"<p class=note>{len(unreadable)} pictures could not be read:</p><ul>{names}</ul>")
    return body


def _pairs(runs: Sequence[AuditedRun]) -> list[tuple[int, str]]:
    """(class, dataset) with a detection above its threshold in any run, most first."""
    counts: dict[tuple[int, str], int] = {}
    for run in runs:
        for f in run.audit.foreign:
            key = (f.class_id, f.dataset)
            counts[key] = max(counts.get(key, 0), len(f.rows))
    return sorted((key for key in counts if counts[key]), key=lambda key: -counts[key])


def _of_pair(run: AuditedRun, pair: tuple[int, str]) -> Foreign:
    return next(f for f in run.audit.foreign if (f.class_id, f.dataset) == pair)


def _place(runs: Sequence[AuditedRun], pair: tuple[int, str]) -> str:
    """Of numbers: names may hold what a link cannot (%, #)."""
    return f"c{pair[0]}-{[split.name for split in runs[0].splits].index(pair[1])}"


def _legend(runs: Sequence[AuditedRun]) -> str:
    if len(runs) == 1:
        return f"<p>Detector: <b>{escape(runs[0].name)}</b></p>"
    names = " / ".join(_coloured(number, run.name) for number, run in enumerate(runs))
    return f"<p>Where a cell holds several numbers they are in this order: {names}</p>"


def _coloured(number: int, text: str) -> str:
    return f"<b style='color:{COLOURS[number % len(COLOURS)]}'>{escape(text)}</b>"


# ------------------------------------------------------------------------------------------ tables


def _summary(runs: Sequence[AuditedRun]) -> str:
    parts = ["<h2>In short</h2>"]
    for number, run in enumerate(runs):
        said = escape(" ".join(run.summary))
        parts.append(f"<p>{f'{_coloured(number, run.name)}: ' if len(runs) > 1 else ''}{said}</p>")
    return "".join(parts)


def _findings(runs: Sequence[AuditedRun]) -> str:
    parts = ["<h2>Objects that may be unlabelled</h2>"]
    for number, run in enumerate(runs):
        items = [
            f"<li{of_class(run.audit.classes[f.class_id])}>"
            f"<a href='#{_place(runs, (f.class_id, f.dataset))}'><b>{escape(f.dataset)}</b>: about "
            f"{f.expected_unlabelled:.0f} detections may be unlabelled "
            f"<b>{escape(run.audit.classes[f.class_id])}</b></a> "
            f"({len(f.background)} detections on background in {f.images} pictures)</li>"
            for f in run.audit.ranked()
        ]
        if len(runs) > 1:
            parts.append(f"<p>seen by {_coloured(number, run.name)}</p>")
        parts.append(f"<ol>{''.join(items)}</ol>" if items else "<p>None.</p>")
    parts.append(
        "<p class=note>A guess on the high side: detections on background, each by how often its score is right "
        "where the class is labelled. Elsewhere a detector is right less often; what it does not find at all is "
        "not in the number. The crops below decide.</p>"
    )
    return "".join(parts)


def _table(title: str, head: Sequence[str], rows: Sequence[str], text: str = "") -> str:
    return f"<h2>{title}</h2>{text}{table(head, rows)}"


def _numbers(values: Iterable[float], digits: int) -> str:
    """One of each run."""
    return " / ".join("-" if value != value else f"{value:.{digits}f}" for value in values)


def _overview(runs: Sequence[AuditedRun]) -> str:
    rows = []
    for class_id, name in enumerate(runs[0].audit.classes):
        thresholds = _numbers((float(run.audit.thresholds[class_id]) for run in runs), 2)
        cells = [_overview_cell(runs, class_id, split) for split in runs[0].splits]
        rows.append(table_row(escape(name), thresholds, *cells, about=of_class(name)))
    head = ["class", "threshold", *(escape(split.name) for split in runs[0].splits)]
    return _table("Detections per picture of classes that the dataset does not label", head, rows)


def _overview_cell(runs: Sequence[AuditedRun], class_id: int, split: AuditedSplit) -> str:
    if split.annotated[class_id]:
        return "<td class=home>labelled</td>"
    pair = (class_id, split.name)
    values = [_of_pair(run, pair).per_image for run in runs]
    text = " / ".join(f"{value:.2f}" for value in values)
    top = max((value for value in values if value == value), default=0.0)
    if not top:
        return f"<td>{text}</td>"
    shade = " class=lots" if top >= 0.5 else " class=many" if top >= 0.05 else ""
    return f"<td{shade}><a href='#{_place(runs, pair)}'>{text}</a></td>"


def _home_table(runs: Sequence[AuditedRun]) -> str:
    rows = []
    for class_id, name in enumerate(runs[0].audit.classes):
        homes = [run.audit.home.get(class_id) for run in runs]
        if all(home is None for home in homes):
            continue
        points = [None if home is None else home.operating for home in homes]
        cells = [
            " / ".join(
                "-" if point is None else f"{percent(getattr(point, key))}{'' if point.cross_fitted else '*'}"
                for point in points
            )
            for key in ("precision", "recall", "f1")
        ]
        rates = _numbers((math.nan if home is None else home.false_per_image for home in homes), 2)
        objects = next((str(point.objects) for point in points if point is not None), "-")
        rows.append(table_row(escape(name), *cells, rates, objects, about=of_class(name)))
    head = ("class", "precision", "recall", "F1", "false positives per picture", "objects")
    text = (
        "<p>Precision, recall and F1 in percent, by cross-fitting: the threshold of one half of the pictures "
        "judged on the other. *: one half finds nothing right, so they are those of the pictures that the "
        "threshold was chosen on, and optimistic. False positives: at the threshold above.</p>"
    )
    return _table("The same classes where they are labelled", head, rows, text)


def _union_table(runs: Sequence[AuditedRun]) -> str:
    unions = [run.union for run in runs if run.union is not None]
    if len(unions) < len(runs) or not unions:
        return ""
    scores, rates = ("AP50", "AP"), ("false_on_other_objects_per_image", "false_elsewhere_per_image")

    def shares(values: Iterable[float | None]) -> str:
        return " / ".join(map(percent, values))

    rows = [
        table_row(
            escape(name),
            *(shares(union["per_class"][name][key] for union in unions) for key in scores),
            *(_numbers([union["per_class"][name][key] for union in unions], 2) for key in rates),
            about=of_class(name),
        )
        for name in unions[0]["per_class"]
    ]
    rows.append(table_row("mean", *(shares(union[key] for union in unions) for key in scores)))
    title = f"Union test: {unions[0]['images']} pictures in which every class is labelled"
    head = ("class", "AP50", "AP", "false on other objects, per picture", "false elsewhere, per picture")
    return _table(title, head, rows, "<p class=note>AP50 and AP in percent.</p>")


# ------------------------------------------------------------------------------------------ sections


def _section(runs: Sequence[AuditedRun], pair: tuple[int, str], crops: Crops) -> str:
    plain = runs[0].audit.classes[pair[0]]
    name = escape(plain)
    parts = [f"<section id='{_place(runs, pair)}'{of_class(plain)}><h3>{name} in {escape(pair[1])}</h3>"]
    if _of_pair(runs[0], pair).absent:
        parts.append(f"<p>{name} is declared absent here: every detection is wrong.</p>")
    for number, run in enumerate(runs):
        f = _of_pair(run, pair)
        split = run.split(pair[1])
        if len(runs) > 1:
            parts.append(f"<h4>{_coloured(number, run.name)}</h4>")
        parts.append(f"<p>{_counts(f, run.audit.classes)}</p>{_histograms(run.audit, f, number)}")
        for title, rows in (("on labelled objects", f.on_object), ("on background", f.background)):
            figures = [
                _figure(split, row, f, run.audit.classes, crops[number, pair[1], row])
                for row in rows[:CROPS].tolist()
                if (number, pair[1], row) in crops
            ]
            if figures:
                parts.append(f"<p class=note>{title}</p><div class=crops>{''.join(figures)}</div>")
            elif len(rows):
                parts.append(f"<p class=note>{title}: not shown, so that the page stays small</p>")
    return "".join([*parts, "</section>"])


def _counts(f: Foreign, classes: tuple[str, ...]) -> str:
    kinds = sorted({*f.on_class.tolist()}, key=lambda c: -int((f.on_class == c).sum()))
    on = ", ".join(f"{escape(classes[c])} {int((f.on_class == c).sum())}" for c in kinds)
    expected = f.expected_unlabelled
    probably = "an unknown number are" if math.isnan(expected) else f"about {round(expected)} may be"
    return (
        f"{len(f.rows)} detections above the threshold in {f.images} pictures: {len(f.on_object)} on labelled "
        f"objects{f' ({on})' if on else ''}, {len(f.ignored)} in ignored regions, {len(f.background)} on "
        f"background, of which {probably} unlabelled objects"
    )


def _histograms(found: Audit, f: Foreign, number: int) -> str:
    """Scores of true positives at home (outline) and of all foreign detections (bars).

    Square roots, since most foreign detections score next to nothing and would hide the others.
    """
    home = found.home.get(f.class_id)
    width, height = 420, 90
    drawn = _bars(f.histogram.tolist(), width, height, f"fill='{COLOURS[number % len(COLOURS)]}' opacity='.65'")
    if home is not None:
        drawn += _bars(home.histogram.tolist(), width, height, "fill='none' stroke='currentColor'")
        x = home.threshold * width
        drawn += (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height}' stroke='currentColor' stroke-dasharray='4'/>"
        )
    for x, text in ((0, "score 0"), (width - 8, "1")):
        drawn += f"<text x='{x}' y='{height + 16}' font-size='11' fill='currentColor'>{text}</text>"
    return (
        f"<svg viewBox='0 0 {width} {height + 22}' width='{width}' role=img>{drawn}</svg>"
        "<p class=note>filled: scores here; outline: scores of true positives at home; heights are "
        "square roots, each to its own highest bar; dashed: threshold</p>"
    )


def _bars(counts: list[int], width: int, height: int, look: str) -> str:
    step, bars = width / BINS, []
    for i, count in enumerate(counts):
        if count:
            h = height * math.sqrt(count / max(counts))
            place = f"x='{i * step + 1:.1f}' y='{height - h:.1f}' width='{step - 2:.1f}' height='{h:.1f}'"
            bars.append(f"<rect {place} {look}/>")
    return "".join(bars)


# ------------------------------------------------------------------------------------------ crops


Crops = Mapping[tuple[int, str, int], bytes | None]
"""(number of the run, dataset, row of its detections) -> JPEG; None where the picture cannot be read."""


def _cut(runs: Sequence[AuditedRun], pairs: Sequence[tuple[int, str]]) -> tuple[Crops, list[str]]:
    """The first `MOST_CROPS` crops in the order of the sections, and the pictures that could not be read.

    Every picture is decoded once and only one is held at a time.
    """
    shots = [
        (number, run.split(dataset), row, box)
        for class_id, dataset in pairs
        for number, run in enumerate(runs)
        for row, box in _shown(_of_pair(run, (class_id, dataset)))
    ][:MOST_CROPS]
    wanted = defaultdict(list)
    for shot in shots:
        wanted[shot[1].name, int(shot[1].detections.image_of_box[shot[2]])].append(shot)
    crops: dict[tuple[int, str, int], bytes | None] = {}
    unreadable = []
    for (dataset, image), here in wanted.items():
        index = here[0][1].index
        picture = read_picture(index, image)
        if picture is None:
            unreadable.append(f"{dataset}: {index.names[image]}")
        for number, split, row, box in here:
            other = None if box is None else split.truth.boxes[box].tolist()
            cut = None if picture is None else _crop(picture, split.detections.boxes[row].tolist(), other)
            crops[number, dataset, row] = cut
    return crops, unreadable


def _shown(f: Foreign) -> Iterator[tuple[int, int | None]]:
    """The detections to show and the truth rows of what they lie on."""
    yield from zip(f.on_object[:CROPS].tolist(), f.box[:CROPS].tolist(), strict=True)
    yield from ((row, None) for row in f.background[:CROPS].tolist())


def _figure(split: AuditedSplit, row: int, f: Foreign, classes: tuple[str, ...], jpeg: bytes | None) -> str:
    """HTML of one crop with score, the class of the object it lies on, and the picture's name."""
    image = split.index.names[int(split.detections.image_of_box[row])]
    on = [classes[c] for at, c in zip(f.on_object.tolist(), f.on_class.tolist(), strict=True) if at == row]
    caption = f"{split.detections.scores[row]:.2f} {f'on {escape(on[0])}, ' if on else ''}{escape(image)}"
    return figure(jpeg, caption)


def _crop(picture: Image.Image, box: Sequence[float], other: Sequence[float] | None) -> bytes:
    """JPEG of the box with half of its size around it, scaled to `CROP` pixels.

    The detection is drawn in orange, the labelled object that it lies on dashed in white.
    """
    x1, y1, x2, y2 = box
    margin = 0.5 * max(x2 - x1, y2 - y1, 8)
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(picture.width, int(x2 + margin) + 1), min(picture.height, int(y2 + margin) + 1)
    part = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    scale = CROP / max(part.size)
    part = part.resize((max(1, round(part.width * scale)), max(1, round(part.height * scale))))
    draw = ImageDraw.Draw(part)
    origin = (left, top, left, top)
    draw.rectangle([(v - o) * scale for v, o in zip(box, origin, strict=True)], outline="#ff6a00", width=2)
    if other is not None:
        _dashed(draw, [(v - o) * scale for v, o in zip(other, origin, strict=True)])
    return as_jpeg(part)


def _dashed(draw: ImageDraw.ImageDraw, box: Sequence[float]) -> None:
    """Four dashed sides in white; between the dashes a box below stays visible."""
    x1, y1, x2, y2 = (round(v) for v in box)
    for x in range(x1, x2 + 1, 10):
        for y in (y1, y2):
            draw.line((x, y, min(x + 5, x2), y), fill="white", width=2)
    for y in range(y1, y2 + 1, 10):
        for x in (x1, x2):
            draw.line((x, y, x, min(y + 5, y2)), fill="white", width=2)


# ------------------------------------------------------------------------------------------ export


def export_coco(file: Path, split: AuditedSplit, found: Audit) -> int:
    """The probable unlabelled objects of one split as COCO JSON, for review in a labelling tool; returns how many.

    Background detections above their class's threshold, with `score` and `probability` (the precision at home).
    Category = unified id + 1; images have the ids and names of the dataset. Classes declared absent are left out,
    and of pictures in several directions all but the upright one, whose boxes are those of the file.
    """
    index, d = split.index, split.detections
    turned = [0] * len(index) if index.rotation is None else index.rotation.degrees.tolist()
    annotations: list[dict[str, Any]] = []
    for f in found.foreign:
        if f.dataset != split.name or f.absent:
            continue
        for row, probability in zip(f.background.tolist(), f.probability.tolist(), strict=True):
            if turned[d.image_of_box[row]]:
                continue
            x1, y1, x2, y2 = (float(v) for v in d.boxes[row])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(index.image_ids[d.image_of_box[row]]),
                    "category_id": f.class_id + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": float(d.scores[row]),
                    "probability": probability,
                }
            )
    images = [
        {"id": number, "file_name": index.names[row], "height": height, "width": width}
        for row, (number, (height, width)) in enumerate(
            zip(index.image_ids.tolist(), index.sizes.tolist(), strict=True)
        )
        if not turned[row]
    ]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(found.classes)]
    write_json(file, {"images": images, "categories": categories, "annotations": annotations})
    return len(annotations)
