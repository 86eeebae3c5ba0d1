"""What the driver loses to storage: the real pool, adapters and journal, on slots that only wait.

The sweep of `scale.py` in real time, a minute of it in a second: 100 slots, whose trials wait
for as long as they would train, ask for about 45 decisions a second. It runs for as long with
storage that takes no time, with a directory on this disk, and with an S3 server on loopback whose
answers take 20 ms more. Utilisation is the share of the slots' time in which a trial ran: it had
been handed out, and did not wait for a verdict.

Run: python tests/benchmarks/storage.py [--seconds 45] [none disk s3]
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.journal import Journal
from anomtune.search.run.adapters import PoolScheduler, PoolSearcher
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.handout import Handout
from anomtune.search.run.messages import Assignment, TrialReport, to_result
from anomtune.search.run.trial import TrialResult, TrialSpec
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, Cost, TrialRecord
from anomtune.search.store.storage import Storage
from tests.benchmarks.scale import FACTS, make_plans, make_pool, rung, steps, sweep

SLOTS = 100
#: Seconds here that stand for a second there.
SPEED = 1 / 60
LATENCY = 0.02


class Nowhere(Storage):
    """Keeps files in memory."""

    def __init__(self) -> None:
        super().__init__(tempfile.gettempdir())
        self.local_root = None
        self._objects = None
        self._files: dict[str, bytes] = {}

    def read(self, path: str) -> bytes | None:
        return self._files.get(path)

    def write(self, path: str, content: bytes, *, durable: bool = False) -> None:
        self._files[path] = content

    def list(self, path: str, suffix: str) -> list[str]:
        return []

    def delete(self, path: str) -> None:
        self._files.pop(path, None)

    def delete_folder(self, path: str) -> None:
        """Does nothing: there is none."""


class Slots:
    """Stands where Tune's controller does; its workers only wait."""

    def __init__(self, searcher: PoolSearcher, scheduler: PoolScheduler, rungs: int) -> None:
        self._searcher, self._scheduler, self._rungs = searcher, scheduler, rungs
        self._actor_manager = self
        self._records = searcher._handout.runs
        self._due: list[tuple[float, int, Any, int]] = []
        self._rest: dict[str, Iterator[tuple[int, float]]] = {}
        self._serial = 0
        self.decisions = 0
        self.trained = 0.0

    def run(self, seconds: float) -> None:
        """Does what Tune does in each step of its loop."""
        begin = time.monotonic()
        self._end = begin + seconds
        while time.monotonic() < self._end:
            while isinstance(config := self._searcher.suggest(str(self._serial)), dict):
                assert Assignment.of(config)
                self._start(SimpleNamespace(trial_id=str(self._serial)))
            self._scheduler.choose_trial_to_run(self)
            self._actor_manager.next(timeout=0.1)
            if self._searcher._handout.failure is not None:
                raise self._searcher._handout.failure
        self.seconds = time.monotonic() - begin

    def get_trials(self) -> list[Any]:
        return []

    def next(self, timeout: float) -> bool:
        """Takes the next result, if there is one in so many seconds."""
        wait = self._due[0][0] - time.monotonic() if self._due else timeout
        if wait > 0:
            time.sleep(min(wait, timeout))
        if wait > timeout or not self._due:
            return False
        _, _, trial, step = heapq.heappop(self._due)
        self._take(trial, step)
        return True

    def _start(self, trial: Any) -> None:
        self._serial += 1
        self.decisions += 1
        record = self._records[trial.trial_id].record
        self._rest[trial.trial_id] = steps(record, self._rungs, random.Random(record.path))
        self._schedule_trial_train(trial)

    def _schedule_trial_train(self, trial: Any) -> None:
        step, seconds = next(self._rest[trial.trial_id])
        now, seconds = time.monotonic(), seconds * SPEED
        self.trained += max(0.0, min(seconds, self._end - now))
        self._serial += 1
        heapq.heappush(self._due, (now + seconds, self._serial, trial, step))

    def _take(self, trial: Any, step: int) -> None:
        record = self._records[trial.trial_id].record
        facts = FACTS if step == self._rungs else None
        report = TrialReport(
            result=TrialResult(rung=rung(record, step, self._rungs), cost=Cost(), facts=facts)
        )
        trial.last_result = to_result(report)
        self.decisions += 1
        if report.final:
            self.stop_trial(trial)
            return
        verdict = self._scheduler.on_trial_result(self, trial, trial.last_result)
        if verdict == PoolScheduler.CONTINUE:
            self._schedule_trial_train(trial)
        elif verdict == PoolScheduler.STOP:
            self.stop_trial(trial)

    def stop_trial(self, trial: Any) -> None:
        self.decisions += 1
        self._searcher.on_trial_complete(trial.trial_id, trial.last_result)


