"""Ctrl-C where nothing handles it: one word instead of silence or a traceback."""

import pytest
import torch
import typer

from crossdet.commands.terminal import INTERRUPTED, run_app
from crossdet.errors import Interrupted


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


def test_too_little_memory_of_a_gpu_is_one_line(capsys, monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fill() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB [GPU 0].\nmore about it")

    monkeypatch.setattr("sys.argv", ["fill"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "failed CUDA out of memory. Tried to allocate 9 GiB [GPU 0].; take fewer or smaller pictures" in told
    assert "more about it" not in told


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_of_several_processes_tells(rank, capsys, monkeypatch):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def train() -> None:
        raise Interrupted("interrupted after step 3; the state is saved")

    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == INTERRUPTED
    assert capsys.readouterr().err == ("interrupted after step 3; the state is saved\n" if rank == "0" else "")
