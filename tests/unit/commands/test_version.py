"""What a bug report begins with, and paths in the home folder."""

from pathlib import Path

import pytest

from crossdet import __version__
from crossdet.models.settings import expand


def test_version(crossdet):
    done = crossdet("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"crossdet {__version__}")


@pytest.mark.parametrize(("given", "meant"), [("~/x.json", "x.json"), ("${HERE}/a~b", None)])
def test_home(given, meant, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", "data")
    assert Path(expand(given)) == (Path("data/a~b") if meant is None else tmp_path / meant)
