"""Ctrl-C and SIGTERM as a wish that the training loop grants after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def end_at_sigterm() -> None:
    """From here on SIGTERM ends this process as an error does, so that what `atexit` knows is done; by itself it
    ends a process on the spot. A handler of somebody else stays, and `stop_signals` comes before it."""
    of_main_thread = threading.current_thread() is threading.main_thread()
    if of_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends two, and the second would break off what `atexit` does
    raise SystemExit(128 + number)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask the loop to save and stop after the step; a second Ctrl-C ends it at once.

    A second SIGTERM changes nothing: `timeout` sends two, to its child and to the group.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
