"""Ctrl-C where nothing handles it: one word instead of silence or a traceback."""

import pytest
import typer

from crossdet.commands.terminal import INTERRUPTED, run_app


def test_ctrl_c_is_told(capsys, monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["wait"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
