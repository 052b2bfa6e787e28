"""A run that was killed, interrupted, or ran out of disk continues as if nothing had happened: bit for bit."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import Fork

from crossdet import RunError, load_config, train
from crossdet.files import write_atomically, write_json
from crossdet.models.weights import load_state, save_state
from crossdet.training.loggers import Loggers

PAUSED = Path(__file__).parent / "paused_crossdet.py"
TIMEOUT = 120


def resume(resumable: Path, folder: Path, *overrides: str) -> None:
    """In this process, which need not import torch for it."""
    train(load_config(resumable, overrides), output=folder, resume=True)


def started(pause: int, flag: Path, *arguments: str | Path) -> Fork:
    """`crossdet` in a process group of its own, standing still after optimiser step `pause`."""
    process = Fork(PAUSED, str(pause), flag, *arguments)
    end = time.monotonic() + TIMEOUT
    while not flag.exists():
        if process.returncode is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(f"step {pause} was not reached:\n{process.printed()}")
        time.sleep(0.01)
    return process


def table(folder: Path) -> list[dict[str, str]]:
    """`steps.csv` without the two columns that depend on the clock."""
    with (folder / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["images_per_second"], row["waiting"]
    return rows


def assert_equal_runs(folder: Path, undisturbed: Path) -> None:
    for name in ("model.safetensors", "best.safetensors", "metrics.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert table(folder) == table(undisturbed)
    a, b = (load_state(run / "state.pt") for run in (folder, undisturbed))
    for state in (a, b):
        state["progress"]["clock"] |= {"spent": 0.0, "evaluated": 0.0}  # of this machine, on this day
    assert repr(a["progress"]) == repr(b["progress"])  # NaN is not equal to itself
    for part in ("model", "average"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in b[part])


def kill_at(step: int, folder: Path, flag: Path, *arguments: str | Path) -> None:
    """SIGKILL after `step`; nothing is written or cleaned up by the process after that."""
    process = started(step, flag, *arguments)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(TIMEOUT).returncode == -signal.SIGKILL
    flag.unlink()


def test_killed_in_the_middle_of_an_epoch(resumable, undisturbed, tmp_path):
    """kill -9 after step 9, the third of the second epoch; the state is that of step 8."""
    folder, flag = tmp_path / "run", tmp_path / "flag"
    kill_at(9, folder, flag, "train", resumable, "--output", folder)
    assert [row["step"] for row in table(folder)] == [str(step) for step in range(1, 10)]
    state = load_state(folder / "state.pt")
    assert (state["progress"]["epoch"], state["progress"]["step_in_epoch"]) == (1, 2)
    assert state["totals"].sum() > 0  # what was counted of the epoch goes on being counted
    assert (folder / "model.safetensors").read_bytes() != (undisturbed / "model.safetensors").read_bytes()
    resume(resumable, folder)
    assert_equal_runs(folder, undisturbed)


def test_killed_and_interrupted_with_workers(resumable, undisturbed, tmp_path):
    """Two loader processes that have read ahead: kill -9 after step 5, Ctrl-C after step 7.

    The reference had no workers, which must make no difference.
    """
    folder, flag = tmp_path / "run", tmp_path / "flag"
    command = ("train", resumable, "--output", folder, "--set", "train.workers=2")
    kill_at(5, folder, flag, *command)
    process = started(7, flag, *command, "--resume")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    flag.unlink()
    done = process.wait(TIMEOUT)
    printed = done.stdout + done.stderr
    assert done.returncode == 130, printed
    assert "interrupted after step 7" in printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert load_state(folder / "state.pt")["progress"]["step"] == 7
    resume(resumable, folder, "train.workers=2")
    assert_equal_runs(folder, undisturbed)


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_to_all_processes_of_the_group(resumable, undisturbed, tmp_path, times):
    """As `timeout`, SLURM and systemd send it, the first twice to its child: the loader's processes get it, too."""
    folder, flag = tmp_path / "run", tmp_path / "flag"
    command = ("train", resumable, "--output", folder, "--set", "train.workers=2")
    process = started(3, flag, *command)
    os.killpg(process.pid, signal.SIGTERM)
    for _ in range(times - 1):
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)  # the loader's processes have had their time to end
    flag.unlink()
    done = process.wait(TIMEOUT)
    printed = done.stdout + done.stderr
    assert done.returncode == 130, printed
    assert "interrupted after step 3" in printed
    assert "Traceback" not in printed
    assert load_state(folder / "state.pt")["progress"]["step"] == 3
    resume(resumable, folder, "train.workers=2")
    assert_equal_runs(folder, undisturbed)


