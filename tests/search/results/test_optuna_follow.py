"""A sweep that grows, as optuna-dashboard sees it: nothing twice, nothing old, and an end."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import optuna
import pytest

from anomtune.errors import StorageError, SweepError
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.optuna_export import export_studies, rebuild_studies
from anomtune.search.results.optuna_follow import Followed, follow_studies
from anomtune.search.store.directory import read_sweep, write_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import TrialRecord
from anomtune.search.store.storage import Storage
from tests.search.results.test_optuna_export import contents, open_url
from tests.search.sample_sweep import write_sample_sweep

pytestmark = pytest.mark.slow

TRIALS = 6


class _Killed(BaseException):
    """The follower is gone."""


class Growing:
    """A sweep whose records are written one after the other, as its driver would.

    Attributes:
        states: All states of all records in their order.
    """

    def __init__(self, source, directory, **changes) -> None:
        settings = {"categories": ["bottle", "screw"], "methods": ["rd4ad"], "confirm": 0}
        reason = lambda record: "out of memory" if record.number == 3 else None  # noqa: E731
        self.config = write_sample_sweep(
            source, fails=reason, **settings | {"trials": TRIALS, "scoring": "paper"} | changes
        )
        _, store = read_sweep(source)
        self.store = RecordStore(Storage(directory))
        write_config(self.store.storage, self.config)
        for key, scorings in store.read_all_scorings(store.read_all()).items():
            self.store.write_scorings(key, scorings)
        self.states: list[TrialRecord] = []
        records = [record for study in store.read_all().values() for record in study]
        for record in sorted(records, key=lambda record: (record.number, record.category)):
            self.states += [*_begun(record), record]

    def grow(self, number: int = 1) -> None:
        for record in self.states[:number]:
            self.store.write(record)
        del self.states[:number]


def _begun(record: TrialRecord) -> list[TrialRecord]:
    cost = record.cost.model_copy(update={"finished_at": None})
    changes = {"state": "RUNNING", "facts": None, "error": None, "cost": cost}
    return [
        record.model_copy(update=changes | {"curve": record.curve[:rungs]})
        for rungs in range(len(record.curve) + 1)
    ]


@pytest.fixture
def growing(tmp_path) -> Growing:
    return Growing(tmp_path / "source", tmp_path / "sweep")


@pytest.fixture(params=["sqlite:///{}/studies.db", "{}/studies.log"])
def url(request, tmp_path) -> str:
    return request.param.format(tmp_path)


def there(url: str) -> dict[str, list[tuple]]:
    storage = open_url(url)
    return {
        study.study_name: contents(
            optuna.load_study(study_name=study.study_name, storage=storage).trials
        )
        for study in optuna.get_all_study_summaries(storage)
    }


def truth(growing: Growing) -> dict[str, list[tuple]]:
    studies = rebuild_studies(growing.config, read_studies(growing.store))
    return {study.study_name: contents(study.trials) for study in studies.values()}


def ids(url: str) -> dict[str, int]:
    return {s.study_name: s._study_id for s in optuna.get_all_study_summaries(open_url(url))}


def test_it_follows_to_the_end(growing, url, tmp_path):
    seen, pages = [], []

    def sleep(seconds: float) -> None:
        assert there(url) == truth(growing)
        pages.append(ids(url))
        growing.grow(9)

    growing.grow(3)
    found = follow_studies(tmp_path / "sweep", url, tell=seen.append, sleep=sleep)
    assert found == seen[-1] == Followed(2, 2 * TRIALS, 0)
    assert there(url) == truth(growing)
    assert all(page.items() >= pages[0].items() for page in pages), "a page that was open is gone"
    # To the last time as if it had been exported once.
    export_studies(tmp_path / "sweep", f"sqlite:///{tmp_path}/once.db")
    for name in there(url):
        followed, once = (
            optuna.load_study(study_name=name, storage=open_url(place)).trials
            for place in (url, f"sqlite:///{tmp_path}/once.db")
        )
        assert [t.datetime_complete for t in followed] == [t.datetime_complete for t in once]
        assert [t.datetime_start for t in followed] == [t.datetime_start for t in once]
        assert [t.user_attrs for t in followed] == [t.user_attrs for t in once]


def test_killed_at_any_moment_and_started_again(growing, url, tmp_path, monkeypatch):
    generator = random.Random(3)
    calls = {"left": 0}

    def mortal(method):
        def call(*arguments, **named):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise _Killed
            return method(*arguments, **named)

        return call

    for storage in (optuna.storages.RDBStorage, optuna.storages.JournalStorage):
        for name in (
            *("create_new_study", "create_new_trial", "set_trial_intermediate_value"),
            *("set_trial_state_values", "set_study_user_attr", "delete_study"),
        ):
            monkeypatch.setattr(storage, name, mortal(getattr(storage, name)))

    def sleep(seconds: float) -> None:
        growing.grow(generator.randrange(6))

    growing.grow(4)
    for _ in range(12):
        calls["left"] = generator.randrange(1, 25)
        try:
            follow_studies(tmp_path / "sweep", url, sleep=sleep)
            break
        except _Killed:
            continue
    monkeypatch.undo()
    follow_studies(tmp_path / "sweep", url, sleep=sleep)
    assert there(url) == truth(growing)
    for trials in there(url).values():
        assert Counter(number for number, *_ in trials) == dict.fromkeys(range(TRIALS), 1)


def test_what_optuna_cannot_change_replaces_a_study(growing, tmp_path):
    """A trial that begins anew, and another scoring; the rest leaves it where it is."""
    url, pages = f"{tmp_path}/studies.log", []
    first = growing.states[0]
    done = next(r for r in growing.states if r.path == first.path and r.state == "COMPLETE")
    rung, last = done.curve[0], done.curve[-1]
    better = [*done.curve[:-1], last.model_copy(update={"auroc": last.auroc + 0.01})]
    steps = [
        lambda: growing.store.write(first.model_copy(update={"curve": [rung]})),
        lambda: growing.store.write(first.model_copy(update={"curve": [], "seed": 5})),
        lambda: growing.grow(20),
        lambda: growing.store.write(done.model_copy(update={"curve": better})),
    ]

    def sleep(seconds: float) -> None:
        assert there(url) == truth(growing)
        pages.append(ids(url)[f"folder/{first.key}"])
        if steps:
            steps.pop(0)()
        else:
            growing.grow(20)

    growing.grow()
    follow_studies(tmp_path / "sweep", url, sleep=sleep)
    assert there(url) == truth(growing)
    assert pages[0] == pages[1] != pages[2] == pages[3] != pages[4]
    assert set(pages[4:]) == {pages[4]}


def test_a_storage_that_fails_for_a_while_is_told_once(growing, tmp_path, monkeypatch):
    url, told = f"{tmp_path}/studies.log", []
    read, fails = Storage.list, [False, True, True, False, True]

    def flaky(self, path, suffix):
        if path == "trials" and fails and looks[-1] < len(fails) and fails[looks[-1]]:
            raise StorageError("s3://bucket: cannot list: timed out")
        return read(self, path, suffix)

    looks = [0]
    monkeypatch.setattr(Storage, "list", flaky)

    def sleep(seconds: float) -> None:
        looks.append(looks[-1] + 1)
        growing.grow(12)

    growing.grow(2)
    follow_studies(tmp_path / "sweep", url, tell=told.append, sleep=sleep)
    assert sum(isinstance(what, StorageError) for what in told) == 2
    assert there(url) == truth(growing)


def test_a_bad_beginning_is_refused(growing, tmp_path):
    with pytest.raises(SweepError, match="no sweep"):
        follow_studies(tmp_path, f"{tmp_path}/studies.log", sleep=pytest.fail)
    with pytest.raises(StorageError, match="unable to open"):
        follow_studies(tmp_path / "sweep", "sqlite:////nowhere/s.db", sleep=pytest.fail)


def test_the_command(growing, tmp_path, run, monkeypatch):
    url = f"{tmp_path}/studies.log"
    growing.grow(7)
    looks = []

    def interrupted(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        growing.grow(1)

    monkeypatch.setitem(follow_studies.__kwdefaults__, "sleep", interrupted)
    code, out, err = run("export", tmp_path / "sweep", "--optuna", url, "--follow")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == "Interrupted. The same command goes on from here."
    growing.grow(1000)
    code, out, err = run("export", tmp_path / "sweep", "--optuna", url, "--follow")
    assert code == 0, err
    assert out == f"complete: 2 studies, {2 * TRIALS} trials in {url}\n"
    assert there(url) == truth(growing)
