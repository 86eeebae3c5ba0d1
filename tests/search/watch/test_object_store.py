"""A sweep in an object store as the page follows it, on a real S3 server (moto) on loopback."""

from __future__ import annotations

import pytest

from anomtune.search.store.records import ConfirmRecord, RecordStore, TrialRecord
from anomtune.search.store.storage import Storage
from anomtune.search.watch.follow import SweepFollower
from tests.search.object_store import place, server
from tests.search.watch.test_follow import follow, sample

pytestmark = pytest.mark.slow

_ = place, server


def test_it_shows_what_the_same_records_on_a_disk_show(place, server, tmp_path):
    """Its records come one by one; what a look asks for follows from what is new alone."""
    ended, disk = tmp_path / "ended", Storage(tmp_path / "disk")
    sample(ended, trials=4, fails=lambda r: "broke" if r.number == 2 else None)
    source, bucket = Storage(ended), Storage(place)
    stores = RecordStore(bucket), RecordStore(disk)
    files = source.list("", "")
    records = [f for f in files if f.endswith(".json") and f.startswith(("trials/", "confirm/"))]
    for path in files:
        if path not in records:
            for storage in (bucket, disk):
                storage.write(path, source.read(path) or b"")
    followers = SweepFollower(place), SweepFollower(tmp_path / "disk")

    def look(new):
        before = len(server.requests())
        found, wanted = map(follow, followers)
        asked = server.requests()[before:]
        assert found | {"place": ""} == wanted | {"place": ""}
        # Two lists, and of each file its length, itself, and whether it is still that: the owner,
        # the sweep file, what is new, and of a category its labels and its studies' scores.
        most = 2 + 3 * (2 + new) + 3 * (1 + 2) * bool(new)
        assert len(asked) <= most, "\n".join(asked)
        assert not any('"PUT' in line or '"DELETE' in line for line in asked)
        return found, len(asked)

    look(new=8)  # what the directory is asked once: the scorings of its studies
    for path in sorted(records, key=lambda path: (path.startswith("confirm"), path)):
        kind = TrialRecord if path.startswith("trials") else ConfirmRecord
        record = stores[0].parse(path, source.read(path) or b"", kind)
        for state in ("RUNNING", record.state):
            for store in stores:
                store.write(record.model_copy(update={"state": state}))
            look(new=1 if record.number else 2)
    found, asked = look(new=0)
    assert found["phase"] == "finished"
    assert found["totals"]["ended"] == len([path for path in records if path.startswith("trials")])
    assert len(found["sheets"]) == 4
    assert asked <= 8
