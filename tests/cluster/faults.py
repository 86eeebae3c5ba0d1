"""Small sweeps on a real Ray cluster, each struck by random faults, restarted until it is finished.

What a case is stands in `case.py`, what must hold of what it leaves in `invariants.py`. A case is
made by its seed. With ``--log`` the campaign goes on where that table ends, and adds to it.

What a case comes to also depends on when things happen. With ``--again`` one that has shown a
violation is run again so many times: all of it is told, but it fails only if it shows one again. So
a change is not held up by what is rare and was there before; what is told is to be looked at.

Run: python tests/cluster/faults.py [--cases 40 | --minutes 8] [--seed SEED] [--log campaign.csv]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing.util
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

PROJECT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(PROJECT)]

from tests.conftest import FORKS, PLUGIN, draw_category  # noqa: E402

if TYPE_CHECKING:
    from tests.cluster.case import Case, Grounds

INJECTED = Path(__file__).parent / "injected"
COLUMNS = ("seed", "faults", "seconds", "violations", "commit")
#: Set in the process that has a mount namespace of its own, or could have none.
_APART = "ANOMTUNE_TEST_APART"
_DISK = "256m"
#: Seconds that a case takes: none is begun for which there is less time.
_USUAL = 10.0


def _go_apart() -> None:
    """Begins this script again where it may mount a small file system, if it may."""
    if _APART in os.environ:
        return
    os.environ[_APART] = ""
    apart = ["unshare", "--mount", "--propagation", "private"]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print("no right to mount a file system: no disk is filled", flush=True)
        return
    os.environ[_APART] = "mounts"
    os.execvp(apart[0], [*apart, sys.executable, *sys.argv])


@contextmanager
def _grounds() -> Iterator[Grounds]:
    """Prepares all that cases need, and removes it."""
    with tempfile.TemporaryDirectory(prefix="at", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        multiprocessing.util.get_temp_dir()  # for this process, elsewhere than for drivers
        path = map(str, (INJECTED, PLUGIN, FORKS))
        os.environ |= {
            "ANOMTUNE_CACHE": str(scratch / "cache"),
            "ANOMTUNE_CHECKPOINT_SECONDS": "0.05",
            "ANOMTUNE_TEST_FAULTS": str(scratch / "plan.json"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path),
            "TMPDIR": str(scratch),
        }
        tempfile.tempdir = None
        for index, name in enumerate(("plate", "ring")):
            draw_category(scratch / "data" / name, seed=index)
        sweeps = scratch / "sweeps"
        sweeps.mkdir()
        can_fill = os.environ[_APART] == "mounts"
        if can_fill:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(sweeps)]
            subprocess.run(mount, check=True)
        # What is imported now has read the environment.
        from tests.cluster.case import Grounds
        from tests.cluster.local_cluster import LocalCluster

        cluster = LocalCluster(scratch)
        try:
            yield Grounds(cluster, scratch, sweeps, can_fill=can_fill)
        finally:
            cluster.close()
            if can_fill:
                subprocess.run(["umount", "--lazy", str(sweeps)], check=True)


def _commit() -> str:
    """Returns which code is struck: the commit, with a plus if the code is not that any more."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "*.py")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def read_log(log: Path) -> list[dict[str, str]]:
    """Returns the cases of a log."""
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Returns how often each fault has struck, and the violations of the cases in which it did."""
    struck, wrong = Counter[str](), Counter[str]()
    for row in rows:
        kinds = [fault.partition(":")[0] for fault in row["faults"].split()]
        struck.update(kinds)
        wrong.update({kind: int(row["violations"]) for kind in {*kinds}})
    lines = [f"{'kind':<8} {'number':>6} {'violations':>10}"]
    lines += [f"{kind:<8} {struck[kind]:>6} {wrong[kind]:>10}" for kind in sorted(struck)]
    found = sum(int(row["violations"]) for row in rows)
    lines.append(f"{len(rows)} cases, {struck.total()} faults: {found} violations")
    return "\n".join(lines)


def main() -> None:
    """Runs cases and prints their faults, every violation, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10**6)
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--seed", help="of all cases; default: that of the log, else any")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--log", type=Path, help="a table that is gone on with")
    more = "how often a case with violations is run again"
    parser.add_argument("--again", type=int, default=0, help=more)
    options = parser.parse_args()
    _go_apart()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves nothing running
    end = time.monotonic() + 60 * options.minutes
    earlier = read_log(options.log) if options.log else []
    rows, commit = list[dict[str, str]](), _commit()
    master = options.seed or secrets.token_hex(3)
    if earlier and not options.seed:
        master = earlier[-1]["seed"].partition("/")[0]
    done = [int(row["seed"].rpartition("/")[2]) for row in earlier]
    first = max([options.first, *(number + 1 for number in done)])
    with _grounds() as grounds:
        from tests.cluster.case import Case

        for number in range(first, first + options.cases):
            if time.monotonic() + _USUAL > end:
                break
            seed = f"{master}/{number}"
            rows.append(_run(Case(grounds, seed), seed, commit))
            if options.log:
                _add(options.log, rows[-1])
        wrong = _with_violations(rows)
        if options.again:
            print(f"again: {', '.join(wrong) or 'none'}", flush=True)
            runs = [seed for seed in wrong for _ in range(options.again)]
            wrong = _with_violations([_run(Case(grounds, seed), seed, commit) for seed in runs])
    print(table(earlier + rows))
    sys.exit(bool(wrong))


def _with_violations(rows: list[dict[str, str]]) -> list[str]:
    return [row["seed"] for row in rows if int(row["violations"])]


def _run(case: Case, seed: str, commit: str) -> dict[str, str]:
    """Runs a case, prints what it came to, and returns its row of the log."""
    begin = time.monotonic()
    outcome = case.run()
    seconds = time.monotonic() - begin
    print(f"{seed}: {' '.join(outcome.struck)} in {seconds:.1f} s", flush=True)
    for violation in outcome.wrong:
        print(f"    {violation}", flush=True)
    case.clear()
    found = seed, " ".join(outcome.struck), f"{seconds:.1f}", str(len(outcome.wrong)), commit
    return dict(zip(COLUMNS, found, strict=True))


def _add(log: Path, row: dict[str, str]) -> None:
    begins = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if begins:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
