"""The batches of a training, epoch after epoch, from loader processes that stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, _utils

from crossdet.data.colour import coloured
from crossdet.data.hybrid import Draw
from crossdet.data.loading import MicroBatches, make_loader, next_batch
from crossdet.models.contract import Network
from crossdet.training.state import EpochData
from crossdet.types import Batch


class Feed:
    """Micro-batches on the network's device.

    waited: seconds spent waiting for them in the epoch so far; without loader processes, making them.
    """

    def __init__(self, network: Network, micro_batches: MicroBatches, workers: int) -> None:
        """micro_batches: of this process; its `batches` are exchanged every epoch. workers: loader processes."""
        self.network, self.micro_batches, self.workers = network, micro_batches, workers
        self.waited = 0.0
        self._data: EpochData | None = None
        self._loader: DataLoader[Batch] | None = None
        self._stream: Any = None

    def epoch(self, data: EpochData, batches: Sequence[list[Draw]]) -> Iterator[Batch]:
        """The micro-batches of these batches. Processes that work on the same data go on, others begin."""
        if data is not self._data:
            self.close()  # ends those of before first
            self._data = data
        device, self.micro_batches.batches = self.network.device, batches
        if self._loader is None:
            finish = self.network.prepare()
            if data.background_weight is not None:
                finish = partial(_prepare_and_weigh, prepare=finish, weights=data.background_weight)
            pin, fill = device.type == "cuda", self.network.fill_colour
            self._loader = make_loader(data.dataset, self.micro_batches, self.workers, pin, fill, finish, stay=True)
        began, self.waited = time.monotonic(), 0.0
        self._stream = iter(self._loader)
        for _ in range(len(self.micro_batches)):
            batch = next_batch(self._stream)
            self.waited += time.monotonic() - began
            yield coloured(batch.to(device, non_blocking=True), batch.sizes.tolist())
            began = time.monotonic()

    def close(self) -> None:
        """Ends the processes, also where the traceback of an error still holds their iterator."""
        stream = self._stream
        self._stream, self._loader, self._data = None, None, None
        if hasattr(stream, "_shutdown_workers"):
            stream._shutdown_workers()  # what torch does when the iterator goes; the second time it does nothing

    def lost_a_process(self, within: float = 0.0) -> bool:
        """Whether one was killed, or ended with an error; within: seconds to wait for that."""
        end = time.monotonic() + within
        while True:
            if any(worker.exitcode not in (None, 0) for worker in getattr(self._stream, "_workers", ())):
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)

    def abandon(self) -> None:
        """Ends them after one of them was killed. torch would set an event whose lock the killed one may hold, and
        wait for ever."""
        stream = self._stream  # its private names: torch has no other end than its own
        if hasattr(stream, "_workers"):
            stream._shutdown = True
            _utils.signal_handling._remove_worker_pids(id(stream))  # type: ignore[attr-defined]
            for worker in stream._workers:
                worker.kill()
                worker.join()
        self.close()


def _prepare_and_weigh(batch: Batch, prepare: Callable[[Batch], Batch] | None, weights: Tensor) -> Batch:
    """The batch prepared, with the background weights of each image's dataset; `weights [K, C]` by dataset."""
    prepared = batch if prepare is None else prepare(batch)
    return replace(prepared, background_weight=batch.of_datasets(weights))
