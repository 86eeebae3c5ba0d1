"""``python -m tests.fuzz --inputs 100000``: damages files and prints what their readers do.

Several short runs make a long one, each with a seed of its own: ``--counts FILE`` adds them up.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.readers import READERS
from tests.fuzz.runner import Tally, Trial, run, shares


def main() -> int:
    """Returns the exit code: 1 if there was a fault."""
    arguments = _arguments()
    chosen = [r for r in READERS if arguments.reader is None or arguments.reader in r.name]
    place = Path(tempfile.mkdtemp(prefix="anomtune-fuzz-"))
    try:
        if arguments.again is not None:
            return _again(place, arguments)
        share = shares(tuple(chosen), arguments.inputs)
        print(f"seed {arguments.seed}", flush=True)
        random.Random(arguments.seed).shuffle(chosen)  # where time is short, none is always last
        until = time.monotonic() + arguments.seconds
        found: dict[str, Tally] = {}
        for reader in chosen:
            numbers, started = range(share(reader)), time.monotonic()
            found[reader.name] = tally = run(reader, place / "run", arguments.seed, numbers, until)
            seconds = time.monotonic() - started
            if arguments.counts:  # at once: a run may be ended at any time
                _add(arguments.counts, reader.name, _counts(tally))
            print(f"{reader.name:20} {tally.inputs:6} in {seconds:5.1f} s", flush=True)
            for fault, inputs in tally.faults.items():
                print(f"    {len(inputs):5} x {fault}   --again {inputs[0]}", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    counts = {name: _counts(tally) for name, tally in found.items()}
    _print(json.loads(arguments.counts.read_text()) if arguments.counts else counts)
    return int(any(tally.faults for tally in found.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--reader", help="a part of the name of the reader")
    parser.add_argument("--counts", type=Path, help="a file in which counts add up")
    parser.add_argument("--again", type=int, help="read this input of --reader, with traceback")
    return parser.parse_args()


def _again(place: Path, arguments: argparse.Namespace) -> int:
    """Reads one input where a debugger can follow; prints what it is."""
    (reader,) = [r for r in READERS if r.name == arguments.reader]
    trial = Trial(reader, place / "run", arguments.seed)
    with trial.damaged(arguments.again) as target:
        content = target.read_bytes() if target.is_file() else b""
        print(f"{target}: {len(content)} bytes: {content[:1500]!r}", flush=True)
        reader.read(trial.folder)
    print("accepted")
    return 0


def _counts(tally: Tally) -> dict[str, int]:
    faults = sum(map(len, tally.faults.values()))
    return {
        "inputs": tally.inputs,
        "refused": tally.refused,
        "accepted": tally.accepted,
        "faults": faults,
    }


def _add(path: Path, name: str, counts: dict[str, int]) -> None:
    kept = json.loads(path.read_text()) if path.exists() else {}
    earlier = kept.get(name, {})
    kept[name] = {key: earlier.get(key, 0) + value for key, value in counts.items()}
    path.write_text(json.dumps(kept, indent=1))


def _print(counts: dict[str, dict[str, int]]) -> None:
    print("| reader | inputs | refused | accepted | faults |\n| --- | --- | --- | --- | --- |")
    total: Counter[str] = Counter()
    for name, known in counts.items():
        total.update(known)
        print(f"| {name} | " + " | ".join(f"{number:,}" for number in known.values()) + " |")
    print("| all | " + " | ".join(f"{number:,}" for number in total.values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
