"""Which pictures make up an epoch, its batches and micro-batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdet.data.hybrid import Draw
from crossdet.data.loading import MicroBatches, epoch_batches, epoch_rows, sequential_batches
from crossdet.errors import UserError


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 8), min_size=1, max_size=40).filter(lambda w: sum(w) > 0.1), st.integers(0, 2**32 - 1))
def test_counts_are_the_expected_ones_rounded(weights, seed):
    weights = np.array(weights)
    rows = epoch_rows(weights, np.random.default_rng(seed))
    assert len(rows) == len(weights)
    expected = len(weights) * weights / weights.sum()
    counts = np.bincount(rows, minlength=len(weights))
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_give_every_image_once(weight):
    orders = [epoch_rows(np.full(50, weight), np.random.default_rng(seed)) for seed in range(3)]
    for rows in orders:
        assert sorted(rows.tolist()) == list(range(50))
    assert len({tuple(rows) for rows in orders}) == 3


def test_weights_are_kept_on_average():
    weights = np.array([1.0] * 30 + [2.5] * 10)
    total = np.zeros(40)
    for epoch in range(400):
        total += np.bincount(epoch_rows(weights, np.random.default_rng(epoch)), minlength=40)
    expected = 400 * 40 * weights / weights.sum()
    assert np.abs(total / expected - 1).max() < 0.12
    assert total[30:].sum() / total.sum() == pytest.approx(25 / 55, rel=0.01)


def make_batches(
    count: int = 37, batch_size: int = 8, seed: int = 0, epoch: int = 0, **options
) -> list[list[Draw]]:
    sizes = np.array([(480, 640) if i % 3 else (640, 480) for i in range(count)], np.int32)
    return epoch_batches(sizes, np.ones(count), batch_size, seed, epoch, **options)


def test_an_epoch_holds_every_image_once():
    batches = make_batches()
    draws = [draw for batch in batches for draw in batch]
    assert sorted(d.row for d in draws) == list(range(37))
    assert [len(b) for b in batches] == [8, 8, 8, 8, 5]
    assert len({d.seed for d in draws}) == 37
    assert all(isinstance(d.row, int) and isinstance(d.seed, int) for d in draws)


def test_epochs_are_a_pure_function_of_seed_and_number():
    assert make_batches(seed=3, epoch=5) == make_batches(seed=3, epoch=5)
    others = [make_batches(seed=s, epoch=e) for s, e in ((3, 5), (3, 6), (4, 5), (5, 3))]
    rows = [[d.row for b in batches for d in b] for batches in others]
    seeds = [frozenset(d.seed for b in batches for d in b) for batches in others]
    assert len({tuple(r) for r in rows}) == 4
    assert not frozenset.intersection(*seeds)


def test_a_repeated_image_gets_another_seed():
    weights = np.array([1.0] * 9 + [31.0])
    batches = epoch_batches(np.zeros((10, 2), np.int32), weights, 4, 0, 0)
    repeated = [d for b in batches for d in b if d.row == 9]
    assert 7 <= len(repeated) <= 8
    assert len({d.seed for d in repeated}) == len(repeated)


def test_portrait_and_landscape_are_batched_apart():
    def mixed(batch: list[Draw]) -> bool:
        return len({d.row % 3 == 0 for d in batch}) == 2

    batches = make_batches(90, 8)
    assert sorted(d.row for b in batches for d in b) == list(range(90))
    # 60 landscape and 30 portrait images: 7 + 3 full batches, the remaining 4 + 6 mixed
    assert [mixed(b) for b in batches[:10]] == [False] * 10
    assert sorted(len(b) for b in batches) == [5, 5] + [8] * 10  # 2 are too few: they share with a full batch
    assert [mixed(b) for b in batches[10:]] == [True, False]
    together = make_batches(90, 8, group_aspect=False)
    assert sum(mixed(b) for b in together) > 6


def test_a_short_last_batch_shares_with_the_one_before():
    def lengths(*given, **options) -> list[int]:
        batches = make_batches(*given, group_aspect=False, **options)
        assert sorted(draw.row for batch in batches for draw in batch) == list(range(given[0]))
        return [len(batch) for batch in batches]

    assert lengths(17, 8) == [8, 5, 4]
    assert lengths(19, 8) == [8, 6, 5]
    assert lengths(20, 8) == [8, 8, 4]  # enough
    assert lengths(9, 4) == [4, 3, 2]
    assert lengths(9, 2) == [2, 2, 2, 2, 1]  # halves of three are no better
    assert lengths(17, 8, min_batch=2) == [8, 5, 4]  # two pictures for each of two processes, and more
    assert lengths(19, 8, min_batch=3) == [8, 8, 3]
    assert lengths(17, 8, min_batch=3) == [8, 9]  # not one for each
    assert lengths(5, 8, min_batch=5) == [5]
    with pytest.raises(UserError, match="3 training images are too few for 4 processes x accumulation steps"):
        make_batches(3, 8, min_batch=4)
    with pytest.raises(UserError, match="0 training images"):
        make_batches(0, 8)


def test_no_step_of_a_single_picture():
    """At any number of pictures, with tall ones among them; those of one shape stay together."""
    for count in range(5, 60):
        batches = make_batches(count, 8)
        assert sorted(draw.row for batch in batches for draw in batch) == list(range(count))
        assert max(map(len, batches)) <= 8
        assert min(map(len, batches)) >= 4
        assert sum(len({d.row % 3 == 0 for d in batch}) == 2 for batch in batches) <= 3
    assert {len(batch) for batch in make_batches(17, 8)} == {8, 5, 4}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 60), st.integers(1, 16))
def test_micro_batches_partition_every_batch(ranks, accumulate, count, batch_size):
    pieces = ranks * accumulate
    count, batch_size = max(count, pieces), max(batch_size, pieces)
    batches = make_batches(count, batch_size, min_batch=pieces)
    samplers = [MicroBatches(batches, accumulate, rank, ranks) for rank in range(ranks)]
    assert all(len(sampler) == len(batches) * accumulate == len(list(sampler)) for sampler in samplers)
    per_rank = [list(sampler) for sampler in samplers]
    for number, batch in enumerate(batches):
        micro = [
            per_rank[rank][number * accumulate + m]
            for rank, m in itertools.product(range(ranks), range(accumulate))
        ]
        assert sorted(d for piece in micro for d in piece) == sorted(batch)
        lengths = [len(piece) for piece in micro]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
    if pieces == 1:
        assert per_rank[0] == batches


def test_sequential_batches_partition_the_rows():
    for ranks in (1, 2, 3):
        parts = [sequential_batches(10, 4, rank, ranks) for rank in range(ranks)]
        assert sorted(d.row for part in parts for batch in part for d in batch) == list(range(10))
    assert [[d.row for d in b] for b in sequential_batches(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sequential_batches(0, 4) == []
