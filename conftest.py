"""Shared by all tests: caches of their own, one thread per process, and the tiny world with its trained run."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

# Before torch is imported. Two threads that wait for each other on a busy machine made tiny trainings 100 times
# slower; one is enough for them, and the test processes fill the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a GPU convolutions may use TF32, whose 10 bits of mantissa move boxes by hundredths of a pixel and swap
# detections of nearly equal score; the tests compare results of float32.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

for folder in ("e2e", "parity"):  # for worlds.py and slow_references.py
    sys.path.insert(0, str(Path(__file__).parent / "tests" / folder))

if TYPE_CHECKING:
    from worlds import World


@dataclass(frozen=True)
class Trained:
    """A finished run, how it was made, and what `train` returned and printed."""

    folder: Path
    settings: dict[str, Any]
    record: dict[str, Any]
    printed: str


def pytest_collection_finish() -> None:
    """What the modules of the tests have imported stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At Python's end all goes, else bindings take what was frozen for leaks and print it."""
    gc.unfreeze()


LONG = ("tests/docs", "tests/e2e", "tests/golden", "research/tests")
"""Folders whose tests take a second on average, those of the others a tenth."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-xdist gives each process neighbours, and what one has not begun to another that is idle, from the end.
    So every process begins with long tests, and short ones are left for the end."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes == 1:
        return
    folders = tuple(f"{config.rootpath / folder}{os.sep}" for folder in LONG)
    long = [item for item in items if str(item.path).startswith(folders)]
    short = [item for item in items if not str(item.path).startswith(folders)]
    items[:] = [
        item
        for nth in range(processes)
        for part in (long, short)
        for item in part[len(part) * nth // processes : len(part) * (nth + 1) // processes]
    ]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Indexes of the tests' datasets stay out of the user's cache."""
    os.environ["CROSSDET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files of the tests need not outlive a power cut; each training waits for the disk twenty times otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _no_record_of_compilers() -> None:
    """torch's compilers and exporters tell this logger more than pytest, which records it, can write in a minute.
    torch sets its level when it is imported, which may be in any test."""
    logging.getLogger("torch.__trace").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from worlds import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """16 epochs = 96 steps on the tiny world: enough to find the cars and the faces."""
    import contextlib
    import io

    from crossdet import train

    changes = {"train.epochs": 16, "train.eval_every": 8}
    folder = tmp_path_factory.mktemp("runs") / "trained"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        record = train(world.config(changes), output=folder)
    return Trained(folder, changes, record, printed.getvalue())


class Done(NamedTuple):
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


def command_line(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The entry point of a command, called in this process."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["the command", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def crossdet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    from crossdet.commands.main import main

    return command_line(main, monkeypatch, capsys)


@pytest.fixture
def research(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    from crossdet_research.main import main

    return command_line(main, monkeypatch, capsys)


@pytest.fixture
def command(crossdet: Callable[..., Done]) -> Callable[..., tuple[int, str]]:
    """(exit code, stdout) of the same."""
    return lambda *arguments: crossdet(*arguments)[:2]