def measure(storage: Storage, seconds: float) -> tuple[float, float]:
    """Returns decisions per second and utilisation."""
    config = sweep(200, categories=4).model_copy(update={"concurrency": SLOTS})
    plans = make_plans(config)
    with (
        DirectoryLock(storage) as lock,
        Journal(RecordStore(storage, lock), lock, plans) as journal,
    ):

        def save(record: AnyRecord) -> None:
            shown = pool.read(record) if isinstance(record, TrialRecord) else record
            journal.write(record, shown)

        pool = make_pool(config, {}, save)
        work = Work(config, pool, Confirmation(config, pool, {}, save))
        capacity = Capacity(config, lambda: [{"CPU": float(SLOTS)}])
        handout = Handout(config, work, _spec, capacity, journal.records)
        slots = Slots(PoolSearcher(handout), PoolScheduler(handout), config.rungs)
        slots.run(seconds)
        end = time.monotonic()
    print(f"  written out {time.monotonic() - end:.1f} s later")
    return slots.decisions / slots.seconds, slots.trained / slots.seconds / SLOTS


def _spec(record: AnyRecord, gpu: float) -> TrialSpec:
    training = TrainingSpec(
        dataset={"name": "folder"},
        category=record.category,
        method=record.method,
        hyperparameters=record.params,
    )
    return TrialSpec(
        training=training,
        directory="/nowhere",
        record_path=record.path,
        rungs=8,
        threads=1,
        gpu=gpu,
    )


async def serve() -> None:
    """Runs an S3 server, and before it one that passes every byte on a little later."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    target = moto.get_host_and_port()
    loop = asyncio.get_running_loop()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*target)
        ways = (reader, far_writer, LATENCY), (far_reader, writer, 0.0)
        await asyncio.gather(*(pass_on(*way) for way in ways))

    async def pass_on(
        source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float
    ) -> None:
        while content := await source.read(2**16):
            loop.call_later(delay, target.write, content)
        loop.call_later(delay, target.close)

    front = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(*front.sockets[0].getsockname(), sep=":", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


@contextmanager
def slow_s3() -> Iterator[Storage]:
    """Yields a folder of a bucket."""
    import boto3

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with subprocess.Popen(
        [sys.executable, __file__, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        boto3.client("s3", endpoint_url=f"http://{address}").create_bucket(Bucket="bucket")
        storage = Storage(f"s3://bucket/sweep?endpoint_override={address}&scheme=http")
        begin = time.perf_counter()
        for _ in range(20):
            storage.write("probe", b"0" * 1000)
        print(f"a file is written in {(time.perf_counter() - begin) / 20 * 1e3:.0f} ms")
        yield storage
        server.communicate()


def main() -> None:
    """Prints decisions per second and utilisation with each storage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("kinds", nargs="*", default=["none", "disk", "s3"])
    options = parser.parse_args()
    if options.kinds == ["serve"]:
        asyncio.run(serve())
    free = 0.0
    for kind in options.kinds:
        with ExitStack() as stack:
            if kind == "none":
                storage: Storage = Nowhere()
            elif kind == "disk":
                storage = Storage(stack.enter_context(tempfile.TemporaryDirectory()))
            else:
                storage = stack.enter_context(slow_s3())
            rate, share = measure(storage, options.seconds)
        free = free or rate
        print(
            f"{kind}: {rate:.1f} decisions a second, {rate / free:.1%} of the first; "
            f"{share:.1%} of the slots' time used"
        )


if __name__ == "__main__":
    main()
