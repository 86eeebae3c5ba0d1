"""A case of the campaign: a small sweep, struck by faults, started again until it is finished.

A case is made by its seed alone; what it comes to also depends on when things happen. Every start
but the last has a fault that ends it, and most have others that it must bear.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.invariants import differences, finished_records, violations
from tests.cluster.local_cluster import LocalCluster
from tests.driver import Driver

#: Faults that end a start mostly, how often each is drawn, and the exit codes that may follow.
ENDING = {"driver": 4, "head": 1, "gcs": 1, "write": 4, "read": 3, "full": 2, "stopped": 2}
#: Faults that a start bears.
BORNE = {"worker": 4, "node": 2, "slow": 3, "clock": 3, "cache": 3, "second": 3}
_CODES = {
    "driver": {-signal.SIGKILL},
    "head": {-signal.SIGKILL},
    "gcs": {3},
    "write": {2},
    "read": {2},
    "full": {2},
    "stopped": {2},
    "cache": {2},
}
#: What a driver that gives up says.
_REASONS = (
    "cannot read",
    "cannot write",
    "cannot list",
    "cannot look at",
    "cannot move",
    "cannot delete",
    "not usable from node",
    "another sweep owns this directory",
)
#: Seconds that one start may take: many times what it needs.
_PATIENCE = 300.0
#: Sweeps whose result depends on nothing but their file: they are run untroubled as well.
_DETERMINED: list[dict[str, Any]] = [
    {"trials": 3, "sampler": "random", "pruner": "none", "confirm": {"top": 1, "seeds": [1]}},
    {"trials": 2, "rungs": 3, "concurrency": 1, "confirm": {"top": 2, "seeds": [1]}},
    {"trials": 4, "rungs": 2, "concurrency": 1, "pruner": "median", "confirm": 0},
    {"trials": 2, "sampler": "random", "pruner": "none", "confirm": {"top": 1, "seeds": [1, 11]}},
]
#: Has a frozen encoder, whose features are kept in the node's cache.
_WITH_FEATURES = {"backbone": "mobilenet_v2", "weights": "random", "iterations": 2}

_Fault = Iterator[None]


@dataclass
class Outcome:
    """What a case came to.

    Attributes:
        struck: Each fault that has really struck, and the exit code of its start.
        wrong: Every violation.
    """

    struck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Grounds:
    """Where cases take place.

    Args:
        cluster: Ray.
        scratch: Has the folders ``data`` and ``cache``.
        sweeps: Where sweep directories lie.
        can_fill: Whether that is a file system of its own, small enough to be filled.
    """

    def __init__(
        self, cluster: LocalCluster, scratch: Path, sweeps: Path, *, can_fill: bool
    ) -> None:
        self.cluster = cluster
        self.scratch = scratch
        self.sweeps = sweeps
        self.can_fill = can_fill
        self.plan = Path(os.environ["ANOMTUNE_TEST_FAULTS"])
        self._references: dict[str, Path] = {}

    def untroubled(self, sweep: dict[str, Any]) -> Path:
        """Returns the directory of the same sweep, run without any fault."""
        known = json.dumps(sweep, sort_keys=True)
        if known not in self._references:
            directory = self.sweeps / f"untroubled-{len(self._references)}"
            self.plan.write_text("{}")
            driver = self.drive(sweep, directory)
            if driver.wait(_PATIENCE) != 0:
                raise RuntimeError(f"an untroubled sweep fails: {driver.err}")
            self._references[known] = directory
        return self._references[known]

    def drive(self, sweep: dict[str, Any], directory: Path) -> Driver:
        """Starts the command."""
        file = directory.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(sweep))
        address = self.cluster.address
        return Driver("sweep", file, "--dir", directory, "--address", address, "--quiet")

    def beside_plan(self, suffix: str) -> list[str]:
        """Returns the lines of a file that processes under fault have written."""
        place = Path(f"{self.plan}{suffix}")
        return place.read_text().splitlines() if place.exists() else []


class Case:
    """One sweep and its faults.

    Args:
        grounds: Where.
        seed: What makes the case.
    """

    def __init__(self, grounds: Grounds, seed: str) -> None:
        self._grounds = grounds
        generator = random.Random(seed)
        self.directory = grounds.sweeps / seed.replace("/", "-")
        self._starts = _draw_starts(generator, can_fill=grounds.can_fill)
        kinds = {kind for kinds in self._starts for kind in kinds}
        self.sweep, self._determined = _draw_sweep(
            generator, grounds.scratch / "data", one_by_one="stopped" in kinds
        )
        self._seed = generator.random()
        self._cached = generator.random() < 0.5

    def run(self) -> Outcome:
        """Starts the sweep until it is finished, and looks at what it leaves."""
        outcome, before = Outcome(), dict[str, bytes]()
        code: int | None = None
        if not self._cached:
            shutil.rmtree(os.environ["ANOMTUNE_CACHE"], ignore_errors=True)
        for number, kinds in enumerate([*self._starts, (), ()]):
            start = Start(self._grounds, self, kinds, random.Random(f"{self._seed}/{number}"))
            code = start.run()
            outcome.struck += [f"{kind}:{code}" for kind in start.struck]
            outcome.wrong += start.wrong
            after = finished_records(self.directory)
            outcome.wrong += [
                f"{path}: changed after it had ended"
                for path, content in before.items()
                if after.get(path) != content
            ]
            outcome.wrong += _opened_again(
                self._grounds.beside_plan(".opened"), before, start.struck
            )
            before = after
            if code == 0:
                break
        outcome.wrong += [f"too early: {line}" for line in self._grounds.beside_plan(".unsafe")]
        Path(f"{self._grounds.plan}.unsafe").unlink(missing_ok=True)
        outcome.wrong += self._left_running()
        if code != 0:
            outcome.wrong.append(f"the last start ended with {code}")
            return outcome
        outcome.wrong += violations(self.directory, before)
        if self._determined:
            outcome.wrong += differences(self.directory, self._grounds.untroubled(self.sweep))
        return outcome

    def _left_running(self) -> list[str]:
        end = time.monotonic() + 20
        while (workers := self._grounds.cluster.workers()) and time.monotonic() < end:
            time.sleep(0.05)
        return [f"{worker} is left over" for worker in workers]

    def clear(self) -> None:
        """Removes what it has left."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.with_suffix(".yaml").unlink(missing_ok=True)


def _draw_starts(generator: random.Random, *, can_fill: bool) -> list[tuple[str, ...]]:
    ending = {kind: weight for kind, weight in ENDING.items() if can_fill or kind != "full"}
    starts = []
    for last in [*[False] * generator.choice([1, 2, 2, 3]), True]:
        wanted = generator.choice([1, 1, 2]) if last else generator.choice([0, 1, 1])
        kinds = generator.choices([*BORNE], [*BORNE.values()], k=wanted)
        if not last:
            kinds += generator.choices([*ending], [*ending.values()])
        starts.append(tuple(dict.fromkeys(kinds)))
    return starts


def _draw_sweep(
    generator: random.Random, root: Path, *, one_by_one: bool
) -> tuple[dict[str, Any], bool]:
    """Returns a sweep, and whether its result depends on nothing but its file."""
    sweep: dict[str, Any] = {
        "name": "case",
        "dataset": {"name": "folder", "root": str(root), "categories": ["plate"]},
        "image_size": 32,
        "rungs": 2,
        "methods": {"toy": {"fixed": {"seconds": 0.01}}},
    }
    if generator.random() < 0.15:
        sweep["methods"] = {"rd4ad": {"fixed": _WITH_FEATURES}}
        return sweep | {"trials": 2, "confirm": {"top": 1, "seeds": [1]}, "concurrency": 1}, True
    if generator.random() < 0.4:
        return sweep | generator.choice(_DETERMINED[one_by_one : 3 if one_by_one else 4]), True
    if generator.random() < 0.3:
        sweep["dataset"]["categories"] = ["plate", "ring"]
    sweep["methods"]["toy"]["fixed"]["seconds"] = generator.choice([0.0, 0.01, 0.04])
    return sweep | {
        "trials": generator.randint(2, 4),
        "rungs": generator.randint(1, 4),
        "sampler": generator.choice(["tpe", "random"]),
        "pruner": generator.choice(["successive_halving", "median", "none"]),
        "confirm": {
            "top": generator.randint(0, 2),
            "seeds": generator.choice([[1], [1, 11]]),
        },
        "concurrency": 1 if one_by_one else "auto",
    }, one_by_one


def _opened_again(opened: list[str], before: dict[str, bytes], struck: list[str]) -> Iterator[str]:
    """Yields the confirm runs of a start whose held-out images were opened without need."""
    ended = set()
    for path, content in before.items():
        if path.startswith("confirm/"):
            record = json.loads(content)
            run = [record[name] for name in ("category", "method", "params", "seed")]
            ended.add(json.dumps(run, sort_keys=True))
    # A run whose process has died is begun again.
    most = 1 + sum(kind in ("worker", "node", "stopped") for kind in struck)
    for run, count in Counter(opened).items():
        if run in ended or count > most:
            yield f"{run}: held-out images opened {count} times, ended before: {run in ended}"


