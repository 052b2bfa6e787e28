"""Processes that need not import torch: forks of a server that has imported it.

To import torch and what is built on it takes a process longer than most tests. A test that needs a process of its
own, but no fresh Python, takes one of these. The server is none of the processes that run tests, which have
threads, patches and much memory. What is read once when Python or a library starts is the server's here:
environment variables of OpenMP and of malloc have no effect.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["crossdet.commands.main", "crossdet.runs.train", "torchvision.models.detection"])
TIMEOUT = 240
"""Seconds after which a process that has not ended is killed."""


class Fork:
    """As `python COMMAND` in a process group of its own; command: script or `-m` and module, and arguments."""

    def __init__(
        self, *command: str | Path, environment: Mapping[str, str] = os.environ, folder: Path | None = None
    ) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._printed = [Path(self._files.name, name) for name in ("stdout", "stderr")]
        words = [str(word) for word in command]
        place = str(folder or Path.cwd())
        self._process = SERVER.Process(target=_run, args=(words, self._printed, dict(environment), place))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        """What it ended with. Kills it and raises `AssertionError` after `timeout` seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            self._process.join()
            raise AssertionError(f"still running after {timeout} s:\n{self.printed()}")
        return subprocess.CompletedProcess([], self.returncode, self._text(0), self._text(1))

    def printed(self) -> str:
        """Standard output so far, and then standard error."""
        return self._text(0) + self._text(1)

    def _text(self, which: int) -> str:
        file = self._printed[which]
        return file.read_text() if file.exists() else ""


def _run(command: list[str], printed: Sequence[Path], environment: dict[str, str], folder: str) -> None:
    """In the fork."""
    multiprocessing.set_start_method("fork", force=True)  # as in a process that nobody forked
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and that runs in the foreground
    os.setsid()
    for descriptor, file in enumerate(printed, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


def run(
    command: Sequence[str | Path],
    capture_output: bool,
    text: bool,
    check: bool,
    env: Mapping[str, str] = os.environ,
    timeout: float = TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """In place of `subprocess.run` of a Python command whose output is captured as text."""
    assert (command[0], capture_output, text) == (sys.executable, True, True)
    done = Fork(*command[1:], environment=env).wait(timeout)
    if check:
        done.check_returncode()
    return done


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ranks(processes: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """As `torchrun` starts them, without torchrun: `processes` of `command`, which find each other.

    The outputs of all are joined, rank by rank; the code is 0 or that of a process that failed.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests"}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    forks = [
        Fork(*command, environment={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    end = time.monotonic() + TIMEOUT
    while any(fork.returncode is None for fork in forks):
        if time.monotonic() > end or any(fork.returncode for fork in forks):
            for fork in forks:
                fork.kill()
        time.sleep(0.02)
    done = [fork.wait() for fork in forks]
    code = next((one.returncode for one in done if one.returncode), 0)
    return subprocess.CompletedProcess([], code, "".join(d.stdout for d in done), "".join(d.stderr for d in done))
