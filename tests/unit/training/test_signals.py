"""What SIGTERM does to a process that has started others."""

from __future__ import annotations

import os
import signal

import pytest

from crossdet.training.signals import end_at_sigterm, stop_signals


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_a_process_as_an_error_does_and_only_once():
    end_at_sigterm()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    os.kill(os.getpid(), signal.SIGTERM)  # while others are ended


def test_within_a_training_it_is_a_wish_and_after_it_the_end():
    end_at_sigterm()
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_handler_of_somebody_else_stays():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    end_at_sigterm()
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
