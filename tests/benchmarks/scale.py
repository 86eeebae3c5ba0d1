"""What one driver can do: the real pool, on GPUs and a clock that exist only here.

Durations are log-normal per method; trials are pruned, fail, and lose their workers. Decisions are
timed in CPU time, so that another load on the machine does not count.

- ``thousand``: 15 categories x 8 methods x 200 trials on 1,000 GPUs.
- ``resume``: 100,000 records are read from a disk and gone on with.
- ``ten``: 200 categories x 12 methods on 10,000 GPUs, which race for 300 trials of each category
  (``--trials``), or (``--hours``) for as many as some hours have time for.
- ``requests``: what the driver asks of a disk and of an S3 server, of a trial and of a rung.

`tune_loop.py` says what Ray Tune's own loop takes besides.

Run: python tests/benchmarks/scale.py [--quick] [thousand resume ten requests]
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from anomtune.search.config import ConfirmConfig, Sweep, parse_sweep
from anomtune.search.decide.budget import Hours
from anomtune.search.decide.plan import SearchPlan, plan_search
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.journal import Journal
from anomtune.search.run.process import rare_full_collections
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import Cost, Facts, Rung, State, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

#: Median minutes of a whole trial, and whether it is looked at once only.
#: Those of the large sweep alone come last.
METHODS: dict[str, tuple[float, bool]] = {
    "padim": (1, True),
    "patchcore": (2, True),
    "spr": (15, False),
    "rd4ad": (20, False),
    "gnl": (25, False),
    "recontrast": (30, False),
    "gmm_contrastive": (45, False),
    "ssae": (90, False),
    "deep_svdd": (10, False),
    "kdad": (20, False),
    "cutpaste": (25, False),
    "f_anogan": (60, False),
}
SIGMA = 0.5  # of the logarithm of a trial's duration
FAIL, LOST = 0.02, 0.002  # of the trials, and of the rungs

FACTS = Facts(n_val_normal=30, n_val_anomalous=60, parameters=10**7)
T = TypeVar("T")


class Timed:
    """The CPU time of decisions, in milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []

    def __call__(self, decide: Callable[[], T]) -> T:
        begin = time.thread_time()
        result = decide()
        self.milliseconds.append((time.thread_time() - begin) * 1e3)
        return result

    def __str__(self) -> str:
        ordered = sorted(self.milliseconds)
        p99 = ordered[int(len(ordered) * 0.99)]
        return (
            f"median {statistics.median(ordered):.2f} ms, p99 {p99:.2f} ms, "
            f"highest {ordered[-1]:.1f} ms of {len(ordered)}"
        )


def sweep(trials: int, categories: int = 15, methods: int = 8, **more: Any) -> Sweep:
    """Returns the sweep; its categories are names only."""
    return parse_sweep(
        {
            "name": "scale",
            "dataset": {"name": "folder", "categories": [f"c{n:03}" for n in range(categories)]},
            "trials": trials,
            "rungs": 8,
            "methods": {name: {"fixed": {"weights": "random"}} for name in list(METHODS)[:methods]},
            **more,
        },
        "benchmark",
    )


def make_plans(config: Sweep) -> dict[StudyKey, SearchPlan]:
    """Returns how each study is searched: the method's own space, as it is shipped."""
    plans = {}
    for name, method in config.methods.items():
        try:
            plan = plan_search(name, method, image_size=config.image_size)
        except ValueError:  # a method without that hyperparameter
            plan = plan_search(
                name, method.model_copy(update={"fixed": {}}), image_size=config.image_size
            )
        for category in config.dataset.categories or ():
            plans[StudyKey(category, name)] = plan
    return plans


def make_pool(
    config: Sweep, records: dict[StudyKey, list[TrialRecord]], save: Callable[..., None]
) -> Pool:
    hashes = dict.fromkeys(config.dataset.categories or (), "split")
    return Pool(config, make_plans(config), hashes, records, save)


def quality(record: TrialRecord) -> float:
    """Returns what a config reaches: always the same for the same values."""
    digest = hashlib.sha256(f"{record.category}{record.params}".encode()).digest()
    return 1 - 0.4 * (digest[0] / 255) ** 2


