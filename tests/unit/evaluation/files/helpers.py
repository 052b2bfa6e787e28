"""Running `crossdet score` inside the test process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from crossdet.commands.score import app
from crossdet.errors import UserError


def scored(folder: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON that the command writes, and what it prints."""
    file = folder / "scores.json"
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text()), result.output


def refused(*arguments: object) -> str:
    """The message of the `UserError` that the command raises."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(result.exception, UserError), (result.exception, result.output)
    return str(result.exception)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def curves(folder: Path) -> dict[tuple[str, str, str], float]:
    """(dataset, protocol, name) -> AP of the curves in a folder."""
    rows = json.loads((folder / "curves.json").read_text())["curves"]
    return {(row["dataset"], row["protocol"], row["name"]): row["ap"] for row in rows}
