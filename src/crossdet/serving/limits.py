"""What a server takes from whom: so many requests at once and per second, no more. No torch."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_CLIENTS = 10_000
"""Addresses that are remembered; the longest unseen are forgotten first."""


@dataclass(frozen=True)
class ServeLimits:
    """file_mb: of a picture's file. megapixels: of the picture. rate: requests of one address per second, in the
    long run; burst: at once. waiting: requests that wait for the detector, of all addresses."""

    file_mb: float = 20.0
    megapixels: float = 50.0
    rate: float = 20.0
    burst: int = 200
    waiting: int = 64

    @property
    def largest_file(self) -> int:
        """In bytes."""
        return int(self.file_mb * 2**20)

    @property
    def most_pixels(self) -> int:
        return int(self.megapixels * 1e6)


class Buckets:
    """A token bucket per address: `burst` requests at once, `rate` new ones per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Takes one request; 0 where it may go on, else the seconds until the next one may (and none is taken)."""
        now = self.clock()
        left, seen = self._left.pop(address, (float(self.burst), now))
        left = min(float(self.burst), left + (now - seen) * self.rate)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        while len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate
