"""Who owns a directory in an object store, and what a former owner can still do: on moto."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
import yaml

from anomtune.errors import StorageError
from anomtune.search.run.trial import TrialSpec
from anomtune.search.store import lock, objects
from anomtune.search.store import storage as storage_module
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.objects import ChangedError
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.storage import Storage
from tests.search.conftest import sweep_dict
from tests.search.object_store import credentials, folder, place, proxy, running_proxy, server
from tests.search.results.test_tensorboard import toy_record
from tests.search.store.campaign import Case

pytestmark = pytest.mark.slow

_ = server, credentials, place, running_proxy, proxy


@pytest.fixture
def quick(monkeypatch) -> None:
    """Lets owners and those who wait for them do so faster."""
    for name in ("_BEAT", "_LEASE", "_PATIENCE"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 30)


@pytest.fixture
def never_settles(monkeypatch) -> None:
    """Nobody may believe that it owns a directory because it has waited."""
    monkeypatch.setattr(lock, "_SETTLE", float("nan"))


def mark(storage: Storage) -> dict:
    return json.loads(storage.read("owner.json"))


class Stopped(DirectoryLock):
    """An owner that is stopped between its look at the mark and each write."""

    def __init__(self, storage, meanwhile):
        super().__init__(storage)
        self._meanwhile = meanwhile

    def replace(self, path, content, tag, *, durable):
        self.check()
        replace, storage = self._storage.replace, self._storage

        def late(*arguments):
            storage.replace = replace
            self._meanwhile()
            return replace(*arguments)

        storage.replace = late
        return super().replace(path, content, tag, durable=durable)


def freeze(owner: DirectoryLock) -> None:
    """Stops the renewals of a mark, as of a process that is stopped."""
    owner._lock._ended.set()
    owner._lock._heart.join()


def take(place: str) -> tuple[DirectoryLock, RecordStore]:
    """Takes the directory of an owner that is stopped, as another machine would."""
    storage = Storage(place)
    owner = DirectoryLock(storage)
    owner.__enter__()
    return owner, RecordStore(storage, owner)


@pytest.mark.usefixtures("quick", "never_settles")
class TestTheStoreDecides:
    def test_of_two_newcomers_one_is_refused(self, place, monkeypatch):
        monkeypatch.setattr(lock, "_PATIENCE", 1.0)
        both, outcomes, first = threading.Barrier(2, timeout=10), [], set()
        look = lock._Lease._look

        def look_together(lease):
            found = look(lease)
            if lease not in first:
                first.add(lease)
                both.wait()  # both have seen that nobody is there
            return found

        monkeypatch.setattr(lock._Lease, "_look", look_together)
        owners = [DirectoryLock(Storage(place)) for _ in range(2)]

        def enter(owner):
            try:
                outcomes.append(owner.__enter__())
            except StorageError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=enter, args=(owner,)) for owner in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner, loser = sorted(outcomes, key=lambda one: isinstance(one, StorageError))
        assert isinstance(winner, DirectoryLock)
        assert "another sweep owns this directory" in str(loser)
        winner.check()
        winner.__exit__(None, None, None)

    def test_who_was_followed_does_not_renew_the_mark_of_the_other(self, place):
        owner, _ = take(place)
        freeze(owner)
        follower, _ = take(place)
        owner._lock._renewed = 0.0
        for _ in range(3):
            with pytest.raises(StorageError, match="another sweep owns"):
                owner.check()
        follower.check()
        follower._lock.renew()
        assert mark(follower._storage)["token"] == follower._lock._mark["token"]
        owner.__exit__(None, None, None)
        assert mark(follower._storage)["token"] == follower._lock._mark["token"]
        follower.__exit__(None, None, None)

    def test_an_answer_that_was_lost_is_no_other_owner(self, proxy, monkeypatch):
        monkeypatch.setattr(objects, "_LONGEST", 0.2)
        storage = Storage(folder(proxy.address))
        with DirectoryLock(storage) as owner:
            proxy.set(cut=0.3)
            store = RecordStore(storage, owner)
            for number in range(4):
                store.write(toy_record(number, "RUNNING", 0))
                store.write(toy_record(number, "COMPLETE", 4))
                owner._lock.renew()
            proxy.set(cut=0.0)
            assert proxy.look()["refused"] >= 3
            found = [r for study in store.read_all().values() for r in study]
            assert [record.state for record in found] == ["COMPLETE"] * 4

    def test_what_a_follower_has_written_stays(self, place):
        storage, followers = Storage(place), []

        def follow():
            freeze(first)
            owner, store = take(place)
            store.read_all()
            store.write(toy_record(0, "COMPLETE", 4))
            store.write(toy_record(7, "COMPLETE", 4))
            followers.append((owner, store))

        first = Stopped(storage, lambda: None)
        first.__enter__()
        store = RecordStore(storage, first)
        store.write(toy_record(0, "RUNNING", 1))
        first._meanwhile = follow
        with pytest.raises(StorageError, match="another sweep owns"):
            store.write(toy_record(0, "RUNNING", 2))  # it had known an earlier version
        [(owner, written)] = followers
        first._meanwhile = lambda: None
        for late in (toy_record(7, "RUNNING", 1), toy_record(0, "RUNNING", 3)):
            with pytest.raises(StorageError, match="another sweep owns"):
                store.write(late)
        [trials] = written.read_all().values()
        assert [record.state for record in trials] == ["COMPLETE"] * 2
        owner.__exit__(None, None, None)

    def test_what_a_former_owner_has_written_is_replaced(self, place):
        """The one change that could not be kept from it hinders nobody."""
        storage = Storage(place)
        with DirectoryLock(storage) as owner:
            store = RecordStore(storage, owner)
            store.write(toy_record(0, "RUNNING", 0))
            RecordStore(Storage(place)).write(toy_record(0, "RUNNING", 3))
            RecordStore(Storage(place)).write(toy_record(1, "RUNNING", 3))
            for number in (0, 1):
                store.write(toy_record(number, "COMPLETE", 4))
            [trials] = store.read_all().values()
            assert [record.state for record in trials] == ["COMPLETE"] * 2

    def test_a_rung_is_one_request(self, proxy):
        storage = Storage(folder(proxy.address))
        with DirectoryLock(storage) as owner:
            store = RecordStore(storage, owner)
            store.write(toy_record(0, "RUNNING", 0))
            proxy.look()
            for steps in range(1, 4):
                store.write(toy_record(0, "RUNNING", steps))
            assert [line for line in proxy.look()["log"] if "owner.json" not in line] == [
                f"PUT /{'/'.join(storage.location.split('?')[0].split('/')[2:])}/"
                "trials/plate/toy/00000.json"
            ] * 3


@pytest.mark.parametrize("conditional", ["ignored", "refused"])
def test_a_store_without_conditions_is_locked_by_waiting(proxy, quick, monkeypatch, conditional):
    monkeypatch.setattr(lock, "_SETTLE", 0.05)
    monkeypatch.setattr(objects, "_TRIES", 1)
    proxy.set(conditional=conditional)
    storage, notes = Storage(folder(proxy.address)), []
    storage.write("sweep.yaml", b"")
    with DirectoryLock(storage, notes.append) as owner:
        store = RecordStore(storage, owner)
        store.write(toy_record(0, "RUNNING", 0))
        store.write(toy_record(0, "COMPLETE", 4))
        assert [len(study) for study in store.read_all().values()] == [1]
        with pytest.raises(StorageError, match="another sweep owns"):
            DirectoryLock(Storage(storage.location)).__enter__()
    assert len(notes) == 1
    assert "heeds no conditions" in notes[0]
    assert storage.list("", "") == ["owner.json", "sweep.yaml", "trials/plate/toy/00000.json"]


def test_why_a_store_is_opened_by_pyarrow(place, monkeypatch, tmp_path):
    assert Storage(place).has_tags
    more = Storage(f"{place}&allow_bucket_creation=false")
    assert (more.has_tags, more.without_tags) == (
        False,
        "the parameter allow_bucket_creation is for pyarrow alone",
    )
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    notes: list[str] = []
    monkeypatch.setattr(lock, "_SETTLE", 0.05)
    with DirectoryLock(Storage(place), notes.append):
        pass
    assert notes == [
        "obstore is not installed (pip install 'anomtune[s3]'): the directory is locked by waiting"
    ]


def test_credentials_of_amazons_files_are_found(place, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    storage = Storage(place)
    assert storage.has_tags
    storage.write("a", b"1")
    assert storage.read("a") == b"1"


def test_names_are_those_that_pyarrow_gives(server, credentials, monkeypatch):
    place = folder(server.address).replace("?", "/a%20folder/?")
    names = ["a b/ü#c%20[x]~{}^|.json", "q?*/1.json", "plain.json"]
    with_obstore = Storage(place)
    with monkeypatch.context() as without:
        without.setattr(storage_module, "tagged_objects", lambda *_, **__: "no")
        with_pyarrow = Storage(place)
    assert with_obstore.has_tags
    for one, other in ((with_obstore, with_pyarrow), (with_pyarrow, with_obstore)):
        for name in names:
            one.write(name, name.encode())
        assert other.list("", ".json") == sorted(names)
        assert [content.decode() for content in other.read_many(names)] == names
        for name in names:
            other.delete(name)
        assert one.list("", "") == []
    with pytest.raises(StorageError, match="cannot write"):
        with_obstore.write("a\tb.json", b"")


def test_a_version_and_no_other_is_replaced(place):
    storage = Storage(place)
    first = storage.replace("a", b"1", None)
    second = storage.replace("a", b"2", first)
    for tag in (None, first):
        with pytest.raises(ChangedError):
            storage.replace("a", b"3", tag)
    assert storage.read_version("a") == (b"2", second)
    storage.delete("a")
    with pytest.raises(ChangedError):
        storage.replace("a", b"3", second)


@pytest.mark.parametrize("conditional", ["atomic", "ignored"])
def test_a_store_that_is_throttled_loses_nothing(proxy, conditional, monkeypatch):
    """Of four requests it refuses one, and cuts one in ten off when it has done what it should."""
    monkeypatch.setattr(objects, "_LONGEST", 0.2)
    monkeypatch.setattr(lock, "_SETTLE", 0.05)
    storage = Storage(folder(proxy.address))
    proxy.set(slow_down=0.25, cut=0.1, conditional=conditional)
    with DirectoryLock(storage) as owner:
        store = RecordStore(storage, owner)
        for number in range(12):
            for steps in range(3):
                store.write(toy_record(number, "RUNNING", steps))
            store.write(toy_record(number, "COMPLETE", 4))
    assert proxy.look()["refused"] > 12
    [trials] = RecordStore(Storage(storage.location)).read_all().values()
    assert [(r.number, r.state) for r in trials] == [(n, "COMPLETE") for n in range(12)]


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_refuses_for_ever_is_an_error_in_a_line(proxy, monkeypatch, status):
    monkeypatch.setattr(objects, "_TRIES", 2)
    storage = Storage(folder(proxy.address), known=True)
    proxy.set(slow_down=1.0, status=status)
    with pytest.raises(StorageError, match="cannot write: Please reduce your request rate"):
        storage.write("a", b"1")
    assert proxy.look()["counts"] == {"PUT": 3}


class TestAServerOfWhichNothingIsKnown:
    """It has ten seconds, here one third of one; the patience of a minute stays."""

    #: Nothing listens there.
    nowhere = "s3://bucket/sweep?endpoint_override=127.0.0.1:1&scheme=http"

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch, credentials):
        monkeypatch.setattr(objects, "_ANSWER", 0.3)

    @pytest.mark.parametrize("command", ["sweep", "leaderboard", "watch"])
    def test_a_wrong_address_is_a_line(self, run, command, tmp_path, toy_data):
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep_dict(toy_data)))
        begin = time.monotonic()
        if command == "sweep":
            found = run("sweep", tmp_path / "sweep.yaml", "--dir", self.nowhere)
        else:
            found = run(command, self.nowhere)
        assert time.monotonic() - begin < 10
        code, _, said = found
        assert code == 2
        assert [line for line in said.splitlines() if not line.startswith("anomtune ")] == [
            f"anomtune: {self.nowhere}: nothing answers there: Connection refused; check the "
            "address and the network, or choose another directory with --dir"
        ]

    def test_one_that_takes_connections_and_never_answers(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            storage = Storage(self.nowhere.replace("127.0.0.1:1", address))
            with pytest.raises(StorageError, match="nothing answers there"):
                storage.read("a")

    @pytest.mark.parametrize("first", [{"slow_down": 1.0}, {}], ids=["refuses", "answers"])
    def test_one_that_has_answered_is_waited_for(self, proxy, monkeypatch, first):
        monkeypatch.setattr(objects, "_LONGEST", 0.2)
        storage = Storage(folder(proxy.address))
        if first:
            proxy.set(**first)  # to refuse is to answer
        else:
            storage.write("a", b"0")
            proxy.set(cut=1.0)
        threading.Timer(1.0, proxy.set, kwargs={"slow_down": 0.0, "cut": 0.0}).start()
        storage.write("a", b"1")
        assert proxy.look()["refused"] > 3
        assert storage.read("a") == b"1"

    def test_nodes_wait_for_what_the_driver_knows(self, proxy, monkeypatch):
        monkeypatch.setattr(objects, "_LONGEST", 0.2)
        proxy.set(cut=1.0)
        threading.Timer(1.0, proxy.set, kwargs={"cut": 0.0}).start()
        TrialSpec.model_construct(directory=folder(proxy.address)).storage().write("a", b"1")

    def test_pyarrow_gives_up_once(self):
        refused = "AWS Error NETWORK_CONNECTION; Details: Failed to connect"
        asked = []

        def request():
            asked.append(1)
            if len(asked) != 2:
                raise OSError(refused)
            return "an answer"

        files = objects.ArrowObjects(None, "bucket")
        with pytest.raises(objects.UnreachableError, match=r"^Failed to connect$"):
            files._patiently(request)
        assert len(asked) == 1
        assert files._patiently(request) == "an answer"
        asked.clear()
        assert files._patiently(request) == "an answer"
        assert len(asked) == 2


def test_pyarrow_is_patient_too(proxy, monkeypatch):
    """It gives up after six seconds by itself."""
    monkeypatch.setattr(storage_module, "tagged_objects", lambda *_, **__: "no")
    storage = Storage(folder(proxy.address))
    proxy.set(slow_down=1.0)
    threading.Timer(8.0, proxy.set, kwargs={"slow_down": 0.0}).start()
    storage.write("a", b"1")
    assert proxy.look()["refused"] > 30
    with pytest.raises(StorageError, match="bucket does not exist"):
        Storage(storage.location.replace("bucket/", "bukket/")).write("a", b"1")


def test_drivers_that_are_killed_and_stopped_lose_nothing(proxy):
    case = Case(proxy, seed=2)  # `campaign.py` runs as many as one likes
    case.run()
    assert case.violations == []
