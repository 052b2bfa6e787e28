"""Batches of a training: the same for any number of processes, which stay, and end also where one was killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from crossdet import LabelSpace, RunError
from crossdet.data.augment import Augment
from crossdet.data.colour import coloured
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.index import IndexBuilder
from crossdet.data.loading import MicroBatches, epoch_batches, make_loader
from crossdet.training.feed import Feed
from crossdet.training.loop import TrainStep, _dead_workers_told
from crossdet.training.state import EpochData
from crossdet.types import Batch
from tests.unit.models.tiny import Tiny, TinySettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> HybridDataset:
    root = tmp_path_factory.mktemp("pictures")
    builder = IndexBuilder(root)
    for number in range(10):
        Image.fromarray(np.full((32, 48, 3), 20 * number, np.uint8)).save(root / f"{number}.png")
        builder.image(f"{number}.png", 32, 48)
        builder.box((2, 2, 30, 30), 0)
    index, space = builder.build(["cat"]), LabelSpace.build({"a": ["cat"]})
    part = Part(index, 0, space.ids("a", ["cat"]))
    return HybridDataset([part], space, Augment(32, 64, scale_jitter=(0.5, 1.5)), photometric=True)


def batches(dataset: HybridDataset, epoch: int, first: int = 0) -> list[list[Draw]]:
    placing = dataset.placing(dataset.choose_canvases(3))
    return epoch_batches(dataset.sizes(), dataset.draw_weights(), 2, 0, epoch, placing=placing)[first:]


def feed_of(workers: int) -> Feed:
    return Feed(Tiny(TinySettings(), 1, None), MicroBatches([]), workers)


def pids(feed: Feed) -> list[int]:
    return [worker.pid for worker in feed._stream._workers]


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets[0].boxes, b.targets[0].boxes)
        for a, b in zip(one, other, strict=True)
    )


def test_processes_stay_for_all_epochs_and_change_no_picture(dataset):
    """The second epoch begins in the middle, as after a resume; other data has other processes."""
    alone, staying, data = feed_of(0), feed_of(2), EpochData(dataset)
    seen = []
    for epoch, first in ((0, 0), (1, 2), (2, 0)):
        wanted = list(alone.epoch(data, batches(dataset, epoch, first)))
        assert equal(list(staying.epoch(data, batches(dataset, epoch, first))), wanted)
        assert len(wanted) == 5 - first
        seen.append(pids(staying))
    assert seen[0] == seen[1] == seen[2]
    weighed = EpochData(dataset, torch.full((1, 1), 0.5))
    assert [b.background_weight.tolist() for b in staying.epoch(weighed, batches(dataset, 0))] == [[[0.5]] * 2] * 5
    newest = pids(staying)
    assert not set(newest) & set(seen[0])
    assert all(map(is_there, newest))
    staying.close()
    assert not any(map(is_there, (*seen[0], *newest)))


def test_processes_end_also_where_a_traceback_holds_their_iterator(dataset):
    feed = feed_of(2)
    next(feed.epoch(EpochData(dataset), batches(dataset, 0)))
    held, there = feed._stream, pids(feed)
    assert all(map(is_there, there))
    feed.close()
    assert not any(map(is_there, there))
    feed.close()
    del held


def test_pictures_come_in_the_colours_that_were_drawn(dataset):
    drawn, feed = batches(dataset, 0), feed_of(0)
    raw = list(make_loader(dataset, drawn, fill=feed.network.fill_colour))
    seen = list(feed.epoch(EpochData(dataset), drawn))
    assert all(batch.colours is None for batch in seen)
    assert equal(seen, [coloured(batch, batch.sizes.tolist()) for batch in raw])
    assert not equal(seen, raw)
    with pytest.raises(ValueError, match="not in its colours yet"):
        TrainStep(feed.network)(raw[0])


def test_the_time_of_waiting_is_that_of_the_pictures(dataset, monkeypatch):
    read = HybridDataset.__getitem__
    monkeypatch.setattr(HybridDataset, "__getitem__", lambda self, draw: (time.sleep(0.02), read(self, draw))[1])
    now = time.monotonic()
    feed, steps = feed_of(0), 0.0
    for _ in feed.epoch(EpochData(dataset), batches(dataset, 0)):
        began = time.monotonic()
        time.sleep(0.05)  # a step is no waiting
        steps += time.monotonic() - began
    assert 10 * 0.02 <= feed.waited <= time.monotonic() - now - steps


def test_the_others_end_where_one_was_killed_with_the_lock_of_the_end(dataset):
    """torch's own end would wait for ever for the event of which a killed process holds the lock."""
    feed = feed_of(2)
    stream = feed.epoch(EpochData(dataset), batches(dataset, 0))
    next(stream)
    feed._stream._workers_done_event._cond.acquire()  # as the process that is killed had it
    one, other = pids(feed)
    assert not feed.lost_a_process()
    with suppress(RuntimeError):  # torch's handler of SIGCHLD raises it in the midst of anything
        os.kill(one, signal.SIGKILL)
        time.sleep(0.3)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as the loop does
    assert feed.lost_a_process()
    feed.abandon()
    del stream
    assert not is_there(one)
    assert not is_there(other)
    again = feed_of(2)  # and the next training has nothing to do with it
    assert len(list(again.epoch(EpochData(dataset), batches(dataset, 0)))) == 5
    again.close()


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_process_is_told_whatever_notices_it(lost, monkeypatch):
    """Such as the end of the pipe through which a batch was to come; without a loss it is another mistake."""
    feed = feed_of(2)
    monkeypatch.setattr(feed, "lost_a_process", lambda _within=0.0: lost)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(RunError if lost else EOFError) as caught, _dead_workers_told(Path("run"), feed):
            raise EOFError("ran out of input")
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert ("a loader process ended before its time (ran out of input)" in str(caught.value)) is lost


def test_torchs_handler_may_raise_while_the_end_of_the_process_is_waited_for(monkeypatch):
    feed = Feed(Tiny(TinySettings(), 2, None), MicroBatches([], 1), 1)

    def waiting(within: float = 0.0) -> bool:
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed.")

    ended = []
    monkeypatch.setattr(feed, "lost_a_process", waiting)
    monkeypatch.setattr(feed, "abandon", lambda: ended.append(True))
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(RunError, match=r"before its time \(.*pid 17"), _dead_workers_told(Path("run"), feed):
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert ended == [True]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_what_a_process_that_is_being_killed_had_begun_to_send(error, monkeypatch):
    """Its end is known only a moment later."""
    feed = Feed(Tiny(TinySettings(), 2, None), MicroBatches([], 1), 1)
    ended = time.monotonic() + 0.3

    class Worker:
        pid = 0

        @property
        def exitcode(self) -> int | None:
            return -9 if time.monotonic() > ended else None

    feed._stream = SimpleNamespace(_workers=[Worker()])
    assert not feed.lost_a_process()
    monkeypatch.setattr(feed, "abandon", lambda: None)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(RunError, match="a loader process ended"), _dead_workers_told(Path("run"), feed):
            raise error
    finally:
        signal.signal(signal.SIGCHLD, handler)
