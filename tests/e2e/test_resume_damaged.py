"""What a run's folder may look like when it is resumed: files that are damaged, missing, or in somebody's use."""

from __future__ import annotations

import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Fork
from test_resume import PAUSED, TIMEOUT, assert_equal_runs, kill_at, started, table

from crossdet import RunError, UserError, load_config, train
from crossdet.evaluation import pictures
from crossdet.models.weights import load_state, save_state


@pytest.fixture(scope="module")
def half_done(resumable, tmp_path_factory) -> Path:
    """Killed after step 9; its state is that of step 8, in the second of two epochs."""
    folder = tmp_path_factory.mktemp("half")
    kill_at(9, folder / "run", folder / "flag", "train", resumable, "--output", folder / "run")
    return folder / "run"


@pytest.fixture
def run(half_done, tmp_path) -> Path:
    return Path(shutil.copytree(half_done, tmp_path / "run"))


def resumed(resumable: Path, folder: Path) -> None:
    train(load_config(resumable), output=folder, resume=True)


def refused(resumable: Path, folder: Path) -> str:
    with pytest.raises(UserError) as told:
        resumed(resumable, folder)
    return str(told.value)


# ------------------------------------------------------------------------------------------ damaged


@pytest.mark.parametrize(
    "content", [b"{", b"a: b: c", b"!!python/object:os.x {}", b"\xff\xfe\x00", b"", b"hello", b"- 1\n- 2"]
)
def test_a_config_that_is_none(resumable, run, content):
    (run / "config.yaml").write_bytes(content)
    told = refused(resumable, run)
    assert told.startswith(f"{run / 'config.yaml'} is no config of a run any more (")
    assert told.endswith("begin anew with --overwrite")
    assert "\n" not in told


def test_a_config_without_its_datasets(resumable, run):
    (run / "config.yaml").write_text("datasets: 5\n")
    assert "the run was started with another config; differing: datasets, " in refused(resumable, run)


BROKEN = [b"x,1\n", b"\0\0\0,1\n", b"\xff\xfe\0\0\n", b"9\n", b"8," + b"1," * 30 + b"\n", b'9,"1\n']


@pytest.mark.parametrize("broken", BROKEN)
def test_rows_of_steps_that_are_none(resumable, undisturbed, run, broken, capsys):
    steps = run / "steps.csv"
    lines = steps.read_bytes().splitlines(keepends=True)
    steps.write_bytes(b"".join([*lines[:9], broken, *lines[9:]]))
    resumed(resumable, run)
    assert f"warning: {steps}: 1 row(s) cannot be read and are left out" in capsys.readouterr().out
    assert_equal_runs(run, undisturbed)


def test_steps_that_are_no_table(resumable, run, capsys):
    (run / "steps.csv").write_bytes(b"\xff\xfe\0\0")
    resumed(resumable, run)
    assert [int(row["step"]) for row in table(run)] == [9, 10, 11, 12]


def test_a_state_with_another_byte(resumable, run):
    """Of a tensor: torch reads it without a word."""
    file = run / "state.pt"
    with zipfile.ZipFile(file) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 0xFF
    file.write_bytes(content)
    torch.load(file, weights_only=True)
    assert "is damaged" in refused(resumable, run)


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04", [1, 2]])
def test_a_state_that_is_none(resumable, run, content):
    if isinstance(content, bytes):
        (run / "state.pt").write_bytes(content)
    else:
        torch.save(content, run / "state.pt")
    assert f"training state {run / 'state.pt'} cannot be read: " in refused(resumable, run)


def without(state: dict[str, Any], key: str) -> None:
    del state[key]


@pytest.mark.parametrize(
    "change",
    [
        *[lambda state, key=key: without(state, key) for key in ("model", "optimizer", "precision", "totals")],
        lambda state: without(state, "progress"),
        lambda state: state.clear(),
        lambda state: state["progress"].update(of_next_year=1),
        lambda state: state["progress"]["clock"].update(of_next_year=1),
        lambda state: state["model"].popitem(),
        lambda state: state["optimizer"]["param_groups"].pop(),
    ],
)  # fmt: skip
def test_a_state_of_another_version(resumable, run, change):
    state = load_state(run / "state.pt")
    change(state)
    if "identity" not in state:
        state["identity"] = load_state(run / "state.pt")["identity"]
    save_state(run / "state.pt", state)
    told = refused(resumable, run)
    assert f"{run / 'state.pt'} does not fit what is trained here (" in told
    assert "begin anew with --overwrite" in told


# ------------------------------------------------------------------------------------------ missing


def test_best_weights_that_are_gone(resumable, run, capsys):
    """Epoch 1 was the best so far; what is best from then on is kept, whatever it scores."""
    assert load_state(run / "state.pt")["progress"]["best_epoch"] == 1
    (run / "best.safetensors").unlink()
    resumed(resumable, run)
    assert f"warning: {run / 'best.safetensors'}, of epoch 1, is gone: " in capsys.readouterr().out
    assert (run / "best.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert load_state(run / "state.pt")["progress"]["best_epoch"] == 2


def test_pictures_are_drawn_when_a_finished_run_is_resumed(resumable, undisturbed, tmp_path, monkeypatch):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    drawn = {file.name: file.read_bytes() for file in (run / "pictures").iterdir()}
    shutil.rmtree(run / "pictures")
    seen: list[Any] = []

    def full(pair: Any) -> Any:
        seen.append(pair)
        if len(seen) > 1:
            raise OSError(28, "No space left on device")
        return side_by_side(pair)

    side_by_side = pictures.side_by_side
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "side_by_side", full)
        with pytest.raises((RunError, OSError)):
            resumed(resumable, run)
    assert not (run / "pictures").exists()  # not half of them
    resumed(resumable, run)
    assert {file.name: file.read_bytes() for file in (run / "pictures").iterdir()} == drawn
    assert_equal_runs(run, undisturbed)
    with pytest.raises(UserError, match="this run is finished"):
        resumed(resumable, run)


# ------------------------------------------------------------------------------------------ in use


def test_a_folder_takes_one_training_at_a_time(resumable, tmp_path):
    folder, flag = tmp_path / "run", tmp_path / "flag"
    first = started(3, flag, "train", resumable, "--output", folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    for options in (["--resume"], ["--overwrite"], []):
        done = Fork(PAUSED, "99", flag, "train", resumable, "--output", folder,
                    *options).wait(TIMEOUT)  # fmt: skip
        assert done.returncode == 2
        word = "already holds a run" if not options else "another process is training in this directory"
        assert word in done.stdout + done.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(TIMEOUT)
    resumed(resumable, folder)  # the lock ended with the process
    assert not (folder / ".lock").exists()
    train(load_config(resumable), output=folder, overwrite=True)
    assert not (folder / ".lock").exists()