class Start:
    """One start of the driver, and the faults that meet it.

    Attributes:
        struck: Those that really have.
        wrong: What was not as documented.
    """

    def __init__(
        self, grounds: Grounds, case: Case, kinds: tuple[str, ...], generator: random.Random
    ) -> None:
        self._grounds = grounds
        self._case = case
        self._kinds = kinds
        self._generator = generator
        self._rivals: dict[str, Driver] = {}
        self._begun = time.time()
        self.struck: list[str] = []
        self.wrong: list[str] = []

    def run(self) -> int | None:
        """Runs it to its end and returns the exit code, ``None`` if it has not ended."""
        grounds = self._grounds
        for suffix in (".count", ".struck", ".opened", ".clock"):
            Path(f"{grounds.plan}{suffix}").unlink(missing_ok=True)
        grounds.plan.write_text(json.dumps(self._plan()))
        if "node" in self._kinds:
            grounds.cluster.add_node()
        self._driver = grounds.drive(self._case.sweep, self._case.directory)
        try:
            self._meet([self._fault(kind) for kind in self._kinds])
        finally:
            (grounds.sweeps / "ballast").unlink(missing_ok=True)
            Path(f"{grounds.plan}.clock").unlink(missing_ok=True)
            grounds.cluster.remove_nodes()
        code = self._driver.poll()
        self._note_injected()
        self._check(self._driver, {0}.union(*(_CODES.get(kind, set()) for kind in self.struck)))
        if (rival := self._rivals.get("second")) is not None:
            self._check(rival, {2})
        if (rival := self._rivals.get("stopped")) is not None:
            self._check(rival, {0})
            code = rival.poll()
        if {"head", "gcs"} & {*self.struck}:
            grounds.cluster.kill()
            grounds.cluster.begin_anew()
        return code

    def _meet(self, faults: list[_Fault]) -> None:
        """Lets all faults go on until the driver has ended."""
        end = time.monotonic() + _PATIENCE
        while self._driver.poll() is None and time.monotonic() < end:
            faults = [fault for fault in faults if next(fault, True) is None]
            time.sleep(0.01)
        for driver in (self._driver, *self._rivals.values()):
            try:
                driver.wait(max(1.0, end - time.monotonic()))
            except TimeoutError as error:
                self.wrong.append(str(error))

    def _plan(self) -> dict[str, Any]:
        generator, plan = self._generator, dict[str, Any]()
        plan["directory"] = str(self._case.directory)
        reads = "read" in self._kinds
        if reads or "write" in self._kinds:
            plan["fail"] = {
                "at": generator.randint(1, 25 if reads else 90),
                "times": generator.choice([1, 1, 2, 10**6]),
                "errno": generator.choice([errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOSPC]),
                "reads": reads,
            }
        if "slow" in self._kinds:
            plan["slow"] = generator.choice([0.005, 0.02, 0.05])
        if "stopped" in self._kinds:
            plan["lease"] = 0.2
        if "rd4ad" in self._case.sweep["methods"]:
            plan["building"] = 0.1
        return plan

    def _fault(self, kind: str) -> _Fault:
        faults: dict[str, Callable[[], _Fault]] = {
            "driver": self._kill_driver,
            "head": self._kill_head,
            "gcs": self._kill_gcs,
            "full": self._fill_disk,
            "stopped": self._stop_owner,
            "worker": self._kill_worker,
            "node": self._kill_node,
            "clock": self._set_clock,
            "cache": self._delete_cache,
            "second": self._start_second,
        }
        return faults[kind]() if kind in faults else iter(())

    def _moment(self) -> _Fault:
        """Waits for a time of the sweep, any or a certain one."""
        chance, wait = self._generator.random(), self._generator.uniform(0, 0.4)
        written = self._generator.randint(0, 10)
        if chance < 0.3 and self._case.sweep["confirm"]:
            yield from self._until(lambda: self._written("confirm") > 0)
            wait /= 4
        elif chance < 0.8 and "rd4ad" in self._case.sweep["methods"]:
            folder = Path(os.environ["ANOMTUNE_CACHE"], "features")
            yield from self._until(lambda: bool([*folder.glob("*.tmp")]))
            wait /= 4
        elif chance < 0.9:
            yield from self._until(lambda: self._written("trials", "confirm") >= written)
        yield from self._pause(wait)

    def _written(self, *folders: str) -> int:
        """Returns how many records have been written since the start."""
        count = 0
        for folder in folders:
            for path in self._case.directory.glob(f"{folder}/*/*/0*.json"):
                try:
                    count += path.stat().st_mtime > self._begun
                except FileNotFoundError:
                    continue
        return count

    def _until(self, condition: Callable[[], bool]) -> _Fault:
        while not condition():
            yield

    def _pause(self, seconds: float) -> _Fault:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield

    def _strike(self, kind: str) -> None:
        if self._driver.poll() is None:
            self.struck.append(kind)

    def _kill_driver(self) -> _Fault:
        yield from self._moment()
        self._strike("driver")
        self._driver.kill()

    def _kill_head(self) -> _Fault:
        yield from self._moment()
        self._strike("head")
        self._grounds.cluster.kill()
        self._driver.kill()

    def _kill_gcs(self) -> _Fault:
        yield from self._moment()
        self._strike("gcs")
        self._grounds.cluster.kill_gcs()

    def _fill_disk(self) -> _Fault:
        yield from self._moment()
        self._strike("full")
        ballast = self._grounds.sweeps / "ballast"
        with ballast.open("wb") as file:
            room = os.statvfs(self._grounds.sweeps)
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize))
        yield from self._pause(self._generator.uniform(0.1, 2))
        ballast.unlink(missing_ok=True)

    def _stop_owner(self) -> _Fault:
        yield from self._moment()
        process = psutil.Process(self._driver.pid)
        process.suspend()
        self._strike("stopped")
        try:
            rival = self._rivals["stopped"] = self._grounds.drive(
                self._case.sweep, self._case.directory
            )
            wait = self._generator.uniform(1, 6)
            end = time.monotonic() + wait
            yield from self._until(lambda: time.monotonic() > end or rival.poll() is not None)
        finally:
            process.resume()

    def _kill_worker(self) -> _Fault:
        yield from self._moment()
        cluster = self._grounds.cluster
        yield from self._until(lambda: bool(cluster.workers(busy=True)))
        if workers := cluster.workers(busy=True):
            self._strike("worker")
            self._generator.choice(workers).kill()

    def _kill_node(self) -> _Fault:
        yield from self._moment()
        self._strike("node")
        self._grounds.cluster.kill_node()
        if self._generator.random() < 0.5:
            self._grounds.cluster.add_node(wait=False)

    def _set_clock(self) -> _Fault:
        for count in range(self._generator.randint(1, 3)):
            yield from self._moment()
            if count == 0:
                self._strike("clock")
            clock = Path(f"{self._grounds.plan}.clock.new")
            clock.write_text(str(self._generator.uniform(-48, 48) * 3600))
            clock.rename(clock.with_suffix(""))

    def _delete_cache(self) -> _Fault:
        yield from self._moment()
        self._strike("cache")
        shutil.rmtree(os.environ["ANOMTUNE_CACHE"], ignore_errors=True)

    def _start_second(self) -> _Fault:
        owner = self._case.directory / "owner.json"
        yield from self._until(lambda: owner.exists() and owner.stat().st_mtime > self._begun)
        yield from self._moment()
        rival = self._grounds.drive(self._case.sweep, self._case.directory)
        yield from self._until(lambda: rival.poll() is not None)
        if self._driver.poll() is None:
            self._rivals["second"] = rival
            self.struck.append("second")

    def _note_injected(self) -> None:
        """Notes the faults that have struck from within."""
        if self._grounds.beside_plan(".struck"):
            self.struck.append("read" if "read" in self._kinds else "write")
        if "slow" in self._kinds:
            self.struck.append("slow")

    def _check(self, driver: Driver, codes: set[int]) -> None:
        """Notes what is wrong with how a driver has ended."""
        code, said = driver.poll(), driver.err.strip()
        if code not in codes:
            self.wrong.append(f"ended with {code}, not {sorted(codes)}: {_ends(said)}")
        elif "Traceback" in said:
            self.wrong.append(f"a traceback: {_ends(said)}")
        elif code == 2 and not any(reason in said for reason in _REASONS):
            self.wrong.append(f"gives no reason: {_ends(said)}")


def _ends(said: str) -> str:
    return said if len(said) < 3000 else f"{said[:2000]} ... {said[-1000:]}"
