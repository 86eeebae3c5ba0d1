"""Records that are read in segments: what costs fewer requests loses nothing, on moto."""

from __future__ import annotations

import gzip
import json

import pytest

from anomtune.search.journal import Journal
from anomtune.search.store import segments
from anomtune.search.store.changes import RecordChanges
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, StudyKey
from anomtune.search.store.storage import Storage
from tests.search.object_store import credentials, folder, proxy, running_proxy, server
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record

pytestmark = pytest.mark.slow

_ = server, credentials, running_proxy, proxy

MANY = 6
KEY = StudyKey("plate", "toy")


@pytest.fixture
def place(proxy, monkeypatch) -> str:
    monkeypatch.setattr(segments, "_FEW", MANY - 2)
    return folder(proxy.address)


def trial(number, steps=4, state="COMPLETE"):
    return toy_record(number, state, steps).model_copy(
        update={"params": {"quality": 0.5, "colour": "green"}}
    )


def confirm_run(number):
    fields = trial(0).model_dump(include={"dataset", "category", "method", "params", "split_hash"})
    return ConfirmRecord(**fields, number=number, seed=1, state="FAIL", error="é\n\t")


def run(place, records) -> None:
    """Does what a start of a sweep does with its directory."""
    storage = Storage(place)
    with DirectoryLock(storage) as owner:
        store = RecordStore(storage, owner)
        with Journal(store, owner, TOY_PLANS) as journal:
            found = [r for study in store.read_all().values() for r in study]
            found += [r for study in store.read_confirmed().values() for r in study]
            journal.catch_up(found, lambda record: record)
            for record in records:
                journal.write(record, record)
            journal.drain()


def read(place):
    store = RecordStore(Storage(place, known=True))
    found = (*store.read_all().values(), *store.read_confirmed().values())
    return {record.path: record for study in found for record in study}


def singles(place):
    """Reads the single files and nothing else."""
    store = RecordStore(Storage(place))
    found = (*store.read_trials(KEY), *store.read_runs(KEY))
    return {record.path: record for record in found}


@pytest.fixture
def full(place):
    """A directory with more records than are read by themselves."""
    run(place, [*map(trial, range(MANY)), *map(confirm_run, range(MANY))])
    return place


def test_all_records_are_few_requests(full, proxy):
    proxy.look()
    found = read(full)
    seen = proxy.look()["counts"]
    assert seen == {"LIST": 4, "GET": 2}, "per kind: single files, segments, one of these"
    assert len(found) == 2 * MANY
    assert found == singles(full)


def test_the_next_start_does_little(full, proxy):
    proxy.look()
    run(full, [])
    counts = proxy.look()["counts"]
    assert sum(counts.values()) < 25, counts


def test_a_killed_driver_leaves_single_files_which_the_next_start_gathers(place, proxy):
    store = RecordStore(Storage(place))
    for number in range(MANY):
        store.write(trial(number))
    store.write(trial(MANY, 2, "RUNNING"))
    assert len(read(place)) == MANY + 1
    run(place, [])
    proxy.look()
    found = read(place)
    assert proxy.look()["counts"] == {"LIST": 3, "GET": 2}
    assert found[trial(MANY).path].state == "RUNNING"
    assert found == singles(place)


def test_full_segments_are_written_while_a_sweep_runs(place, monkeypatch):
    monkeypatch.setattr(segments, "_FULL", MANY)
    storage = Storage(place)
    with DirectoryLock(storage) as owner:
        store = RecordStore(storage, owner)
        with Journal(store, owner, TOY_PLANS) as journal:
            for number in range(3 * MANY):
                journal.write(trial(number), trial(number))
            journal.records.drain()
            journal._behind.drain()
            journal.write(trial(3 * MANY), trial(3 * MANY))
            journal.records.drain()
            journal._behind.drain()
            assert len(storage.list("segments/trials", "")) >= 1
    assert len(read(place)) == 3 * MANY + 1


