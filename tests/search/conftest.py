"""Sweeps of the toy method, a pool that runs without Ray on a simulated clock, and a browser."""

from __future__ import annotations

import heapq
import math
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.decide.plan import SearchPlan, plan_search
from anomtune.search.decide.pool import Pool
from anomtune.search.store.judged import Judged
from anomtune.search.store.records import Cost, Facts, Rung, StudyKey, TrialRecord

FACTS = Facts(n_val_normal=3, n_val_anomalous=3, parameters=2)


def sweep_dict(root: object = "/nowhere", **changes) -> dict:
    """Returns a small sweep of the toy method as a sweep file holds it."""
    return {
        "name": "toys",
        "dataset": {"name": "folder", "root": str(root)},
        "image_size": 32,
        "trials": 4,
        "rungs": 4,
        "methods": {"toy": {}},
        "confirm": 0,
    } | changes


@pytest.fixture
def make_sweep() -> Callable[..., Sweep]:
    return lambda root="/nowhere", **changes: parse_sweep(sweep_dict(root, **changes), "test")


#: Labels of as many images as it takes for an AUROC to be any number.
_MANY = np.repeat([0, 1], 10**4)


def _possible(value: float) -> float:
    """Returns an AUROC that these images can have."""
    return round(min(1.0, max(0.0, value)) * 2 * 10**8) / (2 * 10**8)


class Simulation:
    """Runs pools with workers and a clock that exist only here.

    A trial's value grows with ``quality`` and its rungs; its duration depends on its parameters
    alone. Each scoring adds or takes something, and luck of its own. The records live in a dict,
    as they would in a directory.
    """

    def __init__(self, categories=("a", "b"), duration: Callable[[dict], float] | None = None):
        self.categories = categories
        self.store: dict[str, str] = {}
        self.duration = duration or (lambda params: 1.0 + 3 * params["quality"])
        self.history: list[tuple[float, str]] = []

    def save(self, record: TrialRecord) -> None:
        self.store[record.path] = record.model_dump_json()

    def records(self) -> dict[StudyKey, list[TrialRecord]]:
        found: dict[StudyKey, list[TrialRecord]] = {}
        for path in sorted(self.store):
            record = TrialRecord.model_validate_json(self.store[path])
            found.setdefault(record.key, []).append(record)
        return found

    def read(self, config: Sweep) -> dict[StudyKey, list[TrialRecord]]:
        """Returns the records as the scoring of their study reads them."""
        return {key: study.read for key, study in self.pool(config).studies.items()}

    def plans(self, config: Sweep) -> dict[StudyKey, SearchPlan]:
        return {
            StudyKey(category, name): plan_search(
                name,
                method,
                image_size=config.image_size,
                paper_scoring=config.scoring == "paper",
            )
            for category in self.categories
            for name, method in config.methods.items()
        }

    def pool(self, config: Sweep) -> Pool:
        hashes = dict.fromkeys(self.categories, "split")
        return Pool(config, self.plans(config), hashes, self.records(), self.save)

    def run(
        self,
        config: Sweep,
        workers: int = 1,
        events: float = math.inf,
        fail: Callable[[TrialRecord], bool] = lambda record: False,
    ) -> Pool:
        """Runs until nothing remains, or dies without warning after a number of events."""
        pool, clock, serial = self.pool(config), 0.0, 0
        queue: list[tuple[float, int, TrialRecord, int]] = []
        while pool.remaining:
            while pool.running < workers and (record := pool.ask()):
                self.history.append((clock, record.path))
                serial += 1
                queue_at = clock + self.duration(record.params)
                heapq.heappush(queue, (queue_at, serial, record, 1))
            if not queue or (events := events - 1) < 0:
                return pool
            clock, _, record, step = heapq.heappop(queue)
            if fail(record):
                pool.finish(record.key, record.number, "FAIL", error="simulated")
                continue
            count = len(pool.studies[record.key].plan.scorings)
            rung = self._rung(record, step, config, count)
            goes_on = pool.report(record.key, record.number, rung)
            if step == config.rungs:
                pool.finish(record.key, record.number, "COMPLETE", facts=FACTS, cost=Cost())
            elif not goes_on:
                pool.finish(record.key, record.number, "PRUNED")
            else:
                serial += 1
                queue_at = clock + self.duration(record.params)
                heapq.heappush(queue, (queue_at, serial, record, step + 1))
        return pool

    def outcome(self) -> dict[str, dict]:
        """Returns every record without what may differ between two runs."""
        return {
            path: TrialRecord.model_validate_json(text).model_dump(exclude={"cost"})
            for path, text in self.store.items()
        }

    @staticmethod
    def _rung(record: TrialRecord, step: int, config: Sweep, scorings: int) -> Rung:
        chance = random.Random(f"{record.path}{step}")
        luck = chance.random() * 0.05
        value = _possible(record.params["quality"] * step / config.rungs * 0.9 + luck)
        judged = [
            _possible(value + 0.05 * math.sin(number) + 0.1 * (chance.random() - 0.5))
            for number in range(1, scorings)
        ]
        return Rung(
            step=step,
            auroc=value,
            auroc_low=0,
            auroc_high=1,
            judged=Judged.of(_MANY, np.array([value, *judged])) if judged else None,
            loss=1 / step,
        )


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()


@pytest.fixture(scope="module")
def browser():
    """Returns a headless Chromium that keeps what its console says."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no chromium with its driver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_program))
    yield driver
    driver.quit()
