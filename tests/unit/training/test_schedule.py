"""The learning rate over a training, and a clock's training that ends in time."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdet.training.recipe import EVALUATIONS, Recipe
from crossdet.training.schedule import MEASURED_STEPS, SLOW_STEPS, Clock, Schedule
from crossdet.training.state import Progress, RunState

CLOCK = Clock()


def rates(recipe: Recipe, pictures: int) -> list[float]:
    """Of all steps of a training in epochs."""
    schedule, per_epoch = Schedule.of(recipe, pictures), math.ceil(pictures / recipe.batch_size)
    assert schedule.epochs is not None
    found = []
    for step in range(schedule.epochs * per_epoch):
        epoch = step / per_epoch
        found.append(schedule.rate(epoch, step, schedule.done(epoch, step, CLOCK)))
    return found


def test_auto_warms_up_stays_and_falls_to_nothing():
    found = rates(Recipe(epochs=30), 800)  # 3,000 steps
    assert found[0] == pytest.approx(5e-4 * 0.001)
    assert found[100] == pytest.approx(5e-4 * (0.001 + 0.999 / 2))
    assert found[200:1501] == [pytest.approx(5e-4)] * 1301
    assert found[2250] == pytest.approx(2.5e-4)
    assert found[-1] < 1e-9
    assert sorted(found[1500:], reverse=True) == found[1500:]


def test_a_short_training_has_a_short_warm_up():
    found = rates(Recipe(epochs=1), 800)  # 100 steps
    assert found[9] < 5e-4
    assert found[10] == pytest.approx(5e-4)


def test_warm_up_as_it_is_said():
    assert rates(Recipe(epochs=1, warmup_steps=0), 800)[0] == pytest.approx(5e-4)
    assert rates(Recipe(epochs=1, warmup_steps=40), 800)[39] < 5e-4
    assert rates(Recipe(epochs=2, warmup_epochs=1.0), 800)[50] == pytest.approx(5e-4 * (0.001 + 0.999 / 2))


def test_cosine_and_steps_without_epochs():
    cosine = Schedule.of(Recipe(schedule="cosine", max_steps=1000, warmup_steps=0), 800)
    assert [cosine.rate(0, s, s / 1000) for s in (0, 500, 1000)] == [pytest.approx(x) for x in (5e-4, 2.5e-4, 0)]
    steps = Schedule.of(Recipe(schedule="steps", minutes=1.0, warmup_steps=0), 800)
    assert [steps.rate(0, 0, done) for done in (0.4, 0.5, 0.75)] == [pytest.approx(x) for x in (5e-4, 5e-5, 5e-6)]


def test_the_first_limit_ends_the_training():
    schedule = Schedule.of(Recipe(epochs=10, max_steps=50), 80)
    assert schedule.done(2.5, 25, CLOCK) == 0.5
    assert not schedule.is_over(49, CLOCK)
    assert schedule.is_over(50, CLOCK)
    assert schedule.steps_left(2, 5, 10, 25, CLOCK) == 25
    assert Schedule.of(Recipe(minutes=1.0), 80).steps_left(0, 1, 10, 1, CLOCK) is None


def test_evaluations_of_a_training_in_epochs():
    schedule = Schedule.of(Recipe(epochs=30), 800)
    clock, judged = Clock(), []
    for epoch in range(1, 31):
        done = schedule.done(epoch, epoch * 100, clock)
        if schedule.evaluates(epoch, done, clock):
            judged.append(epoch)
            clock.judged_at = done
    assert judged == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    every = Schedule.of(Recipe(epochs=30, eval_every=4), 800)
    assert [e for e in range(1, 9) if every.evaluates(e, 0.0, clock)] == [4, 8]
    assert not Schedule.of(Recipe(epochs=30, eval_every=0), 800).evaluates(5, 0.5, clock)


def timed(
    minutes: float,
    seconds,
    evaluation: float = 0.0,
    per_epoch: int = 20,
    stop: int = 10**6,
    every: int | None = None,
):
    """(clock, rates, steps of evaluations) of a training whose step number n takes `seconds(n)`. every:
    `eval_every`."""
    schedule, clock, step = Schedule.of(Recipe(minutes=minutes, eval_every=every), 8 * per_epoch), Clock(), 0
    found, judged = [], []
    while not schedule.is_over(step, clock) and step < stop:
        found.append(schedule.rate(step / per_epoch, step, schedule.done(step / per_epoch, step, clock)))
        clock.spent, step = clock.spent + seconds(step), step + 1
        to_come = schedule.judged((step - 1) // per_epoch, (step - 1) % per_epoch + 1, per_epoch)
        if clock.wants_fit(step, minutes, to_come):
            clock.fit(step, minutes, to_come)
            clock = Clock(**asdict(clock))  # as after a resume
        over = schedule.is_over(step, clock)
        if over or (step % per_epoch == 0 and schedule.evaluates(step // per_epoch, clock.done(step), clock)):
            judged.append(step)
            clock.spent, clock.evaluated = clock.spent + evaluation, clock.evaluated + evaluation
            clock.evaluations, clock.judged_at = clock.evaluations + 1, clock.done(step)
    return clock, found, judged


def test_a_training_by_the_clock_ends_in_time_with_its_whole_schedule():
    clock, found, judged = timed(10, lambda _: 0.5, evaluation=5.0)
    assert clock.spent == pytest.approx(600, abs=6)
    assert found[SLOW_STEPS + MEASURED_STEPS + 200] == pytest.approx(5e-4)
    assert found[-1] < 1e-6
    assert len(judged) == EVALUATIONS


def test_slow_first_steps_do_not_count():
    clock, found, _ = timed(10, lambda step: 8.0 if step < 4 else 0.5)
    assert clock.spent == pytest.approx(600, abs=3)
    assert len(found) == pytest.approx((600 - 32) / 0.5 + 4, abs=6)


def test_evaluations_that_take_long_are_fewer():
    clock, _, judged = timed(10, lambda _: 0.5, evaluation=25.0)
    assert clock.spent == pytest.approx(600, abs=26)
    assert 2 <= len(judged) <= 4


@pytest.mark.parametrize("evaluation", [10.0, 25.0, 50.0, 90.0])
def test_the_last_evaluation_has_its_room_within_the_minutes(evaluation):
    clock, _, judged = timed(10, lambda _: 0.5, evaluation=evaluation)
    assert 585 <= clock.spent <= 601
    assert judged


@pytest.mark.parametrize(
    ("minutes", "pace", "per_epoch", "every", "evaluation"),
    [
        (10, 0.5, 20, 1, 100.0),  # ten times as long as the epoch
        (15, 0.5, 20, 1, 30.0),
        (60, 0.74, 20, 1, 60.0),
        (30, 0.5, 60, 1, 90.0),  # the first is after the first look at the pace
        (30, 0.5, 60, 3, 200.0),
        (10, 10.0, 8, 1, 60.0),  # few slow steps
    ],
)
def test_evaluations_that_come_often_leave_the_schedule_its_end(minutes, pace, per_epoch, every, evaluation):
    clock, found, judged = timed(minutes, lambda _: pace, evaluation, per_epoch, every=every)
    assert found[-1] < 0.1 * max(found)
    assert judged[:-1] == list(range(every * per_epoch, judged[-1], every * per_epoch))
    assert 60 * minutes - evaluation - pace <= clock.spent <= 60 * minutes + 1e-6


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 3), st.integers(1, 80), st.integers(1, 3), st.floats(0, 120))
def test_set_evaluations_of_any_length_end_in_time(pace, per_epoch, every, evaluation):
    """But for what was over before the first one had shown how long it takes."""
    clock, found, _ = timed(30, lambda _: pace, evaluation, per_epoch, every=every)
    unknown = evaluation * max(1, (SLOW_STEPS + MEASURED_STEPS) // (every * per_epoch) - 1)
    if unknown < 900:
        assert 1800 - evaluation - pace <= clock.spent <= 1800 + 1e-6
        assert found[-1] < 0.25 * max(found) or len(found) < 40


def test_without_evaluations_in_between_all_of_the_time_is_for_steps():
    clock, found, judged = timed(10, lambda _: 0.5, evaluation=50.0, every=0)
    assert judged == [len(found)] == [1200]
    assert clock.spent == 600 + 50
    assert found[-1] < 1e-6
    known = Clock(spent=300, evaluated=50, evaluations=1, line=(30, 0.0, 1200), measured=(500, 250, 50))
    known.fit(600, 10, Schedule.of(Recipe(minutes=10, eval_every=0), 160).judged(30, 0, 20))
    assert known.line is not None
    assert known.line[2] == 600 + (600 - 300 - 50) / 0.5  # one at the end


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 3), st.floats(0.2, 5), st.floats(0, 20))
def test_a_machine_that_changes_its_pace_still_ends_in_time(pace, change, evaluation):
    """Half way the steps take `change` times as long; the last fit is at most a twentieth of the training old."""
    clock, found, _ = timed(5, lambda step: pace * (change if step > 150 / pace else 1), evaluation)
    assert clock.spent <= 300 + 0.1 * 300 * max(1, change) + 2 * evaluation + pace * change * MEASURED_STEPS * 2
    assert all(a >= b - 1e-12 for a, b in pairwise(found[len(found) // 2 + 50 :]))


@pytest.mark.parametrize("count", [2, 3, 4, 7, 12, 20, 29, 40])
def test_a_training_of_few_slow_steps_ends_in_time_with_its_whole_schedule(count):
    """`count` steps and a half have room in a minute."""
    clock, found, _ = timed(1, lambda _: 60 / (count + 0.5))
    assert len(found) == count
    assert clock.spent <= 60
    assert clock.done(count) == 1
    height = max(found) / 5e-4
    assert height > (0.7 if count > 2 else 0)  # not all of them are warm-up
    assert found[-1] < 5e-4 * 0.8 or count < 7
    assert found[-1] < 5e-4 * 0.1 or count < 12


@pytest.mark.parametrize("first", [10.0, 25.0])
def test_a_slow_beginning_is_not_taken_for_the_pace(first):
    clock, _, _ = timed(1, lambda step: first if step == 0 else 2.0)
    assert clock.spent == pytest.approx(60, abs=2)
    assert clock.spent <= 60


def test_a_step_that_is_longer_than_the_training_is_its_last():
    clock, found, _ = timed(0.01, lambda _: 1.0)
    assert len(found) == 1
    assert clock.line is not None


def test_what_auto_chose_is_told():
    lines = Schedule.of(Recipe(), 800).lines()
    assert lines[0] == (
        "recipe auto: AdamW, learning rate 0.0005 for 8 pictures a step (its backbone has learnt already), weight "
        "decay 0.05, none of norms and biases"
    )
    assert lines[1] == "length: 30 epochs (not given: by the 800 training pictures), 3,000 steps"
    assert "constant for the first half, then a cosine to 0" in lines[2]
    own = Schedule.of(Recipe(lr=1e-3, minutes=15.0, workers=4), 800).lines()
    assert own[1] == "length: 15 minutes, schedule fitted to the speed"
    assert own[-1] == "set by the config: lr, minutes"
    paper = Schedule.of(Recipe(recipe="paper"), 800).lines()
    assert paper[0] == "recipe paper: SGD, learning rate 0.04 for 32 pictures a step, weight decay 0.0001"
    assert "falls to 0.1 at epoch 10, 15" in paper[2]
    assert not paper[-1].startswith("set by")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "200 steps"),  # 3,000 of them
        ({"epochs": 1}, "10 steps"),
        ({"max_steps": 30}, "3 steps"),
        ({"max_steps": 45}, "5 steps"),
        ({"max_steps": 9}, "1 step"),
        ({"epochs": 2, "max_steps": 5000}, "20 steps"),
        ({"minutes": 15.0}, "200 steps (at most a tenth of the training)"),
        ({"minutes": 15.0, "max_steps": 30}, "3 steps (at most a tenth of the training)"),
        ({"warmup_steps": 70}, "70 steps"),
        ({"warmup_epochs": 1.5}, "1.5 epochs"),
    ],
)
def test_the_warm_up_is_told_as_it_will_be(values, told):
    recipe = Recipe(**values)
    schedule = Schedule.of(recipe, 800)
    assert f"schedule: warm-up {told}, constant" in schedule.lines()[2]
    if recipe.minutes is None:
        warm = [schedule.rate_at(step / 100, step) < 5e-4 * (1 - 1e-9) for step in range(400)]
        first = warm.index(False)
        assert told in (f"{first} step{'s' * (first != 1)}", f"{first / 100:g} epochs")


# -------------------------------------------------------------------------------------------- more epochs


def test_more_epochs_move_what_stands_at_the_papers_shares():
    paper = Recipe(recipe="paper", epochs=8)
    assert paper.with_epochs(20) == Recipe(recipe="paper")
    own = Recipe(recipe="paper", epochs=8, steps=[7.0], warmup_epochs=1.0)
    assert (own.with_epochs(20).steps, own.with_epochs(20).warmup_epochs) == ((7.0,), 1.0)
    assert Recipe(epochs=8).with_epochs(None) == Recipe(epochs=None)


@pytest.mark.parametrize(
    ("recipe", "epoch", "before", "same"),
    [
        (Recipe(epochs=30), 10, 20, True),  # flat for the first half of both
        (Recipe(epochs=30), 11, 20, False),
        (Recipe(epochs=30, schedule="cosine"), 1, 20, False),
        (Recipe(recipe="paper", epochs=30, steps=[25.0], warmup_epochs=1.0), 20, 20, True),
        (Recipe(recipe="paper", epochs=30), 1, 20, False),  # another warm-up
    ],
)
def test_whether_a_longer_schedule_was_the_same_so_far(recipe, epoch, before, same):
    schedule = Schedule.of(recipe, 8000)
    assert schedule.continues(schedule.began_as(before), epoch, epoch * 1000) == same


def lengthened(progress: Progress, recipe: Recipe) -> str | None:
    return RunState.lengthen(cast(RunState, SimpleNamespace(progress=progress)), Schedule.of(recipe, 8000))


def test_a_finished_run_goes_on_and_says_with_which_rates():
    progress = Progress(epoch=20, step=20_000, finished=True, epochs=20, clock=Clock(judged_at=1.0))
    told = lengthened(progress, Recipe(epochs=30))
    assert told == (
        "train.epochs: 20 -> 30. So far the learning rate was that of 20 epochs (it would be 0 now); it goes on as "
        "that of 30 (0.00038 now), which is not the same as a training that begins with 30"
    )
    assert (progress.finished, progress.epochs) == (False, 30)
    assert progress.clock.judged_at == pytest.approx(2 / 3)
    early = Progress(epoch=10, step=10_000, epochs=20)
    assert "as if it had begun with 30" in str(lengthened(early, Recipe(epochs=30)))


def test_what_is_not_longer_is_left_alone():
    for progress, recipe in (
        (Progress(finished=True, epochs=30), Recipe(epochs=30)),
        (Progress(finished=True), Recipe(epochs=30)),  # of an earlier version
        (Progress(finished=True, epochs=20), Recipe(max_steps=9)),
    ):
        assert lengthened(progress, recipe) is None
        assert progress.finished
