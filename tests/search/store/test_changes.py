"""Records are read when they have changed, and never else."""

from __future__ import annotations

import os
import shutil

import pytest

from anomtune.search.store.changes import RecordChanges
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

KEYS = [StudyKey("a", "toy"), StudyKey("b", "toy")]


def trial(number, category="a", state="COMPLETE"):
    return TrialRecord(
        dataset="folder",
        category=category,
        method="toy",
        number=number,
        state=state,
        params={},
        seed=0,
        split_hash="split",
    )


class Reading(Storage):
    """Counts what is read and listed."""

    def __init__(self, root):
        super().__init__(root)
        self.read_paths: list[str] = []
        self.listed: list[str] = []

    def read_version(self, path):
        self.read_paths.append(path)
        return super().read_version(path)

    def stamps(self, path, suffix):
        self.listed.append(path)
        return super().stamps(path, suffix)

    def seen(self):
        found = self.read_paths, self.listed
        self.read_paths, self.listed = [], []
        return found


@pytest.fixture
def writing(tmp_path):
    return RecordStore(Storage(tmp_path))


@pytest.fixture
def storage(tmp_path):
    return Reading(tmp_path)


@pytest.fixture
def changes(storage):
    return RecordChanges(RecordStore(storage))


def look(changes):
    found = list(changes.poll(KEYS))
    return sorted(record.path for one in found for record in one.records)


def test_only_what_is_new_is_read(writing, storage, changes):
    assert look(changes) == []
    for number in range(3):
        writing.write(trial(number))
    writing.write(trial(0, "b", "RUNNING"))
    assert len(look(changes)) == 4
    storage.seen()
    assert look(changes) == []
    writing.write(trial(3))
    assert look(changes) == ["trials/a/toy/00003"]
    assert storage.seen()[0] == ["trials/a/toy/00003.json"]
    writing.write(trial(0, "b"))
    assert look(changes) == ["trials/b/toy/00000"]


def test_what_rests_is_not_even_listed(writing, storage, changes):
    writing.write(trial(0))
    look(changes)
    look(changes)  # once more: what was written within the same tick is seen
    storage.seen()
    look(changes)
    assert storage.seen() == ([], [])


def test_a_second_change_within_one_tick_of_the_clock_is_seen(writing, storage, changes, tmp_path):
    writing.write(trial(0))
    look(changes)
    folder = tmp_path / "trials/a/toy"
    before = folder.stat()
    writing.write(trial(1))
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    if folder.stat().st_size != before.st_size:
        pytest.skip("this file system tells them apart")
    assert look(changes) == ["trials/a/toy/00001"]


def test_confirm_runs(writing, changes):
    fields = trial(0).model_dump(include={"dataset", "category", "method", "params", "split_hash"})
    writing.write(ConfirmRecord(**fields, number=0, seed=7, state="RUNNING"))
    assert look(changes) == ["confirm/a/toy/00000-7"]


def test_what_cannot_be_read_is_said_once_and_read_when_it_has_changed(writing, changes, tmp_path):
    writing.write(trial(0))
    broken = tmp_path / "trials/a/toy/00001.json"
    broken.write_bytes(b'{"dataset": "fol')
    empty = tmp_path / "trials/a/toy/00002.json"
    empty.write_bytes(b"")
    writing.write(trial(0, "b"))
    (tmp_path / "trials/b/toy/00000.json").rename(tmp_path / "trials/b/toy/00009.json")
    first, second = changes.poll(KEYS)
    assert [record.number for record in first.records] == [0]
    assert list(first.unreadable) == ["trials/a/toy/00001.json"]
    assert "delete the file to run that trial again" in first.unreadable["trials/a/toy/00001.json"]
    assert "holds the record of trials/b/toy/00000" in next(iter(second.unreadable.values()))
    assert list(changes.poll(KEYS)) == []
    for number in (1, 2):
        writing.write(trial(number))
    assert look(changes) == ["trials/a/toy/00001", "trials/a/toy/00002"]


def test_what_has_gone_is_said(writing, changes, tmp_path):
    for number in range(2):
        writing.write(trial(number))
    look(changes)
    (tmp_path / "trials/a/toy/00001.json").unlink()
    [found] = changes.poll(KEYS)
    assert found.gone == ["trials/a/toy/00001"]
    assert found.records == []
    shutil.rmtree(tmp_path / "trials")
    [found] = changes.poll(KEYS)
    assert found.gone == ["trials/a/toy/00000"]
    assert list(changes.poll(KEYS)) == []
    writing.write(trial(0))
    assert look(changes) == ["trials/a/toy/00000"]


def test_a_look_that_failed_is_made_up_for(writing, storage, changes, monkeypatch):
    writing.write(trial(0))
    with monkeypatch.context() as failing:
        failing.setattr(storage, "read_many", lambda paths: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):  # noqa: PT011
            look(changes)
    assert look(changes) == ["trials/a/toy/00000"]
    changes.again(KEYS[0])
    assert look(changes) == ["trials/a/toy/00000"]
