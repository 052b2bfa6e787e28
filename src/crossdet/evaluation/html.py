"""Parts of the HTML pages: one self-contained file with its style and pictures, tables, and line charts as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from crossdet.files import write_atomically

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:.8rem 0;overflow-wrap:normal}
th,td{padding:.25rem .7rem;border:1px solid #8886;text-align:right}
th:first-child,td:first-child{text-align:left}td.home{opacity:.55}td.many{background:#d55e0033}td.lots{background:#d55e0077}
td{print-color-adjust:exact;-webkit-print-color-adjust:exact}figure,tr{break-inside:avoid}h2,h3,h4{break-after:avoid}
section{border-top:1px solid #8886;margin-top:2rem;padding-top:.5rem}.crops{display:flex;flex-wrap:wrap;gap:.6rem}
figure{margin:0;width:150px;font-size:12px;line-height:1.25}figure img{display:block;max-width:150px}
.wide figure{width:min(640px,100%)}.wide figure img{max-width:100%}.charts{display:flex;flex-wrap:wrap;gap:1.2rem}
figcaption{overflow-wrap:anywhere}.note{opacity:.75}svg{max-width:100%;height:auto}a{color:inherit}.scroll{overflow-x:auto}
td.text,th.text{text-align:left}@media print{.screen{display:none}.scroll{overflow:visible}}
@media screen and (max-width:600px){.last-below table,.last-below tbody{display:block}
.last-below tr{display:flex;flex-wrap:wrap}
.last-below :is(th,td){flex:1 1 0;min-width:0;overflow-wrap:anywhere;padding:.25rem}
.last-below tr>:last-child{flex-basis:100%}}
"""


def write_document(file: Path, title: str, body: Sequence[str]) -> None:
    """One page; title and body are HTML already."""
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    )
    # a file name may hold bytes that are no UTF-8 (see `Strings`)
    write_atomically(file, page.encode(errors="replace"))


def table(head: Sequence[str], rows: Sequence[str], last_below: bool = False) -> str:
    """last_below: on a phone the last column, which is long, stands below the others of its row."""
    cells = "".join(name if name.startswith("<th") else f"<th>{name}</th>" for name in head)
    kind = "'scroll last-below'" if last_below else "scroll"
    return f"<div class={kind}><table><tr>{cells}</tr>{''.join(rows)}</table></div>"


def table_row(*cells: str, about: str = "") -> str:
    """A cell that is HTML already, such as one with a class, stays as it is. about: attributes of the row."""
    return f"<tr{about}>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in cells)}</tr>"


def of_class(name: str) -> str:
    """Attributes of an element that is about one class: the report's filter hides those of others."""
    return f" data-class='{escape(name)}'"


def figure(jpeg: bytes | None, caption: str) -> str:
    """caption: HTML already. None: the picture could not be read."""
    if jpeg is None:
        return f"<figure><figcaption>{caption} (cannot be read)</figcaption></figure>"
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return f"<figure><img src='{source}' alt=''><figcaption>{caption}</figcaption></figure>"


def as_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------ line charts


@dataclass(frozen=True)
class Line:
    """x, y: of its points; those that are no finite numbers are left out. dashed: such as of another run."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    dashed: bool = False


WIDTH, HEIGHT, LEFT, BELOW = 340, 220, 44, 34


def line_chart(
    title: str,
    lines: Sequence[Line],
    across: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """An SVG with a legend below; nothing where no line has a point. across: what x is."""
    finite = [
        (line, [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)])
        for line in lines
    ]
    drawn = [(line, points) for line, points in finite if points]
    if not drawn:
        return ""
    left, right = x_range or _range([x for _, points in drawn for x, _ in points])
    low, high = y_range or _range([0.0, *(y for _, points in drawn for _, y in points)])

    def place(x: float, y: float) -> str:
        across_share = (min(max(x, left), right) - left) / (right - left)
        up_share = (min(max(y, low), high) - low) / (high - low)
        return f"{LEFT + (WIDTH - LEFT - 8) * across_share:.1f},{(HEIGHT - BELOW) * (1 - up_share) + 6:.1f}"

    parts = [_axes((left, right), (low, high), across)]
    for line, points in drawn:
        dashes = " stroke-dasharray='4'" if line.dashed else ""
        look = f"stroke='{line.colour}' fill='none' stroke-width='1.6'{dashes}"
        if len(points) == 1:
            x, y = place(*points[0]).split(",")
            parts.append(f"<circle cx='{x}' cy='{y}' r='3' fill='{line.colour}'/>")
        else:
            parts.append(f"<polyline {look} points='{' '.join(place(x, y) for x, y in points)}'/>")
    legend = ", ".join(
        f"<span style='color:{line.colour}'>{'- -' if line.dashed else '—'} {escape(line.name)}</span>"
        for line, _ in drawn
    )
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role=img>{''.join(parts)}</svg>"
    return f"<div><b>{escape(title)}</b><br>{svg}<div class=note style='max-width:{WIDTH}px'>{legend}</div></div>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _axes(x: tuple[float, float], y: tuple[float, float], across: str) -> str:
    bottom = HEIGHT - BELOW + 6
    look = "font-size='11' fill='currentColor'"
    parts = [
        f"<path d='M{LEFT},6V{bottom}H{WIDTH - 8}' stroke='currentColor' fill='none' opacity='.5'/>",
        f"<text x='{LEFT}' y='{bottom + 14}' {look}>{x[0]:g}</text>",
        f"<text x='{WIDTH - 8}' y='{bottom + 14}' text-anchor='end' {look}>{x[1]:g}</text>",
        f"<text x='{(LEFT + WIDTH) // 2}' y='{bottom + 26}' text-anchor='middle' {look}>{escape(across)}</text>",
    ]
    parts += [
        f"<text x='{LEFT - 4}' y='{at}' text-anchor='end' {look}>{value:.3g}</text>"
        for value, at in ((y[0], bottom), (y[1], 14))
    ]
    return "".join(parts)
