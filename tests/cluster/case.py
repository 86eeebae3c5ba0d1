"""A case of the campaign: a small sweep, struck by faults, started again until it is finished.

A case is made by its seed alone; what it comes to also depends on when things happen. Every start
but the last has a fault that ends it, and most have others that it must bear.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.invariants import differences, finished_records, violations
from tests.cluster.start import Grounds, Start

#: Faults that end a start mostly, and how often each is drawn.
ENDING = {"driver": 4, "head": 1, "gcs": 1, "write": 4, "read": 3, "full": 2, "stopped": 2}
#: Faults that a start bears.
BORNE = {"worker": 4, "node": 2, "slow": 3, "clock": 3, "cache": 3, "second": 3}
#: Sweeps whose result depends on nothing but their file: they are run untroubled as well.
_DETERMINED: list[dict[str, Any]] = [
    {"trials": 3, "sampler": "random", "pruner": "none", "confirm": {"top": 1, "seeds": [1]}},
    {"trials": 2, "rungs": 3, "concurrency": 1, "confirm": {"top": 2, "seeds": [1]}},
    {"trials": 3, "rungs": 2, "concurrency": 1, "pruner": "median", "confirm": 0},
    {"trials": 2, "sampler": "random", "pruner": "none", "confirm": {"top": 1, "seeds": [1, 11]}},
]
#: Has a frozen encoder, whose features are kept in the node's cache.
_WITH_FEATURES = {"backbone": "mobilenet_v2", "weights": "random", "iterations": 2}


@dataclass
class Outcome:
    """What a case came to.

    Attributes:
        struck: Each fault that has really struck, and the exit code of its start.
        wrong: Every violation.
    """

    struck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


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
        code: int | None = 0
        if not self._cached:
            shutil.rmtree(os.environ["ANOMTUNE_CACHE"], ignore_errors=True)
        for number, kinds in enumerate([*self._starts, (), ()]):
            generator = random.Random(f"{self._seed}/{number}")
            start = Start(self._grounds, self.sweep, self.directory, kinds, generator)
            # The workers of one that was killed go on until Ray has noticed.
            orphans, code = code != 0, start.run()
            outcome.struck += [f"{kind}:{code}" for kind in start.struck]
            outcome.wrong += start.wrong
            after = finished_records(self.directory)
            outcome.wrong += [
                f"{path}: changed after it had ended"
                for path, content in before.items()
                if after.get(path) != content
            ]
            died = sum(kind in ("worker", "node", "stopped") for kind in start.struck)
            opened = self._grounds.beside_plan(".opened")
            most = 1 + died + orphans + start.followed
            outcome.wrong += _opened_again(opened, before, most)
            before = after
            # A worker of an owner that was followed may still write: the next start tidies up.
            if code == 0 and "stopped" not in start.struck:
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
    for last in [*[False] * generator.choice([1, 1, 2]), True]:
        wanted = generator.choice([1, 2, 2]) if last else generator.choice([1, 1, 2])
        kinds = generator.choices([*BORNE], [*BORNE.values()], k=wanted)
        if not last:
            kinds += generator.choices([*ending], [*ending.values()])
        if "stopped" in kinds:  # one rival is enough
            kinds = [kind for kind in kinds if kind != "second"]
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
    if generator.random() < 0.08:
        sweep["methods"] = {"rd4ad": {"fixed": _WITH_FEATURES}}
        return sweep | {"trials": 2, "confirm": {"top": 1, "seeds": [1]}, "concurrency": 1}, True
    if generator.random() < 0.4:
        return sweep | generator.choice(_DETERMINED[one_by_one : 3 if one_by_one else 4]), True
    if generator.random() < 0.3:
        sweep["dataset"]["categories"] = ["plate", "ring"]
    sweep["methods"]["toy"]["fixed"]["seconds"] = generator.choice([0.0, 0.01, 0.04])
    return sweep | {
        "trials": generator.randint(2, 3),
        "rungs": generator.randint(1, 3),
        "sampler": generator.choice(["tpe", "random"]),
        "pruner": generator.choice(["successive_halving", "median", "none"]),
        "confirm": {
            "top": generator.randint(0, 2),
            "seeds": generator.choice([[1], [1, 11]]),
        },
        "concurrency": 1 if one_by_one else "auto",
    }, one_by_one


def _opened_again(opened: list[str], before: dict[str, bytes], most: int) -> Iterator[str]:
    """Yields the confirm runs of a start whose held-out images were opened without need.

    A run whose process has died is begun again, so that they may be opened more than once.
    """
    ended = set()
    for path, content in before.items():
        if path.startswith("confirm/"):
            record = json.loads(content)
            run = [record[name] for name in ("category", "method", "params", "seed")]
            ended.add(json.dumps(run, sort_keys=True))
    for run, count in Counter(opened).items():
        if run in ended or count > most:
            yield f"{run}: held-out images opened {count} times, ended before: {run in ended}"