def test_a_killed_loader_process_is_told(resumable, tmp_path):
    """As the kernel does when memory is short."""
    folder, flag = tmp_path / "run", tmp_path / "flag"
    process = started(3, flag, "train", resumable, "--output", folder, "--set", "train.workers=2")
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():  # forks have the server's
            os.kill(int(child), signal.SIGKILL)
            break
    flag.unlink()
    done = process.wait(TIMEOUT)
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert "a loader process ended" in printed
    assert "--resume" in printed
    assert "Traceback" not in printed


def test_interrupted_in_this_process(world, tmp_path):
    """The same from Python; the handlers that were there before are back afterwards."""
    from crossdet.training.log import RunLog, Step

    log_step = RunLog.step

    def ctrl_c(self: RunLog, at: Step, *arguments: object) -> None:
        log_step(self, at, *arguments)  # type: ignore[arg-type]
        if at.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    resumable = world.config({"train.max_steps": 5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", ctrl_c)
        with pytest.raises(RunError, match=r"interrupted after step 3; the state is saved in .* --resume"):
            train(resumable, output=tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    train(resumable, output=tmp_path / "run", resume=True)
    train(resumable, output=tmp_path / "reference")
    assert table(tmp_path / "run") == table(tmp_path / "reference")
    for name in ("model.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


# ------------------------------------------------------------------------------------------ a full disk


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "state.pt"
    save_state(file, {"step": 1, "weights": torch.arange(4.0)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(
            RunError, match=r"state\.pt could not be written \(No space left on device\); the file as it was"
        ):
            save_state(file, {"step": 2, "weights": torch.zeros(4)})
        with pytest.raises(RunError, match=r"new\.pt could not be written .*; nothing was written"):
            save_state(tmp_path / "new.pt", {})
    assert names(tmp_path) == ["state.pt"]
    state = load_state(file)
    assert state["step"] == 1
    assert torch.equal(state["weights"], torch.arange(4.0))


def test_a_write_that_ends_in_the_middle_keeps_the_old_file(tmp_path, monkeypatch):
    """The disk is full after 10 bytes."""
    file = tmp_path / "file"
    write_atomically(file, b"old")
    fdopen = os.fdopen

    class Short:
        def __init__(self, handle: int, mode: str) -> None:
            self.file = fdopen(handle, mode)

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            self.file.write(data[:10])
            self.file.flush()
            no_space()

    monkeypatch.setattr(os, "fdopen", Short)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(file, b"new" * 100)
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_second_ctrl_c_in_a_write_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"numbers\.json could not be written"):
        write_json(tmp_path / "file" / "numbers.json", {})


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    """Some network file systems; the file itself is complete by then."""
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_files_are_as_readable_as_others(tmp_path):
    write_json(tmp_path / "ours.json", {"nan": float("nan"), "all": [1, float("inf"), "x", None]})
    (tmp_path / "others.json").write_text("{}")
    assert (tmp_path / "ours.json").stat().st_mode == (tmp_path / "others.json").stat().st_mode
    assert json.loads((tmp_path / "ours.json").read_text()) == {"nan": None, "all": [1, None, "x", None]}


def test_training_on_a_disk_that_fills_up_can_be_resumed(world, tmp_path, monkeypatch):
    """The third checkpoint does not fit; with space again the run goes on from the second and ends the same."""
    resumable = world.config({"train.max_steps": 5, "train.checkpoint_steps": 1})
    saved: list[str] = []
    ended: list[str] = []
    fsync = os.fsync

    def fills_up(handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if ".state.pt." in path:
            saved.append(path)
            if len(saved) == 3:
                no_space()
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        patch.setattr(Loggers, "close", lambda _, status: ended.append(status))
        with pytest.raises(RunError, match=r"state\.pt could not be written \(No space left on device\)"):
            train(resumable, output=tmp_path / "run")
    assert ended == ["failed"]
    assert load_state(tmp_path / "run" / "state.pt")["progress"]["step"] == 2
    assert [name for name in names(tmp_path / "run") if name.startswith(".")] == []
    train(resumable, output=tmp_path / "run", resume=True)
    train(resumable, output=tmp_path / "reference")
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "reference")]
    assert weights[0] == weights[1]
