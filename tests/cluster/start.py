"""One start of a sweep, and what meets it: processes killed, a disk full, a clock set, a rival."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.cluster.local_cluster import LocalCluster
from tests.driver import Driver

#: Exit codes that may follow a fault, beside 0.
_CODES = {
    "driver": {-signal.SIGKILL},
    "head": {-signal.SIGKILL},
    "gcs": {2, 3},
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
    "no Ray cluster to use there",
)
#: What Ray says whose head goes while a driver connects: it ends the driver before that can.
_CONNECTING = "Failed to connect to GCS at address"
#: Seconds that one start may take: many times what it needs.
_PATIENCE = 300.0
_Fault = Iterator[None]


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


class Start:
    """One start of the driver, and the faults that meet it.

    Args:
        grounds: Where.
        sweep: What is run.
        directory: Of the sweep.
        kinds: The faults, of `_CODES` or of those that a start bears.
        generator: What decides of when and how.

    Attributes:
        struck: Those that really have.
        wrong: What was not as documented.
        followed: Whether a second driver found the directory free, and ran the sweep.
    """

    def __init__(
        self,
        grounds: Grounds,
        sweep: dict[str, Any],
        directory: Path,
        kinds: tuple[str, ...],
        generator: random.Random,
    ) -> None:
        self._grounds = grounds
        self._sweep = sweep
        self._directory = directory
        self._kinds = kinds
        self._generator = generator
        self._rivals: dict[str, Driver] = {}
        self._begun = time.time()
        self.struck: list[str] = []
        self.wrong: list[str] = []
        self.followed = False

    def run(self) -> int | None:
        """Runs it to its end and returns the exit code, ``None`` if it has not ended."""
        grounds = self._grounds
        for suffix in (".count", ".struck", ".opened", ".clock"):
            Path(f"{grounds.plan}{suffix}").unlink(missing_ok=True)
        grounds.plan.write_text(json.dumps(self._plan()))
        if "node" in self._kinds:
            grounds.cluster.add_node()
        self._driver = grounds.drive(self._sweep, self._directory)
        try:
            self._meet([self._fault(kind) for kind in self._kinds])
        finally:
            (grounds.sweeps / "ballast").unlink(missing_ok=True)
            Path(f"{grounds.plan}.clock").unlink(missing_ok=True)
            grounds.cluster.remove_nodes()
        code = self._driver.poll()
        self._note_injected()
        codes = {0}.union(*(_CODES.get(kind, set()) for kind in self.struck))
        self._check(self._driver, codes)
        if (rival := self._rivals.get("second")) is not None:
            # One that comes when the driver ends is none: it finds the directory free.
            self._check(rival, {2} if "second" in self.struck else codes | {2})
            self.followed = rival.poll() != 2
        if (rival := self._rivals.get("stopped")) is not None:
            # An owner that goes on while its follower has not settled yet may have it refused.
            self._check(rival, {0, 2} if code == 0 else {0})
            code = code and rival.poll()
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
        plan["directory"] = str(self._directory)
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
        if "rd4ad" in self._sweep["methods"]:
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
        written = self._generator.randint(0, 4)
        confirm = self._sweep["confirm"]
        if chance < 0.3 and confirm and confirm["top"]:
            yield from self._until(lambda: self._written("confirm") > 0)
            wait /= 4
        elif chance < 0.8 and "rd4ad" in self._sweep["methods"]:
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
            for path in self._directory.glob(f"{folder}/*/*/0*.json"):
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
            taken, piece = 0, room.f_bavail * room.f_frsize
            while piece > 0:
                try:
                    os.posix_fallocate(file.fileno(), taken, piece)
                    taken += piece
                except OSError:  # others write meanwhile
                    piece //= 2
        yield from self._pause(self._generator.uniform(0.1, 2))
        ballast.unlink(missing_ok=True)

    def _stop_owner(self) -> _Fault:
        yield from self._until(lambda: self._owner() == self._driver.pid)
        yield from self._moment()
        process = psutil.Process(self._driver.pid)
        process.suspend()
        self._strike("stopped")
        try:
            rival = self._rivals["stopped"] = self._grounds.drive(self._sweep, self._directory)
            yield from self._until(lambda: rival.poll() is not None or self._owner() == rival.pid)
            yield from self._pause(self._generator.uniform(0, 3))
        finally:
            process.resume()

    def _owner(self) -> int | None:
        """Returns the process that the directory says it belongs to."""
        try:
            pid = json.loads((self._directory / "owner.json").read_text()).get("pid")
        except (FileNotFoundError, ValueError):
            return None
        return int(pid)

    def _kill_worker(self) -> _Fault:
        yield from self._moment()
        workers = list[psutil.Process]()
        while not workers:
            yield
            workers = self._grounds.cluster.workers("ResourceTrainable.train")
        self._strike("worker")
        self._generator.choice(workers).kill()

    def _kill_node(self) -> _Fault:
        yield from self._moment()
        self._strike("node")
        self._grounds.cluster.kill_node()
        if self._generator.random() < 0.5 and not {"gcs", "head"} & {*self.struck}:
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
        yield from self._until(lambda: self._owner() == self._driver.pid)
        yield from self._moment()
        rival = self._rivals["second"] = self._grounds.drive(self._sweep, self._directory)
        yield from self._until(lambda: rival.poll() is not None)
        self._strike("second")

    def _note_injected(self) -> None:
        """Notes the faults that have struck from within."""
        if self._grounds.beside_plan(".struck"):
            self.struck.append("read" if "read" in self._kinds else "write")
        if "slow" in self._kinds:
            self.struck.append("slow")

    def _check(self, driver: Driver, codes: set[int]) -> None:
        """Notes what is wrong with how a driver has ended."""
        code, said = driver.poll(), driver.err.strip()
        if code == 1 and {"gcs", "head"} & {*self.struck} and _CONNECTING in said:
            return
        if code not in codes:
            self.wrong.append(f"ended with {code}, not {sorted(codes)}: {_ends(said)}")
        elif "Traceback" in said:
            self.wrong.append(f"a traceback: {_ends(said)}")
        elif code == 2 and not any(reason in said for reason in _REASONS):
            self.wrong.append(f"gives no reason: {_ends(said)}")


def _ends(said: str) -> str:
    return said if len(said) < 3000 else f"{said[:2000]} ... {said[-1000:]}"
