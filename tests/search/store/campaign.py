"""Drivers that are killed, stopped and throttled at random, on a real object store.

Each case is a directory in which drivers follow one another: one is killed (-9) at a moment that
nobody chose, one is stopped for longer than its lease and wakes when another has followed it, and
the store refuses, cuts off and delays requests meanwhile. A driver is a process with the real lock,
records, segments and journal; its trials only write. Then nothing may be lost and nothing be done
twice:

- what a driver was told is safe is there at the end, as it was written;
- no driver begins a trial that was safe when it took the directory;
- a driver that was followed ends with the line that says so;
- at the end every record is there, and segments and single files say the same.

Run: python tests/search/store/campaign.py [--cases 20] [--seed 0] [--server host:port]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent))

import tests.conftest  # noqa: F401 - lets the toy method be found
from anomtune.errors import StorageError
from anomtune.search.journal import Journal
from anomtune.search.store import segments
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import TrialRecord
from anomtune.search.store.storage import Storage
from tests.search.object_store import Proxy, Server, folder, hasten, make_bucket
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record

_TRIALS = 24
#: What a driver ends with that has lost its directory.
_FOLLOWED = 2

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [__name__ if __name__ != "__main__" else "tests.search.store.campaign"]
)


def trial(number: int, steps: int, state: str, mark: float) -> TrialRecord:
    params = {"quality": mark, "colour": "green"}
    return toy_record(number, state, steps).model_copy(update={"params": params})


def drive(place: str, log: str, seed: int) -> None:
    """Is a driver: does what is left to do, and notes what it begins and what it is told."""
    hasten()
    segments._FEW, segments._FULL = 4, 8
    dice, storage = random.Random(seed), Storage(place)

    def note(**what: object) -> None:
        with open(log, "a") as stream:
            stream.write(json.dumps({"driver": os.getpid(), **what}) + "\n")

    def tell(record: TrialRecord) -> None:
        if record.state != "RUNNING":
            note(safe=record.number, mark=record.params["quality"])

    try:
        with DirectoryLock(storage) as owner:
            note(owns=True)
            storage.write("sweep.yaml", b"-")
            store = RecordStore(storage, owner)
            with Journal(store, owner, TOY_PLANS, tell) as journal:
                known = [record for study in store.read_all().values() for record in study]
                ended = {record.number for record in known if record.state != "RUNNING"}
                journal.catch_up(known, lambda record: record)
                for number in range(_TRIALS):
                    if number in ended:
                        continue
                    note(begins=number)
                    mark = dice.random()
                    for steps in range(5):
                        state = "COMPLETE" if steps == 4 else "RUNNING"
                        record = trial(number, steps, state, mark)
                        journal.write(record, record)
                        time.sleep(dice.random() * 0.02)
                        journal.records.settle()
                journal.drain()
    except StorageError as error:
        note(error=str(error))
        os._exit(_FOLLOWED if "another sweep owns" in str(error) else 1)
    os._exit(0)


class Case:
    """A directory and the drivers that have come to it.

    Args:
        proxy: Stands before the store.
        seed: Of all that is chosen.

    Attributes:
        faults: How many of each kind.
        violations: What must not be.
    """

    def __init__(self, proxy: Proxy, seed: int) -> None:
        self._proxy = proxy
        self._dice = random.Random(seed)
        self._place = folder(proxy.address)
        self._log = Path(tempfile.mkstemp()[1])
        self._stopped: list[Any] = []
        self._awake: list[Any] = []
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []

    def run(self) -> None:
        dice = self._dice
        for _ in range(dice.randint(2, 4)):
            self._disturb()
            driver = self._start()
            self._until(driver, dice.random() * 1.5)
            if driver.exitcode is None:
                kind = dice.choice(["kill", "stop"])
                self.faults[kind] += 1
                _send(driver, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
                if kind == "stop":
                    self._stopped.append(driver)
                else:
                    driver.join()
            elif driver.exitcode not in (0, _FOLLOWED):  # one that was stopped may be awake
                self._wrong(f"a driver ended with {driver.exitcode}: {self._notes()[-1:]}")
            # One that has been followed for a while, or is about to be.
            if self._stopped and dice.random() < 0.5:
                self._wake(self._stopped.pop(0))
        self._proxy.set(slow_down=0.05, cut=0.02, latency=0.0)
        last = self._start()
        # Some wake while the last one works, some when it has ended.
        while self._stopped and dice.random() < 0.5:
            time.sleep(dice.random() * 2.5)
            self._wake(self._stopped.pop(0))
        last.join(60)
        if last.exitcode not in (0, _FOLLOWED):
            self._wrong(f"the last driver ended with {last.exitcode}: {self._notes()[-1:]}")
        while self._stopped:
            self._wake(self._stopped.pop(0))
        self._proxy.set(slow_down=0.0, cut=0.0, latency=0.0)
        for driver in multiprocessing.active_children():
            driver.join(60)
        if last.exitcode == _FOLLOWED:  # an earlier one was awake again before it had watched
            self._start().join(60)
        self._check()
        self._log.unlink()

    def _disturb(self) -> None:
        dice = self._dice
        changes = {
            "slow_down": dice.choice([0.0, 0.1, 0.4]),
            "cut": dice.choice([0.0, 0.05, 0.2]),
            "latency": dice.choice([0.0, 0.005, 0.03]),
        }
        self.faults.update(name for name, value in changes.items() if value)
        self._proxy.set(**changes, status=dice.choice([429, 503]), seed=dice.random())

    def _start(self) -> Any:
        driver = _processes.Process(
            target=drive, args=(self._place, str(self._log), self._dice.randrange(10**9))
        )
        driver.start()
        return driver

    def _until(self, driver: Any, seconds: float) -> None:
        """Waits until a driver owns the directory, and then so many seconds more."""
        end = time.monotonic() + 30
        while driver.exitcode is None and time.monotonic() < end:
            if any(note["driver"] == driver.pid for note in self._notes()):
                time.sleep(seconds)
                return
            time.sleep(0.02)

    def _wake(self, driver: Any) -> None:
        self.faults["wake"] += 1
        _send(driver, signal.SIGCONT)
        self._awake.append(driver)

    def _notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def _wrong(self, what: str) -> None:
        self.violations.append(what)

    def _check(self) -> None:
        for driver in self._awake:
            if driver.exitcode not in (0, _FOLLOWED):
                self._wrong(f"a driver that was awake again ended with {driver.exitcode}")
        notes = self._notes()
        safe: dict[int, float] = {}
        taken: dict[int, set[int]] = {}
        for note in notes:
            if "owns" in note:
                taken[note["driver"]] = set(safe)
            if "begins" in note and note["begins"] in taken[note["driver"]]:
                self._wrong(f"trial {note['begins']} was safe and has begun again")
            if "safe" in note and safe.setdefault(note["safe"], note["mark"]) != note["mark"]:
                self._wrong(f"trial {note['safe']} was done twice")
            if "error" in note and "another sweep owns" not in note["error"]:
                self._wrong(note["error"])
        store = RecordStore(Storage(self._place))
        [found] = store.read_all().values()
        if [(r.number, r.state) for r in found] != [(n, "COMPLETE") for n in range(_TRIALS)]:
            self._wrong(f"there is {[(r.number, r.state) for r in found]}")
        for record in found:
            if safe.get(record.number, record.params["quality"]) != record.params["quality"]:
                self._wrong(f"trial {record.number} is not what was safe")
        segments._FEW, kept = 1, segments._FEW
        [known] = store.read_all().values()
        segments._FEW = kept
        if known != store.read_trials(found[0].key):
            self._wrong("segments and single files differ")


def _send(driver: Any, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(driver.pid, number)


def main() -> None:
    """Prints what was done to how many cases, and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", help="host and port of another S3 server than moto")
    options = parser.parse_args()
    _processes.set_forkserver_preload(["tests.search.store.campaign"])
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = None if options.server else Server(Path(tempfile.mkstemp()[1]))
    address = options.server or server.address
    make_bucket(address)
    proxy = Proxy(address)
    faults: Counter[str] = Counter()
    wrong = 0
    for seed in range(options.seed, options.seed + options.cases):
        case = Case(proxy, seed)
        case.run()
        faults += case.faults
        wrong += len(case.violations)
        print(f"seed {seed}: {dict(case.faults)} {case.violations or ''}", flush=True)
    print(f"{options.cases} cases, {dict(faults)}, {wrong} violations")
    proxy.end()
    if server is not None:
        server.end()


if __name__ == "__main__":
    from tests.search.store import campaign

    campaign.main()
