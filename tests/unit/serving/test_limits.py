"""The token bucket by hand."""

from crossdet.serving import limits
from crossdet.serving.limits import Buckets


def test_a_burst_then_the_rate():
    now = [0.0]
    buckets = Buckets(rate=2.0, burst=3, clock=lambda: now[0])
    assert [buckets.wait("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.wait("a") == 0.5
    now[0] = 0.25
    assert buckets.wait("a") == 0.25  # refused ones cost nothing
    now[0] = 0.5
    assert buckets.wait("a") == 0
    assert buckets.wait("b") == 0  # another address has its own
    now[0] = 100.0
    assert [buckets.wait("a") > 0 for _ in range(4)] == [False, False, False, True]  # never more than a burst


def test_addresses_are_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "MOST_CLIENTS", 2)
    buckets = Buckets(rate=1.0, burst=1, clock=lambda: 0.0)
    assert [buckets.wait(address) for address in ("a", "b", "c")] == [0, 0, 0]
    assert buckets.wait("c") == 1
    assert buckets.wait("a") == 0  # the longest unseen
