"""How far a sweep is, from records alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from anomtune.search.results.status import status_line, sweep_status
from anomtune.search.store.lock import _who
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, Cost, Rung, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

#: Before all runs of these tests.
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Sweep:
    """Writes records as a driver would."""

    def __init__(self, config, folder):
        self.config = config
        self.store = RecordStore(Storage(folder))
        self.own()

    def own(self, since=BEGUN, **changes):
        """Leaves the mark of a driver on this machine."""
        mark = _who() | {"since": since.isoformat(), **changes}
        self.store.storage.write("owner.json", json.dumps(mark).encode())

    def trial(self, number, state, *, auroc=0.9, seconds=60.0, ago=0.0, category="a"):
        """A trial that ended so many seconds ago, or that runs."""
        ended = NOW - timedelta(seconds=ago)
        running = state == "RUNNING"
        self.store.write(
            TrialRecord(
                dataset="folder",
                category=category,
                method="toy",
                number=number,
                state=state,
                params={"number": number},
                seed=0,
                split_hash="split",
                curve=[Rung(step=4, auroc=auroc, auroc_low=0, auroc_high=1)],
                cost=Cost(
                    started_at=(ended - timedelta(seconds=seconds)).isoformat(),
                    finished_at=None if running else ended.isoformat(),
                ),
            )
        )

    def confirm(self, number, seed, state="COMPLETE"):
        self.store.write(
            ConfirmRecord(
                dataset="folder",
                category="a",
                method="toy",
                number=number,
                seed=seed,
                state=state,
                params={"number": number},
                split_hash="split",
                val_auroc=0.9,
            )
        )

    def status(self):
        return sweep_status(self.config, self.store, NOW)


@pytest.fixture
def sweep(make_sweep, tmp_path):
    def make(categories=("a",), **changes):
        dataset = {"name": "folder", "root": "/nowhere", "categories": list(categories)}
        return Sweep(make_sweep(dataset=dataset, **{"confirm": 0, **changes}), tmp_path)

    return make


def test_nothing_has_run(sweep):
    status = sweep(("a", "b")).status()
    assert [str(study.key) for study in status.studies] == ["a/toy", "b/toy"]
    assert [(study.ended, study.target) for study in status.studies] == [(0, 4), (0, 4)]
    assert status.seconds_left is None
    assert status.idle is None
    assert status_line(status) == "0/8 trials"


def test_states_are_counted_and_the_best_is_a_completed_one(sweep):
    running = sweep(trials=6)
    running.trial(0, "COMPLETE", auroc=0.7, ago=300)
    running.trial(1, "COMPLETE", auroc=0.8, ago=90)
    running.trial(2, "PRUNED", auroc=0.99)
    running.trial(3, "FAIL")
    running.trial(4, "RUNNING", auroc=1.0)
    [study] = running.status().studies
    assert (study.complete, study.pruned, study.failed, study.running) == (2, 1, 1, 1)
    assert (study.ended, study.target, study.best, study.default) == (4, 6, 0.8, 0.7)


def test_the_time_left_is_that_of_the_trials_left_over_those_that_run(sweep):
    running = sweep(trials=7)
    for number in range(3):
        running.trial(number, "COMPLETE", seconds=60, ago=120)
    running.trial(3, "RUNNING", seconds=0)
    running.trial(4, "RUNNING", seconds=0)
    assert running.status().seconds_left == 4 * 60 / 2
    assert "about 2 min 00 s left, last result 2 min 00 s ago" in status_line(running.status())


def test_failures_do_not_shorten_the_time_left(sweep):
    running = sweep(trials=4)
    running.trial(0, "COMPLETE", seconds=100)
    running.trial(1, "FAIL", seconds=1)
    running.trial(2, "RUNNING", seconds=0)
    assert running.status().seconds_left == 200


def test_a_last_long_trial_has_less_left_the_longer_it_runs(sweep):
    running = sweep(trials=2)
    running.trial(0, "COMPLETE", seconds=100)
    running.trial(1, "RUNNING", seconds=30)
    assert running.status().seconds_left == 70
    running.trial(1, "RUNNING", seconds=300)
    assert running.status().seconds_left == 2
    assert "about 2 s left, 1 running longer than expected" in status_line(running.status())


def test_each_study_has_its_own_pace(sweep):
    running = sweep(("a", "b"), trials=2)
    running.trial(0, "COMPLETE", seconds=10)
    running.trial(0, "COMPLETE", seconds=1000, category="b")
    running.trial(1, "RUNNING", seconds=0)
    running.trial(1, "RUNNING", seconds=0, category="b")
    assert running.status().seconds_left == 1000  # both run: the longer one holds it up


def test_a_sweep_that_nobody_runs_has_no_time_left_to_tell(sweep):
    stopped = sweep()
    stopped.trial(0, "COMPLETE")
    assert stopped.status().seconds_left is None
    assert "left" not in status_line(stopped.status())


def test_what_a_killed_driver_left_does_not_run(sweep):
    killed = sweep(trials=3)
    killed.trial(0, "COMPLETE", seconds=100)
    killed.trial(1, "RUNNING", seconds=10)
    assert killed.status().seconds_left == 90 + 100
    killed.own(pid=2**22 + 1)  # no process has that number
    assert killed.status().seconds_left is None
    assert killed.status().overdue == ()
    killed.own(since=NOW - timedelta(seconds=5))  # another start has not begun that trial again
    assert killed.status().seconds_left is None
    killed.trial(2, "RUNNING", seconds=5)
    assert killed.status().seconds_left == 95 + 100


def test_which_studies_are_searched_is_what_the_driver_wrote(sweep, monkeypatch):
    """So that no method need be imported; what it has not written is what the method says."""
    both = sweep(("a", "b"), trials=50)
    both.store.write_searched({StudyKey("a", "toy"): False})
    assert [study.target for study in both.status().studies] == [1, 50]
    both.store.storage.write("searched.json", b"{")
    assert [study.target for study in both.status().studies] == [50, 50]


def test_a_finished_sweep_says_so(sweep):
    finished = sweep(trials=2)
    finished.trial(0, "COMPLETE")
    finished.trial(1, "FAIL")
    assert finished.status().seconds_left == 0
    assert "finished" in status_line(finished.status())


def test_confirm_runs_are_at_most_so_many_until_the_search_has_ended(sweep):
    confirming = sweep(trials=2, confirm={"top": 3, "seeds": [1, 2]})
    confirming.trial(0, "COMPLETE", auroc=0.7)
    [study] = confirming.status().studies
    assert study.confirm_target == (3 + 1) * 2
    confirming.trial(1, "COMPLETE", auroc=0.8)
    confirming.confirm(1, 1)
    confirming.confirm(1, 2, "RUNNING")
    confirming.confirm(1, 99)  # of another sweep file's seeds
    status = confirming.status()
    [study] = status.studies
    assert (study.confirmed, study.confirming, study.confirm_target) == (1, 1, 4)
    assert status.seconds_left == 3 * 60  # no run has ended with times: as long as a trial
    for number, seed in ((1, 2), (0, 1), (0, 2)):
        confirming.confirm(number, seed)
    assert confirming.status().seconds_left == 0


def test_where_nothing_is_searched_one_trial_is_all(sweep):
    fixed = {"toy": {"fixed": {"quality": 0.5, "colour": "red"}}}
    single = sweep(methods=fixed, trials=50)
    assert single.status().studies[0].target == 1


def test_more_records_than_trials_are_all_counted(sweep):
    shrunk = sweep(trials=1)
    for number in range(3):
        shrunk.trial(number, "COMPLETE")
    assert shrunk.status().studies[0].target == 3


def test_a_method_that_is_not_installed_here_is_still_told(sweep):
    elsewhere = sweep(methods={"of_a_plugin": {}})
    assert elsewhere.status().studies[0].key == StudyKey("a", "of_a_plugin")
    assert elsewhere.status().studies[0].target == 4