def rung(record: TrialRecord, step: int, rungs: int) -> Rung:
    value = 0.5 + (quality(record) - 0.5) * (step / rungs) ** 0.5
    return Rung(step=step, auroc=value, auroc_low=0, auroc_high=1, loss=1 / step)


def steps(record: TrialRecord, rungs: int, generator: random.Random) -> Iterator[tuple[int, float]]:
    """Yields the rungs of a trial and how many seconds each takes."""
    median, once = METHODS[record.method]
    seconds = 60 * median * generator.lognormvariate(0, SIGMA)
    for step in (rungs,) if once else range(1, rungs + 1):
        yield step, seconds if once else seconds / rungs


class Cluster:
    """Runs a sweep to its end on so many GPUs.

    Args:
        config: The sweep, without confirm runs.
        gpus: How many.
        save: Takes every change of a record.
    """

    def __init__(
        self,
        config: Sweep,
        gpus: int,
        save: Callable[[TrialRecord], object] = lambda record: record.model_dump_json(),
    ) -> None:
        self.config, self.gpus = config.model_copy(update={"confirm": ConfirmConfig(top=0)}), gpus
        self.saved = 0
        self.clock = 0.0
        self._write = save
        self.tidy: Callable[[], None] = lambda: None
        self.pool = make_pool(self.config, {}, self._save)
        confirmation = Confirmation(self.config, self.pool, {}, lambda record: None)
        hours = Hours(self.config, lambda: self.clock)
        hours.slots = gpus
        self.work = Work(self.config, self.pool, confirmation, hours)
        self.generator = random.Random(0)
        #: What the trials that run have taken so far.
        self.seconds: dict[str, float] = {}
        self.asks, self.verdicts = Timed(), Timed()
        #: When how many GPUs were busy from then on.
        self.busy: list[tuple[float, int]] = []
        #: Finished trials and resident memory.
        self.memory: list[tuple[int, int]] = []

    def _save(self, record: TrialRecord) -> None:
        self._write(record)
        self.saved += 1

    def _ask(self) -> Any:
        return self.work.ask() if self.work.remaining else None

    def run(self, until: float = inf) -> None:
        """Runs to the end, or for so many seconds of virtual time."""
        serial, finished = 0, 0
        total = self.pool.remaining
        queue: list[tuple[float, int, TrialRecord, int, Any]] = []

        def begin(record: TrialRecord) -> None:
            self.seconds[record.path] = 0.0
            advance(record, steps(record, self.config.rungs, self.generator))

        def advance(record: TrialRecord, rest: Iterator[tuple[int, float]]) -> None:
            nonlocal serial
            step, seconds = next(rest)
            serial += 1
            self.seconds[record.path] += seconds
            heapq.heappush(queue, (self.clock + seconds, serial, record, step, rest))

        while self.work.remaining:
            while len(queue) < self.gpus and (record := self.asks(self._ask)):
                begin(record)
            self.busy.append((self.clock, len(queue)))
            if not queue or self.clock > until:
                break
            self.clock, _, record, step, rest = heapq.heappop(queue)
            if self.generator.random() < LOST:
                begin(record)  # elsewhere, from its beginning
                continue
            if self._goes_on(record, step):
                advance(record, rest)
                continue
            finished += 1
            if finished % max(1, total // 8) == 0:
                self.memory.append((finished, resident()))
        self.busy.append((self.clock, 0))

    def _goes_on(self, record: TrialRecord, step: int) -> bool:
        last = step == self.config.rungs
        if last and self.generator.random() < FAIL:
            self._finish(record, "FAIL", error="simulated")
            return False
        here = rung(record, step, self.config.rungs)
        cost = Cost(train_seconds=self.seconds[record.path])
        goes_on = self.verdicts(lambda: self.work.report(record, here, cost))
        if last:
            self._finish(record, "COMPLETE", facts=FACTS)
        elif not goes_on:
            self._finish(record, "PRUNED")
        return goes_on and not last

    def _finish(self, record: TrialRecord, state: State, **result: Any) -> None:
        cost = Cost(train_seconds=self.seconds.pop(record.path))

        def finish() -> None:
            self.tidy()
            self.pool.finish(record.key, record.number, state, cost=cost, **result)
            self.work.take_in()

        self.verdicts(finish)

    def utilisation(self) -> tuple[float, float, float]:
        """Returns the mean up to 95 % of the work, the worst hundredth of it, and the hours."""
        spans = [
            (end - begin, busy)
            for (begin, busy), (end, _) in zip(self.busy, self.busy[1:], strict=False)
        ]
        work = sum(seconds * busy for seconds, busy in spans)
        done, slices, wall, before = 0.0, [], 0.0, 0.0
        for seconds, busy in spans:
            done += seconds * busy
            wall += seconds
            if done >= before + work / 100:
                slices.append((done - before, wall))
                before, wall = done, 0.0
        until = slices[:95]
        mean = sum(w for w, _ in until) / sum(s for _, s in until) / self.gpus
        worst = min(w / s for w, s in until) / self.gpus
        return mean, worst, self.busy[-1][0] / 3600


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def simulate(config: Sweep, gpus: int, until: float = inf) -> None:
    """Prints utilisation, decisions and memory of a sweep, or of its first seconds."""
    begin = time.perf_counter()
    cluster = Cluster(config, gpus)
    with rare_full_collections() as cluster.tidy:
        cluster.run(until)
    mean, worst, hours = cluster.utilisation()
    studies = cluster.pool.studies.values()
    trials = sum(study.finished.total() for study in studies)
    states = {
        s: sum(study.finished[s] for study in studies) for s in ("COMPLETE", "PRUNED", "FAIL")
    }
    decisions = Timed()
    decisions.milliseconds = cluster.asks.milliseconds + cluster.verdicts.milliseconds
    print(f"{trials} trials on {gpus} GPUs, {hours:.1f} h of virtual time: {states}")
    print(f"utilisation until the last 5 % of the work: {mean:.1%} (must be above 95 %),")
    print(f"  its lowest hundredth: {worst:.1%}")
    print(f"asking for a trial:      {cluster.asks}")
    print(f"a rung, an end:          {cluster.verdicts}")
    print(f"all decisions:           {decisions} (must be under 10 ms)")
    share = sum(decisions.milliseconds) / 1e3 / (hours * 3600)
    rate = len(decisions.milliseconds) / (hours * 3600)
    print(f"the driver decides {share:.1%} of the time: {rate:.1f} decisions a second")
    print(f"records written: {cluster.saved / (hours * 3600):.1f} a second")
    print(f"memory of the driver: {resident() / 1e6:.0f} MB")
    print(f"simulated in {time.perf_counter() - begin:.0f} s")
    if len(cluster.memory) < 4:
        return
    (early, low), (late, high) = cluster.memory[1], cluster.memory[-2]
    half = cluster.memory[len(cluster.memory) // 2]
    first, second = (half[1] - low) / (half[0] - early), (high - half[1]) / (late - half[0])
    print(f"memory per trial: first half {first / 1e3:.1f} kB, second half {second / 1e3:.1f} kB")


def write_records(config: Sweep, root: Path) -> int:
    """Writes finished trials of a whole sweep, and returns how many."""
    generator = random.Random(0)
    count = 0
    for (category, name), plan in make_plans(config).items():
        for number in range(config.trials):
            point = (
                {key: _draw(item, generator) for key, item in plan.distributions.items()}
                if number
                else {}
            )
            record = TrialRecord(
                dataset="folder",
                category=category,
                method=name,
                number=number,
                state="COMPLETE",
                params={**plan.defaults.model_dump(mode="json"), **point},
                seed=0,
                split_hash="split",
                facts=FACTS,
            )
            last = config.rungs if number % 3 == 0 else 2
            record.state = "COMPLETE" if number % 3 == 0 else "PRUNED"
            record.curve = [rung(record, step, config.rungs) for step in range(1, last + 1)]
            ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
            record.cost = Cost(train_seconds=60.0 * last, finished_at=ended.isoformat())
            path = root / f"{record.path}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(record.model_dump_json(indent=1))
            count += 1
    return count


def _draw(item: Any, generator: random.Random) -> Any:
    if hasattr(item, "choices"):
        return generator.choice(item.choices)
    if isinstance(item.low, int):
        return item.low + (item.step or 1) * generator.randint(
            0, (item.high - item.low) // (item.step or 1)
        )
    return generator.uniform(item.low, item.high)


def load(config: Sweep) -> None:
    """Prints how long it takes to read the records of a sweep and to go on."""
    with tempfile.TemporaryDirectory() as scratch:
        count = write_records(config, Path(scratch))
        more = config.model_copy(update={"trials": config.trials + 10})
        begin, cpu = time.perf_counter(), time.process_time()
        records = RecordStore(Storage(scratch)).read_all()
        read = time.process_time()
        pool = make_pool(more, records, lambda record: None)
        built = time.process_time()
        assert pool.ask() is not None
        end = time.process_time()
        assert sum(study.finished.total() for study in pool.studies.values()) == count
        print(
            f"{count} trials read and resumed in {end - cpu:.1f} s of CPU time "
            f"({time.perf_counter() - begin:.1f} s on the clock; must be under 60 s): records "
            f"{read - cpu:.1f} s, pool {built - read:.1f} s, the next trial {end - built:.2f} s"
        )


class Counted(Storage):
    """Counts what is asked of a directory."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.asked: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in {"read", "write", "append", "list", "delete", "delete_folder", "stamps"}:
            self.asked[name] += 1
        return found


def requests(trials: int) -> None:
    """Prints what the driver asks of its storage while so many trials run, curves included."""
    with tempfile.TemporaryDirectory() as scratch:
        storage = Counted(scratch)
        _print_requests("a disk", storage, trials, lambda: Counter(storage.asked))
        with s3_server(Path(scratch) / "log") as server:
            address = f"s3://bucket/sweep?endpoint_override={server.address}&scheme=http"
            _print_requests("S3", Storage(address), trials, lambda: _by_kind(server.requests()))


def _print_requests(
    name: str, storage: Storage, trials: int, asked: Callable[[], Counter[str]]
) -> None:
    config = sweep(trials // 8, categories=1)
    with ExitStack() as opened:
        lock = opened.enter_context(DirectoryLock(storage))
        store = RecordStore(storage, lock)
        journal = opened.enter_context(Journal(store, lock, make_plans(config)))
        before = asked()

        def save(record: TrialRecord) -> None:
            journal.write(record, record)
            journal.drain()  # in life a change has been written when the next one comes

        cluster = Cluster(config, 10, save)
        begin = time.perf_counter()
        cluster.run()
        journal.drain()
        seconds = time.perf_counter() - begin
        found = asked() - before
    ended = sum(study.finished.total() for study in cluster.pool.studies.values())
    print(f"{name}: {ended} trials with {cluster.saved - 2 * ended} rungs, in {seconds:.0f} s")
    for kind, count in found.most_common():
        print(f"  {kind}: {count / ended:.2f} a trial, {count / cluster.saved:.2f} a change")


def _by_kind(lines: list[str]) -> Counter[str]:
    """Returns how often an S3 server was asked for what, by the lines of its log."""
    found: Counter[str] = Counter()
    for line in lines:
        method, path = line.split('"')[1].split()[:2]
        listed = method == "GET" and "list-type" in path
        found["LIST" if listed else method] += 1
    return found


@contextmanager
def s3_server(log: Path) -> Iterator[Any]:
    """Yields an S3 server of this machine, with a bucket."""
    import boto3

    from tests.search.object_store import Server

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = Server(log)
    boto3.client("s3", endpoint_url=f"http://{server.address}").create_bucket(Bucket="bucket")
    try:
        yield server
    finally:
        server.end()


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of GPUs and trials")
    parser.add_argument("--hours", type=float, help="of `ten`: a budget of hours, not of trials")
    parser.add_argument("--trials", type=int, default=300, help="of `ten`, of each category")
    parts = ("thousand", "resume", "ten", "requests")
    parser.add_argument("parts", nargs="*", default=parts, choices=[*parts, []])
    parser.add_argument("--minutes", type=float, default=inf, help="of `ten`, of virtual time")
    given = parser.parse_args()
    scale = 10 if given.quick else 1
    for part in given.parts:
        print(f"-- {part}", flush=True)
        if part == "thousand":
            simulate(sweep(200 // scale), 1000 // scale)
        elif part == "resume":
            load(sweep(834 // scale))
        elif part == "ten":
            budget = {"hours": given.hours} if given.hours else {"trials": given.trials}
            config = sweep(200, 200 // scale, 12, budget=budget)
            simulate(config, 10_000 // scale, 60 * given.minutes)
        else:
            requests(400 // scale)


if __name__ == "__main__":
    main()
