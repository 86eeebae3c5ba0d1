"""What `anomtune watch` costs: its CPU while a page is open, the first picture, the size it sends.

The records are those of `scale.py`: 15 categories x 8 methods, of about 1,000 and of 100,000
trials. The server is a process of its own; a client asks as the page does, every 1.5 s. At rest
nothing changes; while following a trial ends twice a second. CPU is that of the server's process.

Run: python tests/benchmarks/watch.py [--quick]
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from anomtune.search.config import Sweep
from anomtune.search.store.directory import write_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import Cost, TrialRecord
from anomtune.search.store.storage import Storage
from tests.benchmarks.scale import make_plans, sweep, write_records

EVERY = 1.5


class Page:
    """Asks as the page does."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._tag = ""
        self.packed = 0
        self.state: dict = {}

    def ask(self) -> dict:
        headers = {"If-None-Match": self._tag, "Accept-Encoding": "gzip"}
        self._connection.request("GET", "/state.json", headers=headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status == 200:
            self._tag, self.packed = answer.headers["ETag"], len(content)
            self.state = json.loads(gzip.decompress(content))
        return self.state


def cpu_share(process: psutil.Process, page: Page, seconds: float, each=lambda: None) -> float:
    """Returns the share of a core that the server takes while the page asks."""
    begin, before = time.perf_counter(), process.cpu_times()
    while time.perf_counter() - begin < seconds:
        each()
        page.ask()
        time.sleep(EVERY)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used / (time.perf_counter() - begin)


def end_trials(config: Sweep, root: Path) -> None:
    """Ends three trials, as a driver would."""
    store = RecordStore(Storage(root))
    category = (config.dataset.categories or ())[0]
    folder = root / f"trials/{category}/padim"
    number = len(list(folder.glob("*.json")))
    last = TrialRecord.model_validate_json((folder / f"{number - 1:05d}.json").read_text())
    for more in range(3):
        store.write(last.model_copy(update={"number": number + more, "cost": Cost()}))


def measure(trials: int, seconds: float) -> None:
    """Prints the figures of a sweep with so many trials per study."""
    config = sweep(trials)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        plans = make_plans(config).items()
        RecordStore(Storage(root)).write_searched({key: bool(plan.space) for key, plan in plans})
        write_config(Storage(root), config)
        count = write_records(config, root)
        command = [sys.executable, "-m", "anomtune", "watch", scratch, "--no-browser"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[0]
            page = Page(int(address.rstrip("/").rpartition(":")[2]))
            process, begin = psutil.Process(server.pid), time.perf_counter()
            while page.ask().get("totals", {}).get("ended", 0) == 0:
                time.sleep(0.05)
            first, partly = time.perf_counter() - begin, page.state["totals"]["ended"]
            while page.ask()["phase"] == "reading":
                time.sleep(0.2)
            whole, cpu = time.perf_counter() - begin, process.cpu_times()
            assert page.state["totals"]["ended"] == count, page.state["totals"]
            time.sleep(5)
            at_rest = cpu_share(process, page, seconds)
            following = cpu_share(process, page, seconds, lambda: end_trials(config, root))
            size = len(json.dumps(page.state, separators=(",", ":")))
            memory = process.memory_info().rss
        finally:
            server.terminate()
            server.wait()
    print(f"{count} trials of {len(config.methods) * 15} studies")
    print(f"  first picture after {first:.1f} s (of {partly} trials), all of them {whole:.1f} s")
    print(f"  CPU of the server until then {cpu.user + cpu.system:.1f} s, with its imports")
    print(f"  share of a core at rest {at_rest:.2%} (must be under 1 % at 1,000 trials)")
    print(f"  share of a core while two trials end every second {following:.2%}")
    print(f"  JSON {size / 1e3:.0f} kB, packed {page.packed / 1e3:.0f} kB")
    print(f"  memory of the server {memory / 1e6:.0f} MB")


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials, less time")
    quick = parser.parse_args().quick
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure(8, 10 if quick else 40)
    measure(84 if quick else 834, 10 if quick else 40)


if __name__ == "__main__":
    main()
