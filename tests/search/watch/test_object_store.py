"""A sweep in an object store as the page follows it, on a real S3 server (moto) on loopback."""

from __future__ import annotations

import pytest

from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, TrialRecord
from anomtune.search.store.storage import Storage
from anomtune.search.watch.follow import SweepFollower
from tests.search.object_store import credentials, place, server
from tests.search.watch.test_follow import follow, sample

pytestmark = pytest.mark.slow

_ = credentials, place, server


def test_it_shows_what_the_same_records_on_a_disk_show(place, server, tmp_path):
    """Its records come one by one; what a look asks for follows from what is new alone."""
    source, bucket, disk = (Storage(one) for one in (tmp_path / "whole", place, tmp_path / "disk"))
    fails = {"fails": lambda record: "broke" if record.number == 2 else None}
    sample(source.location, categories=("bottle",), trials=4, **fails)
    stores = RecordStore(bucket), RecordStore(disk)
    files = source.list("", "")
    records = [f for f in files if f.endswith(".json") and f.startswith(("trials/", "confirm/"))]
    for path in set(files) - set(records):
        for storage in (bucket, disk):
            storage.write(path, source.read(path) or b"")
    followers = SweepFollower(place), SweepFollower(disk.location)

    def look(new, ended=False):
        before = len(server.requests())
        found, wanted = map(follow, followers)
        asked = server.requests()[before:]
        assert found | {"place": ""} == wanted | {"place": ""}
        # Two lists, and three requests a file: its length, itself, whether it is still that. Files
        # are the owner's, the sweep's, and what is new; if a run has ended, labels and the scores
        # of the four trainings that two confirmed studies are ranked by.
        most = 2 + 3 * (2 + new) + 3 * (1 + 4) * ended
        assert len(asked) <= most, "\n".join(asked)
        assert {line.split('"')[1].split()[0] for line in asked} <= {"GET", "HEAD"}
        return found, len(asked)

    look(new=2)  # asked once: the sweep file again, and which studies are searched
    for path in sorted(records, key=lambda path: (path.startswith("confirm"), path)):
        kind = TrialRecord if path.startswith("trials") else ConfirmRecord
        record = stores[0].parse(path, source.read(path) or b"", kind)
        for ended in (False, True):
            state = record.state if ended else "RUNNING"
            for store in stores:
                store.write(record.model_copy(update={"state": state}))
            first = kind is TrialRecord and record.number == 0  # of its study the scorings, labels
            look(new=1 + 2 * first, ended=ended)
    found, asked = look(new=0)
    assert found["phase"] == "finished"
    assert found["totals"]["ended"] == 8
    assert found["totals"]["confirmed"] == found["totals"]["confirm_target"] > 0
    assert len(found["sheets"]) == 2
    assert asked <= 8
    assert SweepFollower(place).store.storage.local_root is None
    for follower in (SweepFollower(place), SweepFollower(disk.location)):
        assert follow(follower)["totals"] == found["totals"]
