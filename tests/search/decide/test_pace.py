"""Which study a free slot goes to, and that a sweep does not wait for a few long trials."""

from __future__ import annotations

import heapq
import itertools

import pytest

from anomtune.search.decide.pace import Candidate, Pace
from anomtune.search.store.records import Cost, StudyKey, TrialRecord

SHORT, LONG = StudyKey("a", "short"), StudyKey("a", "long")


def ended(method, seconds, state="COMPLETE"):
    return TrialRecord(
        dataset="toy",
        category="a",
        method=method,
        number=0,
        state=state,
        params={},
        seed=0,
        split_hash="split",
        cost=Cost(train_seconds=seconds),
    )


def studies(short, long, target=10, running=0):
    return [
        Candidate(key, target, started, running, started < target)
        for key, started in ((SHORT, short), (LONG, long))
    ]


def test_while_nothing_is_known_the_study_furthest_behind_goes_first():
    pace = Pace()
    assert pace.choose(studies(3, 2)) == LONG
    assert pace.choose(studies(2, 3)) == SHORT
    assert pace.choose(studies(2, 2)) == SHORT  # the first in the sweep file
    assert pace.choose([]) is None
    assert pace.choose(studies(10, 10)) is None


def test_far_from_the_end_studies_advance_together_whatever_their_trials_take():
    pace = Pace()
    pace.learn(ended("short", 1))
    pace.learn(ended("long", 60))
    assert pace.choose(studies(100, 200, target=10_000)) == SHORT
    assert pace.choose(studies(200, 100, target=10_000)) == LONG


def test_near_the_end_the_long_trials_go_first():
    pace = Pace()
    pace.learn(ended("short", 1))
    pace.learn(ended("long", 60))
    assert pace.choose(studies(5, 9)) == LONG
    assert pace.choose(studies(5, 10)) == SHORT


def test_a_study_that_may_not_start_is_passed_over():
    pace = Pace()
    waiting = Candidate(LONG, 10, 2, 2, may_start=False)
    assert pace.choose([Candidate(SHORT, 10, 9, 0, may_start=True), waiting]) == SHORT


def test_trials_cut_short_do_not_make_whole_ones_look_short():
    pace = Pace()
    pace.learn(ended("short", 10))
    pace.learn(ended("long", 60))
    for _ in range(20):
        pace.learn(ended("long", 1, "PRUNED"))
        pace.learn(ended("long", 0, "FAIL"))
    assert pace.choose(studies(5, 9)) == LONG


@pytest.mark.parametrize("slots", [4, 16, 50])
def test_slots_are_busy_until_the_work_ends(slots):
    """All take an hour but short ones; started evenly, the last hours would fill four slots."""
    seconds = {SHORT: 60.0, LONG: 3600.0}
    targets = {SHORT: 2000, LONG: 100}
    pace, started, running = Pace(), dict.fromkeys(seconds, 0), dict.fromkeys(seconds, 0)
    clock, busy, events, serial = 0.0, 0.0, [], itertools.count()
    while True:
        while sum(running.values()) < slots:
            progress = [
                Candidate(
                    key, targets[key], started[key], running[key], started[key] < targets[key]
                )
                for key in seconds
            ]
            key = pace.choose(progress)
            if key is None:
                break
            started[key] += 1
            running[key] += 1
            busy += seconds[key]
            heapq.heappush(events, (clock + seconds[key], next(serial), key))
        if not events:
            break
        clock, _, key = heapq.heappop(events)
        running[key] -= 1
        pace.learn(ended(key.method, seconds[key]))
    assert started == targets
    # What is lost: less than one long trial on every slot.
    assert clock - busy / slots < 3600
