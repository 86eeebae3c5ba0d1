"""How long a sweep will still take, on a clock that exists only here."""

from __future__ import annotations

import heapq
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from anomtune.search.decide.progress import StudyProgress
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.store.records import ConfirmRecord, Cost, Rung, StudyKey, TrialRecord

BEGIN = datetime(2026, 1, 2, 12, tzinfo=UTC)
RUNGS = 8


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat()


def trial(number, begun, *, steps=0, each=0.0, ended=None, state="COMPLETE", method="toy"):
    """A trial that has reported so many rungs of so many seconds, and has ended or not."""
    return TrialRecord(
        dataset="folder",
        category="a",
        method=method,
        number=number,
        state="RUNNING" if ended is None else state,
        params={},
        seed=0,
        split_hash="split",
        curve=[
            Rung(step=step, auroc=0.5, auroc_low=None, auroc_high=None)
            for step in range(1, steps + 1)
        ],
        cost=Cost(
            train_seconds=steps * each,
            started_at=at(begun),
            finished_at=None if ended is None else at(ended),
        ),
    )


def confirm(number, seed, begun, ended=None):
    return ConfirmRecord(
        dataset="folder",
        category="a",
        method="toy",
        number=number,
        seed=seed,
        state="RUNNING" if ended is None else "COMPLETE",
        params={},
        split_hash="split",
        cost=Cost(started_at=at(begun), finished_at=None if ended is None else at(ended)),
    )


def study(target, ended=0, running=0, method="toy", **confirms):
    key = StudyKey("a", method)
    return StudyProgress(key, target=target, complete=ended, running=running, **confirms)


def left(times, studies, seconds):
    return times.left(studies, BEGIN + timedelta(seconds=seconds))


def simulate(lengths: list[float], slots: int, look: float):
    """Runs trials of such lengths; yields at each look the estimate and the truth."""
    times = RunTimes(RUNGS)
    events: list[tuple[float, int, int]] = []
    begun: dict[int, float] = {}
    waiting = list(range(len(lengths)))
    clock, ended, looks = 0.0, 0, []

    def start(now: float) -> None:
        number = waiting.pop(0)
        begun[number] = now
        times.add(trial(number, now))
        for step in range(1, RUNGS + 1):
            heapq.heappush(events, (now + lengths[number] * step / RUNGS, number, step))

    for _ in range(min(slots, len(lengths))):
        start(0.0)
    due = look
    while events:
        clock, number, step = heapq.heappop(events)
        while due < clock:
            progress = study(len(lengths), ended, len(begun) - ended)
            looks.append((due, left(times, [progress], due)))
            due += look
        each = lengths[number] / RUNGS
        if step < RUNGS:
            times.add(trial(number, begun[number], steps=step, each=each))
            continue
        times.add(trial(number, begun[number], steps=step, each=each, ended=clock))
        ended += 1
        if waiting:
            start(clock)
    return [(when, estimate, clock - when) for when, estimate in looks]


def test_a_last_long_trial_makes_the_estimate_fall_as_it_runs():
    looks = simulate([60.0] * 9 + [1200.0], slots=2, look=10)
    alone = [look for look in looks if look[0] > 320]  # it alone is left, and has no rung yet
    assert len(alone) > 100
    with_rung = [look for look in alone if look[0] > 240 + 150]
    for (_, before, _), (_, after, truth) in pairwise(with_rung):
        assert after.seconds < before.seconds or truth < 0.02 * 1200
        assert after.seconds == pytest.approx(truth, abs=0.02 * 1200)
    without = [estimate.seconds for when, estimate, _ in alone if when < 240 + 150]
    assert without == sorted(without, reverse=True), "it grew while nothing was known"


def test_the_estimate_of_even_trials_is_the_truth():
    looks = simulate([80.0] * 12, slots=3, look=7)
    known = [look for look in looks if look[1].seconds is not None]
    assert known[0][0] <= 14  # with the first rung, before any trial has ended
    for _, estimate, truth in known:
        assert estimate.seconds == pytest.approx(truth, abs=0.02 * 80)


def test_the_longest_run_holds_the_sweep_up():
    times = RunTimes(RUNGS)
    times.add(trial(0, 0, ended=10))
    times.add(trial(1, 0, ended=990, method="long"))
    times.add(trial(2, 990))
    studies = [study(3, 1, 1), study(2, 1, method="long")]
    times.add(trial(3, 990))
    assert left(times, studies, 990).seconds == 990


def test_without_a_rung_a_run_that_takes_longer_is_overdue_and_its_estimate_does_not_grow():
    times = RunTimes(RUNGS)
    times.add(trial(0, 0, ended=100))
    times.add(trial(1, 100))
    progress = [study(2, 1, 1)]
    assert left(times, progress, 140).seconds == 60
    assert left(times, progress, 140).overdue == ()
    late = [left(times, progress, seconds) for seconds in (201, 400, 4000)]
    assert {estimate.seconds for estimate in late} == {2.0}
    assert late[0].overdue == (trial(1, 0).path,)


def test_failures_and_other_methods():
    times = RunTimes(RUNGS)
    times.add(trial(0, 0, ended=1, state="FAIL"))
    times.add(trial(1, 0))
    assert left(times, [study(3, 1, 1)], 0).seconds is None
    times.add(trial(0, 0, ended=50, method="other"))  # the nearest that is known
    assert left(times, [study(3, 1, 1), study(1, 1, method="other")], 0).seconds == 100


def test_what_a_trial_does_beside_training_is_learnt_from_those_that_have_ended():
    times = RunTimes(RUNGS)
    times.add(trial(0, 0, steps=8, each=10, ended=100))  # 80 s of training, 20 s of the rest
    times.add(trial(1, 100, steps=2, each=10))
    assert left(times, [study(2, 1, 1)], 140).seconds == 100 - 40


def test_confirm_runs_are_as_long_as_trials_until_one_has_ended():
    times = RunTimes(RUNGS)
    for number in range(2):
        times.add(trial(number, 0, ended=60))
    times.add(confirm(1, 1, 60))
    progress = study(2, 2, confirming=1, confirm_target=4)
    assert left(times, [progress], 60).seconds == 4 * 60
    times.add(confirm(1, 1, 60, ended=80))
    times.add(confirm(1, 2, 80))
    progress = study(2, 2, confirming=1, confirmed=1, confirm_target=4)
    assert left(times, [progress], 80).seconds == 3 * 20


def test_nothing_is_left_and_nobody_runs():
    times = RunTimes(RUNGS)
    times.add(trial(0, 0, ended=60))
    assert left(times, [study(1, 1)], 60).seconds == 0
    assert left(times, [study(2, 1)], 60).seconds is None
    times.add(trial(1, 60))
    times.forget(StudyKey("a", "toy"))
    assert left(times, [study(2)], 60).seconds is None


def test_a_trial_that_goes_on_from_a_checkpoint_has_done_what_it_did_before():
    times = RunTimes(4)
    for number in range(3):
        times.add(trial(number, 0, steps=4, each=150, ended=600))
    # Half of its rungs, 300 s, were done before the kill; it goes on since 5 s.
    times.add(trial(3, 995, steps=2, each=150))
    assert left(times, [study(4, ended=3, running=1)], 1000).seconds == pytest.approx(300)
