"""Figures that are drawn without a screen: their colours, a new one, and writing it. No torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdet.errors import UserError
from crossdet.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, told apart also by the colour-blind; the line style changes after each round."""
STYLES = ("-", "--", "-.", ":")
PICTURES = (".png", ".jpg", ".jpeg")
FIGURES = (*PICTURES, ".svg", ".pdf")


def check_image_file(file: Path, suffixes: Sequence[str] = FIGURES) -> None:
    """Raises `UserError` unless the name ends in one of these."""
    if file.suffix.lower() not in suffixes:
        raise UserError(f"{file}: expected a file name that ends in {', '.join(suffixes)}")


def line_look(row: int) -> dict[str, Any]:
    """Colour and line style of the line with this number, as `plot` takes them."""
    return {"color": COLOURS[row % len(COLOURS)], "linestyle": STYLES[row // len(COLOURS) % len(STYLES)]}


def new_figure(width: float, height: float) -> Figure:
    """Without pyplot, which would keep it for ever. width, height: inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def in_legend(name: str) -> str:
    """A label that matplotlib shows: those that begin with an underscore it leaves out."""
    return f" {name}" if name.startswith("_") else name


def save_figure(figure: Figure, file: Path) -> None:
    """In the format of the file's suffix; names with `$` are no formulas. Raises `RunError` where it cannot be
    written."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():  # the numbers of axes, which may be some, come later
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file.suffix[1:].lower(), dpi=150)
    write_atomically(file, buffer.getvalue())
