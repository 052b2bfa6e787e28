"""Names of files that no encoding has."""

import io
import sys

import pytest
import typer

from crossdet.commands.terminal import run_app
from crossdet.files import printable


def test_bytes_that_are_no_text_are_printed_with_backslashes(monkeypatch):
    """Of a terminal with UTF-8, which refuses half characters; Python has them for other bytes of file names."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def tell() -> None:
        print("plain caf\udce9.jpg")
        sys.stderr.write("error caf\udce9.jpg")

    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", "strict") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr("sys.argv", ["tell"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert not end.value.code
    told = [stream.buffer.getvalue() for stream in streams.values() if not stream.flush()]
    assert told == [b"plain caf\\udce9.jpg\n", b"error caf\\udce9.jpg"]
    assert printable("caf\udce9 \u00e9") == "caf\\udce9 \u00e9"