def test_the_single_file_wins(full):
    store = RecordStore(Storage(full))
    store.write(trial(3, 2, "PRUNED"))
    store.storage.delete(f"{trial(5).path}.json")
    store.write(trial(MANY + 9))
    found = read(full)
    assert found == singles(full)
    assert found[trial(3).path].state == "PRUNED"
    assert trial(5).path not in found
    assert trial(MANY + 9).path in found


def test_files_of_another_directory_can_be_copied_here(full, proxy):
    other = folder(proxy.address)
    run(other, [trial(number, 3, "PRUNED") for number in range(MANY, 2 * MANY)])
    source, target = Storage(other), Storage(full)
    for path in source.list("trials", ".json"):
        target.write(path, source.read(path))
    found = read(full)
    assert len(found) == 3 * MANY
    for path in source.list("segments", ""):
        target.write(path, source.read(path))
    assert read(full) == found == singles(full)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"not gzip" + content,
        lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:],
        lambda content: gzip.compress(b"\0" * 10**6),
        lambda content: gzip.compress(b'["trials/x", 1]\tnothing\n[]\t\n{}\n'),
        lambda content: gzip.compress(gzip.decompress(content).replace(b"\t{", b"{")),
    ],
)
def test_a_damaged_segment_loses_nothing(full, damage):
    storage, before = Storage(full), read(full)
    for path in storage.list("segments", ""):
        storage.write(path, damage(storage.read(path)))
    assert read(full) == before


def test_a_segment_that_was_changed_anywhere_says_nothing_wrong():
    """A packed byte that is another one can unpack to other letters, and still to JSON."""
    trials = [trial(number).model_dump_json().encode() for number in range(MANY)]
    heads = [json.dumps([f"trials/{number}.json", "tag"]).encode() for number in range(MANY)]
    whole = b"".join(h + b"\t" + t + b"\n" for h, t in zip(heads, trials, strict=True))
    content = gzip.compress(whole, 6, mtime=0)
    right = list(segments._lines(content))
    assert [record for _, _, record in right] == trials
    for place in range(len(content)):
        for other in (1, 255):
            changed = bytearray(content)
            changed[place] ^= other
            assert list(segments._lines(bytes(changed))) in ([], right), place


def test_a_record_that_a_segment_holds_wrongly_is_read_by_itself(full):
    """Path and tag are right, the record is not: half of it, or another's."""
    storage, before = Storage(full), read(full)
    [path] = storage.list("segments/trials", "")
    lines = gzip.decompress(storage.read(path)).splitlines(keepends=True)
    heads, records = zip(*(line.split(b"\t", 1) for line in lines), strict=True)
    lines[3] = heads[3] + b"\t" + records[3][:50] + b"\n"
    lines[4] = heads[4] + b"\t" + records[5]
    storage.write(path, gzip.compress(b"".join(lines)))
    assert read(full) == before


def test_who_follows_a_sweep_reads_segments_first(full, proxy):
    changes = RecordChanges(RecordStore(Storage(full, known=True)))
    proxy.look()
    found = [record for one in changes.poll([KEY]) for record in one.records]
    assert proxy.look()["counts"] == {"LIST": 4, "GET": 2}
    assert {record.path: record for record in found} == singles(full)
    proxy.look()
    assert list(changes.poll([KEY])) == []
    assert proxy.look()["counts"] == {"LIST": 2}
    RecordStore(Storage(full)).write(trial(MANY))
    [change] = changes.poll([KEY])
    assert [record.number for record in change.records] == [MANY]


def test_a_segment_is_lines_of_text(full):
    storage = Storage(full)
    [path] = storage.list("segments/trials", "")
    line = gzip.decompress(storage.read(path)).splitlines()[0]
    head, _, record = line.partition(b"\t")
    file, tag = json.loads(head)
    assert storage.read_version(file).tag == tag
    assert json.loads(record) == json.loads(storage.read(file))


def test_on_a_disk_there_are_none(tmp_path):
    run(tmp_path, map(trial, range(MANY)))
    assert not (tmp_path / "segments").exists()
    assert len(read(tmp_path)) == MANY
